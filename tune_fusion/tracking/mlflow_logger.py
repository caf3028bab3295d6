"""The MLflow log of a search: one parent run, one nested child run a trial.

`MlflowLogger` is told what happens on the driver's thread and only makes copies there; `Delivery` brings them
to the store from a thread of its own. What it brings follows from the record of the search, and what was
brought is acknowledged: so any later process can bring the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking import contents
from tune_fusion.tracking.changes import PARENT, Artifact, Change, Delivered
from tune_fusion.tracking.delivery import Delivery
from tune_fusion.tracking.store import MlflowStore
from tune_fusion.tracking.uri import check_tracking, run_url, ui_command

__all__ = ["BestModel", "Delivered", "MlflowLogger", "check_tracking", "ui_command"]

_SETTLE_SECONDS = 5.0
_NO_ONE_DELIVERED: Mapping[int, Delivered] = {}


@dataclass(frozen=True)
class BestModel:
    """The model of the best trial."""

    trial: int
    """Its number."""
    files: Sequence[Path]
    """Weights, configuration and signature; they must stay until `MlflowLogger.close` has returned."""


@dataclass
class _Told:
    """How far the delivery was told of a run: `Delivered`, once it has brought everything."""

    epochs: int = 0
    status: str | None = None


class MlflowLogger:
    """Logs a search to MLflow; a `tune_fusion.records.SearchListener`.

    The experiment is named after the space, the parent run after the search. A child run carries the trial's
    parameters, every metric once an epoch (``step`` is the epoch, from 1), ``best_<metric>`` to sort the run
    table by, and the status: FINISHED for completed trials, KILLED for stopped and interrupted ones, FAILED
    for failed and diverged ones. Values that are not finite are left out. The parent's ``best_value`` has the
    number of ended trials as its step.

    No method blocks or raises because of the store. `close` delivers what is left and says what it could not.

    Args:
        uri: the tracking URI, checked by `check_tracking`.
        record: the search; read on the caller's thread only.
        tags: tags of every run, such as the git commit; values beyond MLflow's limits are cut.
        files: files of the parent run that exist from the start, such as the space file and the layer map.
        parent_run: MLflow's id of the run that the parent run is itself nested in; None: in none.
        winner: which trial is the best of them all.
        delivered: what earlier processes have brought to this store, by run.
        acknowledge: told, on a thread of its own, what the store holds of a run after each delivery that
            changed it. An error that it raises is passed over.
        later: the command that delivers what could not be delivered now; for problems.
        offline: whether `close` may give up at once on a store that has never answered.
    """

    def __init__(
        self,
        uri: str,
        record: SearchRecord,
        *,
        tags: Mapping[str, str],
        later: str,
        files: Sequence[Path] = (),
        parent_run: str | None = None,
        winner: Callable[[SearchRecord], TrialRecord | None] = SearchRecord.best,
        delivered: Mapping[int, Delivered] = _NO_ONE_DELIVERED,
        acknowledge: Callable[[Delivered], None] = lambda delivered: None,
        offline: bool = False,
    ) -> None:
        self.uri = uri
        self._record = record
        self._tags = contents.common_tags(record, tags)
        self._files = tuple(files)
        self._parent_run = parent_run
        self._winner = winner
        self._store = MlflowStore(uri, record.space)
        self._delivery = Delivery(
            self._store, record.key, delivered, acknowledge=acknowledge, later=later, offline=offline
        )
        self._told = {run: _Told(known.epochs, known.status) for run, known in delivered.items()}
        self._ends_seen = 0
        inherited = replace(record, trials=[]).best()
        self._best = None if inherited is None else record.value(inherited)
        self._news = False

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None as long as the store has not answered."""
        return self._store.experiment_id

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the parent run; None as long as no store has given one."""
        return self._delivery.run_id(PARENT)

    @property
    def url(self) -> str | None:
        """Where the parent run is seen, once `ui_command` runs for a store without a server."""
        if self.experiment_id is None or self.run_id is None:
            return None
        return run_url(self.uri, self.experiment_id, self.run_id)

    def start(self, *, running: bool = True) -> None:
        """Start the thread, and log what is in the record and not delivered yet.

        `running` is False where nobody runs the search: the parent run then keeps the status that it has.
        """
        self._delivery.start()
        told = self._told.get(PARENT)
        if told is None:
            self._told[PARENT] = _Told()
            self._put(contents.search_started(self._record, self._tags, self._files, self._parent_run))
        elif running:
            if told.status == contents.SEARCH_STATUS["completed"]:
                self._withdraw_best()
            told.status = None
            self._put(contents.search_resumed(self._record, self._tags))
        for trial in self._record.trials:
            self._tell(trial)
        self._tell_best_values()

    def trial_started(self, trial: TrialRecord) -> None:
        """Log a child run with the trial's parameters."""
        self._tell(trial)

    def epoch_ended(self, trial: TrialRecord) -> None:
        """Log the epochs of `trial` that were not logged yet."""
        self._tell(trial)

    def trial_ended(self, trial: TrialRecord) -> None:
        """Log how the trial ended, and how far the search has come."""
        self._tell(trial)
        self._tell_best_values()

    def search_ended(
        self,
        status: Literal["completed", "interrupted", "failed"],
        *,
        artifacts: Sequence[Path],
        figures: Sequence[Path] = (),
        best: BestModel | None,
    ) -> None:
        """Log the search's result and end the parent run; nothing where the store is known to hold that.

        `artifacts` are files of the parent run, such as the result table, `figures` its pictures; `best` goes
        to its trial's run, or to the parent run where another search ran the trial. The files must stay until
        `close` has returned.
        """
        told = self._told[PARENT]
        if told.status == contents.SEARCH_STATUS[status] and not self._news:
            return  # a parent run is ended after everything else was delivered
        told.status = contents.SEARCH_STATUS[status]
        if best is not None:
            files = tuple(Artifact(file, "model") for file in best.files)
            own = best.trial >= 0
            # A trial that another search ran has no run here.
            run, tags = (best.trial, {"best": "true"}) if own else (PARENT, {})
            self._put(Change(run, tags=tags, artifacts=files))
        self._put(contents.search_ended(self._record, status, artifacts, figures, self._winner(self._record)))

    def settle(self) -> None:
        """Wait a little for a store that has only just been opened, so that `url` is known."""
        self._delivery.settle(_SETTLE_SECONDS)

    def close(self, hurried: Callable[[], bool] = lambda: False) -> list[str]:
        """Deliver everything that is left and stop the thread; call it once, at the end.

        Goes on as long as the store takes something every 30 seconds, and for about 3 seconds after `hurried`
        has said that somebody waits for the end. Returns what could not be delivered, one sentence a problem;
        an empty list: everything arrived.
        """
        return self._delivery.close(hurried)

    def _put(self, change: Change) -> None:
        self._news = True
        self._delivery.put(change)

    def _tell(self, trial: TrialRecord) -> None:
        """Tell the delivery everything about a trial that it was not told yet."""
        told = self._told.get(trial.number)
        if told is None:
            told = self._told[trial.number] = _Told()
            self._put(contents.trial_started(trial, self._tags))
        news = len(trial.epochs) > told.epochs
        if news:
            self._put(contents.trial_epochs(trial, told.epochs))
            told.epochs = len(trial.epochs)
        if trial.state is TrialState.RUNNING:
            if told.status is not None:
                told.status = None
                self._put(contents.trial_resumed(trial))
            return
        status = contents.TRIAL_STATUS[trial.state]
        if news or told.status != status:  # news: it was interrupted, went on, and ended with the same status
            told.status = status
            self._put(contents.trial_ended(trial, self._record.metric, self._record.direction))

    def _tell_best_values(self) -> None:
        """Tell the best value after each trial that ended, in the order in which they ended."""
        record, told = self._record, self._told[PARENT]
        better = max if record.direction == "max" else min
        for number in record.ended[self._ends_seen :]:
            trial = record.trials[number]
            self._ends_seen += 1
            value = record.value(trial)
            if value is not None and trial.state is not TrialState.DIVERGED:
                self._best = value if self._best is None else better(self._best, value)
            if self._best is not None and self._ends_seen > told.epochs:
                self._put(contents.best_value(self._best, trial, self._ends_seen))
        told.epochs = max(told.epochs, self._ends_seen)

    def _withdraw_best(self) -> None:
        """A completed search goes on: its best trial is the best no more, or will be named again."""
        best = self._winner(self._record)
        if best is not None and not best.source:
            self._put(Change(best.number, tags={"best": "false"}))
