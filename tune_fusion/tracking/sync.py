"""Bringing to a store what a search that nobody runs has not delivered yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.tracking.changes import PARENT, Delivered
from tune_fusion.tracking.mlflow_logger import BestModel, MlflowLogger


@dataclass(frozen=True)
class Synced:
    """What a synchronisation has done."""

    runs: int
    """Runs of which the store now holds more than before, the search's own among them."""
    epochs: int
    """Epochs of trials that the store now holds more than before."""
    problems: list[str]
    """What could not be delivered, one sentence a problem; empty: the store holds everything."""
    run_id: str | None = field(default=None, compare=False)
    """MLflow's id of the search's own run; None where the store has not given one."""


def sync(
    uri: str,
    record: SearchRecord,
    status: Literal["completed", "interrupted", "failed"] | None,
    *,
    tags: Mapping[str, str],
    later: str,
    delivered: Mapping[int, Delivered],
    acknowledge: Callable[[Delivered], None],
    files: Sequence[Path] = (),
    parent_run: str | None = None,
    winner: Callable[[SearchRecord], TrialRecord | None] = SearchRecord.best,
    artifacts: Sequence[Path] = (),
    figures: Sequence[Path] = (),
    best: BestModel | None = None,
) -> Synced:
    """Deliver everything of `record` that `delivered` does not cover; returns when that is done or given up.

    `status` says how the search was left; None: its process was killed, and its parent run stays as it is.
    The other arguments are those of `MlflowLogger` and `MlflowLogger.search_ended`.
    """
    before, now = dict(delivered), dict(delivered)

    def note(news: Delivered) -> None:
        now[news.run] = news
        acknowledge(news)

    logger = MlflowLogger(
        uri,
        record,
        tags=tags,
        later=later,
        files=files,
        parent_run=parent_run,
        winner=winner,
        delivered=before,
        acknowledge=note,
    )
    logger.start(running=False)
    if status is not None:
        logger.search_ended(status, artifacts=artifacts, figures=figures, best=best)
    problems = logger.close()
    changed = [run for run, known in now.items() if before.get(run) != known]
    epochs = sum(
        now[run].epochs - (before[run].epochs if run in before else 0) for run in changed if run != PARENT
    )
    return Synced(len(changed), epochs, problems, logger.run_id)
