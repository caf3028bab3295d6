"""What is new about a run, and what of it a store does not hold yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PARENT = -1
"""The number of the search's own run; trials have theirs."""

Status = Literal["FINISHED", "KILLED", "FAILED"]


def run_key(search: str, run: int) -> str:
    """What tells a run from every other, in every process: `search` is `SearchRecord.key`."""
    return search if run == PARENT else f"{search}-{run:04d}"


@dataclass(frozen=True)
class Delivered:
    """What the store is known to hold of one run."""

    run: int
    """`PARENT` or the trial's number."""
    run_id: str
    epochs: int
    """Of a trial: its epochs, from the first; of the search: the ended trials that ``best_value`` covers."""
    status: str | None
    """MLflow's status that the run was ended with; None while it is running."""


@dataclass(frozen=True)
class Point:
    """One measured value: `step` counts epochs from 1, `at` is milliseconds since 1970."""

    key: str
    value: float
    at: int
    step: int


@dataclass(frozen=True)
class Artifact:
    """A file of a run, and the folder among the run's artifacts that it goes to."""

    file: Path
    folder: str = ""


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
    epochs: int = 0
    """`Delivered.epochs` once the store holds the points; 0: as before."""
    artifacts: tuple[Artifact, ...] = ()
    reopen: bool = False
    """True where the run goes on though it was ended before."""
    ended: tuple[Status, int] | None = None
    """Final status, and when: milliseconds since 1970."""


@dataclass
class Pending:
    """A run's identity, what the store holds of it, and what it does not hold yet."""

    number: int
    key: str
    """`run_key`; stored as a tag."""
    run_id: str | None = None
    earlier: bool = False
    """True where another process may have brought something of the run that it did not note."""
    attempted: bool = False
    """True once its creation was tried: if that failed, the store may hold the run all the same."""
    status: str | None = None
    epochs: int = 0
    """The last two as in `Delivered`."""

    name: str = ""
    started: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    reaches: int = 0
    """What `epochs` will be once the points are delivered."""
    artifacts: list[Artifact] = field(default_factory=list)
    reopen: bool = False
    ended: tuple[Status, int] | None = None

    due: float = 0.0
    """When it should be delivered next, on the monotonic clock."""
    steps: dict[str, set[int]] = field(default_factory=dict)
    """The steps that the store held of a metric when this process first asked; of `earlier` runs only."""
    refused: bool = False
    """True once the store refused points: `epochs` then stays, so that nobody takes them for delivered."""

    @property
    def label(self) -> str:
        """What people call the run; its name is known to the process alone that tells of its start."""
        return self.name or ("the search" if self.number == PARENT else f"trial {self.number}")

    def merge(self, change: Change) -> None:
        """Add what is new."""
        self.name = change.name or self.name
        self.started = change.started or self.started
        self.params |= change.params
        self.tags |= change.tags
        self.points += change.points
        self.reaches = max(self.reaches, change.epochs)
        self.artifacts += change.artifacts
        self.reopen |= change.reopen
        self.ended = change.ended or self.ended

    def delivered(self) -> Delivered:
        """What the store holds, right after it took everything that was pending."""
        assert self.run_id is not None
        if not self.refused:
            self.epochs = max(self.epochs, self.reaches)
        return Delivered(self.number, self.run_id, self.epochs, self.status)

    def drop(self) -> bool:
        """Forget what the store refused; True where the final status is left, which it may still take."""
        refused = self.params or self.tags or self.points or self.artifacts or self.reopen
        self.refused |= bool(self.points)
        self.params, self.tags, self.points, self.artifacts, self.reopen = {}, {}, [], [], False
        if not refused:
            self.ended = None
        return self.ended is not None
