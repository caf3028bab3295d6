"""What a search ended with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tune_fusion.records import SearchRecord


@dataclass(frozen=True)
class Outcome:
    """What a search ended with."""

    record: SearchRecord
    result: dict[str, Any]
    """The content of ``result.json``."""
    exit_code: int
    problems: list[str]
    """What went wrong on the way and did not end the search, in words."""
