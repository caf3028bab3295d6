"""ASHA as it was published: trials pause at rungs, the best are promoted (Li et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Collection

from tune_fusion.events import RungDecision
from tune_fusion.tuning.scheduler import RungScheduler

WAITING = 6
"""The most trials of an arm that wait at one rung. One of reduction_factor is promoted, the best first."""


class Promotion(RungScheduler):
    """Pauses every trial at every rung; of the n trials a rung has seen the best n // reduction_factor go on.

    `Asha` must decide about a trial when it arrives, so that of the first few all but the worst go on. Here a
    trial goes on when it is known to be among the best, however late that is: early epochs are spent on many
    trials instead of on the first ones. The price is a checkpoint on the disk for each trial that waits.
    """

    pauses = True

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """The place of `trial` in its rung; it pauses whatever that is."""
        if epoch not in self._values:
            return None
        values = self.ranked(trial, epoch, value)
        kept = len(values) // self._factor
        return RungDecision(
            seen=len(values), kept=kept, cutoff=self._sign * values[max(0, kept - 1)], goes_on=False
        )

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
