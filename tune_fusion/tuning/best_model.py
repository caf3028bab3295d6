"""The best trial's model as MLflow wants it: weights, an input example and what the model makes of it."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tune_fusion.records import TrialRecord
from tune_fusion.space.configuration import Configuration
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.trainable import TrialPlan

_EXAMPLES = 2


def best_model(plan: TrialPlan, bench: Workbench, trial: TrialRecord | None) -> BestModel | None:
    """The model of `trial` with its best weights, tried on two validation images; None without weights."""
    if trial is None or not plan.weights_path(trial.number).exists():
        return None
    path = plan.weights_path(trial.number)
    model = bench.model
    model.load_state_dict(load_file(path))
    model.eval()
    training = Configuration.from_dict(trial.configuration).training
    images, _ = next(iter(bench.validation_batches(training).epoch(1)))
    images = images[:_EXAMPLES]
    with torch.inference_mode():
        logits = model(images)
    return BestModel(trial.number, path, images.cpu().numpy(), logits.cpu().numpy())
