"""The memory of one arm of a search: an Optuna study that is asked for configurations and told results."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import optuna

from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.sampling import Arm, Scalar, default_parameters, draw, grid_parameters
from tune_fusion.space.schema import SearchSpace


@dataclass(frozen=True)
class Suggestion:
    """A configuration to try, and the study's own trial behind it."""

    configuration: Configuration
    origin: Literal["default", "sampled"]
    trial: optuna.Trial


class Study:
    """Suggests configurations of one arm: its untuned defaults first, then what the sampler draws.

    A suggestion depends on the seed, the number of suggestions made before it and what the study was told,
    never on the process's random state.
    """

    def __init__(self, space: SearchSpace, arm: Arm, direction: Literal["max", "min"]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._arm: Arm = arm
        self._asked = 0
        self._defaults = default_parameters(space, arm)
        self._grid: Iterator[dict[str, Scalar]] | None = None
        if space.search.sampler == "grid":
            self._defaults = []
            self._grid = iter(grid_parameters(space, arm))
        self._study = optuna.create_study(direction="maximize" if direction == "max" else "minimize")

    def ask(self) -> Suggestion | None:
        """The next configuration, or None when a grid has no more."""
        origin: Literal["default", "sampled"] = "sampled"
        if self._asked < len(self._defaults):
            origin = "default"
            self._study.enqueue_trial(self._defaults[self._asked])
        elif self._grid is not None:
            point = next(self._grid, None)
            if point is None:
                return None
            self._study.enqueue_trial(point)
        self._study.sampler = self._sampler()
        self._asked += 1
        trial = self._study.ask()
        return Suggestion(draw(self._space, self._arm, trial), origin, trial)

    def tell(self, suggestion: Suggestion, record: TrialRecord, value: float | None, metric: str) -> None:
        """Tell how a trial ended, as what it is and at the epoch it reached.

        `value` is its best value. A stopped trial is told as pruned with the value of each epoch; a diverged
        one too, with NaN for the epoch in which it diverged, and as infeasible: TPE ranks pruned trials by
        the epoch they reached before their value, and would take a late divergence for a success. A failed
        or interrupted trial is told as failed, from which nothing is learnt.
        """
        if record.state is TrialState.COMPLETED and value is not None:
            self._study.tell(suggestion.trial, value)
            return
        if record.state in (TrialState.STOPPED, TrialState.DIVERGED):
            for index, metrics in enumerate(record.epochs):
                suggestion.trial.report(metrics.get(metric, math.nan), index + 1)
            if record.state is TrialState.DIVERGED:
                suggestion.trial.set_constraint("loss is finite", 1.0)
            self._study.tell(suggestion.trial, state=optuna.trial.TrialState.PRUNED)
            return
        self.forget(suggestion)

    def forget(self, suggestion: Suggestion) -> None:
        """Drop a suggestion that will not be run and teaches nothing."""
        self._study.tell(suggestion.trial, state=optuna.trial.TrialState.FAIL)

    @property
    def optuna_trials(self) -> list[optuna.trial.FrozenTrial]:
        """Everything the study was asked for and told, in order."""
        return self._study.get_trials(deepcopy=False)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        seed = zlib.crc32(f"{self._space.search.seed}/{self._arm}/{self._asked}".encode())
        if self._space.search.sampler != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # `group` is what makes TPE model conditional spaces jointly; Optuna still calls it experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
