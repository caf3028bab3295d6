"""Stopping by learning curves: a trial ends when nothing seen so far would bring it to the best."""

from __future__ import annotations

import math
import statistics
from typing import Literal

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.scheduler import Scheduler

# Gains of an epoch without which it is not judged; the luck a trial is granted, in standard deviations.
_FEWEST = 3
_LUCK = 1.0


class Curves(Scheduler):
    """Foretells a trial's last value from what other trials gained from the same epoch on.

    In each epoch from the first rung on, the best value so far plus the mean gains of the epochs left, plus
    one standard deviation of their sum, must reach the best that any trial has. So all epochs of all trials
    are used, stopped ones included, and nothing is assumed of a curve's form.
    """

    def __init__(self, settings: AshaSettings, max_epochs: int, direction: Literal["max", "min"]) -> None:
        self._grace, self._last = settings.grace_epochs, max_epochs - 1
        self._sign = 1.0 if direction == "max" else -1.0
        self._curves: dict[int, dict[int, float]] = {}

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """Whether `trial`, whose metric is `value` after `epoch`, goes on."""
        own = dict(self._curves.get(trial, {}))
        own[epoch] = max(self._sign * value, own.get(epoch - 1, -math.inf))
        curves = self._curves | {trial: own}
        best = max(value for curve in curves.values() for value in curve.values())
        needed = best - self._hope(curves, epoch)
        if epoch < self._grace or not math.isfinite(needed):
            # Told all the same: the epoch is what others are judged by.
            needed = -math.inf
        seen = sum(epoch in curve for curve in curves.values())
        goes_on = own[epoch] >= needed
        kept = sum(curve.get(epoch, -math.inf) >= needed for curve in curves.values())
        cutoff = self._sign * (needed if math.isfinite(needed) else min(own[epoch], best))
        return RungDecision(seen=seen, kept=kept, cutoff=cutoff, goes_on=goes_on)

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached."""
        own = self._curves.setdefault(trial, {})
        own[epoch] = max(self._sign * value, own.get(epoch - 1, -math.inf))

    def _hope(self, curves: dict[int, dict[int, float]], epoch: int) -> float:
        """What a lucky trial gains from `epoch` to its end; infinity where too few have trained so far."""
        mean = variance = 0.0
        for step in range(epoch, self._last):
            gains = [curve[step + 1] - curve[step] for curve in curves.values() if step + 1 in curve]
            if len(gains) < _FEWEST:
                return math.inf
            mean += statistics.fmean(gains)
            variance += statistics.variance(gains)
        return mean + _LUCK * math.sqrt(variance)

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """The best value so far by trial, by epoch."""
        seen: dict[int, dict[int, float]] = {}
        for trial, curve in self._curves.items():
            for epoch, value in curve.items():
                seen.setdefault(epoch, {})[trial] = self._sign * value
        return seen
