"""Schedulers that only replays have: what others have published, to be compared with."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Literal

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.promotion import Promotion
from tune_fusion.tuning.scheduler import Scheduler


class Pasha(Promotion):
    """Promotes no further than the ranking of trials still changes (Bohdal et al. 2023, arXiv 2207.06940).

    The highest rung in use is raised when the two highest rank their trials differently; trials whose values
    differ by at most `tolerance` count as equal (the paper also estimates it from crossing curves).
    """

    tolerance = 0.01

    def __init__(self, settings: AshaSettings, max_epochs: int, direction: Literal["max", "min"]) -> None:
        super().__init__(settings, max_epochs, direction)
        self._used = 1

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """As `Promotion`; a changed ranking opens the next rung."""
        super().tell(trial, epoch, value)
        if self._used < len(self.rungs) and epoch == self.rungs[self._used] and self._unstable():
            self._used += 1

    def _unstable(self) -> bool:
        upper = self._values[self.rungs[self._used]]
        lower = self._values[self.rungs[self._used - 1]]
        return any(
            (lower[a] - lower[b]) * (upper[a] - upper[b]) < 0 and abs(lower[a] - lower[b]) > self.tolerance
            for a, b in itertools.combinations(upper, 2)
        )

    @property
    def open_rungs(self) -> tuple[int, ...]:
        """Those below the highest in use."""
        return self.rungs[: self._used]


class AllThenBest(Scheduler):
    """Every trial trains `epochs`; of each round of `trials` the `best` train to the end.

    Egele et al. 2024 (arXiv 2404.04111) with one round; with several there is something to return early.
    """

    pauses = True

    def __init__(self, epochs: int, trials: int, best: int, direction: Literal["max", "min"]) -> None:
        self._epochs, self._trials, self._best = epochs, trials, best
        self._sign = 1.0 if direction == "max" else -1.0
        self._seen: dict[int, float] = {}

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """Every trial pauses after its first epochs."""
        if epoch != self._epochs:
            return None
        return RungDecision(seen=len(self._seen) + 1, kept=0, cutoff=value, goes_on=False)

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached."""
        self._seen[trial] = self._sign * value

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """What was reached, by trial."""
        return {self._epochs: {trial: self._sign * value for trial, value in self._seen.items()}}

    def promote(self, paused: Collection[int]) -> int | None:
        """The best of a complete round."""
        trials = list(self._seen)
        for start in range(0, len(trials) - self._trials + 1, self._trials):
            mine = sorted(trials[start : start + self._trials], key=lambda trial: -self._seen[trial])
            for trial in mine[: self._best]:
                if trial in paused:
                    return trial
        return None
