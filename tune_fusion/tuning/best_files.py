"""The files of the best trial's model."""

from __future__ import annotations

from tune_fusion.records import TrialRecord
from tune_fusion.runs import RunFolder
from tune_fusion.tracking.mlflow_logger import BestModel


def best_model(folder: RunFolder, trial: TrialRecord | None) -> BestModel | None:
    """What `write_model` has written; None where it has not."""
    files = sorted(folder.model.glob("*"))
    return BestModel(trial.number, files) if trial is not None and files else None
