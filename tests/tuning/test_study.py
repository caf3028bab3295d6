import json
import math
import random

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_trial

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.records import TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.loading import parse_space
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.study import Study

STEADY = settings(derandomize=True, deadline=None, max_examples=15)
TOLD = optuna.trial.TrialState
TEXT = """
model: {name: lenet5}
data: {name: digits}
space:
  switch_layer: {int: [0, 3]}
  low: [adam, hn_adam]
  high: [sgd, adam]
  controls: [adam, sgd]
search: {trials: 40}
"""
GRID = (
    "search.sampler=grid",
    "space.switch_layer=[0, 2]",
    "space.low=[adam]",
    "space.high=[sgd]",
    "space.controls=[]",
    "space.optimizers={adam: {lr: {choice: [1e-3, 1e-2]}}, sgd: {lr: 0.1}}",
)


def make_study(*overrides, arm="fusion", text=TEXT):
    space = parse_space(text, "made.yaml", Vocabulary(OPTIMIZERS, DATA_SETS), overrides)
    return Study(space, arm, space.direction)


def asked(study, count, tell=lambda study, suggestion, index: None):
    drawn = []
    for index in range(count):
        suggestion = study.ask()
        drawn.append(suggestion.configuration)
        tell(study, suggestion, index)
    return drawn


def completed(study, suggestion, index):
    value = 1 / (1 + index)
    study.tell(suggestion, make_trial(index, [value]), value, "val_accuracy")


def test_the_untuned_defaults_come_first():
    controls = make_study(arm="control")
    suggestions = [controls.ask() for _ in range(4)]
    assert [s.origin for s in suggestions] == ["default", "default", "sampled", "sampled"]
    assert [s.configuration.low.name for s in suggestions[:2]] == ["adam", "sgd"]
    assert all(s.configuration.switch_layer == "all" for s in suggestions)
    for suggestion in suggestions[:2]:
        rate = OPTIMIZERS[suggestion.configuration.low.name].hyperparameters["lr"].default
        assert suggestion.configuration.low.settings["lr"] == pytest.approx(rate)

    fusion = make_study()
    first, second = fusion.ask(), fusion.ask()
    assert (first.origin, second.origin) == ("default", "sampled")
    configuration = first.configuration
    assert (configuration.low.name, configuration.high.name) == ("adam", "sgd")
    assert configuration.switch_layer == 1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_suggestions_depend_on_the_seed_alone(sampler):
    def run(seed):
        return asked(make_study(f"search.sampler={sampler}", f"search.seed={seed}"), 16, completed)

    random.seed(1)
    np.random.seed(1)
    first = run(5)
    random.seed(2)
    np.random.seed(2)
    assert run(5) == first
    assert run(6)[1:] != first[1:]
    assert len({str(configuration) for configuration in first}) == 16


def test_asking_leaves_the_random_state_of_the_process_alone():
    random.seed(3)
    np.random.seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    asked(make_study(), 14, completed)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_arms_draw_differently_from_one_seed():
    # Both arms ask for Adam's rate and nothing else, so that only the arm can make them differ.
    text = TEXT.replace("{int: [0, 3]}", "all").replace("  high: [sgd, adam]\n", "")
    overrides = ("space.low=[adam]", "space.controls=[adam]")
    fusion, control = (
        [c.low.settings["lr"] for c in asked(make_study(*overrides, arm=arm, text=text), 6)]
        for arm in ("fusion", "control")
    )
    assert fusion[0] == control[0]
    assert not set(fusion[1:]) & set(control[1:])


def test_a_completed_trial_is_told_with_its_best_value():
    study = make_study()
    suggestion = study.ask()
    study.tell(suggestion, make_trial(0, [0.25, 0.75, 0.5]), 0.75, "val_accuracy")
    (told,) = study.optuna_trials
    assert (told.state, told.value) == (TOLD.COMPLETE, 0.75)
    assert told.intermediate_values == {1: 0.25, 2: 0.75, 3: 0.5}


def test_a_stopped_trial_is_told_as_pruned_with_every_epoch():
    study = make_study()
    study.tell(study.ask(), make_trial(0, [0.25, 0.5], TrialState.STOPPED), 0.5, "val_accuracy")
    (told,) = study.optuna_trials
    assert told.state == TOLD.PRUNED
    assert told.intermediate_values == {1: 0.25, 2: 0.5}


@pytest.mark.parametrize(
    ("epochs", "reported"),
    [
        ([{"train_seconds": 1.0}], {1: math.nan}),
        ([{"val_accuracy": 0.5}, {"train_loss": 3.0}], {1: 0.5, 2: math.nan}),
    ],
    ids=["in the first epoch", "later"],
)
def test_a_diverged_trial_is_told_as_pruned_with_nan(epochs, reported):
    study = make_study()
    study.tell(study.ask(), make_trial(0, state=TrialState.DIVERGED, epochs=epochs), None, "val_accuracy")
    (told,) = study.optuna_trials
    assert told.state == TOLD.PRUNED
    assert told.intermediate_values == pytest.approx(reported, nan_ok=True)
    assert max(told.constraints.values()) > 0


@pytest.mark.parametrize(
    ("state", "values"),
    [
        (TrialState.FAILED, [0.5]),
        (TrialState.FAILED, []),
        (TrialState.INTERRUPTED, [0.5]),
        (TrialState.RUNNING, [0.5]),
        (TrialState.COMPLETED, []),
    ],
)
def test_what_teaches_nothing_is_told_as_failed(state, values):
    study = make_study()
    study.tell(study.ask(), make_trial(0, values, state), values[0] if values else None, "val_accuracy")
    (told,) = study.optuna_trials
    assert (told.state, told.intermediate_values) == (TOLD.FAIL, {})


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@STEADY
@given(
    endings=st.lists(
        st.tuples(
            st.sampled_from(TrialState),
            st.lists(st.floats(0, 10), max_size=3),
        ),
        min_size=12,
        max_size=16,
    )
)
def test_no_ending_breaks_a_later_ask_or_leaves_a_trial_open(metric, endings):
    study = make_study(f"search.metric={metric}")
    for number, (state, values) in enumerate(endings):
        trial = make_trial(number, values, state, metric=metric)
        if state is TrialState.DIVERGED:
            trial.epochs.append({"train_seconds": 0.1})
        best = trial.best_epoch(metric, "max" if metric == "val_accuracy" else "min")
        study.tell(study.ask(), trial, None if best is None else best[metric], metric)
    # TPE has left its random start by now and models what it was told.
    suggestion = study.ask()
    assert 0 <= suggestion.configuration.switch_layer <= 3
    assert [trial.state for trial in study.optuna_trials].count(TOLD.RUNNING) == 1


def test_diverged_trials_are_avoided_not_sought():
    # The best rate is 1e-4, and those above 1e-3 diverge: what follows the random start must have learnt it.
    study = make_study("space.low=[adam]", "space.high=[adam]", "space.controls=[adam]", arm="control")
    rates = []
    for number in range(40):
        suggestion = study.ask()
        rate = suggestion.configuration.low.settings["lr"]
        rates.append(rate)
        if rate > 1e-3:
            study.tell(suggestion, make_trial(number, state=TrialState.DIVERGED), None, "val_accuracy")
        else:
            value = 1 - abs(math.log10(rate) + 4) / 10
            study.tell(suggestion, make_trial(number, [value]), value, "val_accuracy")
    assert sum(rate > 1e-3 for rate in rates[20:]) < sum(rate > 1e-3 for rate in rates[:20])
    assert sum(rate > 1e-3 for rate in rates[20:]) <= 6


def test_a_grid_gives_every_configuration_once_and_then_nothing():
    study = make_study(*GRID)
    seen = []
    while (suggestion := study.ask()) is not None:
        assert suggestion.origin == "sampled"
        seen.append((suggestion.configuration.switch_layer, suggestion.configuration.low.settings["lr"]))
    assert seen == [(0, 1e-3), (0, 1e-2), (2, 1e-3), (2, 1e-2)]
    assert study.ask() is None
    assert len(study.optuna_trials) == 4


def test_what_does_not_fit_into_memory_is_told_as_infeasible_and_other_failures_are_not():
    study = make_study()
    study.tell(study.ask(), make_trial(0, [], TrialState.FAILED, infeasible=True), None, "val_accuracy")
    study.tell(study.ask(), make_trial(1, [0.5], TrialState.FAILED, infeasible=True), 0.5, "val_accuracy")
    study.tell(study.ask(), make_trial(2, [], TrialState.FAILED), None, "val_accuracy")
    first, second, third = study.optuna_trials
    assert first.state == second.state == TOLD.PRUNED
    assert min(*first.constraints.values(), *second.constraints.values()) > 0
    assert second.intermediate_values == {1: 0.5}
    assert (third.state, third.constraints) == (TOLD.FAIL, {})


def test_what_does_not_fit_into_memory_is_avoided():
    # Every configuration with HN_Adam, which has the most state, is too large.
    study = make_study("space.low=[adam, hn_adam, sgd]", "space.high=[sgd]", "space.controls=[]")
    drawn = []
    for number in range(40):
        suggestion = study.ask()
        name = suggestion.configuration.low.name
        drawn.append(name)
        if name == "hn_adam":
            trial = make_trial(number, [], TrialState.FAILED, infeasible=True)
            study.tell(suggestion, trial, None, "val_accuracy")
        else:
            study.tell(suggestion, make_trial(number, [0.5]), 0.5, "val_accuracy")
    assert drawn[20:].count("hn_adam") < min(4, drawn[:20].count("hn_adam"))


def knows(study):
    return [(t.state, t.params, t.distributions, t.values) for t in study.optuna_trials]


@pytest.mark.parametrize("arm", ["fusion", "control"])
@pytest.mark.parametrize("overrides", [(), ("search.sampler=random",), GRID], ids=["tpe", "random", "grid"])
def test_a_study_that_repeats_what_another_was_asked_goes_on_like_it(overrides, arm):
    if arm == "control":
        overrides = (*(o for o in overrides if "controls" not in o), "space.controls=[adam, sgd]")
    study, again = make_study(*overrides, arm=arm), make_study(*overrides, arm=arm)
    for number in range(14):
        suggestion = study.ask()
        if suggestion is None:
            assert again.ask() is None
            break
        # As it comes out of a file.
        parameters = json.loads(json.dumps(suggestion.parameters))
        configuration = Configuration.from_dict(json.loads(json.dumps(suggestion.configuration.to_dict())))
        repeated = again.repeat(parameters, configuration, suggestion.origin)
        assert (repeated.configuration, repeated.origin, repeated.parameters) == (
            suggestion.configuration,
            suggestion.origin,
            suggestion.parameters,
        )
        for each, own in ((study, suggestion), (again, repeated)):
            completed(each, own, number)
    assert knows(again) == knows(study)
    assert [s and s.parameters for s in (again.ask(), again.ask())] == [
        s and s.parameters for s in (study.ask(), study.ask())
    ]


def test_a_study_that_repeats_knows_of_running_trials_what_the_first_one_knew():
    # Enough is told for TPE to model, and some trials still run: it draws away from those.
    study, again = make_study(), make_study()
    for number in range(24):
        suggestion = study.ask()
        repeated = again.repeat(suggestion.parameters, suggestion.configuration, suggestion.origin)
        if number % 3:
            completed(study, suggestion, number)
            completed(again, repeated, number)
    for _ in range(4):
        assert again.ask().parameters == study.ask().parameters


@pytest.fixture
def soon(monkeypatch):
    """Suggestions are made ahead from the twelfth ended trial on."""
    monkeypatch.setattr("tune_fusion.tuning.study._AHEAD_FROM", 12)


def in_turns(study, count, *, ahead, late=None):
    """What is drawn while two trials run, each better than all before it.

    The trial that should end before suggestion number `late` ends right after it.
    """
    running, drawn = [], []
    for number in range(count):
        if len(running) == 2 and number != late:
            improved(study, *running.pop(0))
        suggestion = study.ask(ahead=ahead)
        drawn.append(suggestion.parameters)
        running.append((suggestion, number))
        if number == late:
            improved(study, *running.pop(0))
    return drawn


def improved(study, suggestion, number):
    value = number / 100
    study.tell(suggestion, make_trial(number, [value]), value, "val_accuracy")


@pytest.mark.usefixtures("soon")
def test_a_suggestion_made_ahead_knows_what_was_known_at_the_one_before_it():
    exact, late = (in_turns(make_study(), 20, ahead=False, late=late) for late in (None, 19))
    assert exact[:19] == late[:19]
    assert exact[19] != late[19]
    ahead = in_turns(make_study(), 20, ahead=True)
    assert ahead == in_turns(make_study(), 20, ahead=True, late=19)


@pytest.mark.usefixtures("soon")
def test_little_history_is_never_passed_over():
    ahead, exact = (in_turns(make_study(), 20, ahead=ahead) for ahead in (True, False))
    # Right after the fourteenth suggestion twelve trials have ended: the fifteenth may be made from there.
    assert ahead[:14] == exact[:14]
    assert ahead[14] != exact[14]


@pytest.mark.usefixtures("soon")
def test_nobody_waits_for_a_suggestion_that_was_made_ahead(monkeypatch):
    study, other = make_study(), make_study()
    in_turns(study, 16, ahead=True), in_turns(other, 16, ahead=True)
    study._ahead.result(timeout=60)

    def modelled(*arguments):
        raise AssertionError("the history is modelled once more")

    expected = other.ask(ahead=True).parameters
    monkeypatch.setattr("tune_fusion.tuning.tpe.TpeSampler._sample", modelled)
    assert study.ask(ahead=True).parameters == expected


@pytest.mark.usefixtures("soon")
def test_what_was_made_ahead_is_thrown_away_where_it_is_not_wanted():
    ahead, exact = make_study(), make_study()
    for study in (ahead, exact):
        in_turns(study, 12, ahead=False)
    suggestion, other = ahead.ask(ahead=True), exact.ask()
    for study, own in ((ahead, suggestion), (exact, other)):
        completed(study, own, 12)
    assert ahead.ask().parameters == exact.ask().parameters
    assert knows(ahead) == knows(exact)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("overrides", [("search.sampler=random",), GRID], ids=["random", "grid"])
def test_only_a_model_is_made_ahead(overrides):
    drawn = [
        [study.ask(ahead=ahead) for _ in range(4)]
        for study, ahead in ((make_study(*overrides), True), (make_study(*overrides), False))
    ]
    assert [s.parameters for s in drawn[0]] == [s.parameters for s in drawn[1]]


def test_pairs_are_repeated_as_pairs():
    overrides = ("space.optimizers={adam: {betas: {choice: [[0.9, 0.99], [0.8, 0.9]]}}}", "space.low=[adam]")
    suggestion = make_study(*overrides).ask()
    repeated = make_study(*overrides).repeat(
        suggestion.parameters, Configuration.from_dict(suggestion.configuration.to_dict()), "default"
    )
    assert isinstance(repeated.configuration.low.settings["betas"], tuple)
    assert repeated.configuration == suggestion.configuration


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.switch_layer={int: [2, 3]}", r"switch_layer: 1 is not in \[2, 3\]"),
        ("space.switch_layer=[0, 2]", r"switch_layer: 1 is not among the choices \[0, 2\]"),
        ("space.switch_layer=2", "switch_layer: is 2 now, not 1"),
        ("space.low=[hn_adam, sgd]", "low.optimizer: 'adam' is not among"),
        ("space.high=[adam]", "high.adam.lr has no recorded value"),
        ("space.optimizers={adam: {lr: {log: [1e-5, 1e-4]}}}", r"low.adam.lr: 0.001 is not in"),
        ("space.optimizers={adam: {lr: 0.01}}", "low.adam.lr: is 0.01 now, not 0.001"),
        ("training.batch_size={choice: [32, 64]}", "training.batch_size has no recorded value"),
    ],
)
def test_what_the_space_does_not_allow_any_more_is_not_repeated(override, message):
    suggestion = make_study().ask()
    study = make_study(override)
    with pytest.raises(ValueError, match=message):
        study.repeat(suggestion.parameters, suggestion.configuration, suggestion.origin)
    assert study.optuna_trials == []


def test_a_list_that_shrank_to_one_optimizer_keeps_that_optimizers_trials_only():
    # No rate is open here, so that nothing but the optimizers tells the configurations apart.
    common = ("space.high=[sgd, radam]", "space.controls=[]", "search.sampler=random")
    rates = "adam: {lr: 1e-3}, sgd: {lr: 0.1}, radam: {lr: 1e-3}"
    study = make_study(*common, f"space.optimizers={{{rates}, hn_adam: {{lr: 1e-3}}}}")
    smaller = make_study(*common, f"space.optimizers={{{rates}}}", "space.low=[adam]")
    kept = []
    for suggestion in (study.ask() for _ in range(12)):
        name = suggestion.configuration.low.name
        try:
            smaller.repeat(suggestion.parameters, suggestion.configuration, suggestion.origin)
        except ValueError:
            assert name == "hn_adam"
        else:
            kept.append(name)
    assert 0 < len(kept) < 12
    assert set(kept) == {"adam"}


@pytest.mark.parametrize("answer", [True, "1", None])
def test_an_answer_of_another_kind_is_not_repeated(answer):
    suggestion = make_study().ask()
    with pytest.raises(ValueError, match="switch_layer"):
        make_study().repeat(
            suggestion.parameters | {"switch_layer": answer}, suggestion.configuration, suggestion.origin
        )


def test_a_skipped_suggestion_counts_and_teaches_nothing():
    study, other = make_study(), make_study()
    study.skip(), study.skip()
    other.ask(), other.ask()
    assert [(t.state, t.params) for t in study.optuna_trials] == [(TOLD.FAIL, {})] * 2
    suggestion = study.ask()
    assert suggestion.origin == "sampled"
    assert suggestion.configuration == other.ask().configuration


def test_points_that_were_repeated_in_any_order_are_not_asked_for():
    whole, study = make_study(*GRID), make_study(*GRID)
    points = [whole.ask() for _ in range(4)]
    for point in (points[2], points[0]):
        study.repeat(point.parameters, point.configuration, "sampled")
    assert [study.ask().parameters, study.ask().parameters] == [points[1].parameters, points[3].parameters]
    assert study.ask() is None


def test_a_default_is_asked_for_unless_it_was_repeated_as_one():
    first, second = make_study(), make_study()
    default = first.ask()
    sampled = first.ask()
    second.repeat(sampled.parameters, sampled.configuration, "sampled")
    asked = second.ask()
    assert (asked.origin, asked.parameters) == ("default", default.parameters)
    third = make_study()
    third.repeat(default.parameters, default.configuration, "default")
    assert third.ask().origin == "sampled"


def test_skipping_takes_a_point_of_the_grid():
    study, whole = make_study(*GRID), make_study(*GRID)
    study.skip()
    whole.ask()
    assert study.ask().configuration == whole.ask().configuration
