"""Training the winner once more, on the training and the validation images together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from tune_fusion.errors import TuneFusionError
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings, ResourceSettings
from tune_fusion.storage import Place, fetch, push
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning import cluster
from tune_fusion.tuning.interruption import Interruption

_LOOK_SECONDS = 0.5
# Of a worker that is lost: killed, or its machine.
_RETRIES = 2


def retrain(
    bench: Workbench,
    configuration: Mapping[str, Any],
    epochs: int,
    resources: ResourceSettings,
    excluded: Sequence[str],
    weights: Path,
    interruption: Interruption,
) -> None:
    """Train `configuration` for `epochs` on the cluster, on all images but the test images.

    Not on the nodes whose ids are `excluded`.

    The schedule stays that of the whole training. The weights after the last epoch go to the file `weights`,
    which the cluster's nodes must share. Raises Interrupted, and TuneFusionError where it diverged or its
    worker was lost too often.
    """
    task = ray.remote(
        num_cpus=resources.cpu,
        num_gpus=resources.gpu,
        resources=cluster.kind(resources),
        max_retries=_RETRIES,
        label_selector=cluster.anywhere_but(excluded),
    )(_train)
    job = task.remote(
        bench.model_settings,
        bench.data_settings,
        bench.seed,
        dict(configuration),
        epochs,
        resources.cpu,
        resources.gpu,
        Place.of(weights),
    )
    while not ray.wait([job], timeout=_LOOK_SECONDS)[0]:
        if interruption.signalled:
            ray.cancel(job, force=True)
            interruption.check()
    try:
        problem = ray.get(job)
    except ray.exceptions.RayError as error:
        raise TuneFusionError(f"retraining: {type(error).__name__}: {error}") from error
    if problem:
        raise TuneFusionError(f"retraining: {problem}")
    fetch(weights)


def _train(
    model: ModelSettings,
    data: DataSettings,
    seed: int,
    configuration: dict[str, Any],
    epochs: int,
    threads: int,
    gpu: float,
    weights: Place,
) -> str:
    """What went wrong, in words; empty when the weights are written."""
    torch.set_num_threads(threads)
    bench = Workbench(model, data, seed, pick_device(gpu))
    trainer = Trainer(bench, Configuration.from_dict(configuration), whole=True)
    for _ in range(epochs):
        if trainer.run_epoch().diverged:
            return f"the loss was not finite in epoch {trainer.epoch}"
    save_weights(weights_of(trainer.model), weights.here())
    push([weights.here()])
    return ""
