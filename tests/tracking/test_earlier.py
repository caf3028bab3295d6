"""A search that was logged is read back as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from searches import end_epoch, end_trial, make_logger, runs

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import TrainingSettings
from tune_fusion.tracking.earlier import UnreadableError, read_search

TRAINING = TrainingSettings(epochs=3, label_smoothing=0.1)
FUSION = Configuration(
    3,
    OptimizerChoice("adam", {"lr": 1.0000000000000002e-3, "betas": (0.9, 0.999)}),
    OptimizerChoice("sgd", {"lr": 0.1, "nesterov": True, "momentum": 0}),
    TRAINING,
)
CONTROL = Configuration("all", OptimizerChoice("sgd", {"lr": 1}), None, TRAINING)
# The times of epochs and the worker are not read back: no search decides by them.
LEFT_OUT = {"times", "node", "losses"}


def add(
    add_trial: Callable[..., TrialRecord], configuration: Configuration, **changes: object
) -> TrialRecord:
    return add_trial(
        single=configuration.high is None,
        configuration=configuration.to_dict(),
        parameters=dict(configuration.flat()),
        **changes,
    )


@pytest.fixture
def logged(
    record: SearchRecord, add_trial: Callable[..., TrialRecord], uri: str, tmp_path: Path
) -> SearchRecord:
    """A search with trials that ended in every way, and one that runs."""
    (tmp_path / "space.yaml").write_text("# mine\nmodel: {name: lenet5}\n")
    logger = make_logger(uri, record, tags={"data_fingerprint": "d" * 64}, files=[tmp_path / "space.yaml"])
    logger.start()
    for index, state in enumerate(state for state in TrialState if state is not TrialState.INTERRUPTED):
        trial = add(add_trial, CONTROL if index % 2 else FUSION, origin="default" if index < 2 else "sampled")
        logger.trial_started(trial)
        for epoch in range(3 - index % 3):
            end_epoch(
                trial, {"val_accuracy": 0.1 / 3 + index + epoch, "val_loss": 1.25, "train_seconds": 0.5}
            )
        if state is TrialState.DIVERGED:
            end_epoch(trial, {"train_seconds": 0.5})
        if state is TrialState.FAILED:
            trial.infeasible = True
        logger.epoch_ended(trial)
        if state is not TrialState.RUNNING:
            end_trial(record, trial, state, "" if index % 2 else "why")
            logger.trial_ended(trial)
    assert logger.close() == []
    return record


def values(trial: TrialRecord) -> dict[str, object]:
    return {field.name: getattr(trial, field.name) for field in fields(trial) if field.name not in LEFT_OUT}


@pytest.mark.parametrize("by", ["name", "id"])
def test_every_trial_comes_back_exactly(logged: SearchRecord, uri: str, by: str) -> None:
    parent, _ = runs(uri)
    name, experiment = ("first", "digits") if by == "name" else (parent.info.run_id, "another")
    found = read_search(uri, experiment, name)
    assert found is not None
    assert (found.name, found.metric, found.data) == ("first", "val_accuracy", "d" * 64)
    assert found.space == "# mine\nmodel: {name: lenet5}\n"
    assert len(found.trials) == len(logged.trials) == 5
    for trial, before in zip(found.trials, logged.trials, strict=True):
        assert values(trial) == values(before)
        configuration = Configuration.from_dict(trial.configuration)
        assert configuration == (CONTROL if trial.single else FUSION)


def test_metrics_of_single_layers_are_left_out(
    record: SearchRecord, add_trial: Callable[..., TrialRecord], uri: str, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").touch()
    logger = make_logger(uri, record, tags={"data_fingerprint": "d"}, files=[tmp_path / "space.yaml"])
    logger.start()
    trial = add(add_trial, FUSION)
    end_epoch(trial, {"val_accuracy": 0.5, "low.mean_lambda": 2.25, "layer_00.mean_lambda": 2.5})
    end_trial(record, trial, TrialState.STOPPED)
    logger.trial_ended(trial)
    assert logger.close() == []
    found = read_search(uri, "digits", "first")
    assert found is not None
    assert found.trials[0].epochs == [{"val_accuracy": 0.5, "low.mean_lambda": 2.25}]


def test_what_is_not_there_is_none_and_is_not_made(uri: str, tmp_path: Path) -> None:
    assert read_search(uri, "digits", "first") is None
    assert read_search(uri, "template", "f" * 32) is None
    assert read_search(f"sqlite:///{tmp_path}/other.db", "digits", "first") is None
    assert not (tmp_path / "other.db").exists()
    assert MlflowClient(uri).get_experiment_by_name("digits") is None


def test_runs_that_no_search_can_be_read_from(logged: SearchRecord, uri: str) -> None:
    client = MlflowClient(uri)
    parent, children = runs(uri)
    with pytest.raises(UnreadableError, match=f"the run of one trial; its search's is {parent.info.run_id}"):
        read_search(uri, "digits", children[0].info.run_id)
    client.set_tag(children[1].info.run_id, "configuration", '{"switch_la…')
    with pytest.raises(UnreadableError, match=r"run '0001 .*' has no whole tag 'configuration'"):
        read_search(uri, "digits", "first")
    other = client.create_run(parent.info.experiment_id, run_name="first")
    with pytest.raises(
        UnreadableError, match=f"2 runs .* have this name; give one's id: .*{parent.info.run_id}"
    ):
        read_search(uri, "digits", "first")
    with pytest.raises(UnreadableError, match="this run was not logged by a search"):
        read_search(uri, "digits", other.info.run_id)


def test_a_store_that_does_not_answer_is_said() -> None:
    with pytest.raises(UnreadableError, match=r"\w+: "):
        read_search("http://127.0.0.1:9", "digits", "first")
