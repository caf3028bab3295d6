"""Taking up a search again: which space it has, whether it is the same search, and what it has decided."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_fusion.errors import InputError
from tune_fusion.events import Session, SpaceAsRun
from tune_fusion.runs import Past
from tune_fusion.space.document import Document, read_text
from tune_fusion.space.loading import resolve_space
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.same_decision import DivergenceError

_AGAIN = (
    "; the trials so far stay as they are: go on with the changes by --force, or put back what has changed"
)


@dataclass(frozen=True)
class SpaceSource:
    """Where a session reads its space from: a file and what is set on top of it."""

    name_or_path: str
    overrides: tuple[str, ...]
    rehearse: bool
    as_run: SpaceAsRun | None = None
    """Where that file is only the copy of an earlier session's space: what that session says of it."""

    def recorded(self, name: str, text: str) -> SpaceAsRun:
        """What the journal keeps of the space; `text` is the file as run."""
        if self.as_run is not None:
            overrides = (*self.as_run.overrides, *self.overrides)
            return self.as_run.model_copy(update={"text": text, "overrides": overrides})
        origin = str(resolve_space(self.name_or_path).resolve())
        return SpaceAsRun(
            name=name, text=text, origin=origin, overrides=self.overrides, rehearse=self.rehearse
        )


def resumed_source(past: Past, space: str | None, overrides: tuple[str, ...]) -> SpaceSource:
    """The space of a search that goes on: `space` if given, else the file as run.

    If that, or the file it was made from, has been changed since, it is the changed one.
    """
    recorded = past.session.space
    if space is not None:
        return SpaceSource(space, overrides, recorded.rehearse)
    as_run = past.folder.space
    if not as_run.exists():
        as_run.write_text(recorded.text, encoding="utf-8")
    origin = Path(recorded.origin)
    if not _same(as_run, (), recorded.text):
        return SpaceSource(str(as_run), overrides, rehearse=False)
    if not recorded.rehearse and origin.exists() and not _same(origin, recorded.overrides, recorded.text):
        return SpaceSource(str(origin), (*recorded.overrides, *overrides), rehearse=False)
    return SpaceSource(str(as_run), overrides, rehearse=False, as_run=recorded)


def _same(path: Path, overrides: tuple[str, ...], text: str) -> bool:
    document = Document.parse(read_text(path), path.name)
    document.override(overrides)
    return _alike(document.text, text)


def _alike(one: str, other: str) -> bool:
    return one == other or _content(Document.parse(one, "space")) == _content(Document.parse(other, "space"))


def _content(document: Document) -> dict[str, Any]:
    """What a space file says, but for the number of trials, which may grow."""
    content = document.plain()
    search = content.get("search") or {}
    if isinstance(search, dict):
        search = {key: value for key, value in search.items() if key != "trials"}
    return content | {"search": search}


def check_same_search(past: Past, session: Session, *, option: str, force: bool) -> list[str]:
    """What has changed since the newest session, in words; InputError where something has and not `force`.

    `option` is what was typed to go on with it, such as ``--resume first``; errors start with it.
    """
    if session.metric != past.session.metric:
        raise InputError(
            f"{option}: search.metric was {past.session.metric} and is {session.metric} "
            "now: what was decided by the one means nothing for the other; start a new search"
        )
    changes = list(_changes(past.session, session))
    if changes and not force:
        raise InputError(f"{option}: not what it was when it was started:\n" + "\n".join(changes) + _AGAIN)
    planned, now = past.chronicle.record.planned_trials, session.planned_trials
    if now < planned:
        raise InputError(
            f"--trials {now}: {past.folder.name} was planned with {planned} trials; a search can be "
            "extended, not shortened"
        )
    return changes


def _changes(before: Session, now: Session) -> Iterator[str]:
    if not _alike(before.space.text, now.space.text):
        diff = difflib.unified_diff(
            before.space.text.splitlines(),
            now.space.text.splitlines(),
            "space as run",
            f"space now ({now.space.origin})",
            lineterm="",
            n=1,
        )
        yield "\n".join(f"  {line}" for line in diff)
    for key in sorted(before.code.keys() | now.code.keys()):
        old, new = before.code.get(key, "none"), now.code.get(key, "none")
        if old != new:
            yield f"  {key} {old} -> {new}"
    if before.data != now.data:
        yield f"  data fingerprint {before.data[:16]} -> {now.data[:16]}: other images, classes or split"


def replay(engine: Engine, past: Past, *, strict: bool) -> None:
    """Bring a new engine to where the journal ends.

    Raises InputError, naming the line, where `strict` and the engine decides otherwise than the journal. What
    was decided before the search was taken up with changes stays decided in any case.
    """
    alike = [not any(_changes(session, past.session)) for session in past.chronicle.sessions]
    session = 0
    for number, event in enumerate(past.lines.events[1:], start=2):
        session += isinstance(event, Session)
        try:
            engine.replay(event, strict=strict and alike[session])
        except (DivergenceError, KeyError, IndexError) as error:
            raise InputError(
                f"{past.folder.journal}:{number}: {error}; the search cannot be taken up as it was{_AGAIN}"
            ) from error
