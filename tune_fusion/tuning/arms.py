"""The arms of a search: fusions, and the single optimizers that they have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tune_fusion.space.domain import largest
from tune_fusion.space.sampling import Arm
from tune_fusion.space.schema import SearchSpace
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.study import Study


@dataclass
class SearchArm:
    """One arm: its own study, its own rungs, its own budget of trials."""

    name: Arm
    study: Study
    asha: Asha
    budget: int
    started: int = 0
    duplicates: int = 0
    """Suggestions in a row that were tried before."""

    @property
    def spent(self) -> bool:
        """True when no further trial of this arm may start."""
        return self.started >= self.budget


def make_arms(space: SearchSpace) -> list[SearchArm]:
    """The arms of a search with their budgets of trials; a space without controls has one arm."""
    direction: Literal["max", "min"] = space.direction
    wanted = round(space.search.trials * space.search.control_share) if space.controls else 0
    control_trials = min(wanted, space.search.trials - 1)
    budgets: list[tuple[Arm, int]] = [
        ("control", control_trials),
        ("fusion", space.search.trials - control_trials),
    ]
    epochs = int(largest(space.training["epochs"]))
    return [
        SearchArm(
            name,
            Study(space, name, direction),
            Asha(space.asha, epochs, direction, enabled=space.search.scheduler == "asha"),
            budget,
        )
        for name, budget in budgets
        if budget > 0
    ]
