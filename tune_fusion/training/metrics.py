"""What one epoch reports, and how validation is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one trial.

    Keys of `metrics`, all finite floats: ``train_loss``, ``val_loss`` (nats an image), ``val_accuracy``,
    ``val_macro_f1`` (in [0, 1]), ``train_seconds``, ``eval_seconds``, ``images_per_second`` (training
    images), and for each half ``low.lr`` / ``high.lr`` (the rate the epoch was trained with) and, where
    HN_Adam stands, ``low.amsgrad_share`` (in [0, 1]) and ``low.mean_lambda`` (in [1, 4]); both also for each
    layer that HN_Adam trains, ``layer_03.amsgrad_share`` for that with index 3 in the layer map.
    """

    epoch: int
    """1 for the first."""
    metrics: dict[str, float] = field(default_factory=dict)
    diverged: bool = False
    """True where a loss was not finite: the epoch is not complete and only its finite numbers are given."""


@dataclass(frozen=True)
class Evaluation:
    """The model on a whole split: mean cross-entropy in nats, accuracy and macro-F1 in [0, 1]."""

    loss: float
    accuracy: float
    macro_f1: float
    loss_softmax: float
    """Cross-entropy of the probabilities as if they were logits, at least ln(1 + (C - 1) / e) with C classes:
    what the HN_Adam paper reports as the loss of MNIST."""


class Evaluator:
    """Measures models on whole splits with `num_classes` classes.

    The loss is plain cross-entropy without label smoothing, so that trials with and without it compare.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._classes = num_classes
        self._device = device

    @torch.inference_mode()
    def measure(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast
    ) -> Evaluation:
        """Measure `model` in evaluation mode; it is left in that mode."""
        model.eval()
        losses: list[Tensor] = []
        softmax_losses: list[Tensor] = []
        # [true class x predicted class], flat
        confusion = torch.zeros(self._classes**2, dtype=torch.int64, device=self._device)
        images_seen = 0
        for images, labels in batches:
            with autocast:
                logits = model(images)
            logits = logits.float()
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            softmax_losses.append(nn.functional.cross_entropy(logits.softmax(1), labels, reduction="sum"))
            cells = labels * self._classes + logits.argmax(dim=1)
            confusion.index_add_(0, cells, torch.ones_like(cells))
            images_seen += len(labels)
        confusion = confusion.view(self._classes, self._classes)
        return Evaluation(
            loss=float(torch.stack(losses).sum()) / images_seen,
            accuracy=float(confusion.trace()) / images_seen,
            macro_f1=macro_f1(confusion),
            loss_softmax=float(torch.stack(softmax_losses).sum()) / images_seen,
        )


def macro_f1(confusion: Tensor) -> float:
    """The mean F1 score, 2 TP / (2 TP + FP + FN), of the classes that were seen or predicted, in [0, 1].

    Args:
        confusion: int64 [C, C], how many images of each true class (row) were taken for each class (column);
            at least one.
    """
    # Not from torchmetrics, which these are the numbers of: it takes longer to import than some epochs last.
    right = confusion.diagonal()
    both = confusion.sum(0) + confusion.sum(1)
    present = both > 0
    scores = (2 * right[present]).float() / both[present].float()
    return float((scores / present.sum()).sum())
