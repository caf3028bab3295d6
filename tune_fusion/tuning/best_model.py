"""A trial's model as files: what classifies images after the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tune_fusion.records import SearchRecord, TrialRecord, jsonable
from tune_fusion.runs import RunFolder
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.tracking.signature import signature_json
from tune_fusion.training.saved_model import save_model
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.best_files import best_model


def write_model(
    folder: RunFolder, bench: Workbench, record: SearchRecord, trial: TrialRecord | None
) -> BestModel | None:
    """Write the model of `trial` at its best epoch; None where there is none, or no weights.

    `bench` has the seed that the trial was trained with.
    """
    best = None if trial is None else trial.best_epoch(record.metric, record.direction)
    if trial is None or best is None or not folder.weights(trial.number).exists():
        return None
    # Not the seconds: the same trial leaves the same file.
    metrics = {name: value for name, value in best.items() if name.startswith("val_")}
    return _write(folder, bench, trial, folder.weights(trial.number), int(best["epoch"]), metrics)


def write_retrained(
    folder: RunFolder, bench: Workbench, trial: TrialRecord, epochs: int, weights: Path
) -> BestModel | None:
    """Write the model with the configuration of `trial` that was trained on validation images as well.

    Nothing was measured with these weights: every image that could do so was trained on, or is a test image.
    """
    return _write(folder, bench, trial, weights, epochs, {}, whole=True)


def _write(
    folder: RunFolder,
    bench: Workbench,
    trial: TrialRecord,
    weights: Path,
    epoch: int,
    metrics: Mapping[str, float],
    *,
    whole: bool = False,
) -> BestModel | None:
    save_model(
        folder.model,
        bench,
        weights,
        configuration=jsonable(trial.configuration),
        epoch=epoch,
        metrics=metrics,
        signature=signature_json(bench.data.channels, len(bench.data.classes)),
        whole=whole,
    )
    return best_model(folder, trial)
