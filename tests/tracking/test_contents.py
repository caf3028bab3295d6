from __future__ import annotations

from collections.abc import Callable

import pytest
from searches import end_epoch, end_trial

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.contents import (
    common_tags,
    run_name,
    search_ended,
    trial_ended,
    trial_epochs,
    trial_started,
)


@pytest.mark.parametrize(
    ("single", "switch", "name"),
    [(False, 3, "0000 adam|sgd @3"), (False, "all", "0000 adam|sgd @all"), (True, "all", "0000 adam")],
)
def test_run_name(add_trial: Callable[..., TrialRecord], single: bool, switch: object, name: str) -> None:
    trial = add_trial(single=single)
    trial.parameters["switch_layer"] = switch
    assert run_name(trial) == name


def test_points_have_the_time_of_their_epoch(
    record: SearchRecord, add_trial: Callable[..., TrialRecord]
) -> None:
    trial = add_trial()
    for value in (0.5, 0.7, 0.6):
        end_epoch(trial, {"val_accuracy": value})
    told = trial_epochs(trial, 1)
    assert [(point.step, point.value, point.at) for point in told.points] == [
        (2, 0.7, round(trial.times[1] * 1000)),
        (3, 0.6, round(trial.times[2] * 1000)),
    ]
    assert told.epochs == 3
    end_trial(record, trial, TrialState.INTERRUPTED)
    first = trial_ended(trial, "val_accuracy", "max").points
    end_epoch(trial, {"val_accuracy": 0.65})
    trial.ended = trial.times[-1]
    assert trial_ended(trial, "val_accuracy", "max").points == first


def test_the_result_of_a_search_has_another_step_as_soon_as_anything_happened(
    record: SearchRecord, add_trial: Callable[..., TrialRecord]
) -> None:
    def result() -> tuple[set[int], dict[str, float]]:
        points = search_ended(record, "interrupted", [], [], record.best()).points
        return {point.step for point in points}, {point.key: point.value for point in points}

    seen: dict[int, dict[str, float]] = {}
    trial = add_trial()
    steps = [
        lambda: None,
        lambda: end_epoch(trial, {"val_accuracy": 0.5, "train_seconds": 1.0}),
        lambda: setattr(record, "duplicates", 1),
        lambda: end_trial(record, trial, TrialState.FAILED),
        lambda: add_trial(TrialState.INTERRUPTED),
    ]
    for step in steps:
        step()
        (number,), values = result()
        assert number not in seen
        seen[number] = values
        assert result() == ({number}, values)
    assert seen[max(seen)]["interrupted_trials"] == 1


def test_no_password_is_logged(record: SearchRecord, add_trial: Callable[..., TrialRecord]) -> None:
    shown, hidden = "http://me:***@store/x", "http://me:secret@store/x"
    trial = add_trial(parameters={"low.optimizer": hidden})
    assert common_tags(record, {"from": hidden})["from"] == shown
    assert trial_started(trial, {}).params["low.optimizer"] == shown
    end_trial(record, trial, TrialState.FAILED, f"cannot reach {hidden}")
    assert trial_ended(trial, "val_accuracy", "max").tags["reason"] == f"cannot reach {shown}"
