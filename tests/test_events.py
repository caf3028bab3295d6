"""Events and the record they tell of."""

import time

import pytest
from made_records import make_session
from pydantic import ValidationError

from tune_fusion.events import (
    ArmExhausted,
    Chronicle,
    Closed,
    EpochEnded,
    Failed,
    Inherited,
    Logged,
    Noted,
    Suggested,
    WorkerLost,
)
from tune_fusion.records import SearchRecord, TrialState
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import TrainingSettings

CONFIGURATION = Configuration(
    1,
    OptimizerChoice("adam", {"lr": 1e-3, "betas": (0.9, 0.99)}),
    OptimizerChoice("sgd", {"lr": 0.1}),
    TrainingSettings(epochs=3),
)


def suggested(trial, **changes):
    fields = {
        "arm": "fusion",
        "origin": "sampled",
        "parameters": {"low.adam.lr": 1e-3},
        "configuration": CONFIGURATION.to_dict(),
        "key": f"{trial}",
        "trial": trial,
        "switch_layer_name": "conv2",
        "single": False,
        "at": 1000.0 + (trial or 0),
    }
    return Suggested(**(fields | changes))


def epoch(trial, number, at, value=0.5, **changes):
    fields = {"metrics": {"val_accuracy": value}, "diverged": False, "node": "host:7"}
    return EpochEnded(trial=trial, epoch=number, at=at, **(fields | changes))


def told(*events, **session):
    return Chronicle.replay([make_session(at=995.0, **session), *events])


def test_the_first_session_begins_the_record():
    session = make_session(searched_training=("batch_size",), fusions=False, at=995.0)
    chronicle = Chronicle.begin(session)
    assert chronicle.record == SearchRecord(
        name="made",
        space="digits",
        metric="val_accuracy",
        direction="max",
        planned_trials=8,
        started=990.0,
        fusions=False,
        searched_training=("batch_size",),
        key=session.key,
    )
    assert (chronicle.sessions, chronicle.status, chronicle.last) == ([session], None, 995.0)


@pytest.mark.parametrize("event", [Noted(note="x"), Closed(status="completed")])
def test_a_journal_that_begins_otherwise_is_none(event):
    with pytest.raises(ValueError, match=f"begins with a session, got '{event.event}'"):
        Chronicle.replay([event, make_session()])


def test_a_suggestion_becomes_a_trial():
    (trial,) = told(suggested(0)).record.trials
    assert (trial.number, trial.arm, trial.origin, trial.state) == (0, "fusion", "sampled", "running")
    assert trial.configuration == CONFIGURATION.to_dict()
    assert trial.parameters == dict(CONFIGURATION.flat())
    assert trial.parameters["low.betas"] == (0.9, 0.99)
    assert (trial.max_epochs, trial.started, trial.switch_layer_name) == (3, 1000.0, "conv2")
    assert (trial.single, trial.ended) == (False, None)


def test_a_suggestion_that_was_known_is_counted():
    record = told(suggested(0), suggested(None, duplicate_of=0)).record
    assert (len(record.trials), record.duplicates) == (1, 1)


def test_a_trial_of_an_earlier_search_is_known_and_no_trial_of_this_one():
    fields = {
        "source": "first",
        "arm": "fusion",
        "origin": "default",
        "parameters": {"low.adam.lr": 1e-3},
        "configuration": CONFIGURATION.to_dict(),
        "key": "a",
        "switch_layer_name": "conv2",
        "single": False,
        "epochs": [{"val_accuracy": 0.5}, {"val_accuracy": 0.75}],
    }
    events = [
        Inherited(**fields, source_trial=4, state="stopped", reason="stopped at rung 2", at=996.0),
        Inherited(**fields, source_trial=9, state="failed", infeasible=True, at=997.0),
    ]
    record = told(*events, suggested(0)).record
    assert [trial.number for trial in record.trials] == [0]
    assert [(t.number, t.source, t.source_trial) for t in record.inherited] == [
        (-1, "first", 4),
        (-2, "first", 9),
    ]
    stopped, infeasible = record.inherited
    assert (stopped.state, stopped.reason, stopped.ended) == (TrialState.STOPPED, "stopped at rung 2", 996.0)
    assert (stopped.origin, stopped.max_epochs, stopped.epochs) == ("default", 3, fields["epochs"])
    assert stopped.parameters == CONFIGURATION.flat()
    assert (infeasible.state, infeasible.infeasible) == (TrialState.FAILED, True)
    assert record.ended == []


def test_epochs_are_kept_with_their_times():
    record = told(suggested(0), epoch(0, 1, 1010.0, 0.25), epoch(0, 2, 1020.0, 0.5, node="other:8")).record
    (trial,) = record.trials
    assert trial.epochs == [{"val_accuracy": 0.25}, {"val_accuracy": 0.5}]
    assert trial.times == [1010.0, 1020.0]
    assert (trial.node, trial.state, record.ended) == ("other:8", TrialState.RUNNING, [])


@pytest.mark.parametrize("state", [TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED])
def test_an_epoch_may_be_the_last(state):
    record = told(suggested(0), epoch(0, 1, 1010.0, ends=state, reason="why")).record
    (trial,) = record.trials
    assert (trial.state, trial.reason, trial.ended) == (state, "why", 1010.0)
    assert record.ended == [0]


def test_a_lost_worker_is_counted_and_ends_the_trial_only_where_it_says_so():
    lost = WorkerLost(trial=0, reason="killed", ends=False, at=1010.0)
    record = told(suggested(0), lost).record
    assert (record.trials[0].losses, record.trials[0].state) == (1, TrialState.RUNNING)
    record = told(suggested(0), lost, WorkerLost(trial=0, reason="again", ends=True, at=1020.0)).record
    (trial,) = record.trials
    assert (trial.losses, trial.state, trial.reason, trial.ended) == (2, "failed", "again", 1020.0)
    assert record.ended == [0]


def test_failures():
    record = told(
        suggested(0),
        suggested(1),
        Failed(trial=1, reason="out of memory", infeasible=True, at=1010.0),
        Failed(trial=0, reason="RuntimeError: no", at=1020.0),
    ).record
    assert [(t.state, t.reason, t.infeasible) for t in record.trials] == [
        ("failed", "RuntimeError: no", False),
        ("failed", "out of memory", True),
    ]
    assert record.ended == [1, 0]


def test_notes_stand_in_their_order():
    exhausted = ArmExhausted(arm="control", note="the control arm's grid ended")
    assert told(Noted(note="first"), exhausted).record.notes == ["first", "the control arm's grid ended"]


def test_what_runs_when_a_search_is_left_is_interrupted_and_runs_again_when_it_is_resumed():
    events = [
        suggested(0),
        suggested(1),
        Failed(trial=0, reason="RuntimeError: no", at=1005.0),
        epoch(1, 1, 1010.0),
        Closed(status="interrupted", at=1012.0),
    ]
    left = told(*events)
    assert left.status == "interrupted"
    trial = left.record.trials[1]
    assert (trial.state, trial.ended, trial.reason) == ("interrupted", 1012.0, "search interrupted")
    assert left.record.ended == [0]
    resumed = told(*events, make_session(started=1112.0, pid=200))
    trial = resumed.record.trials[1]
    assert (trial.state, trial.ended, trial.reason) == ("running", None, "")
    assert resumed.record.trials[0].state == "failed"
    assert resumed.status is None
    assert [session.pid for session in resumed.sessions] == [100, 200]


def test_the_time_between_death_and_resumption_does_not_count():
    record = told(
        suggested(0),
        epoch(0, 1, 1010.0),
        make_session(started=1100.0, at=1105.0),
        epoch(0, 2, 1120.0),
        Closed(status="interrupted", at=1130.0),
        make_session(started=1135.0, at=1136.0),
    ).record
    assert record.paused_seconds == (1100.0 - 1010.0) + (1135.0 - 1130.0)
    assert record.elapsed(1140.0) == 1140.0 - 990.0 - 95.0


def test_a_clock_that_was_set_back_gives_no_negative_pause():
    assert told(suggested(0), make_session(started=900.0)).record.paused_seconds == 0


def test_a_new_session_may_plan_more_and_ask_for_more():
    session = make_session(planned_trials=20, searched_training=("batch_size",), fusions=False)
    record = told(suggested(0), session).record
    assert (record.planned_trials, record.searched_training, record.fusions) == (20, ("batch_size",), False)
    assert (record.started, record.key) == (990.0, session.key)


def test_a_complete_search_stays_complete_until_it_is_taken_up_again():
    ended = [suggested(0), epoch(0, 3, 1010.0, ends=TrialState.COMPLETED), Closed(status="completed")]
    assert told(*ended).status == "completed"
    assert told(*ended, make_session(planned_trials=9)).status is None


def test_what_a_store_holds_is_the_newest_word_and_of_that_store():
    parent = Logged(run=-1, run_id="p", epochs=0, status=None)
    first, second = (Logged(run=0, run_id="a", epochs=epochs, status=None) for epochs in (1, 2))
    assert told(parent, first, second).logged == {-1: parent, 0: second}
    assert told(parent, first, make_session()).logged == {-1: parent, 0: first}
    assert told(parent, first, make_session(tracking="http://other")).logged == {}


def test_events_do_not_change():
    event = Noted(note="x")
    with pytest.raises(ValidationError, match="frozen"):
        event.note = "y"


def test_the_moment_of_an_event_is_now():
    before = time.time()
    event = Noted(note="x")
    assert before <= event.at <= time.time()


def test_equal_keys_of_results_are_kept_once():
    def named():
        return "".join(["val_", "accuracy"])

    epochs = [epoch(0, number, 1001.0, metrics={named(): 0.5}) for number in (1, 2)]
    first, second = ([*metrics] for metrics in told(suggested(0), *epochs).record.trials[0].epochs)
    assert first[0] is second[0]
