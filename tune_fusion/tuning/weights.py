"""Which trials' weights stay on disk: the best ones, as a search goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tune_fusion.records import SearchRecord, TrialRecord, TrialState


class WeightKeeper:
    """Deletes the weights of ended trials that are neither the best, the best fusion nor the best control."""

    def __init__(self, record: SearchRecord, path: Callable[[int], Path]) -> None:
        self._record = record
        self._path = path

    def trial_started(self, trial: TrialRecord) -> None:
        """Nothing to keep yet."""

    def epoch_ended(self, trial: TrialRecord) -> None:
        """A running trial keeps its own best weights."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """Drop what is no longer among the best."""
        record = self._record
        best = (record.best(), record.best_control(), record.best_fusion())
        kept = {t.number for t in best if t is not None}
        for other in record.trials:
            if other.state is not TrialState.RUNNING and other.number not in kept:
                self._path(other.number).unlink(missing_ok=True)
