"""What says which trials train on, and how far: the contract of every scheduler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings, rung_epochs


class Scheduler(Protocol):
    """Judges the trials of one arm at the end of their epochs; needs nothing but the values it is told.

    Those that derive from it and define no more than `judge`, `tell` and `values` end the trials that do not
    train on.
    """

    pauses: bool = False
    """True where a trial that does not train on waits, with its checkpoint, and may be promoted later."""

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """Whether `trial`, whose metric is `value` after `epoch`, trains on; changes nothing.

        None where nothing is decided in that epoch.
        """

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached in an epoch in which something is decided."""

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """All that decisions depend on: the metric by trial, by epoch."""

    def promote(self, paused: Collection[int]) -> int | None:
        """Which of the paused trials is to train on now; changes nothing. None: none of them."""
        return None

    def surplus(self, paused: Collection[int]) -> list[int]:
        """Those of the paused trials that wait in vain, as others will always come first; changes nothing."""
        return []


class RungScheduler(Scheduler):
    """What schedulers with rungs have in common: what each rung has seen of which trial.

    Epochs are the trials' own counters, so that restarts and reused workers do not shift a rung.
    """

    def __init__(
        self,
        settings: AshaSettings,
        max_epochs: int,
        direction: Literal["max", "min"],
        *,
        enabled: bool = True,
    ) -> None:
        self._factor = settings.reduction_factor
        self.rungs = rung_epochs(settings, max_epochs) if enabled else ()
        self._sign = 1.0 if direction == "max" else -1.0
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in self.rungs}

    def tell(self, trial: int, epoch: int, value: float) -> None:
        """Remember what `trial` reached; it counts once a rung."""
        if epoch in self._values:
            self._values[epoch][trial] = self._sign * value

    def ranked(self, trial: int, epoch: int, value: float) -> list[float]:
        """What the rung at `epoch` has seen, `trial` included, the best first; the larger, the better."""
        return sorted((self._values[epoch] | {trial: self._sign * value}).values(), reverse=True)

    @property
    def values(self) -> dict[int, dict[int, float]]:
        """What each rung has seen: the metric by trial, by epoch of the rung."""
        return {
            epoch: {trial: self._sign * value for trial, value in rung.items()}
            for epoch, rung in self._values.items()
        }
