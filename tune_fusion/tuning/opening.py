"""Taking possession of a search's folder: a new one is made whole or not at all, an old one has one owner."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.errors import InputError
from tune_fusion.events import Event, Session
from tune_fusion.journal import Journal
from tune_fusion.runs import Past, RunFolder, find_run, read_past
from tune_fusion.tuning.ownership import owned
from tune_fusion.tuning.store_copy import kept

_RESERVE_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Opened:
    """A folder that is ours, and its journal."""

    folder: RunFolder
    journal: Journal

    def free_reserve(self) -> None:
        """Give the reserve back to a disk that is full."""
        self.folder.reserve.unlink(missing_ok=True)


@contextmanager
def reopened(storage: Path, name: str, option: str = "--resume") -> Iterator[Past]:
    """A search of earlier, owned until the body ends; `option` gave its name.

    Raises InputError where there is none, another driver runs it, or its journal is damaged.
    """
    folder = find_run(storage, name, option)
    with owned(folder.path), kept(folder.path):
        yield read_past(folder)


@contextmanager
def opened(
    folder: RunFolder, session: Session, past: Past | None, inherited: Sequence[Event] = ()
) -> Iterator[Opened]:
    """The folder of a search with its journal, in which `session` is the newest event.

    That of a new search is made beside its place and renamed: where it exists, its journal has begun, with
    the session and what the search has `inherited`.

    Raises InputError where the folder cannot be made, or there is no room for it.
    """
    with ExitStack() as stack:
        stack.enter_context(kept(folder.path))
        try:
            if past is None:
                journal = _begin(folder, [session, *inherited], stack)
            else:
                journal = Journal(folder.journal, past.lines)
                journal.append(session)
            stack.callback(journal.close)
            folder.reserve.write_bytes(bytes(_RESERVE_BYTES))
        except OSError as error:
            raise InputError(f"{folder.path}: cannot be written: {error.strerror or error}") from error
        ours = Opened(folder, journal)
        stack.callback(ours.free_reserve)
        yield ours


def _begin(folder: RunFolder, events: Sequence[Event], stack: ExitStack) -> Journal:
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.path.parent))
    try:
        part.chmod(0o755)
        stack.enter_context(owned(part))
        journal = Journal(part / folder.journal.name)
        for event in events:
            journal.append(event)
        part.rename(folder.path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return journal
