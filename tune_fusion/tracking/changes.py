"""What is new about a run, and what of it a store does not hold yet."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PARENT = -1
"""The number of the search's own run; trials have theirs."""

Status = Literal["FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True)
class Point:
    """One measured value: `step` counts epochs from 1, `at` is milliseconds since 1970."""

    key: str
    value: float
    at: int
    step: int


@dataclass(frozen=True)
class Artifact:
    """A file of a run: `name` is its path among the artifacts, `source` the file or what makes its text."""

    name: str
    source: Path | Callable[[], str]


@dataclass(frozen=True)
class Change:
    """What is new about one run; the first change of a run carries its name and start."""

    run: int
    name: str = ""
    started: int = 0
    """Milliseconds since 1970."""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    ended: tuple[Status, int] | None = None
    """Final status, and when: milliseconds since 1970."""


@dataclass
class Pending:
    """A run's identity, and what of it the store does not hold yet."""

    number: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this run from every other; stored as a tag."""
    name: str = ""
    started: int = 0
    run_id: str | None = None
    attempted: bool = False
    """True once its creation was tried: if that failed, the store may hold the run all the same."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    ended: tuple[Status, int] | None = None
    due: float = 0.0
    """When it should be delivered next, on the monotonic clock."""

    def merge(self, change: Change) -> None:
        """Add what is new."""
        self.name = change.name or self.name
        self.started = change.started or self.started
        self.params |= change.params
        self.tags |= change.tags
        self.points += change.points
        self.artifacts += change.artifacts
        self.ended = change.ended or self.ended

    def drop(self) -> bool:
        """Forget what the store refused; True where the final status is left, which it may still take."""
        refused = self.params or self.tags or self.points or self.artifacts
        self.params, self.tags, self.points, self.artifacts = {}, {}, [], []
        if not refused:
            self.ended = None
        return self.ended is not None
