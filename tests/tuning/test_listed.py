import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_single
from made_spaces import VOCABULARY
from simulated import LAYERS, healthy, make_space, recorded_run, replayed, session_of

from tune_fusion.events import Chronicle, Suggested
from tune_fusion.space.configuration import Configuration
from tune_fusion.tuning.arms import SearchArm
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.finalists import as_finalist, confirmed, listed_runs
from tune_fusion.tuning.listed import ListedRun, ListedStudy

ADAM = Configuration.from_dict(make_single(0).configuration)


def listed(pairs):
    return [ListedRun(trial, ADAM, "sampled", seed) for trial, seed in pairs]


def asked(study):
    found = []
    while (suggestion := study.ask()) is not None:
        found.append((suggestion.parameters["trial"], suggestion.seed))
    return found


@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 9)), unique=True), st.integers(0, 20))
def test_every_run_is_suggested_once_in_order_however_often_it_is_taken_up(pairs, known):
    first = ListedStudy(listed(pairs))
    before = [first.ask() for _ in range(min(known, len(pairs)))]
    second = ListedStudy(listed([*pairs, (10, 0), (10, 1)]))
    for suggestion in before:
        again = second.repeat(suggestion.parameters, suggestion.configuration, suggestion.origin)
        assert again == suggestion
    assert asked(second) == [*pairs[len(before) :], (10, 0), (10, 1)]


def test_what_is_not_in_the_list_is_not_repeated():
    study = ListedStudy(listed([(0, 1)]))
    with pytest.raises(ValueError, match="trial 0 with seed 2 is not to be run"):
        study.repeat({"trial": 0, "seed": 2}, ADAM, "sampled")
    other = Configuration.from_dict({"switch_layer": "all", "low": {"optimizer": "sgd"}, "high": None})
    with pytest.raises(ValueError, match="trial 0 with seed 1 is not to be run"):
        study.repeat({"trial": 0, "seed": 1}, other, "sampled")
    assert asked(study) == [(0, 1)]


def searched():
    """A search with three fusions and two single optimizers."""
    space = make_space(search__trials=12, search__scheduler="none")
    record = replayed(recorded_run(space), space).record
    by_kind = [[t.number for t in record.trials if t.single == single] for single in (False, True)]
    return space, record, by_kind[0][:3], by_kind[1][:2]


def listing_engine(space, session, runs, write):
    arms = [
        SearchArm(name, ListedStudy(some), Asha(space.asha, 1, "max", enabled=False), 0.5)
        for name, some in runs.items()
    ]
    return Engine(space, VOCABULARY, arms, Chronicle.begin(session), LAYERS, lambda: 2, write=write)


def drive(engine, failing=()):
    """Run everything that is left; `failing` are (finalist, seed) that fail."""
    running = []
    while not engine.finished:
        while (trial := engine.suggest()) is not None:
            running.append(trial)
        trial = running.pop(0)
        asked = next(e for e in engine.written if isinstance(e, Suggested) and e.trial == trial.number)
        if (asked.parameters["trial"], trial.seed) in failing:
            engine.fail(trial.number, f"RuntimeError: {trial.number}")
        elif healthy(engine, trial):
            running.append(trial)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (([0, 1], [0], 1), ([0, 1], [0], 3)),
        (([0], [0, 1], 2), ([0, 1, 2], [0, 1], 2)),
        (([0], [0], 1), ([0, 1, 2], [0], 4)),
    ],
)
def test_a_list_that_grows_is_run_to_its_end_in_both_arms(before, after):
    space, record, fusions, singles = searched()
    events = []
    for number, (first, second, seeds) in enumerate((before, after)):
        trials = [*(fusions[i] for i in first), *(singles[i] for i in second)]
        runs = listed_runs(record, trials, range(seeds))
        planned = sum(map(len, runs.values()))
        session = session_of(space, planned_trials=planned)
        engine = listing_engine(space, events[0] if number else session, runs, lambda event: None)
        for event in events[1:]:
            engine.replay(event)
        if number:
            engine.replay(session)
        events.append(session)
        engine.write, engine.written = events.append, events
        drive(engine)
        asked = [event for event in events if isinstance(event, Suggested)]
        pairs = [(event.parameters["trial"], event.seed) for event in asked]
        assert sorted(pairs) == sorted((trial, seed) for trial in trials for seed in range(seeds))
        assert len(engine.record.trials) == planned
        assert engine.record.notes == []


def test_runs_that_failed_are_run_once_more():
    space, record, fusions, singles = searched()
    trials, seeds = [fusions[0], singles[0]], [7, 8]
    runs = listed_runs(record, trials, seeds)
    events = [session_of(space, planned_trials=4)]
    engine = listing_engine(space, events[0], runs, events.append)
    engine.written = events
    drive(engine, failing=[(fusions[0], 8)])
    again = listed_runs(record, trials, seeds, engine.record)
    assert [(run.trial, run.seed) for run in again["fusion"]][-1] == (fusions[0], 8)
    session = session_of(space, planned_trials=5)
    second = listing_engine(space, events[0], again, lambda event: None)
    for event in [*events[1:], session]:
        second.replay(event)
    second.write, second.written = events.append, [*events, session]
    events = second.written
    second.write = events.append
    drive(second)
    assert [trial.state.value for trial in second.record.trials].count("completed") == 4
    (ours, runs_of_ours), _ = confirmed(record, second.record, trials)
    assert [run.state.value for run in runs_of_ours] == ["completed", "failed", "completed"]
    assert [run.state for run in as_finalist(record, ours, runs_of_ours).runs] == ["completed"] * 2
