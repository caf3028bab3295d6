"""An arm's list of configurations to run, in place of a study that would look for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tune_fusion.records import TrialRecord
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.sampling import Scalar
from tune_fusion.tuning.study import Suggestion


@dataclass(frozen=True)
class ListedRun:
    """One configuration that is to be run with one seed."""

    trial: int
    """The number of the search's trial whose configuration it is."""
    configuration: Configuration
    origin: Literal["default", "sampled"]
    seed: int

    @property
    def answers(self) -> dict[str, Scalar]:
        """What tells this run from every other one of the list."""
        return {"trial": self.trial, "seed": self.seed}


class ListedStudy:
    """Suggests each run of a list once, in its order; a `tune_fusion.tuning.arms.Suggester`.

    What was asked for is known by trial and seed, so that a later process may have a longer list: with more
    finalists or seeds, and with those runs once more that failed.
    """

    def __init__(self, runs: Sequence[ListedRun]) -> None:
        self._waiting = list(runs)

    @property
    def left(self) -> int:
        """How many runs were not suggested yet."""
        return len(self._waiting)

    def ask(self, *, ahead: bool = False) -> Suggestion | None:
        """The next run, or None when all were suggested."""
        return self._suggest(self._waiting[0]) if self._waiting else None

    def repeat(
        self,
        parameters: Mapping[str, Scalar],
        configuration: Configuration,
        origin: Literal["default", "sampled"],
    ) -> Suggestion:
        """Suggest the run that `parameters` name again; ValueError where it is not in the list."""
        for run in self._waiting:
            if run.answers == dict(parameters) and run.configuration == configuration:
                return self._suggest(run)
        raise ValueError(
            f"trial {parameters.get('trial')} with seed {parameters.get('seed')} is not to be run"
        )

    def skip(self) -> None:
        """Nothing to do: a run that is not in the list is in nobody's way."""

    def tell(self, suggestion: Suggestion, record: TrialRecord, value: float | None, metric: str) -> None:
        """Nothing to learn."""

    def pause(self, suggestion: Suggestion, record: TrialRecord, metric: str) -> None:
        """Nothing to learn."""

    def _suggest(self, run: ListedRun) -> Suggestion:
        self._waiting.remove(run)
        return Suggestion(run.configuration, run.origin, run.answers, run.seed)
