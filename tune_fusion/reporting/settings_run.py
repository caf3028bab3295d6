"""What a report needs of a space file as run: its rungs and its seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune_fusion.events import Session
from tune_fusion.records import SearchRecord
from tune_fusion.space.document import Document
from tune_fusion.space.settings import AshaSettings, rung_epochs


def rungs(record: SearchRecord, session: Session) -> tuple[int, ...]:
    """The epochs at which trials are compared, ascending; none where nothing is or no trial has started."""
    if _section(session, "search").get("scheduler", "asha") not in ("asha", "promotion", "hyperband"):
        return ()
    settings = AshaSettings(**_section(session, "asha"))
    last = max((trial.max_epochs for trial in record.trials), default=0)
    return rung_epochs(settings, last)


def seed(session: Session) -> int:
    """The search's own seed."""
    return int(_section(session, "search").get("seed", 0))


def _section(session: Session, name: str) -> Mapping[str, Any]:
    content = Document.parse(session.space.text, session.space.name).plain()
    section: Mapping[str, Any] = content.get(name) or {}
    return section
