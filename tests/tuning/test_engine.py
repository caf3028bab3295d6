"""The engine, driven by a simulated cluster: no Ray, no training."""

import math
from collections import Counter

import pytest

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.records import SearchRecord, TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.effective import effective_key
from tune_fusion.space.loading import parse_space
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.engine import Engine

VOCABULARY = Vocabulary(OPTIMIZERS, DATA_SETS)
LAYERS = ["conv1", "conv2", "fc1", "fc2", "fc3"]
SPACE = """
model: {name: lenet5}
data: {name: digits}
training: {epochs: 9}
space:
  switch_layer: {int: [0, 3]}
  low: [adam, sgd]
  high: [sgd, adam]
  optimizers:
    adam: {lr: {log: [1e-5, 1e-1]}}
    sgd: {lr: {log: [1e-4, 1e-0]}}
  controls: [adam, sgd]
search: {trials: 40}
"""
FINITE = """
model: {name: lenet5}
data: {name: digits}
space:
  switch_layer: [0, 1]
  low: [adam, sgd]
  high: [adam, sgd]
  optimizers: {adam: {lr: {choice: [1e-3, 1e-2]}}, sgd: {lr: 0.1}}
search: {trials: 40, sampler: SAMPLER}
"""


class Listener:
    def __init__(self):
        self.calls = Counter()

    def trial_started(self, trial):
        self.calls["started", trial.number] += 1

    def epoch_ended(self, trial):
        self.calls["epoch", trial.number, len(trial.epochs)] += 1

    def trial_ended(self, trial):
        self.calls["ended", trial.number] += 1


def make_engine(text=SPACE, slots=1, listeners=(), **changes):
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    space = parse_space(text, "made.yaml", VOCABULARY, overrides).with_switch(LAYERS)
    record = SearchRecord("name", space.name, space.search.metric, space.direction, space.search.trials, 0.0)
    return Engine(space, VOCABULARY, record, LAYERS, lambda: slots, listeners)


def quality(configuration, epoch):
    """A smooth, known truth: Adam low near lr 1e-3 and a late switch are good; training helps."""
    low, high = configuration["low"], configuration["high"]
    score = 0.9 - 0.1 * abs(math.log10(low["lr"]) + 3)
    if high:
        score += 0.02 * configuration["switch_layer"] - 0.05 * abs(math.log10(high["lr"]) + 1)
    return max(0.0, score) * (1 - 0.5 / epoch)


def run(engine, fail=lambda trial: False, diverge=lambda trial: False):
    """Run the search to its end, the running trials in turns as a cluster would."""
    running = []
    while True:
        while (trial := engine.suggest()) is not None:
            running.append(trial)
        if not running:
            assert engine.finished
            return engine.record
        trial = running.pop(0)
        if fail(trial):
            engine.fail(trial.number, "RuntimeError: no")
            continue
        epoch = len(trial.epochs) + 1
        value = quality(trial.configuration, epoch)
        if diverge(trial):
            engine.report(trial.number, {"train_seconds": 1.0}, diverged=True)
        elif engine.report(
            trial.number, {"val_accuracy": value, "val_loss": 1 - value, "train_seconds": 1.0}
        ):
            running.append(trial)


def test_both_arms_get_their_budget_controls_first_and_defaults_first_in_each():
    record = run(make_engine())
    arms = [trial.arm for trial in record.trials]
    assert arms == ["control"] * 20 + ["fusion"] * 20
    origins = [trial.origin for trial in record.trials]
    assert origins == ["default"] * 2 + ["sampled"] * 18 + ["default"] + ["sampled"] * 19
    assert all(trial.parameters["switch_layer"] == "all" and trial.single for trial in record.trials[:20])


def test_the_untuned_defaults_run_to_their_last_epoch_and_others_are_stopped_at_rungs():
    record = run(make_engine())
    for trial in record.trials:
        if trial.origin == "default":
            assert trial.state is TrialState.COMPLETED
        assert (trial.state is TrialState.COMPLETED) == (len(trial.epochs) == 9)
        if trial.state is TrialState.STOPPED:
            assert len(trial.epochs) in (1, 3)
            assert trial.reason == f"stopped at rung {len(trial.epochs)}"
    assert record.counts()["stopped"] > record.counts()["completed"]


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    def parameters(seed, slots):
        return [t.parameters for t in run(make_engine(search__seed=seed, slots=slots)).trials]

    assert parameters(3, 4) == parameters(3, 4)
    assert parameters(3, 1) != parameters(4, 1)


def test_tpe_finds_better_configurations_than_the_untuned_default():
    record = run(make_engine())
    assert record.value(record.best()) > record.value(record.untuned("fusion"))


def test_no_more_trials_run_at_once_than_there_are_slots():
    engine = make_engine(slots=3)
    started = [engine.suggest() for _ in range(5)]
    assert [t is not None for t in started] == [True, True, True, False, False]
    assert not engine.finished
    engine.fail(0, "gone")
    assert engine.suggest() is not None


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_finite_space_is_exhausted_without_running_anything_twice(sampler):
    engine = make_engine(FINITE.replace("SAMPLER", sampler))
    record = run(engine)
    keys = [effective_key(Configuration.from_dict(t.configuration), VOCABULARY) for t in record.trials]
    assert len(keys) == len(set(keys))
    # Unequal pairs at two switch layers: 3*3 - 3 = 6 pairs, 12; equal pairs are single optimizers: 3.
    if sampler == "grid":
        assert len(keys) == 15
        assert sum(t.single for t in record.trials) == 3
        assert record.duplicates == 18 - 15
    else:
        # Drawing at random, the last few points may not come up in fifty draws.
        assert 10 <= len(keys) <= 15
        assert record.duplicates >= 50
    assert record.notes


def test_listeners_hear_each_event_once():
    listener = Listener()
    record = run(make_engine(listeners=[listener], slots=3, search__trials=12))
    assert set(listener.calls.values()) == {1}
    assert sum(1 for key in listener.calls if key[0] == "epoch") == sum(len(t.epochs) for t in record.trials)
    assert sum(1 for key in listener.calls if key[0] == "ended") == 12


def test_a_diverged_trial_keeps_its_history_and_is_never_the_best():
    record = run(make_engine(), diverge=lambda trial: trial.number % 4 == 0 and len(trial.epochs) >= 1)
    diverged = [t for t in record.trials if t.state is TrialState.DIVERGED]
    assert diverged
    assert all(t.epochs for t in diverged)
    assert record.best().state is not TrialState.DIVERGED


def test_pruned_diverged_and_failed_trials_are_told_as_what_they_are():
    engine = make_engine(search__trials=24, search__control_share=0.0)
    record = run(
        engine,
        fail=lambda trial: trial.number in (5, 6),
        diverge=lambda trial: trial.number in (3, 4),
    )
    told = engine.arms[0].study.optuna_trials
    by_state = Counter(t.state.name for t in told)
    counts = record.counts()
    assert by_state["FAIL"] == counts["failed"] == 2
    assert by_state["COMPLETE"] == counts["completed"]
    assert by_state["PRUNED"] == counts["stopped"] + counts["diverged"]
    for trial, frozen in zip(record.trials, told, strict=True):
        if trial.state is TrialState.STOPPED:
            assert max(frozen.intermediate_values) == len(trial.epochs)
        if trial.state is TrialState.DIVERGED:
            assert math.isnan(frozen.intermediate_values[len(trial.epochs)])


def test_a_search_whose_first_trials_all_fail_alike_stops():
    engine = make_engine()
    record = run(engine, fail=lambda trial: True)
    assert len(record.trials) == 3
    assert engine.broken == "RuntimeError: no"


def test_failures_after_a_success_do_not_stop_the_search():
    record = run(make_engine(), fail=lambda trial: trial.number > 4)
    assert len(record.trials) == 40


def test_interruption_ends_the_running_trials():
    engine = make_engine(slots=2)
    engine.suggest(), engine.suggest()
    engine.interrupt()
    assert [t.state for t in engine.record.trials] == [TrialState.INTERRUPTED] * 2
    assert engine.running == 0


def test_a_space_without_controls_gives_every_trial_to_the_search():
    text = SPACE.replace("  controls: [adam, sgd]\n", "")
    assert {t.arm for t in run(make_engine(text, search__trials=7)).trials} == {"fusion"}


def test_a_grid_larger_than_its_trials_says_so():
    text = FINITE.replace("SAMPLER", "grid")
    assert "first 5 points of a larger grid" in make_engine(text, search__trials=5).record.notes[0]
    assert make_engine(text, search__trials=18).record.notes == []
