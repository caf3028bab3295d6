import dataclasses
import json

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.domain import Constant, FloatRange, IntRange, extremes, same_value
from tune_fusion.space.sampling import default_parameters, describe, draw, grid_parameters, parameters_of

GRID = (
    "search.sampler=grid",
    "space.switch_layer=[0, 2, all]",
    "space.optimizers={adam: {lr: 1e-3}, sgd: {lr: {choice: [0.1, 0.01]}, momentum: {int: [0, 1]}}}",
    "space.optimizers.sgd.momentum={choice: [0, 0.9]}",
    "space.optimizers.hn_adam={betas: {choice: [[0.9, 0.99], [0.9, 0.999]]}}",
    "training.batch_size={choice: [32, 64]}",
)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def ask(space, arm, enqueued=None, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if enqueued is not None:
        study.enqueue_trial(enqueued)
    trial = study.ask()
    return draw(space, arm, trial), trial.params


def belongs(choice, space):
    for key, value in choice.settings.items():
        domain = space.optimizers[choice.name][key]
        if isinstance(domain, FloatRange | IntRange):
            assert domain.low <= value <= domain.high
        else:
            assert any(same_value(value, member) for member in extremes(domain))
    assert choice.settings.keys() == space.optimizers[choice.name].keys()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_fusions_lie_in_the_space(parse, seed):
    space = parse("training.batch_size={choice: [32, 64]}", "training.label_smoothing={float: [0, 0.1]}")
    drawn, asked = ask(space, "fusion", seed=seed)
    assert 0 <= drawn.switch_layer <= 6
    assert drawn.low.name in space.low
    assert drawn.high.name in space.high
    belongs(drawn.low, space)
    belongs(drawn.high, space)
    assert drawn.training.batch_size in (32, 64)
    assert 0 <= drawn.training.label_smoothing <= 0.1
    assert drawn.training.epochs == 4
    halves = {f"{half}.{getattr(drawn, half).name}." for half in ("low", "high")}
    for name in asked:
        fixed = ("switch_layer", "low.optimizer", "high.optimizer")
        assert name in fixed or name.startswith(("training.", *halves))


def test_controls_train_every_layer_with_one_optimizer(parse):
    drawn, asked = ask(parse(), "control")
    assert drawn.switch_layer == "all"
    assert drawn.high is None
    assert drawn.low.name in ("adam", "hn_adam")
    assert "switch_layer" not in asked


def test_what_is_settled_is_not_asked(parse):
    space = parse("space.low=adam", "space.high=sgd", "space.switch_layer=2", "space.optimizers.adam.lr=1e-3")
    drawn, asked = ask(space, "fusion")
    assert sorted(asked) == ["high.sgd.lr", "high.sgd.momentum"]
    assert (drawn.switch_layer, drawn.low) == (2, OptimizerChoice("adam", {"lr": 1e-3}))


def test_at_all_no_high_optimizer_is_asked_for(parse):
    drawn, asked = ask(parse("space.switch_layer=[0, all]"), "fusion", {"switch_layer": "all"})
    assert drawn.switch_layer == "all"
    assert drawn.high is None
    assert not any(name.startswith("high") for name in asked)


def test_pairs_and_mixed_choices_survive_optuna(parse):
    space = parse(
        "space.low=adam",
        "space.optimizers.adam={betas: {choice: [[0.9, 0.99], [0.8, 0.9]]}}",
        "training.clip_norm={choice: [null, 1.0]}",
    )
    drawn = {ask(space, "fusion", seed=seed)[0].flat()["low.betas"] for seed in range(12)}
    assert drawn == {(0.9, 0.99), (0.8, 0.9)}
    clips = {ask(space, "fusion", seed=seed)[0].training.clip_norm for seed in range(12)}
    assert clips == {None, 1.0}


def test_names_of_layers_must_be_resolved_first(parse):
    space = parse("space.switch_layer=[stem, head]")
    with pytest.raises(ValueError, match="resolve it first"):
        ask(space, "fusion")
    with pytest.raises(ValueError, match="resolve it first"):
        default_parameters(space, "fusion")


def test_an_impossible_draw_of_training_is_impossible(parse):
    """What the loader lets pass, TrainingSettings accepts: drawing never fails."""
    space = parse("training.epochs={int: [1, 9]}", "training.step_gamma={float: [0.1, 1]}")
    for seed in range(20):
        ask(space, "fusion", seed=seed)


# --- defaults


def test_defaults_of_a_fusion(parse):
    assert default_parameters(parse(), "fusion") == [
        {
            "switch_layer": 3,
            "low.optimizer": "adam",
            "low.adam.lr": 1e-3,
            "high.optimizer": "sgd",
            "high.sgd.lr": 1e-2,
            "high.sgd.momentum": 0.0,
        }
    ]


def test_defaults_are_clipped_into_their_ranges(parse):
    (answers,) = default_parameters(
        parse(
            "space.optimizers.adam={lr: {log: [1e-2, 1]}, betas: {choice: [[0.5, 0.5], [0.9, 0.99]]}}",
            "space.optimizers.sgd={momentum: {choice: [0.9, 0.5]}}",
            "training.batch_size={int: [8, 64]}",
            "training.clip_norm={float: [1, 3]}",
        ),
        "fusion",
    )
    assert answers["low.adam.lr"] == 1e-2
    assert answers["low.adam.betas"] == "[0.9, 0.99]"
    assert answers["high.sgd.momentum"] == 0.5
    assert answers["training.batch_size"] == 64
    assert answers["training.clip_norm"] == 2.0


@pytest.mark.parametrize(
    ("low", "high", "pair"),
    [
        ("[adam, sgd]", "[adam, sgd]", ("adam", "sgd")),
        ("[adam, sgd]", "[adam]", ("sgd", "adam")),
        ("[adam]", "[adam]", ("adam", "adam")),
        ("[adam, sgd]", "[hn_adam, adam]", ("adam", "hn_adam")),
    ],
)
def test_the_default_fusion_prefers_two_optimizers(parse, low, high, pair):
    space = parse(f"space.low={low}", f"space.high={high}")
    (answers,) = default_parameters(space, "fusion")
    drawn = draw(space, "fusion", FixedTrial(answers))
    assert (drawn.low.name, drawn.high.name) == pair


@pytest.mark.parametrize(
    ("switch", "middle"), [("[4, 0, 2, all]", 2), ("[0, all]", 0), ("{int: [1, 4]}", 2), ("[5, 6]", 5)]
)
def test_the_default_fusion_switches_in_the_middle(parse, switch, middle):
    (answers,) = default_parameters(parse(f"space.switch_layer={switch}"), "fusion")
    assert answers["switch_layer"] == middle


def test_each_control_has_its_defaults(parse):
    space = parse()
    drawn = [draw(space, "control", FixedTrial(answers)) for answers in default_parameters(space, "control")]
    assert [c.low for c in drawn] == [
        OptimizerChoice("adam", {"lr": 1e-3}),
        OptimizerChoice("hn_adam", {"lr": 1e-3, "lambda0": 2.5}),
    ]


def test_each_optimizer_for_every_layer_has_its_defaults(parse):
    space = parse("space.switch_layer=all", "space.high=null")
    assert [a["low.optimizer"] for a in default_parameters(space, "fusion")] == ["adam", "sgd"]


@pytest.mark.parametrize("arm", ["fusion", "control"])
def test_optuna_takes_the_defaults_as_they_are(parse, arm):
    space = parse("space.optimizers.adam.betas={choice: [[0.9, 0.99], [0.9, 0.999]]}")
    for answers in default_parameters(space, arm):
        drawn, asked = ask(space, arm, answers)
        assert asked == answers
        assert drawn == draw(space, arm, FixedTrial(answers))


# --- grid


def test_a_grid_holds_every_configuration_once(parse):
    space = parse(*GRID)
    answers = list(grid_parameters(space, "fusion"))
    drawn = [draw(space, "fusion", FixedTrial(a)) for a in answers]
    # A half is adam (1 way) or sgd (4 ways); switch 0 and 2 have both halves, all has one; 2 batch sizes.
    assert len(drawn) == 2 * (2 * 5 * 5 + 5)
    assert len({repr(c) for c in drawn}) == len(drawn)
    assert answers == list(grid_parameters(space, "fusion"))
    assert answers[0] == {
        "switch_layer": 0,
        "low.optimizer": "adam",
        "high.optimizer": "sgd",
        "high.sgd.lr": 0.1,
        "high.sgd.momentum": 0,
        "training.batch_size": 32,
    }
    assert {**answers[0], "training.batch_size": 64} == answers[1]


def test_optuna_takes_a_grids_points_as_they_are(parse):
    space = parse(*GRID)
    for answers in list(grid_parameters(space, "control")):
        drawn, asked = ask(space, "control", answers)
        assert asked == answers
        assert drawn == draw(space, "control", FixedTrial(answers))


def test_a_grid_of_constants_has_one_point(parse):
    space = parse(
        "space.low=adam",
        "space.high=sgd",
        "space.switch_layer=1",
        "space.controls=null",
        "space.optimizers={adam: {}, sgd: {}}",
    )
    assert list(grid_parameters(space, "fusion")) == [{}]


def test_a_grid_is_walked_lazily(parse):
    space = parse(*GRID, "training.batch_size={int: [1, 1000000]}")
    points = grid_parameters(space, "fusion")
    assert [next(points)["training.batch_size"] for _ in range(3)] == [1, 2, 3]


def test_there_is_no_grid_of_a_continuous_range(parse):
    with pytest.raises(ValueError, match="a grid needs finite choices"):
        next(grid_parameters(parse(), "fusion"))


# --- the way back


@pytest.mark.parametrize("arm", ["fusion", "control"])
def test_the_answers_of_a_configuration_are_those_it_was_drawn_with(parse, arm):
    space = parse("space.optimizers.adam.betas={choice: [[0.9, 0.99], [0.9, 0.999]]}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(40):
        trial = study.ask()
        configuration = draw(space, arm, trial)
        # As it comes out of a file.
        again = Configuration.from_dict(json.loads(json.dumps(configuration.to_dict())))
        assert parameters_of(space, arm, again) == trial.params
    for answers in list(grid_parameters(parse(*GRID), arm)):
        assert parameters_of(parse(*GRID), arm, draw(parse(*GRID), arm, FixedTrial(answers))) == answers


def test_a_configuration_that_the_space_does_not_contain_has_no_answers(parse):
    space = parse("training.batch_size=64")
    (answers,) = default_parameters(space, "fusion")
    configuration = draw(space, "fusion", FixedTrial(answers))
    assert parameters_of(space, "fusion", configuration) == answers
    low = configuration.low
    for other, message in [
        (dataclasses.replace(configuration, switch_layer=999), "switch_layer: 999 is not "),
        (
            dataclasses.replace(configuration, low=OptimizerChoice("lion", low.settings)),
            "low.optimizer: 'lion' is not",
        ),
        (
            dataclasses.replace(configuration, low=OptimizerChoice(low.name, {**low.settings, "lr": 99.0})),
            rf"low.{low.name}.lr: 99.0 is not in \[",
        ),
        (
            dataclasses.replace(configuration, low=OptimizerChoice(low.name, {**low.settings, "lr": None})),
            rf"low.{low.name}.lr: null is not in \[",
        ),
        (
            dataclasses.replace(configuration, low=OptimizerChoice(low.name, {**low.settings, "new": 1})),
            "low.new: 1 would be null",
        ),
        (
            dataclasses.replace(
                configuration, training=configuration.training.model_copy(update={"batch_size": 32})
            ),
            "training.batch_size: 32 would be 64",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            parameters_of(space, "fusion", other)


# --- text


def test_describe():
    fusion = Configuration(
        3,
        OptimizerChoice("adam", {"lr": 1.2e-3, "betas": (0.9, 0.99)}),
        OptimizerChoice("sgd", {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    )
    low = "low adam lr 1.2e-03 betas [0.9, 0.99]"
    high = "high sgd lr 3.0e-02 momentum 0.9 nesterov true weight_decay 1.0e-04"
    assert describe(fusion) == f"switch 3 {low} | {high}"
    assert describe(fusion, ["a", "b", "c", "blocks.3", "d"]) == f"switch 3 (blocks.3) {low} | {high}"
    single = Configuration("all", OptimizerChoice("hn_adam", {"lambda0": 2.5}), None)
    assert describe(single, ["a"]) == "all layers hn_adam lambda0 2.5"


def test_constants_of_the_file_are_part_of_the_configuration(parse):
    space = parse("space.optimizers.adam.betas=[0.9, 0.99]")
    assert space.optimizers["adam"]["betas"] == Constant((0.9, 0.99))
    drawn = draw(space, "control", FixedTrial({"low.optimizer": "adam", "low.adam.lr": 0.01}))
    assert drawn.low.settings == {"lr": 0.01, "betas": (0.9, 0.99)}
