"""Schedulers that pause trials and go on with some of them later: for replays, to be compared with.

A real search has none of them: a trial that waits keeps its checkpoint on the disk and its place in the
record, and stays without an end until the search ends. What they would gain is measured here first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tune_fusion.events import RungDecision
from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.space.settings import AshaSettings, rung_epochs
from tune_fusion.tuning.arms import SearchArm
from tune_fusion.tuning.engine import Engine


class _Pauses:
    """Trials stop at every rung, in `waiting` by epoch, until `promote` picks them."""

    def __init__(self, rungs: tuple[int, ...], direction: Literal["max", "min"]) -> None:
        self.rungs = rungs
        self._sign = 1.0 if direction == "max" else -1.0
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in rungs}
        self.waiting: dict[int, dict[int, float]] = {epoch: {} for epoch in rungs}

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """A rung pauses every trial."""
        if epoch not in self._values:
            return None
        seen = len(self._values[epoch]) + 1
        return RungDecision(seen=seen, kept=0, cutoff=value, goes_on=False)

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached; it waits there."""
        if epoch in self._values:
            self._values[epoch][trial] = self.waiting[epoch][trial] = self._sign * value

    def promote(self) -> int | None:
        """A waiting trial that is to go on now; it waits no more."""
        raise NotImplementedError

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """What each rung has seen."""
        return {epoch: {t: self._sign * v for t, v in rung.items()} for epoch, rung in self._values.items()}

    def _go_on(self, epoch: int, trial: int) -> int:
        del self.waiting[epoch][trial]
        return trial


class Promotion(_Pauses):
    """ASHA as Li et al. print it: of a rung's trials the best n // reduction_factor are promoted."""

    def __init__(self, settings: AshaSettings, max_epochs: int, direction: Literal["max", "min"]) -> None:
        super().__init__(rung_epochs(settings, max_epochs), direction)
        self._factor = settings.reduction_factor

    def promote(self) -> int | None:
        """The best of the highest rung that has one to promote."""
        for epoch in reversed(self._open()):
            ranked = sorted(self._values[epoch], key=lambda trial: -self._values[epoch][trial])
            for trial in ranked[: len(ranked) // self._factor]:
                if trial in self.waiting[epoch]:
                    return self._go_on(epoch, trial)
        return None

    def _open(self) -> tuple[int, ...]:
        """Rungs from which trials are promoted."""
        return self.rungs


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

    def _open(self) -> tuple[int, ...]:
        return self.rungs[: self._used]


class AllThenBest(_Pauses):
    """Every trial trains `epochs`; of each round of trials the best ones train to the end.

    Egele et al. 2024 (arXiv 2404.04111) with one round. The anytime curve of rounds is the fairer one.
    """

    def __init__(self, epochs: int, trials: int, best: int, direction: Literal["max", "min"]) -> None:
        super().__init__((epochs,), direction)
        self._trials, self._best, self._rounds = trials, best, 0
        self._chosen: list[int] = []

    def promote(self) -> int | None:
        """The next of the chosen ones."""
        (epoch,) = self.rungs
        seen = list(self._values[epoch])
        if len(seen) >= self._trials * (self._rounds + 1):
            mine = seen[self._trials * self._rounds : self._trials * (self._rounds + 1)]
            self._chosen += sorted(mine, key=lambda trial: -self._values[epoch][trial])[: self._best]
            self._rounds += 1
        return self._go_on(epoch, self._chosen.pop(0)) if self._chosen else None


class _Pausing(Protocol):
    waiting: dict[int, dict[int, float]]

    def promote(self) -> int | None: ...


@dataclass
class PausingEngine(Engine):
    """The engine of a search whose schedulers pause trials."""

    _paused: set[int] = field(default_factory=set)

    def suggest(self) -> TrialRecord | None:
        """A promoted trial of the arm whose turn it is, or a new one."""
        if self.running >= self.slots():
            return None
        while (arm := self.next_arm()) is not None:
            number = _pausing(arm).promote()
            if number is not None:
                self._paused.remove(number)
                return self._hand_out(number)
            trial = self._new_trial(arm)
            if trial is not None:
                return trial
        return None

    def report(
        self, number: int, metrics: Mapping[str, float], *, diverged: bool = False, node: str = ""
    ) -> bool:
        """As `Engine.report`; False where the trial waits, too."""
        if not super().report(number, metrics, diverged=diverged, node=node):
            return False
        arm = self._live[number].arm
        if arm is not None and any(number in rung for rung in _pausing(arm).waiting.values()):
            self.set_aside(number)
            self._paused.add(number)
            return False
        return True

    def verdict(
        self, trial: TrialRecord, epoch: int, rung: RungDecision | None, diverged: bool
    ) -> tuple[TrialState | None, str]:
        """A rung ends no trial."""
        return super().verdict(trial, epoch, None, diverged)

    def next_arm(self) -> SearchArm | None:
        """As `Engine.next_arm`; trials that wait cost nothing."""
        waiting = {arm.name: 0 for arm in self.arms}
        for number in self._paused:
            waiting[self.record.trials[number].arm] += 1  # type: ignore[index]  # an arm's name
        return min(
            (arm for arm in self.arms if arm.open),
            key=lambda arm: arm.spent - waiting[arm.name] / arm.share,
            default=None,
        )


def _pausing(arm: SearchArm) -> _Pausing:
    return arm.asha  # type: ignore[return-value]  # every arm of a PausingEngine has one
