"""A search that goes on with more trials, or with another space than it had."""

import dataclasses
from collections import Counter

import pytest
from simulated import (
    FINITE,
    SPACE,
    engine_for,
    make_space,
    metrics,
    recorded_run,
    replayed,
    run,
    session_of,
    state,
)

from tune_fusion.events import Chronicle, Suggested
from tune_fusion.journal import Lines
from tune_fusion.records import TrialState
from tune_fusion.runs import Past, RunFolder
from tune_fusion.tuning.resume import replay


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_finished_search_is_extended_and_keeps_what_it_had(sampler):
    small, large = (make_space(SPACE, search__trials=trials, search__sampler=sampler) for trials in (12, 20))
    events = recorded_run(small)
    before = dataclasses.asdict(replayed(events, small).record)
    session = session_of(large)
    engine = replayed([*events, session], large, write=events.append)
    assert not engine.finished
    record = run(engine)
    assert len(record.trials) == 20
    assert Counter(trial.arm for trial in record.trials) == {"control": 10, "fusion": 10}
    assert [dataclasses.asdict(trial) for trial in record.trials[:12]] == before["trials"]
    assert record.planned_trials == 20
    # The studies went on where they were: no default is tried again, nothing is suggested twice.
    assert [trial.origin for trial in record.trials[12:]] == ["sampled"] * 8
    assert len({str(trial.parameters) for trial in record.trials}) == 20


def equal(engine, trial):
    """One epoch of a trial that is no better and no worse than any other."""
    return engine.report(trial.number, metrics(0.5), node="host:1")


def test_a_grid_that_was_cut_short_goes_on_with_its_next_point():
    whole = recorded_run(make_space(FINITE, search__trials=15), epoch=equal)
    events = recorded_run(make_space(FINITE, search__trials=6), epoch=equal)
    large = make_space(FINITE, search__trials=15)
    record = run(replayed([*events, session_of(large)], large), equal)
    expected = replayed(whole, large).record
    assert [t.parameters for t in record.trials] == [t.parameters for t in expected.trials]


OLD = make_space(SPACE, search__trials=24, search__control_share=0.4)
CHANGES = {
    "a narrower range": {"space__optimizers__adam__lr": "{log: [1e-4, 1e-3]}"},
    "an optimizer less": {"space__low": "[adam]", "space__high": "[sgd]", "space__controls": "[adam]"},
    "other choices": {"space__switch_layer": "[0, 2]"},
    "more choices": {"space__low": "[adam, sgd, adamw]"},
    "no controls": {"space__controls": "[]"},
    "another constant": {"training__batch_size": 32},
    "longer trials": {"training__epochs": 12},
    "another sampler": {"search__sampler": "random"},
    "no rungs": {"search__scheduler": "none"},
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("cut", [40, None], ids=["on the way", "at the end"])
def test_a_search_goes_on_with_a_changed_space(name, cut, tmp_path):
    events = recorded_run(OLD, slots=2)[:cut]
    before = replayed(events, OLD).record
    space = make_space(SPACE, **({"search__trials": 40, "search__control_share": 0.4} | CHANGES[name]))
    events.append(session_of(space))
    first = len(events)
    engine = replayed(events, space, 2, strict=False, write=events.append)
    running = {trial.number for trial in engine.record.trials if trial.state is TrialState.RUNNING}
    record = run(engine)
    assert engine.finished
    for old, new in zip(before.trials, record.trials, strict=False):
        assert (new.configuration, new.max_epochs) == (old.configuration, old.max_epochs)
        assert new.epochs[: len(old.epochs)] == old.epochs
        if old.number not in running:
            assert dataclasses.asdict(new) == dataclasses.asdict(old)
    assert len(record.trials) >= 40
    later = [e for e in events[first:] if isinstance(e, Suggested) and e.trial is not None]
    assert later
    for event in later:
        flat = record.trials[event.trial].parameters
        if name == "a narrower range":
            rates = [flat[f"{h}.lr"] for h in ("low", "high") if flat.get(f"{h}.optimizer") == "adam"]
            assert all(1e-4 <= rate <= 1e-3 for rate in rates)
        elif name == "an optimizer less":
            assert (flat["low.optimizer"], flat.get("high.optimizer", "sgd")) == ("adam", "sgd")
        elif name == "other choices":
            assert flat["switch_layer"] in (0, 2, "all")
        elif name == "no controls":
            assert event.arm == "fusion"
        elif name == "another constant":
            assert flat["training.batch_size"] == 32
        elif name == "longer trials":
            assert flat["training.epochs"] == 12
    # From then on the changed space is the search's own: what it decided is replayed strictly again.
    past = Past(RunFolder(tmp_path), Lines(events, 0), Chronicle.replay(events))
    again = engine_for(space, events[0])
    replay(again, past, strict=True)
    assert state(again) == state(engine)


def test_a_changed_space_learns_from_the_trials_that_it_could_have_drawn_itself():
    events = recorded_run(OLD)
    old = replayed(events, OLD)
    space = make_space(
        SPACE,
        search__trials=40,
        search__control_share=0.4,
        space__optimizers__adam__lr="{log: [1e-4, 1e-3]}",
    )
    new = replayed(events, space, strict=False)
    for arm_before, arm_now in zip(old.arms, new.arms, strict=True):
        before, now = arm_before.study.optuna_trials, arm_now.study.optuna_trials
        assert len(now) == len(before)
        learnt = 0
        for was, is_now in zip(before, now, strict=True):
            rates = [value for key, value in was.params.items() if key.endswith("adam.lr")]
            if all(1e-4 <= rate <= 1e-3 for rate in rates):
                assert (is_now.state, is_now.params, is_now.values) == (was.state, was.params, was.values)
                learnt += 1
            else:
                assert (is_now.state.name, is_now.params) == ("FAIL", {})
        assert 0 < learnt < len(before)


def test_trials_of_an_arm_that_is_gone_are_not_compared_with_those_of_another():
    events = recorded_run(OLD)
    space = make_space(SPACE, space__controls="[]", search__trials=40)
    engine = replayed(events, space, strict=False)
    (arm,) = engine.arms
    fusions = {trial.number for trial in engine.record.trials if trial.arm == "fusion"}
    assert set().union(*arm.scheduler.values.values()) <= fusions
    assert arm.scheduler.values == replayed(events, OLD).arms[0].scheduler.values
