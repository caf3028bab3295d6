"""Asynchronous Hyperband: successive halving with several first rungs at once (Li et al. 2020, section 3)."""

from __future__ import annotations

import math
from typing import Literal

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings, rung_epochs
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.scheduler import Scheduler

_GOLDEN = (math.sqrt(5) - 1) / 2


class Hyperband(Scheduler):
    """Deals trials to brackets, each an `Asha` whose first rung lies one further up than the one before.

    Where early epochs mislead, a bracket that looks later finds what the first one throws away. Brackets get
    trials so that each has about the same epochs to spend, as Hyperband's do. Which bracket a trial is in
    depends on its number alone.
    """

    def __init__(self, settings: AshaSettings, max_epochs: int, direction: Literal["max", "min"]) -> None:
        graces = rung_epochs(settings, max_epochs) or (settings.grace_epochs,)
        self._brackets = [
            Asha(settings.model_copy(update={"grace_epochs": grace}), max_epochs, direction)
            for grace in graces
        ]
        # A bracket of s rungs takes about s + 1 times its first rung for each trial.
        costs = [
            grace * (len(bracket.rungs) + 1) for grace, bracket in zip(graces, self._brackets, strict=True)
        ]
        shares = [1 / cost for cost in costs]
        self._ends = [sum(shares[: index + 1]) / sum(shares) for index in range(len(shares))]

    def _bracket(self, trial: int) -> Asha:
        where = trial * _GOLDEN % 1
        return next(
            (bracket for bracket, end in zip(self._brackets, self._ends, strict=True) if where < end),
            self._brackets[-1],
        )

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """As `Asha.judge`, among the trials of the same bracket."""
        return self._bracket(trial).judge(trial, epoch, value)

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """As `Asha.tell`."""
        self._bracket(trial).tell(trial, epoch, value)

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """What the rungs of all brackets have seen: the metric by trial, by epoch of the rung."""
        seen: dict[int, dict[int, float]] = {}
        for bracket in self._brackets:
            for epoch, values in bracket.values.items():
                seen.setdefault(epoch, {}).update(values)
        return seen
