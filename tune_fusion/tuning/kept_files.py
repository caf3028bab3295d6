"""Which files of trials stay on disk as a search goes on: the best weights, and checkpoints to go on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.runs import RunFolder
from tune_fusion.training.files import parts_of
from tune_fusion.tuning.store_copy import copy_of

# Trials in these states may train on: their files stay.
_OPEN = (TrialState.RUNNING, TrialState.INTERRUPTED)


class FileKeeper:
    """Deletes an ended trial's checkpoints, and its weights unless it is among the wanted ones.

    With them goes what a worker that was killed while it wrote has left of a file.

    `wanted` says which of a record's trials these are, by number. It is asked about those that have ended and
    were not given up before: what it once does not want it never wants again.
    """

    def __init__(
        self, record: SearchRecord, folder: RunFolder, wanted: Callable[[SearchRecord], set[int]]
    ) -> None:
        self._copy = copy_of(folder)
        self._record = record
        self._folder = folder
        self._wanted = wanted
        self._held = {trial.number for trial in record.known if trial.state not in _OPEN}
        """Ended trials whose weights may lie on the disk."""

    def tidy(self) -> None:
        """Delete what no trial needs, such as what a process that was killed has left."""
        unfinished = {trial.number for trial in self._record.trials if trial.state in _OPEN}
        self._held = self._kept()
        kept = unfinished | self._held
        for path in self._folder.checkpoints.glob("*"):
            if not path.name.isdigit() or int(path.name) not in unfinished:
                shutil.rmtree(path, ignore_errors=True)
        weights = {self._folder.weights(number) for number in kept}
        for path in self._folder.weights(0).parent.glob("*"):
            if path not in weights:
                path.unlink(missing_ok=True)
        self._tidy_store(unfinished, kept)

    def trial_started(self, trial: TrialRecord) -> None:
        """Nothing to keep yet."""

    def epoch_ended(self, trial: TrialRecord) -> None:
        """A running trial keeps its own files."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """Drop the trial's checkpoints, and weights that are no longer wanted."""
        if trial.state in _OPEN:
            return
        shutil.rmtree(self._folder.checkpoint_folder(trial.number), ignore_errors=True)
        for part in parts_of(self._folder.weights(trial.number)):
            part.unlink(missing_ok=True)
        self._held.add(trial.number)
        kept = self._kept()
        gone = [self._folder.weights(number) for number in self._held - kept]
        for path in gone:
            path.unlink(missing_ok=True)
        self._held = kept
        if self._copy is not None:
            self._copy.forget([self._folder.checkpoint_folder(trial.number)], gone)

    def _tidy_store(self, unfinished: set[int], kept: set[int]) -> None:
        """Have the store delete the same."""
        if self._copy is None:
            return
        folders = [self._folder.checkpoint_folder(number) for number in unfinished]
        files = [self._folder.weights(number) for number in kept]
        self._copy.keep_only(self._folder.checkpoints, folders, self._folder.weights(0).parent, files)

    def _kept(self) -> set[int]:
        # Among the ended only: a better one that still trains may yet diverge.
        held = [self._record.trials[number] for number in sorted(self._held) if number >= 0]
        return self._wanted(replace(self._record, trials=held))


def best_trials(record: SearchRecord) -> set[int]:
    """The best trial, the best fusion and the best single optimizer."""
    best = (record.best(), record.best_control(), record.best_fusion())
    return {trial.number for trial in best if trial is not None}
