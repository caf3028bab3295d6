"""ASHA as it was published: trials pause at rungs, the best are promoted (Li et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings, rung_epochs
from tune_fusion.tuning.scheduler import Scheduler

WAITING = 6
"""The most trials of an arm that wait at one rung. One of reduction_factor is promoted, the best first."""


class Promotion(Scheduler):
    """Pauses every trial at every rung; of the n trials a rung has seen the best n // reduction_factor go on.

    `Asha` must decide about a trial when it arrives, so that of the first few all but the worst go on. Here a
    trial goes on when it is known to be among the best, however late that is: early epochs are spent on many
    trials instead of on the first ones. The price is a checkpoint on the disk for each trial that waits.
    """

    pauses = True

    def __init__(self, settings: AshaSettings, max_epochs: int, direction: Literal["max", "min"]) -> None:
        self._factor = settings.reduction_factor
        self.rungs = rung_epochs(settings, max_epochs)
        self._sign = 1.0 if direction == "max" else -1.0
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in self.rungs}

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """The place of `trial` in its rung; it pauses whatever that is."""
        if epoch not in self._values:
            return None
        values = sorted((self._values[epoch] | {trial: self._sign * value}).values(), reverse=True)
        kept = len(values) // self._factor
        return RungDecision(
            seen=len(values), kept=kept, cutoff=self._sign * values[max(0, kept - 1)], goes_on=False
        )

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached; it counts once a rung."""
        if epoch in self._values:
            self._values[epoch][trial] = self._sign * value

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """What each rung has seen: the metric by trial, by epoch of the rung."""
        return {
            epoch: {trial: self._sign * value for trial, value in rung.items()}
            for epoch, rung in self._values.items()
        }

    def promote(self, paused: Collection[int]) -> int | None:
        """The best that pauses at the highest rung where one is among the best; ties go to the earlier."""
        beyond: set[int] = set()
        for epoch in reversed(self.rungs):
            values = self._values[epoch]
            if epoch in self.open_rungs:
                for trial in sorted(values, key=lambda trial: -values[trial])[: len(values) // self._factor]:
                    if trial in paused and trial not in beyond:
                        return trial
            beyond |= values.keys()
        return None

    def surplus(self, paused: Collection[int]) -> list[int]:
        """All but the best `WAITING` that pause at each rung: each of them keeps a checkpoint on the disk."""
        beyond: set[int] = set()
        found: list[int] = []
        for epoch in reversed(self.rungs):
            values = self._values[epoch]
            here = [trial for trial in values if trial in paused and trial not in beyond]
            found += sorted(here, key=lambda trial: -values[trial])[WAITING:]
            beyond |= values.keys()
        return found

    @property
    def open_rungs(self) -> tuple[int, ...]:
        """Those from which trials are promoted."""
        return self.rungs
