"""The arms of a search: fusions, and the single optimizers that they have to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tune_fusion.records import TrialRecord
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.sampling import Arm, Scalar
from tune_fusion.space.schema import SearchSpace
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.curves import Curves
from tune_fusion.tuning.hyperband import Hyperband
from tune_fusion.tuning.promotion import Promotion
from tune_fusion.tuning.scheduler import Scheduler
from tune_fusion.tuning.study import Study, Suggestion


class Suggester(Protocol):
    """What an arm is asked for configurations and tells how they did; see `Study`."""

    @property
    def left(self) -> int | None:
        """How many suggestions are left of a list that is known beforehand; None where there is none."""

    def ask(self, *, ahead: bool = False) -> Suggestion | None:
        """The next configuration; None: there is no further one.

        With `ahead` it need not know what was told since the one before it.
        """

    def repeat(
        self,
        parameters: Mapping[str, Scalar],
        configuration: Configuration,
        origin: Literal["default", "sampled"],
    ) -> Suggestion:
        """What `ask` gave when its answers were `parameters`; ValueError where it would not any more."""

    def skip(self) -> None:
        """Count a suggestion that is not allowed any more."""

    def tell(self, suggestion: Suggestion, record: TrialRecord, value: float | None, metric: str) -> None:
        """How the trial of a suggestion ended; `value` is its best."""

    def pause(self, suggestion: Suggestion, record: TrialRecord, metric: str) -> None:
        """What the trial of a suggestion has reached so far; it may train on later."""


@dataclass
class SearchArm:
    """One arm: its own study, its own rungs, its own share of the search's training epochs."""

    name: Arm
    study: Suggester
    scheduler: Scheduler
    share: float = 1.0
    """In (0, 1]; the shares of a search's arms sum to 1."""
    started: int = 0
    running: int = 0
    """Trials without an end, but for those that pause."""
    epochs: int = 0
    """Epochs that its trials have trained."""
    best: float = -math.inf
    """The best value that an epoch of its trials had; the larger, the better."""
    improved: int = 0
    """`epochs` when that was."""
    duplicates: int = 0
    """Suggestions in a row that were tried before."""
    exhausted: bool = False
    """True when it has nothing new to suggest."""

    def took_epoch(self, value: float) -> None:
        """Count an epoch of one of its trials; `value` is NaN where it diverged."""
        self.epochs += 1
        if value > self.best:
            self.best, self.improved = value, self.epochs

    @property
    def open(self) -> bool:
        """True while it may have something to suggest."""
        return not self.exhausted and self.study.left != 0

    @property
    def spent(self) -> float:
        """Epochs trained or being trained, over the share: the arm with the least has the next turn."""
        return (self.epochs + self.running) / self.share


def make_arms(space: SearchSpace) -> list[SearchArm]:
    """The arms of a search; a space without controls has one.

    They run side by side: the next trial is always of the arm that has spent the least of its share of the
    epochs, so that fusions and single optimizers are searched at the same cost, however many trials of which
    are stopped early.
    """
    epochs = space.max_epochs
    return [
        SearchArm(name, Study(space, name, space.direction), make_scheduler(space, epochs), share)
        for name, share in arm_shares(space).items()
    ]


def arm_shares(space: SearchSpace) -> dict[Arm, float]:
    """The arms that a search of the space has, each with its share of the epochs, which sum to 1."""
    control = space.search.control_share if space.controls else 0.0
    shares: dict[Arm, float] = {"fusion": 1.0 - control, "control": control}
    return {name: share for name, share in shares.items() if share > 0}


def make_scheduler(space: SearchSpace, epochs: int) -> Scheduler:
    """What says which trials of an arm train on; `epochs` are those of a trial that is never stopped."""
    match space.search.scheduler:
        case "promotion":
            return Promotion(space.asha, epochs, space.rung_direction)
        case "hyperband":
            return Hyperband(space.asha, epochs, space.rung_direction)
        case "curves":
            return Curves(space.asha, epochs, space.rung_direction)
        case "asha" | "none" as name:
            return Asha(space.asha, epochs, space.rung_direction, enabled=name == "asha")
