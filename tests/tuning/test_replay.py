"""What a search has written brings a new engine to where the old one was, wherever the old one died."""

import math
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from simulated import (
    FINITE,
    SPACE,
    decided,
    engine_for,
    make_space,
    metrics,
    recorded_run,
    replayed,
    run,
    session_of,
    state,
    troubled,
)

from tune_fusion.events import Chronicle, Crowded, EpochEnded, Failed, Session, Suggested, WorkerLost
from tune_fusion.journal import Journal, read_journal
from tune_fusion.records import TrialState
from tune_fusion.tuning.same_decision import DivergenceError

ACTIONS = {
    "suggest": 4,
    "report": 10,
    "diverge": 1,
    "fail": 1,
    "out of memory": 1,
    "lose": 2,
    "set aside": 1,
    "leave": 1,
    "die": 1,
}
SPACES = {
    "tpe": make_space(SPACE, training__epochs=3, asha__reduction_factor=2, search__trials=40),
    "tpe by loss": make_space(
        SPACE, training__epochs=3, search__trials=30, search__metric="val_loss", search__control_share=0
    ),
    "random": make_space(SPACE, search__sampler="random", search__retries=0, search__trials=14),
    "tpe, few points": make_space(FINITE, search__sampler="tpe", search__trials=20),
    "grid with controls": make_space(
        FINITE.replace("  optimizers:", "  controls: [adam, sgd]\n  optimizers:"), search__trials=30
    ),
    "small grid": make_space(FINITE, search__trials=8),
    "packed": make_space(SPACE, training__epochs=3, search__trials=30, resources__pack="auto"),
    "promotion": make_space(
        SPACE,
        training__epochs=4,
        asha__reduction_factor=2,
        asha__compare="val_loss",
        search__scheduler="promotion",
        search__defaults="judged",
        search__trials=24,
    ),
    "hyperband": make_space(
        SPACE, training__epochs=9, search__scheduler="hyperband", search__sampler="random"
    ),
    "curves": make_space(
        SPACE, training__epochs=4, search__scheduler="curves", search__defaults="none", search__stop="auto"
    ),
}
# Few values, so that trials tie, and any value.
VALUES = st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 1)
PLANS = st.lists(
    st.tuples(
        st.sampled_from([name for name, weight in ACTIONS.items() for _ in range(weight)]),
        st.integers(0, 3),
        VALUES,
    ),
    min_size=20,
    max_size=110,
)


def next_events(engine, trials):
    """What the engine writes when it is asked for more trials than run."""
    events, running = [], engine.running
    engine.write, engine.slots = events.append, lambda: running + trials
    for _ in range(trials):
        engine.suggest()
    return decided(events)


class Driver:
    """Drives an engine as a plan says, writing a real journal, and reads it back where it dies."""

    def __init__(self, space, slots, path, inherited=()):
        self.space, self.slots, self.path = space, slots, path
        self.journal = Journal(path)
        session = session_of(space)
        self.journal.append(session)
        self.engine = engine_for(space, session, slots, write=self.journal.append)
        for trial in inherited:
            self.engine.inherit(trial, "earlier")
        self.engine.begin()
        self.running = []

    def act(self, action, which, value):
        if action in ("leave", "die"):
            if action == "leave":
                self.engine.close("interrupted")
            self.resume()
        elif action == "suggest" or not self.running:
            self.start()
        else:
            number = self.running.pop(which % len(self.running))
            if self.train(action, number, value):
                self.running.append(number)

    def start(self):
        trial = self.engine.suggest()
        if trial is not None:
            self.running.append(trial.number)

    def train(self, action, number, value):
        engine = self.engine
        match action:
            case "report":
                return engine.report(number, metrics(value), node="host:1")
            case "diverge":
                return engine.report(number, {"train_seconds": value}, diverged=True)
            case "fail":
                engine.fail(number, f"RuntimeError: {value}")
            case "out of memory":
                engine.fail(number, f"out of memory {value}", infeasible=True)
            case "lose":
                engine.lose(number, "killed")
            case "set aside":
                engine.set_aside(number)
        return False

    def resume(self):
        engine = self.check()
        session = session_of(self.space, pid=len(engine.chronicle.sessions))
        self.journal.close()
        self.journal = Journal(self.path, read_journal(self.path))
        self.journal.append(session)
        engine.replay(session)
        engine.write = self.journal.append
        self.engine, self.running = engine, []

    def check(self):
        """A new engine made of the journal alone, which is where this one is."""
        engine = replayed(read_journal(self.path).events, self.space, self.slots)
        assert state(engine) == state(self.engine)
        return engine

    def close(self):
        self.journal.close()


def check_replay(space, plan, slots, folder):
    """After the steps of `plan`, a replayed engine is where the first one is, and goes on as it does."""
    driver = Driver(space, slots, folder / "journal.jsonl")
    for step in plan:
        driver.act(*step)
    again = driver.check()
    for number in list(driver.engine._live):
        driver.engine.set_aside(number)
    assert driver.engine.broken or next_events(again, 6) == next_events(driver.engine, 6)
    driver.close()


@pytest.mark.parametrize("name", SPACES)
# Without shrinking, which would run a failing search hundreds of times.
@settings(derandomize=True, deadline=None, max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(plan=PLANS, slots=st.integers(1, 4))
def test_any_sequence_of_events_replays_to_the_state_it_was_written_from(name, plan, slots, tmp_path_factory):
    check_replay(SPACES[name], plan, slots, tmp_path_factory.mktemp("search"))


@settings(derandomize=True, deadline=None, max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(plan=PLANS, slots=st.integers(1, 4))
def test_any_sequence_of_events_replays_to_the_same_suggestions_made_ahead(plan, slots, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_fusion.tuning.study._AHEAD_FROM", 2)
        check_replay(SPACES["tpe"], plan, slots, tmp_path_factory.mktemp("search"))


WARM = {
    "tpe": (SPACES["tpe"], make_space(SPACE, training__epochs=3, search__trials=24, search__seed=5)),
    "random": (SPACES["random"], make_space(SPACE, search__sampler="random", search__trials=20)),
    "small grid": (SPACES["small grid"], make_space(FINITE, search__trials=6)),
}


def ended_trials(space):
    """The trials of a search of `space` that ended with a result."""
    trials = Chronicle.replay(recorded_run(space, epoch=troubled)).record.trials
    return [trial for trial in trials if trial.state is not TrialState.FAILED or trial.infeasible]


@pytest.mark.parametrize("name", WARM)
@settings(derandomize=True, deadline=None, max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(plan=PLANS, slots=st.integers(1, 4))
def test_a_search_that_knows_an_earlier_one_replays_from_its_own_journal(name, plan, slots, tmp_path_factory):
    space, earlier = WARM[name]
    path = tmp_path_factory.mktemp("search") / "journal.jsonl"
    driver = Driver(space, slots, path, ended_trials(earlier))
    assert len(driver.engine.record.inherited) >= 3
    for step in plan:
        driver.act(*step)
    again = driver.check()
    for number in list(driver.engine._live):
        driver.engine.set_aside(number)
    assert driver.engine.broken or next_events(again, 6) == next_events(driver.engine, 6)
    driver.close()


def test_the_plans_reach_what_they_should_show(tmp_path):
    """The property above is worth what its sequences reach."""
    reached = Counter()
    for seed, (name, space) in enumerate(SPACES.items()):
        chooser = random.Random(seed)
        driver = Driver(space, 3, tmp_path / f"{name}.jsonl")
        for action in chooser.choices(list(ACTIONS), list(ACTIONS.values()), k=110):
            driver.act(action, chooser.randrange(4), chooser.choice([0.0, 0.25, 0.5]))
        record = driver.check().record
        driver.close()
        reached.update(trial.state for trial in record.trials)
        reached["duplicates"] += record.duplicates
        reached["notes"] += len(record.notes)
        reached["lost"] += sum(trial.losses > 0 for trial in record.trials)
        reached["infeasible"] += sum(trial.infeasible for trial in record.trials)
        reached["crowded"] += sum(isinstance(e, Crowded) for e in read_journal(driver.path).events)
    ended = {TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED, TrialState.FAILED}
    assert not (ended | {"duplicates", "notes", "lost", "infeasible", "crowded"}) - {
        key for key, n in reached.items() if n
    }


WHOLE = {
    "tpe": make_space(SPACE, search__trials=18, search__control_share=0.2),
    "grid": make_space(FINITE, search__trials=20, asha__reduction_factor=2),
    "random, exhausted": make_space(
        FINITE, search__sampler="random", space__low="[adam]", space__switch_layer="[0]", search__trials=9
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_search_that_dies_after_any_event_ends_with_the_events_of_one_that_does_not(name):
    space = WHOLE[name]
    whole = recorded_run(space, epoch=troubled)
    expected = decided(whole)
    for cut in range(1, len(whole)):
        events = whole[:cut]
        engine = replayed([*events, session_of(space)], space, write=events.append)
        engine.begin()
        run(engine, troubled)
        engine.close("completed")
        assert decided(events) == expected, f"after {cut} events"


def test_the_searches_that_die_have_trouble_of_every_kind():
    events = [event for space in WHOLE.values() for event in recorded_run(space, epoch=troubled)]
    ends = {event.ends for event in events if isinstance(event, EpochEnded)}
    assert ends == {None, TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED}
    assert {event.ends for event in events if isinstance(event, WorkerLost)} == {True, False}
    assert {event.event for event in events} >= {"failed", "exhausted"}
    assert any(event.trial is None for event in events if isinstance(event, Suggested))


def test_what_was_made_ahead_is_made_again_wherever_the_search_died(monkeypatch):
    """A suggestion made ahead ignores the newest results, and the journal need not say which."""
    space = SPACES["tpe"]
    exact = decided(recorded_run(space, 3, troubled))
    monkeypatch.setattr("tune_fusion.tuning.study._AHEAD_FROM", 6)
    events = recorded_run(space, 3, troubled)
    assert decided(events) != exact
    suggested = [index for index, event in enumerate(events) if isinstance(event, Suggested)]
    for index in suggested[8:]:
        engine = replayed(events[:index], space)
        # The trials that ran are handed out again first.
        assert next_events(engine, len(engine._live) + 1)[:1] == decided(events[index : index + 1])


def recomputed_rungs(events, space):
    """For each epoch of a trial what asynchronous successive halving says, from the lines alone."""
    arm_of, epochs_of = {}, {}
    for event in events:
        if isinstance(event, Suggested) and event.trial is not None:
            arm_of[event.trial] = event.arm
            epochs_of[event.trial] = event.configuration["training"]["epochs"]
    factor, rung = space.asha.reduction_factor, space.asha.grace_epochs
    rungs = []
    while rung < max(epochs_of.values()):
        rungs.append(rung)
        rung *= factor
    seen = defaultdict(list)
    for event in events:
        if not isinstance(event, EpochEnded):
            continue
        if event.diverged or event.epoch not in rungs or event.epoch == epochs_of[event.trial]:
            assert event.rung is None
            continue
        values = seen[arm_of[event.trial], event.epoch]
        value = event.metrics["val_accuracy"]
        values.append(value)
        better = sum(other > value for other in values)
        kept = max(1, math.floor(len(values) / factor))
        yield event, len(values), kept, sorted(values)[-kept], better < kept


def check_nothing_lost_or_doubled(events, space):
    suggested = [event for event in events if isinstance(event, Suggested) and event.trial is not None]
    assert [event.trial for event in suggested] == list(range(len(suggested)))
    assert len({event.key for event in suggested}) == len(suggested)
    epochs, ends = defaultdict(list), Counter()
    for event in events:
        if isinstance(event, EpochEnded):
            epochs[event.trial].append(event.epoch)
        if isinstance(event, EpochEnded | WorkerLost | Failed):
            ends[event.trial] += event.event == "failed" or bool(event.ends)
    assert dict(ends) == dict.fromkeys(range(len(suggested)), 1)
    assert all(found == list(range(1, len(found) + 1)) for found in epochs.values())
    checked = 0
    for event, seen, kept, cutoff, goes_on in recomputed_rungs(events, space):
        assert (event.rung.seen, event.rung.kept, event.rung.cutoff) == (seen, kept, cutoff)
        assert event.rung.goes_on == goes_on
        default = suggested[event.trial].origin == "default"
        assert (event.ends is TrialState.STOPPED) == (not goes_on and not default)
        checked += 1
    assert checked > len(suggested) // 2


def without_failures(engine, trial):
    """`troubled`, but nothing may be tried again: no configuration comes twice."""
    if trial.number % 6 == 2 and len(trial.epochs) == 1 and trial.losses < 2:
        engine.lose(trial.number, "killed by signal 9")
        return False
    return troubled(engine, trial) if trial.number % 9 != 5 else run_on(engine, trial)


def run_on(engine, trial):
    return engine.report(trial.number, metrics(0.5), node="host:1")


class _Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def killed_and_resumed(space, slots, kills):
    """The events of a search whose driver dies right after each of the `kills`."""
    events = [session_of(space)]
    kills = set(kills)

    def write(event):
        events.append(event)
        if len(events) in kills:
            raise _Killed

    while True:
        engine = replayed(events, space, slots, write=write)
        try:
            engine.begin()
            run(engine, without_failures)
        except _Killed:
            session = session_of(space, pid=len(events))
            events.append(session)
            continue
        engine.close("completed")
        return events


def test_four_trials_at_a_time_and_a_death_at_any_event():
    space = make_space(SPACE, search__trials=16, search__sampler="random")
    undisturbed = killed_and_resumed(space, 4, [])
    check_nothing_lost_or_doubled(undisturbed, space)
    for cut in range(2, len(undisturbed)):
        events = killed_and_resumed(space, 4, [cut])
        assert sum(isinstance(event, Session) for event in events) == 2
        check_nothing_lost_or_doubled(events, space)


@pytest.mark.parametrize("slots", [1, 4])
def test_twenty_deaths_of_one_search(slots):
    space = make_space(SPACE, search__trials=24)
    undisturbed = killed_and_resumed(space, slots, [])
    kills = random.Random(slots).sample(range(2, len(undisturbed)), 20)
    events = killed_and_resumed(space, slots, kills)
    assert sum(isinstance(event, Session) for event in events) >= 18
    check_nothing_lost_or_doubled(events, space)
    assert sum(isinstance(event, Suggested) and event.trial is not None for event in events) == 24
    if slots == 1:
        assert decided(events) == decided(undisturbed)


def changed(events, kind, **changes):
    """The events with one of them, the first of its kind that has them, changed."""
    index = next(
        i
        for i, event in enumerate(events)
        if isinstance(event, kind) and all(getattr(event, name) is not None for name in changes)
    )
    return [*events[:index], events[index].model_copy(update=changes), *events[index + 1 :]], index


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Suggested, {"parameters": {}}, "does not allow this suggestion: switch_layer has no recorded value"),
        (Suggested, {"key": "0" * 16}, "the configuration now means something else"),
        (Suggested, {"trial": 7}, "trial 7 comes after trial -1"),
        (Suggested, {"arm": "control"}, "it is not the control arm's turn"),
        (EpochEnded, {"epoch": 3}, "trial 0 has no epoch 3 here"),
        (EpochEnded, {"trial": 5}, "list index out of range"),
        (EpochEnded, {"rung": None}, "the rung decides otherwise now: on at .*, not no rung"),
        (EpochEnded, {"ends": TrialState.COMPLETED}, "trial 0 would not end like this now"),
        (WorkerLost, {"trial": 0}, "trial 0 is not running here"),
    ],
)
def test_an_event_that_the_engine_would_not_have_made_is_refused(kind, changes, message):
    space = make_space(SPACE, search__control_share=0, search__trials=12)
    events = recorded_run(space, epoch=troubled)
    if kind is EpochEnded and "ends" in changes:
        index = next(i for i, event in enumerate(events) if isinstance(event, EpochEnded))
        events[index] = events[index].model_copy(update=changes)
    else:
        events, index = changed(events, kind, **changes)
    engine = replayed(events[:index], space)
    with pytest.raises((DivergenceError, IndexError), match=message):
        engine.replay(events[index])


def test_more_trials_than_were_planned_are_refused():
    space = make_space(SPACE, search__trials=8, search__scheduler="none")
    session, *events = recorded_run(space)
    with pytest.raises(DivergenceError, match=r"it is not the (fusion|control) arm's turn to suggest"):
        replayed([session.model_copy(update={"planned_trials": 6}), *events], space)
