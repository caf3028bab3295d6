"""The best trial's model as files: weights, configuration, and what goes in and comes out of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from tune_fusion.records import TrialRecord, jsonable
from tune_fusion.runs import RunFolder
from tune_fusion.space.configuration import Configuration
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.tracking.signature import signature_json
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.best_files import best_model

_EXAMPLES = 2


def write_best_model(folder: RunFolder, bench: Workbench, trial: TrialRecord | None) -> BestModel | None:
    """Write the model of `trial` at its best epoch, tried on two validation images; None without weights."""
    if trial is None or not folder.weights(trial.number).exists():
        return None
    shutil.rmtree(folder.model, ignore_errors=True)
    folder.model.mkdir(parents=True)
    _copy(folder.weights(trial.number), folder.model / "weights.safetensors")
    configuration = json.dumps(jsonable(trial.configuration), indent=2) + "\n"
    (folder.model / "config.json").write_text(configuration, encoding="utf-8")
    images, logits = _example(bench, trial, folder.model / "weights.safetensors")
    signature = signature_json(images.cpu().numpy(), logits.cpu().numpy())
    (folder.model / "signature.json").write_text(signature, encoding="utf-8")
    return best_model(folder, trial)


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _example(bench: Workbench, trial: TrialRecord, weights: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model = bench.model
    model.load_state_dict(load_file(weights))
    model.eval()
    training = Configuration.from_dict(trial.configuration).training
    images, _ = next(iter(bench.validation_batches(training).epoch(1)))
    with torch.inference_mode():
        return images[:_EXAMPLES], model(images[:_EXAMPLES])
