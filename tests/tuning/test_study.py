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
    assert told.intermediate_values == {}


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


def test_a_forgotten_suggestion_is_no_longer_open():
    study = make_study()
    study.forget(study.ask())
    assert [trial.state for trial in study.optuna_trials] == [TOLD.FAIL]


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
        study.forget(suggestion)
    assert seen == [(0, 1e-3), (0, 1e-2), (2, 1e-3), (2, 1e-2)]
    assert study.ask() is None
    assert len(study.optuna_trials) == 4
