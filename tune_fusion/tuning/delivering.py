"""Between a search's journal and its tracking store: what has been delivered, and delivering the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tune_fusion.events import Chronicle, Logged, Session
from tune_fusion.journal import Journal
from tune_fusion.passwords import redact
from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.results import read_json
from tune_fusion.runs import Past, RunFolder
from tune_fusion.tracking.changes import PARENT, Delivered
from tune_fusion.tracking.sync import Synced, sync
from tune_fusion.tracking.uri import absolute
from tune_fusion.tuning.best_files import best_model


def deliver_rest(past: Past, uri: str, later: str, parent_run: str | None = None) -> Synced:
    """Bring to the store at `uri` what it does not hold of a search that nobody runs; `later` tries again.

    Its run is nested in `parent_run`, where it is the confirmation of the search with that run.
    """
    chronicle, folder = past.chronicle, past.folder
    journal = Journal(folder.journal, past.lines)
    confirms = folder.answer.exists()
    reported_in = RunFolder(folder.path.parent) if confirms else folder
    winner = _confirmed_winner(folder) if confirms else SearchRecord.best
    try:
        return sync(
            uri,
            chronicle.record,
            chronicle.status,
            tags=tags(past.session),
            later=later,
            delivered=delivered(chronicle, uri),
            # The journal knows of one store: what another one takes says nothing of that.
            acknowledge=acknowledgement(journal) if _is_own(chronicle, uri) else lambda news: None,
            files=[path for path in (folder.space, folder.layers) if path.exists()],
            parent_run=parent_run,
            winner=winner,
            artifacts=result_files(folder, reported_in),
            figures=figure_files(reported_in),
            best=best_model(folder, winner(chronicle.record)) if past.complete else None,
        )
    finally:
        journal.close()


def _confirmed_winner(folder: RunFolder) -> Callable[[SearchRecord], TrialRecord | None]:
    """The run whose model a confirmation has left, as its result says."""
    number = (read_json(folder.answer) or {}).get("winner")
    return lambda record: None if number is None else record.trial(number)


def result_files(folder: RunFolder, reported_in: RunFolder) -> list[Path]:
    """What a search or a confirmation leaves for people, as far as it is there."""
    named = (folder.result, folder.answer, folder.trials, reported_in.report)
    return [path for path in named if path.exists()]


def figure_files(folder: RunFolder) -> list[Path]:
    """The pictures of the report."""
    return sorted(folder.figures.glob("*.png"))


def own_run(chronicle: Chronicle, uri: str) -> str | None:
    """The id of the search's own run in the store at `uri`; None where that is not known to have one."""
    known = delivered(chronicle, uri).get(PARENT)
    return None if known is None else known.run_id


def delivered(chronicle: Chronicle, uri: str) -> dict[int, Delivered]:
    """What the store at `uri` is known to hold, by run."""
    if not _is_own(chronicle, uri):
        return {}
    return {
        run: Delivered(run, logged.run_id, logged.epochs, logged.status)
        for run, logged in chronicle.logged.items()
    }


def _is_own(chronicle: Chronicle, uri: str) -> bool:
    """True for the store of the newest session."""
    return chronicle.sessions[-1].tracking == redact(absolute(uri))


def acknowledgement(journal: Journal) -> Callable[[Delivered], None]:
    """Writes into `journal` what a store has taken."""

    def acknowledge(news: Delivered) -> None:
        journal.append(Logged(**asdict(news)))

    return acknowledge


def tags(session: Session) -> dict[str, str]:
    """What every run of a session is tagged with."""
    versions = {f"version.{name}": version for name, version in session.code.items()}
    return versions | {"git_commit": session.commit, "data_fingerprint": session.data}
