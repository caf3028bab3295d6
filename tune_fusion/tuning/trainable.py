"""The Ray trainable: trains one configuration after the other on a workbench that stays warm."""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune
from safetensors.torch import load_file

from tune_fusion.errors import TuneFusionError
from tune_fusion.runs import RunFolder
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.storage import Place, fetch, fetch_folder, push, push_folder
from tune_fusion.training.checkpoint import newest_checkpoint, save_checkpoint, save_weights, weights_of
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning.failures import Failure, failure
from tune_fusion.tuning.members import Proof, check_here


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a search shares; travels to the workers once."""

    model: ModelSettings
    data: DataSettings
    seed: int
    """Of trials that have none of their own."""
    fingerprints: Mapping[int, str]
    """Of the driver's images (`ImageData.fingerprint`), by seed: those of every worker must have the same."""
    threads: int
    """torch threads a trial, as many as it has CPUs."""
    gpu: float
    metric: str
    direction: str
    run_folder: Place
    """Here trials leave checkpoints, weights and tracebacks; what becomes of them is the driver's to say."""
    proof: Proof
    """What tells a machine that shares that folder from every other one."""
    test: bool = False
    """True where a trial that has ended is measured on the test images, once, at its best epoch."""


class FusionTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """One `step` is one epoch. An error is reported as a result, so that the worker lives on for others.

    After each epoch the trial can be continued by any worker from its checkpoint, which holds the results of
    all epochs so far, and is written before the driver hears of the epoch.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan) -> None:
        """Called once a worker; see `reset_config` for what follows."""
        # A node may have joined after the driver looked.
        check_here(plan.proof)
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._folder = RunFolder(plan.run_folder.here())
        self._bench = Workbench(plan.model, plan.data, plan.seed, pick_device(plan.gpu))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the model, the data and the compiled graph stay."""
        self._number: int = new_config["number"]
        self._configuration = Configuration.from_dict(new_config["configuration"])
        seed = self._plan.seed if new_config["seed"] is None else new_config["seed"]
        if seed != self._bench.seed:
            # Other weights and another split; the images themselves are in the machine's memory by now.
            self._bench = replace(self._bench, seed=seed)
        self._trainer: Trainer | None = None
        self._epochs: list[dict[str, Any]] = []
        return True

    def step(self) -> dict[str, Any]:
        """Take up the trial's checkpoint if it has one and this is its first step here, else train an epoch.

        Returns ``epochs``: the new ones, or all those of the checkpoint, as dictionaries with the names of
        `EpochResult`; ``failure``: None or a `Failure`, and then no epochs; ``node``: host and process id;
        ``checkpoint_seconds``: what this step spent on its checkpoint.
        """
        epochs: list[dict[str, Any]] = []
        failed: Failure | None = None
        self._checkpoint_seconds = 0.0
        try:
            epochs = self._advance()
        except Exception as error:  # noqa: BLE001  (whatever ends a trial must not end the search)
            self._log(traceback.format_exc())
            failed = failure(error, self._configuration.training.batch_size, self._bench.device)
        if failed is not None:
            self._free()
        return {
            "epochs": epochs,
            "failure": failed,
            "node": f"{socket.gethostname()}:{os.getpid()}",
            "checkpoint_seconds": self._checkpoint_seconds,
        }

    def _advance(self) -> list[dict[str, Any]]:
        if self._trainer is None:
            self._trainer = self._take_up()
            if self._epochs:
                return list(self._epochs)
        return [self._run_epoch(self._trainer)]

    def _take_up(self) -> Trainer:
        """A trainer that stands where the newest checkpoint of this very trial does, or at the beginning."""
        ours, theirs = self._fingerprint(), self._plan.fingerprints[self._bench.seed]
        # Images that only this worker cannot read are no other data where `data.on_corrupt` skips them.
        if ours != theirs and not self._bench.data.skipped:
            raise TuneFusionError(
                f"data on {socket.gethostname()} differ from the driver's (fingerprint {ours[:12]} here, "
                f"{theirs[:12]} there): the same files must be on every node"
            )
        trainer = Trainer(self._bench, self._configuration)
        identity = self._identity()

        def is_ours(state: Mapping[str, Any]) -> bool:
            return bool(state.get("identity") == identity)

        fetch_folder(self._folder.checkpoint_folder(self._number))
        state = newest_checkpoint(self._folder.checkpoint_folder(self._number), is_ours)
        if state is not None:
            trainer.load_state_dict(state["trainer"])
            self._epochs = state["epochs"]
            fetch(self._folder.weights(self._number))
        return trainer

    def _fingerprint(self) -> str:
        """Of the images of this machine, which reads them now if it has not yet."""
        try:
            return self._bench.data.fingerprint
        except TuneFusionError as error:
            raise TuneFusionError(f"data on {socket.gethostname()}: {error}") from error

    def _identity(self) -> dict[str, Any]:
        """All that a trial's results depend on, so that nothing else is continued in its place."""
        return {
            "configuration": self._configuration.to_dict(),
            "model": self._plan.model.model_dump(),
            "data": self._plan.data.model_dump(),
            "fingerprint": self._plan.fingerprints[self._bench.seed],
            "seed": self._bench.seed,
        }

    def _run_epoch(self, trainer: Trainer) -> dict[str, Any]:
        result = trainer.run_epoch()
        skipped = len(self._bench.data.skipped)
        counted = {"skipped_images": float(skipped)} if skipped else {}
        metrics = result.metrics | counted
        epoch = {"epoch": result.epoch, "metrics": metrics, "diverged": result.diverged}
        if not result.diverged:
            # The weights first: a trial that is continued after this epoch does not write them again.
            if self._is_best(result.metrics):
                save_weights(weights_of(trainer.model), self._folder.weights(self._number))
                push([self._folder.weights(self._number)])
            self._epochs.append(epoch)
        if self._plan.test and (result.diverged or trainer.finished):
            metrics |= self._test(trainer)
        if not result.diverged:
            self._save(trainer)
        return epoch

    def _test(self, trainer: Trainer) -> dict[str, float]:
        """The test metrics of the trial's best epoch; none where no epoch was measured."""
        weights = self._folder.weights(self._number)
        return trainer.test(load_file(weights)) if weights.exists() else {}

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        metric, sign = self._plan.metric, 1.0 if self._plan.direction == "max" else -1.0
        return all(sign * metrics[metric] > sign * earlier["metrics"][metric] for earlier in self._epochs)

    def _save(self, trainer: Trainer) -> None:
        started = time.perf_counter()
        state = {"identity": self._identity(), "epochs": self._epochs, "trainer": trainer.state_dict()}
        folder = self._folder.checkpoint_folder(self._number)
        push_folder(folder, save_checkpoint(folder, trainer.epoch, state))
        self._checkpoint_seconds = time.perf_counter() - started

    def _free(self) -> None:
        """Give the memory of a failed trial back, for the next one and for other processes."""
        if self._trainer is not None:
            self._trainer.optimizer.zero_grad(set_to_none=True)
        self._trainer = None
        gc.collect()
        if self._bench.device.type != "cpu":
            torch.accelerator.empty_cache()

    def _log(self, text: str) -> None:
        # On a full disk the failure itself is still told.
        with suppress(OSError, TuneFusionError):
            path = self._folder.trial_log(self._number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            push([path], patience=0.0)
