"""Between a search's journal and its tracking store: what has been delivered, and delivering the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from tune_fusion.events import Chronicle, Logged, Session
from tune_fusion.journal import Journal
from tune_fusion.runs import Past
from tune_fusion.tracking.changes import Delivered
from tune_fusion.tracking.mlflow_logger import redact
from tune_fusion.tracking.sync import Synced, sync
from tune_fusion.tracking.uri import absolute
from tune_fusion.tuning.best_files import best_model


def deliver_rest(past: Past, uri: str, later: str) -> Synced:
    """Bring to the store at `uri` what it does not hold of a search that nobody runs; `later` tries again."""
    chronicle, folder = past.chronicle, past.folder
    journal = Journal(folder.journal, past.lines)
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
            artifacts=[path for path in (folder.result, folder.trials) if path.exists()],
            best=best_model(folder, chronicle.record.best()) if past.complete else None,
        )
    finally:
        journal.close()


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
