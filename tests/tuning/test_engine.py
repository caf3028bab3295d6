"""The engine, driven by a simulated cluster: no Ray, no training."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_spaces import VOCABULARY
from simulated import (
    FINITE,
    WITHOUT_CONTROLS,
    engine_for,
    healthy,
    make_engine,
    make_space,
    metrics,
    run,
    session_of,
)

from tune_fusion.events import ArmExhausted, Crowded, EpochEnded, Failed, Suggested, WorkerLost
from tune_fusion.records import TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.effective import effective_key

STEADY = settings(derandomize=True, deadline=None, max_examples=15)


class Listener:
    def __init__(self):
        self.calls = Counter()

    def trial_started(self, trial):
        self.calls["started", trial.number] += 1

    def epoch_ended(self, trial):
        self.calls["epoch", trial.number, len(trial.epochs)] += 1

    def trial_ended(self, trial):
        self.calls["ended", trial.number] += 1


def failing(which):
    """An epoch of a trial that fails where `which` says so."""

    def epoch(engine, trial):
        if which(trial):
            engine.fail(trial.number, "RuntimeError: no")
            return False
        return healthy(engine, trial)

    return epoch


def diverging(which):
    def epoch(engine, trial):
        if which(trial):
            return engine.report(trial.number, {"train_seconds": 1.0}, diverged=True)
        return healthy(engine, trial)

    return epoch


def test_both_arms_run_side_by_side_at_the_same_cost_defaults_first_in_each():
    record = run(make_engine())
    trials = {arm: [t for t in record.trials if t.arm == arm] for arm in ("fusion", "control")}
    assert [t.arm for t in record.trials[:2]] == ["fusion", "control"]
    assert [t.origin for t in trials["fusion"]] == ["default"] + ["sampled"] * (len(trials["fusion"]) - 1)
    assert [t.origin for t in trials["control"]][:3] == ["default", "default", "sampled"]
    assert all(t.parameters["switch_layer"] == "all" and t.single for t in trials["control"])
    epochs = {arm: sum(len(t.epochs) for t in some) for arm, some in trials.items()}
    # One trial at a time: no arm is ever further ahead than by the trial that it has just ended.
    assert abs(epochs["fusion"] - epochs["control"]) <= 9


@STEADY
@given(
    share=st.floats(0.1, 0.9),
    slots=st.integers(1, 6),
    lengths=st.lists(st.integers(1, 9), min_size=60, max_size=60),
)
def test_the_arms_epochs_keep_to_their_shares_whatever_the_trials_lengths(share, slots, lengths):
    engine = make_engine(search__trials=60, search__control_share=share, slots=slots)
    running = []
    while not engine.finished:
        while (trial := engine.suggest()) is not None:
            running.append(trial)
            spent = {arm.name: arm.spent for arm in engine.arms}
            # Before it was given this trial, no arm had spent less.
            counted = 1 / engine.arms[trial.arm == "control"].share
            assert spent[trial.arm] - counted <= min(spent.values()) + 1e-9
        trial = running.pop(0)
        if len(trial.epochs) + 1 >= lengths[trial.number]:
            engine.fail(trial.number, f"RuntimeError: {trial.number}")
        elif engine.report(trial.number, metrics(0.5 + trial.number / 1000), node="host:1"):
            running.append(trial)
    arms = {arm.name: arm for arm in engine.arms}
    assert arms["fusion"].epochs + arms["control"].epochs == sum(len(t.epochs) for t in engine.record.trials)
    assert arms["fusion"].running == arms["control"].running == 0
    assert arms["fusion"].started + arms["control"].started == 60


def test_one_trial_is_a_fusion():
    assert [t.arm for t in run(make_engine(search__trials=1)).trials] == ["fusion"]


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


def test_where_one_trial_runs_at_a_time_no_result_is_passed_over(monkeypatch):
    def parameters(slots):
        return [t.parameters for t in run(make_engine(slots=slots)).trials]

    exact = {slots: parameters(slots) for slots in (1, 3)}
    monkeypatch.setattr("tune_fusion.tuning.study._AHEAD_FROM", 4)
    assert parameters(1) == exact[1]
    assert parameters(3) != exact[3]


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
    engine = make_engine(FINITE, search__sampler=sampler)
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
        assert record.notes == [f"the fusion arm found no new configuration after {len(keys)} trials"]


def test_listeners_hear_each_event_once():
    listener = Listener()
    record = run(make_engine(listeners=[listener], slots=3, search__trials=12))
    assert set(listener.calls.values()) == {1}
    assert sum(1 for key in listener.calls if key[0] == "epoch") == sum(len(t.epochs) for t in record.trials)
    assert sum(1 for key in listener.calls if key[0] == "ended") == 12


def test_a_diverged_trial_keeps_its_history_and_is_never_the_best():
    record = run(make_engine(), diverging(lambda trial: trial.number % 4 == 0 and len(trial.epochs) >= 1))
    diverged = [t for t in record.trials if t.state is TrialState.DIVERGED]
    assert diverged
    assert all(t.epochs for t in diverged)
    assert record.best().state is not TrialState.DIVERGED


def test_pruned_diverged_and_failed_trials_are_told_as_what_they_are():
    def epoch(engine, trial):
        if trial.number in (3, 4):
            return diverging(lambda _: True)(engine, trial)
        return failing(lambda trial: trial.number in (5, 6))(engine, trial)

    engine = make_engine(search__trials=24, search__control_share=0.0)
    record = run(engine, epoch)
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
    record = run(engine, failing(lambda trial: True))
    assert len(record.trials) == 3
    assert engine.broken == "RuntimeError: no"


def test_a_search_whose_first_workers_all_die_alike_stops_when_their_retries_are_spent():
    def epoch(engine, trial):
        engine.lose(trial.number, "killed")
        return False

    engine = make_engine(search__retries=1)
    record = run(engine, epoch)
    assert [trial.losses for trial in record.trials] == [2, 2, 2]
    assert engine.broken == "killed (its worker was lost 2 times)"


def test_a_broken_search_starts_nothing_more():
    engine = make_engine(slots=4)
    for _ in range(4):
        engine.suggest()
    for number in (0, 1, 2):
        engine.fail(number, "RuntimeError: no")
    assert engine.finished
    assert engine.suggest() is None
    assert engine.running == 1


def test_different_failures_do_not_stop_the_search():
    engine = make_engine(search__trials=6)
    for number in range(5):
        engine.suggest()
        engine.fail(number, f"RuntimeError: {number}")
    assert (engine.broken, engine.finished) == ("", False)
    assert engine.suggest() is not None


def test_failures_after_a_success_do_not_stop_the_search():
    record = run(make_engine(), failing(lambda trial: trial.number > 4))
    assert len(record.trials) == 40


def test_leaving_ends_the_running_trials_for_now():
    listener = Listener()
    engine = make_engine(slots=2, listeners=[listener])
    engine.suggest(), engine.suggest()
    engine.report(1, metrics(0.5))
    engine.close("interrupted")
    assert [t.state for t in engine.record.trials] == [TrialState.INTERRUPTED] * 2
    assert engine.record.ended == []
    assert {key for key in listener.calls if key[0] == "ended"} == {("ended", 0), ("ended", 1)}


def test_draining_lets_running_trials_end_and_starts_nothing():
    engine = make_engine(slots=3)
    engine.suggest(), engine.suggest()
    engine.draining = True
    assert engine.suggest() is None
    assert engine.report(0, metrics(0.5))
    engine.set_aside(0)
    engine.fail(1, "gone")
    assert (engine.running, engine.finished) == (0, False)
    assert engine.suggest() is None
    engine.draining = False
    assert engine.suggest() is engine.record.trials[0]


def test_a_trial_that_was_set_aside_goes_on_before_a_new_one_starts():
    engine = make_engine(slots=2)
    first, second = engine.suggest(), engine.suggest()
    engine.set_aside(first.number)
    assert engine.running == 1
    assert engine.suggest() is first
    assert first.losses == 0
    engine.fail(second.number, "gone")
    engine.set_aside(second.number)
    assert engine.suggest().number == 2


@pytest.mark.parametrize("retries", [0, 2])
def test_a_trial_whose_worker_is_lost_is_handed_out_again_until_its_retries_are_spent(retries):
    events = []
    engine = make_engine(search__retries=retries, write=events.append)
    trial = engine.suggest()
    engine.report(trial.number, metrics(0.5))
    for losses in range(1, retries + 1):
        engine.lose(trial.number, "killed by signal 9")
        assert (trial.state, trial.losses, engine.running) == (TrialState.RUNNING, losses, 0)
        assert engine.suggest() is trial
    engine.lose(trial.number, "killed by signal 9")
    assert (trial.state, trial.losses) == (TrialState.FAILED, retries + 1)
    assert trial.reason == "killed by signal 9" + (" (its worker was lost 3 times)" if retries else "")
    assert len(trial.epochs) == 1
    assert engine.record.ended == [0]
    assert [event.ends for event in events if isinstance(event, WorkerLost)] == [False] * retries + [True]
    assert engine.suggest().number == 1


def test_what_has_ended_can_neither_fail_nor_be_lost():
    events = []
    engine = make_engine(write=events.append)
    engine.fail(engine.suggest().number, "RuntimeError: no")
    before = len(events)
    engine.fail(0, "once more")
    engine.lose(0, "gone")
    assert len(events) == before
    assert engine.record.trials[0].reason == "RuntimeError: no"


def finite_without_equals(**changes):
    """Draws at random from six configurations; what is drawn again shows at once."""
    text = FINITE.replace("low: [adam, sgd]", "low: [adam]").replace("high: [adam, sgd]", "high: [sgd]")
    changes = {"search__sampler": "random", "space__switch_layer": "[0, 1, 2]"} | changes
    return make_engine(text, **changes)


def test_a_configuration_that_does_not_fit_into_memory_is_not_tried_again_and_told_as_infeasible():
    def epoch(engine, trial):
        engine.fail(trial.number, f"out of memory {trial.number}", infeasible=True)
        return False

    engine = finite_without_equals()
    record = run(engine, epoch)
    assert len(record.trials) == 6
    assert record.duplicates >= 50
    assert all(trial.infeasible and trial.state is TrialState.FAILED for trial in record.trials)
    told = engine.arms[0].study.optuna_trials
    assert all(max(trial.constraints.values()) > 0 for trial in told)
    assert {trial.state.name for trial in told} == {"PRUNED"}


def test_a_configuration_that_failed_may_be_tried_again():
    def epoch(engine, trial):
        engine.fail(trial.number, f"RuntimeError: {trial.number}")
        return False

    engine = finite_without_equals(search__trials=20)
    record = run(engine, epoch)
    assert len(record.trials) == 20
    assert record.duplicates == 0
    assert {trial.state.name for trial in engine.arms[0].study.optuna_trials} == {"FAIL"}


def test_what_cannot_be_written_does_not_happen_and_nothing_starts_after_it():
    written = []

    def write(event):
        if full and isinstance(event, full):
            raise OSError(28, "No space left on device")
        written.append(event)

    full = ()
    listener = Listener()
    engine = make_engine(slots=3, write=write, listeners=[listener])
    engine.suggest()
    full = EpochEnded
    with pytest.raises(OSError, match="No space"):
        engine.report(0, metrics(0.5))
    assert engine.record.trials[0].epochs == []
    full = Failed
    with pytest.raises(OSError, match="No space"):
        engine.fail(0, "RuntimeError: no")
    assert engine.record.trials[0].state is TrialState.RUNNING
    assert len(written) == 1
    full = ()
    assert engine.suggest() is None
    assert engine.report(0, metrics(0.5))
    assert listener.calls == {("started", 0): 1, ("epoch", 0, 1): 1}


def test_a_suggestion_that_cannot_be_written_starts_no_trial():
    def write(event):
        raise OSError(28, "No space left on device")

    engine = make_engine(write=write)
    with pytest.raises(OSError, match="No space"):
        engine.suggest()
    engine.write = lambda event: None
    assert engine.suggest() is None
    assert engine.record.trials == []
    assert engine.running == 0


def test_every_decision_stands_in_the_event_that_caused_it():
    events = []
    engine = make_engine(WITHOUT_CONTROLS, write=events.append, search__trials=7)
    record = run(engine)
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert [event.trial for event in events if isinstance(event, Suggested)] == list(range(7))
    assert [e.trial for e in epochs if e.ends is not None] == record.ended
    for event in epochs:
        assert (event.rung is not None) == (event.epoch in (1, 3))
        if event.ends is TrialState.STOPPED:
            assert not event.rung.goes_on
            assert event.reason == f"stopped at rung {event.epoch}"


def test_a_space_without_controls_gives_every_trial_to_the_search():
    assert {t.arm for t in run(make_engine(WITHOUT_CONTROLS, search__trials=7)).trials} == {"fusion"}


def test_a_grid_larger_than_its_trials_says_so_once():
    space = make_space(FINITE, search__trials=5)
    engine = engine_for(space, session_of(space))
    engine.begin()
    engine.begin()
    (note,) = engine.record.notes
    assert "first 5 points of a larger grid" in note
    whole = make_engine(FINITE, search__trials=18)
    whole.begin()
    assert whole.record.notes == []


def test_a_note_is_kept_once():
    events = []
    engine = make_engine(write=events.append)
    engine.note("an image is broken")
    engine.note("an image is broken")
    assert engine.record.notes == ["an image is broken"]
    assert len(events) == 1


def test_an_exhausted_arm_is_said_once_and_leaves_its_turn_to_the_next():
    events = []
    text = FINITE.replace("  optimizers:", "  controls: [sgd]\n  optimizers:")
    record = run(make_engine(text, write=events.append, search__trials=12))
    exhausted = [event for event in events if isinstance(event, ArmExhausted)]
    assert [event.arm for event in exhausted] == ["control"]
    assert sorted(trial.arm for trial in record.trials) == ["control"] + ["fusion"] * 11
    assert (record.notes, exhausted[0].note) == ([], "")


def too_small_for(trials):
    """An epoch on a machine whose memory has room for so many trials."""

    def epoch(engine, trial):
        if engine.running > trials:
            engine.fail(trial.number, "out of memory", infeasible=True)
            return False
        return healthy(engine, trial)

    return epoch


@pytest.mark.parametrize(("slots", "fit"), [(4, 3), (4, 2), (4, 1), (2, 1)])
def test_packed_trials_that_ran_out_of_memory_are_tried_again_with_fewer_at_once(slots, fit):
    events = []
    engine = make_engine(slots=slots, resources__pack="auto", write=events.append)
    record = run(engine, too_small_for(fit))
    assert engine.most == fit
    assert set(record.counts()) <= {"completed", "stopped"}
    assert len(record.trials) == len(record.ended) == 40
    crowded = [event.most for event in events if isinstance(event, Crowded)]
    assert crowded == sorted(crowded, reverse=True)
    assert (crowded[0], crowded[-1]) == (slots - 1, fit)
    assert record.notes == [f"memory ran out beside other trials: no more than {fit} at once since then"]
    assert not any(isinstance(event, Failed | WorkerLost) for event in events)


def test_a_trial_that_does_not_even_fit_alone_is_infeasible():
    engine = make_engine(slots=3, resources__pack="auto", search__trials=6, search__control_share=0)

    def epoch(engine, trial):
        if trial.number == 1:
            engine.fail(trial.number, "out of memory", infeasible=True)
            return False
        return healthy(engine, trial)

    record = run(engine, epoch)
    assert (record.trials[1].state, record.trials[1].infeasible) == (TrialState.FAILED, True)
    assert [trial.state is TrialState.FAILED for trial in record.trials].count(True) == 1
    assert engine.most == 1


def test_trials_that_run_out_of_memory_together_do_not_each_take_a_slot():
    engine = make_engine(slots=4, resources__pack="auto")
    started = [engine.suggest() for _ in range(4)]
    for trial in started:
        engine.fail(trial.number, "out of memory", infeasible=True)
    assert engine.most == 3
    assert [engine.suggest() for _ in range(4)] == [*started[:3], None]


def test_a_worker_that_was_ended_for_its_memory_is_no_loss_of_a_packed_trial():
    engine = make_engine(slots=2, resources__pack="auto", search__retries=0)
    first, second = engine.suggest(), engine.suggest()
    engine.lose(first.number, "out of memory: Ray ended the worker", out_of_memory=True)
    assert (engine.most, first.losses, first.ended) == (1, 0, None)
    engine.fail(second.number, "RuntimeError: no")
    assert engine.suggest() is first
    # Alone by now.
    engine.lose(first.number, "out of memory: Ray ended the worker", out_of_memory=True)
    assert (first.losses, first.state) == (1, TrialState.FAILED)


def test_as_many_trials_as_were_asked_for_run_whatever_memory_says():
    engine = make_engine(slots=2)
    first = engine.suggest()
    engine.suggest()
    engine.fail(first.number, "out of memory", infeasible=True)
    assert (engine.most, first.infeasible) == (None, True)
    second = engine.suggest()
    engine.lose(second.number, "out of memory: Ray ended the worker", out_of_memory=True)
    assert (engine.most, second.losses) == (None, 1)
