import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.effective import effective_key, is_single, resolved_settings
from tune_fusion.space.settings import TrainingSettings

DEFAULTS = {
    "adam": {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0},
    "sgd": {"lr": 1e-2, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "plain": {"lr": 1e-3},
}
rates = st.floats(1e-6, 1.0)


@st.composite
def choices(draw):
    name = draw(st.sampled_from(sorted(DEFAULTS)))
    possible = {
        "lr": rates,
        "momentum": st.sampled_from([0.0, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
    }
    keys = draw(st.lists(st.sampled_from(sorted(possible.keys() & DEFAULTS[name].keys())), unique=True))
    return OptimizerChoice(name, {key: draw(possible[key]) for key in keys})


trainings = st.builds(
    TrainingSettings,
    epochs=st.integers(1, 3),
    weight_decay=st.sampled_from([None, 0.0, 0.1]),
    schedule=st.sampled_from(["constant", "cosine", "step"]),
)
configurations = st.one_of(
    st.builds(Configuration, st.just("all"), choices(), st.none(), trainings),
    st.builds(Configuration, st.integers(0, 3), choices(), choices(), trainings),
)


def adam(**settings):
    return OptimizerChoice("adam", settings)


def sgd(**settings):
    return OptimizerChoice("sgd", settings)


@given(c=configurations)
def test_the_round_trip_through_json_keeps_the_key(vocabulary, c):
    again = Configuration.from_dict(json.loads(json.dumps(c.to_dict())))
    assert effective_key(again, vocabulary) == effective_key(c, vocabulary)
    assert is_single(again, vocabulary) == is_single(c, vocabulary)


@given(c=configurations)
def test_spelling_everything_out_keeps_the_key(vocabulary, c):
    def spelled(choice):
        if choice is None:
            return None
        settings = resolved_settings(choice, c.training, vocabulary.optimizers)
        return OptimizerChoice(choice.name, dict(reversed(settings.items())))

    full = Configuration(c.switch_layer, spelled(c.low), spelled(c.high), c.training)
    assert effective_key(full, vocabulary) == effective_key(c, vocabulary)
    key = effective_key(c, vocabulary)
    bare = c.training.model_copy(update={"weight_decay": None})
    # Resolving twice changes nothing: the shared weight decay is in the settings already.
    assert (
        effective_key(Configuration(c.switch_layer, spelled(c.low), spelled(c.high), bare), vocabulary) == key
    )


@given(c=configurations, data=st.data())
def test_equal_keys_mean_equal_training(vocabulary, c, data):
    """A change of anything that has an effect changes the key."""
    changes = [
        Configuration(
            c.switch_layer, OptimizerChoice(c.low.name, {**c.low.settings, "lr": 2.0}), c.high, c.training
        ),
        Configuration(c.switch_layer, c.low, c.high, c.training.model_copy(update={"epochs": 99})),
        Configuration(c.switch_layer, c.low, c.high, c.training.model_copy(update={"batch_size": 1})),
    ]
    if not is_single(c, vocabulary):
        changes.append(Configuration(c.switch_layer + 1, c.low, c.high, c.training))
    changed = data.draw(st.sampled_from(changes))
    assert effective_key(changed, vocabulary) != effective_key(c, vocabulary)


@given(switch=st.integers(0, 5), other=st.integers(0, 5), choice=choices(), training=trainings)
def test_an_equal_pair_is_the_single_optimizer(vocabulary, switch, other, choice, training):
    alone = Configuration("all", choice, None, training)
    key = effective_key(alone, vocabulary)
    for k in (switch, other):
        pair = Configuration(k, choice, choice, training)
        assert effective_key(pair, vocabulary) == key
        assert is_single(pair, vocabulary)


def test_pairs_that_differ_only_in_spelling_are_single(vocabulary):
    pair = Configuration(2, adam(lr=1e-3), adam(betas=(0.9, 0.999)))
    assert is_single(pair, vocabulary)
    assert effective_key(pair, vocabulary) == effective_key(Configuration("all", adam(), None), vocabulary)


def test_order_of_the_halves_matters(vocabulary):
    one, other = Configuration(2, adam(), sgd()), Configuration(2, sgd(), adam())
    assert not is_single(one, vocabulary)
    assert effective_key(one, vocabulary) != effective_key(other, vocabulary)


def test_a_high_optimizer_at_all_has_no_effect(vocabulary):
    assert is_single(Configuration("all", adam(), sgd()), vocabulary)


def test_numbers_are_compared_as_numbers(vocabulary):
    keys = {
        effective_key(Configuration("all", sgd(lr=1, momentum=m), None), vocabulary) for m in (0, 0.0, -0.0)
    }
    keys.add(effective_key(Configuration("all", sgd(lr=1.0), None), vocabulary))
    assert len(keys) == 1


def test_nearby_rates_differ(vocabulary):
    first, second = (Configuration("all", adam(lr=lr), None) for lr in (0.1, 0.1 + 2**-56))
    assert effective_key(first, vocabulary) != effective_key(second, vocabulary)


@pytest.mark.parametrize(
    ("choice", "weight_decay", "resolved"),
    [
        (adam(), None, 0.0),
        (adam(), 0.1, 0.1),
        (adam(weight_decay=0.2), 0.1, 0.2),
        (adam(weight_decay=0.0), 0.1, 0.0),
    ],
)
def test_shared_weight_decay_fills_in_where_none_is_set(vocabulary, choice, weight_decay, resolved):
    training = TrainingSettings(weight_decay=weight_decay)
    settings = resolved_settings(choice, training, vocabulary.optimizers)
    assert settings == {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": resolved}


def test_optimizers_without_weight_decay_get_none(vocabulary):
    training = TrainingSettings(weight_decay=0.1)
    plain = OptimizerChoice("plain", {"lr": 0.5})
    assert resolved_settings(plain, training, vocabulary.optimizers) == {"lr": 0.5}
    with_decay = Configuration("all", plain, None, training)
    assert effective_key(with_decay, vocabulary) == effective_key(
        Configuration("all", plain, None), vocabulary
    )


def test_details_of_an_unused_schedule_have_no_effect(vocabulary):
    def key(**training):
        return effective_key(Configuration("all", adam(), None, TrainingSettings(**training)), vocabulary)

    assert key(step_gamma=0.5) == key(step_gamma=0.1)
    assert key(schedule="step", step_gamma=0.5) != key(schedule="step", step_gamma=0.1)
    assert key(schedule="cosine") != key()


def test_unknown_optimizers_are_named(vocabulary):
    with pytest.raises(InputError, match="unknown optimizer 'adan'; did you mean 'adam'"):
        effective_key(Configuration("all", OptimizerChoice("adan"), None), vocabulary)
