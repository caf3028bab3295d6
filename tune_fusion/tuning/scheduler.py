"""What says which trials train on, and how far: the contract of every scheduler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from tune_fusion.events import RungDecision


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
