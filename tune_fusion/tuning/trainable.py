"""The Ray trainable: trains one configuration after the other on a workbench that stays warm."""

from __future__ import annotations

import os
import socket
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.metrics import EpochResult
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a search shares; travels to the workers once."""

    model: ModelSettings
    data: DataSettings
    seed: int
    threads: int
    """torch threads a trial, as many as it has CPUs."""
    gpu: float
    metric: str
    direction: str
    run_folder: Path

    def weights_path(self, trial: int) -> Path:
        """Where a trial keeps the weights of its best epoch."""
        return self.run_folder / "weights" / f"{trial:04d}.safetensors"

    def log_path(self, trial: int) -> Path:
        """Where a failed trial leaves its traceback."""
        return self.run_folder / "logs" / f"trial-{trial:04d}.txt"


class FusionTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """One `step` is one epoch. An error is reported as a result, so that the worker lives on for others."""

    _bench: Workbench | None = None

    def setup(self, config: dict[str, Any], plan: TrialPlan) -> None:
        """Called once a worker; see `reset_config` for what follows."""
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._bench = Workbench(plan.model, plan.data, plan.seed, pick_device(plan.gpu))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the model, the data and the compiled graph stay."""
        self._number: int = new_config["number"]
        self._configuration = Configuration.from_dict(new_config["configuration"])
        self._trainer: Trainer | None = None
        self._best: float | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; the keys are those of `EpochResult`, with ``error`` and ``node`` beside them."""
        node = f"{socket.gethostname()}:{os.getpid()}"
        try:
            result = self._run_epoch()
        except Exception as error:  # noqa: BLE001  (whatever ends a trial must not end the search)
            self._log(traceback.format_exc())
            return {"error": f"{type(error).__name__}: {error}", "node": node}
        return {"metrics": result.metrics, "diverged": result.diverged, "error": "", "node": node}

    def _run_epoch(self) -> EpochResult:
        assert self._bench is not None
        if self._trainer is None:
            self._trainer = Trainer(self._bench, self._configuration)
        result = self._trainer.run_epoch()
        if not result.diverged:
            self._keep_best(result.metrics[self._plan.metric])
        return result

    def _keep_best(self, value: float) -> None:
        sign = 1.0 if self._plan.direction == "max" else -1.0
        if self._best is None or sign * value > sign * self._best:
            self._best = value
            assert self._trainer is not None
            save_weights(weights_of(self._trainer.model), self._plan.weights_path(self._number))

    def _log(self, text: str) -> None:
        path = self._plan.log_path(self._number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
