"""The epoch loop that every trial runs. Knows neither Ray nor MLflow."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from tune_fusion.optim import registry
from tune_fusion.optim.fused import FusedOptimizer
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_backends import load_ahead
from tune_fusion.optim.hn_adam_statistics import HNAdamStatistics
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.effective import resolved_settings
from tune_fusion.space.settings import TrainingSettings
from tune_fusion.training.allocation import keep_freed_memory
from tune_fusion.training.metrics import EpochResult, Evaluator
from tune_fusion.training.workbench import Workbench

# A loss is looked at this often: often enough that a diverged trial wastes little, rarely enough that a GPU
# is not made to wait for the host.
_CHECK_EVERY = 25
# HN_Adam's norm is observed on about this many steps of an epoch, spread evenly.
_OBSERVED_STEPS = 8

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Trains one configuration on a workbench, one epoch a call.

    The workbench's model is renewed when the trainer is made, so only the newest trainer of a workbench may
    be used. Every random choice depends on the workbench's seed and the epoch's number alone: two trainers
    with the same configuration give the same numbers, bit for bit on one machine.

    With `whole`, validation images are trained on, too, and nothing is measured.
    """

    def __init__(self, bench: Workbench, configuration: Configuration, *, whole: bool = False) -> None:
        if bench.device.type == "cpu":
            keep_freed_memory()
        self.bench = bench
        self.configuration = configuration
        self.training: TrainingSettings = configuration.training
        self.epoch = 0
        self.model = bench.renew_model(self.training)
        self.optimizer = _make_optimizer(bench.model, configuration)
        if bench.device.type == "cuda" and any(isinstance(child, HNAdam) for _, child in self._halves()):
            # Compiled, where it never was, while the first batch is made ready and goes through the model.
            load_ahead(bench.device)
        self._schedule = _make_schedule(self.optimizer, self.training)
        self._images = len(bench.whole_training if whole else bench.data.train)
        batches = bench.whole_training_batches if whole else bench.training_batches
        self._train_batches = batches(self.training)
        self._validation_batches = None if whole else bench.validation_batches(self.training)
        self._evaluator = Evaluator(len(bench.data.classes), bench.device)
        device = bench.device.type
        self._scaler = torch.amp.GradScaler(device, enabled=self.training.precision == "float16")
        self._autocast = torch.autocast(
            device, dtype=_DTYPES[self.training.precision], enabled=self.training.precision != "float32"
        )
        self._loss: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss(
            label_smoothing=self.training.label_smoothing
        )

    @property
    def finished(self) -> bool:
        """True once every epoch of the configuration is trained."""
        return self.epoch >= self.training.epochs

    def run_epoch(self) -> EpochResult:
        """Train one epoch and measure the validation split, unless it is trained on.

        A loss that is not finite ends the epoch at once: the result says ``diverged``.
        """
        self.epoch += 1
        rates = self._rates()
        started = time.perf_counter()
        train_loss = self._train()
        norms = self._pop_norms()
        trained = time.perf_counter()
        metrics = {
            "train_loss": train_loss,
            "train_seconds": trained - started,
            "images_per_second": self._images / (trained - started),
            **rates,
            **norms,
        }
        diverged = not math.isfinite(train_loss)
        if not diverged and self._validation_batches is not None:
            batches = self._validation_batches.epoch(self.epoch)
            measured = self._evaluator.measure(self.model, batches, self._autocast)
            metrics["eval_seconds"] = time.perf_counter() - trained
            diverged = not math.isfinite(measured.loss)
            if not diverged:
                metrics["val_loss"] = measured.loss
                metrics["val_accuracy"] = measured.accuracy
                metrics["val_macro_f1"] = measured.macro_f1
        if self._schedule is not None:
            self._schedule.step()
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return EpochResult(self.epoch, finite, diverged)

    def steps(self) -> Iterator[int]:
        """Train step after step, without end and without looking at the loss; yields the images of each.

        For who asks how long steps take, not where they lead.
        """
        self.model.train()
        for epoch in itertools.count(1):
            for images, labels in self._train_batches.epoch(epoch):
                self._step(images, labels)
                yield len(labels)

    def test(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure the test images with `weights` of this trainer's model, which keeps them.

        Returns ``test_loss`` and ``test_loss_softmax`` (`Evaluation`), ``test_accuracy``, ``test_macro_f1``.
        """
        self.bench.model.load_state_dict(weights)
        batches = self.bench.test_batches(self.training).epoch(self.epoch)
        measured = self._evaluator.measure(self.model, batches, self._autocast)
        return {f"test_{name}": value for name, value in asdict(measured).items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epochs depend on, as ``torch.load(weights_only=True)`` reads it.

        Random numbers, the order of the images and their augmentation are made from the seed and the epoch's
        number alone and leave no state behind: these two stand for all of them, and nothing else is random.
        Tensors are the live ones: write them down before the next epoch.
        """
        return {
            "seed": self.bench.seed,
            "epoch": self.epoch,
            "model": self.bench.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the trainer stood that gave `state`: the next epochs are the same, bit for bit.

        It must have had the same configuration, and its workbench the same settings; ValueError where their
        seeds differ. The optimizer goes on with the tensors in `state` themselves.
        """
        if state["seed"] != self.bench.seed:
            raise ValueError(f"the state is of seed {state['seed']}, the workbench has {self.bench.seed}")
        self.epoch = state["epoch"]
        self.bench.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])

    def _train(self) -> float:
        """One pass over the training batches; the mean loss an image, or the first one not finite."""
        self.model.train()
        total = torch.zeros((), device=self.bench.device)
        images_seen = 0
        with _seeded(self.bench.seed, self.epoch, self.bench.device):
            for step, (images, labels) in enumerate(self._train_batches.epoch(self.epoch)):
                self._observe_norms(step)
                loss = self._step(images, labels)
                total += loss.detach() * len(labels)
                images_seen += len(labels)
                if step % _CHECK_EVERY == 0 and not torch.isfinite(total):
                    break
        return float(total) / max(images_seen, 1)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss = self._loss(self.model(images), labels)
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        if self.training.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss

    def _halves(self) -> Iterator[tuple[str, Optimizer]]:
        yield "low", self.optimizer.low
        if self.optimizer.high is not None:
            yield "high", self.optimizer.high

    def _rates(self) -> dict[str, float]:
        return {f"{half}.lr": float(child.param_groups[0]["lr"]) for half, child in self._halves()}

    def _observe_norms(self, step: int) -> None:
        stride = max(1, len(self._train_batches) // _OBSERVED_STEPS)
        for _, child in self._halves():
            if isinstance(child, HNAdam):
                child.collect_statistics = step % stride == 0

    def _pop_norms(self) -> dict[str, float]:
        """HN_Adam's branches and norms in the observed steps, by half and by layer."""
        seen: dict[Tensor, HNAdamStatistics] = {}
        metrics: dict[str, float] = {}
        for half, child in self._halves():
            if isinstance(child, HNAdam):
                own = child.pop_statistics()
                seen |= own
                metrics |= _norms(half, own.values())
        if seen:
            for layer in self.bench.layers:
                own_layer = [seen[p] for p in layer.parameters.values() if p in seen]
                metrics |= _norms(f"layer_{layer.index:02d}", own_layer)
        return metrics


def _norms(name: str, parts: Iterable[HNAdamStatistics]) -> dict[str, float]:
    whole = HNAdamStatistics.together(parts)
    if whole is None:
        return {}
    return {f"{name}.amsgrad_share": whole.amsgrad_share, f"{name}.mean_lambda": whole.mean_lambda}


def _make_optimizer(model: nn.Module, configuration: Configuration) -> FusedOptimizer:
    def factory(choice: OptimizerChoice) -> Callable[..., Optimizer]:
        settings = resolved_settings(choice, configuration.training, registry.OPTIMIZERS)
        return registry.factory(choice.name, settings)

    if configuration.switch_layer == ALL or configuration.high is None:
        return FusedOptimizer.split(model, ALL, low=factory(configuration.low))
    return FusedOptimizer.split(
        model, configuration.switch_layer, low=factory(configuration.low), high=factory(configuration.high)
    )


def _make_schedule(optimizer: Optimizer, training: TrainingSettings) -> lr_scheduler.LRScheduler | None:
    if training.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=training.epochs)
    if training.schedule == "step":
        return lr_scheduler.StepLR(optimizer, training.step_epochs, gamma=training.step_gamma)
    return None


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Runs the body with torch's random state made from (seed, epoch), and puts the old state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield
