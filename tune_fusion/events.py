"""What happens in a search, as its journal keeps it, and how it changes the record of the search.

The record is nothing but the events in their order: `Chronicle.apply` is the only place where it changes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.space.configuration import Configuration

Status = Literal["completed", "interrupted", "failed"]
Scalar = bool | int | float | str | None

_CROWDED = "memory ran out beside other trials: "


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float = Field(default_factory=time.time)
    """Seconds since 1970."""


class SpaceAsRun(BaseModel):
    """The space file of a session, and where it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    text: str
    """With everything set from outside in it."""
    origin: str
    """Path of the file it was read from."""
    overrides: tuple[str, ...]
    """``KEY=VALUE`` assignments on top of that file."""
    rehearse: bool


class Session(_Event):
    """A driver has taken up the search: the first line of every journal, and one more a resumption."""

    event: Literal["session"] = "session"
    search: str
    """The search's name."""
    key: str
    """`SearchRecord.key`."""
    started: float
    """When the command was typed, in seconds since 1970."""
    host: str
    pid: int
    space: SpaceAsRun
    metric: str
    direction: Literal["max", "min"]
    planned_trials: int
    fusions: bool
    searched_training: tuple[str, ...]
    code: dict[str, str]
    """Versions of the code and its packages, by name."""
    commit: str
    """The git commit of the code, for people."""
    data: str
    """The data's fingerprint."""
    tracking: str
    """The tracking URI, without credentials."""
    concurrent: int | None = None
    """At most so many trials at once, where that was said."""
    finalists: tuple[int, ...] = ()
    """Of a confirmation: the search's trials that it trains again, by number."""
    seeds: tuple[int, ...] = ()
    """Of a confirmation: the fresh seeds."""
    test: str = ""
    """Of a confirmation: the fingerprint of the test images."""


class Suggested(_Event):
    """The study of an arm suggested a configuration, which became a trial or was known already."""

    event: Literal["suggested"] = "suggested"
    arm: Literal["fusion", "control"]
    origin: Literal["default", "sampled"]
    parameters: dict[str, Scalar]
    """What the study was asked for, and answered."""
    configuration: dict[str, Any]
    """`Configuration.to_dict`."""
    key: str
    """The same for configurations that are the same in effect."""
    trial: int | None
    """The number of the trial that runs it; None: `duplicate_of` has run it."""
    duplicate_of: int | None = None
    switch_layer_name: str
    single: bool
    seed: int | None = None
    """Of the trial's weights, order and split; None: the search's own."""


class Inherited(_Event):
    """The search was started with this ended trial of an earlier one, and knows its result.

    All of them stand between the first session and the first suggestion.
    """

    event: Literal["inherited"] = "inherited"
    source: str
    """The search that ran it."""
    source_trial: int
    """Its number there."""
    arm: Literal["fusion", "control"]
    origin: Literal["default", "sampled"]
    parameters: dict[str, Scalar]
    """What the study of this search would have been asked for, and answered."""
    configuration: dict[str, Any]
    """`Configuration.to_dict`."""
    key: str
    """As in `Suggested`."""
    switch_layer_name: str
    single: bool
    epochs: list[dict[str, float]]
    """The metrics of each epoch."""
    state: TrialState
    reason: str = ""
    infeasible: bool = False


class RungDecision(BaseModel):
    """What ASHA made of a trial at a rung."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seen: int
    """Trials that have reached the rung, this one included."""
    kept: int
    """How many of them go on."""
    cutoff: float
    """The metric's value that a trial needs to go on."""
    goes_on: bool


class EpochEnded(_Event):
    """A trial has finished an epoch; what that means for it stands in the same line."""

    event: Literal["epoch"] = "epoch"
    trial: int
    epoch: int
    """1 for the first."""
    metrics: dict[str, float]
    diverged: bool
    node: str
    rung: RungDecision | None = None
    ends: TrialState | None = None
    """The trial's final state, where this epoch was its last."""
    reason: str = ""


class WorkerLost(_Event):
    """The process that trained a trial is gone. The trial is tried again, unless `ends`."""

    event: Literal["lost"] = "lost"
    trial: int
    reason: str
    ends: bool


class Failed(_Event):
    """An error ended a trial."""

    event: Literal["failed"] = "failed"
    trial: int
    reason: str
    infeasible: bool = False
    """True where it cannot work on this machine: it does not fit into memory."""


class Crowded(_Event):
    """A trial ran out of memory beside others: it is tried again, and fewer run at once from then on."""

    event: Literal["crowded"] = "crowded"
    trial: int
    reason: str
    most: int
    """How many trials may run at once now."""


class Promoted(_Event):
    """A trial that paused at a rung trains on; to its last epoch, if `to_end`."""

    event: Literal["promoted"] = "promoted"
    trial: int
    to_end: bool = False


class GivenUp(_Event):
    """A trial that paused at a rung will not train on."""

    event: Literal["given up"] = "given up"
    trial: int
    reason: str


class ArmExhausted(_Event):
    """An arm has nothing new to suggest."""

    event: Literal["exhausted"] = "exhausted"
    arm: Literal["fusion", "control"]
    note: str
    """What people should know of that; may be empty."""


class Noted(_Event):
    """Something that people should know of the search."""

    event: Literal["noted"] = "noted"
    note: str


class Logged(_Event):
    """The tracking store holds this much of a run (-1: the search's own)."""

    event: Literal["logged"] = "logged"
    run: int
    run_id: str
    epochs: int
    status: str | None


class Closed(_Event):
    """A driver has left the search in order."""

    event: Literal["closed"] = "closed"
    status: Status
    problem: str = ""


Event = Annotated[
    Session
    | Inherited
    | Suggested
    | EpochEnded
    | WorkerLost
    | Failed
    | Crowded
    | Promoted
    | GivenUp
    | ArmExhausted
    | Noted
    | Logged
    | Closed,
    Field(discriminator="event"),
]


@dataclass
class Chronicle:
    """A search as its events tell it."""

    record: SearchRecord
    sessions: list[Session] = field(default_factory=list)
    logged: dict[int, Logged] = field(default_factory=dict)
    """What the newest session's tracking store holds, by run."""
    status: Status | None = None
    """How the newest session was closed; None: it is running, or was killed."""
    last: float = 0.0
    """When the newest event happened, in seconds since 1970."""

    @classmethod
    def begin(cls, session: Session) -> Chronicle:
        """A search of which nothing but its first event is known."""
        record = SearchRecord(
            name=session.search,
            space=session.space.name,
            metric=session.metric,
            direction=session.direction,
            planned_trials=session.planned_trials,
            started=session.started,
            key=session.key,
        )
        chronicle = cls(record)
        chronicle.apply(session)
        return chronicle

    @classmethod
    def replay(cls, events: Iterable[Event]) -> Chronicle:
        """The search that these events, the first a `Session`, tell of."""
        first, *rest = events
        if not isinstance(first, Session):
            raise ValueError(f"a journal begins with a session, got {first.event!r}")  # noqa: TRY004
        chronicle = cls.begin(first)
        for event in rest:
            chronicle.apply(event)
        return chronicle

    def apply(self, event: Event) -> None:
        """Change the record as `event` says."""
        record = self.record
        match event:
            case Session():
                self._take_up(event)
            case Inherited():
                self._take_over(event)
            case Suggested():
                self._take_in(event)
            case EpochEnded():
                self._add_epoch(event)
            case WorkerLost():
                trial = record.trials[event.trial]
                trial.losses += 1
                if event.ends:
                    self._end(trial, TrialState.FAILED, event.reason, event.at)
            case Failed():
                trial = record.trials[event.trial]
                trial.infeasible = event.infeasible
                self._end(trial, TrialState.FAILED, event.reason, event.at)
            case GivenUp():
                self._end(record.trials[event.trial], TrialState.STOPPED, event.reason, event.at)
            case Crowded():
                earlier = [note for note in record.notes if not note.startswith(_CROWDED)]
                record.notes = [*earlier, f"{_CROWDED}no more than {event.most} at once since then"]
            case ArmExhausted() | Noted():
                record.notes += [event.note] if event.note else []
            case Logged():
                self.logged[event.run] = event
            case Closed():
                self._leave(event)
        self.last = event.at

    def _take_up(self, session: Session) -> None:
        record = self.record
        if self.sessions:
            record.paused_seconds += max(0.0, session.started - self.last)
            if self.sessions[-1].tracking != session.tracking:
                self.logged = {}
        self.sessions.append(session)
        self.status = None
        record.planned_trials = session.planned_trials
        record.fusions = session.fusions
        record.searched_training = session.searched_training
        for trial in record.trials:
            if trial.state is TrialState.INTERRUPTED:
                trial.state, trial.ended, trial.reason = TrialState.RUNNING, None, ""

    def _leave(self, event: Closed) -> None:
        self.status = event.status
        for trial in self.record.trials:
            if trial.state is TrialState.RUNNING:
                trial.state, trial.ended, trial.reason = (
                    TrialState.INTERRUPTED,
                    event.at,
                    "search interrupted",
                )

    def _take_over(self, event: Inherited) -> None:
        trial = _record_of(event, -1 - len(self.record.inherited))
        trial.state, trial.reason, trial.infeasible = event.state, event.reason, event.infeasible
        trial.epochs = [dict(metrics) for metrics in event.epochs]
        trial.times, trial.ended = [event.at] * len(event.epochs), event.at
        trial.source, trial.source_trial = event.source, event.source_trial
        self.record.inherited.append(trial)

    def _add_epoch(self, event: EpochEnded) -> None:
        trial = self.record.trials[event.trial]
        # Every result comes with keys of its own, which would outweigh the values.
        trial.epochs.append({sys.intern(key): value for key, value in event.metrics.items()})
        trial.times.append(event.at)
        trial.node = event.node
        if event.ends is not None:
            self._end(trial, event.ends, event.reason, event.at)

    def _take_in(self, event: Suggested) -> None:
        if event.trial is None:
            self.record.duplicates += 1
            return
        trial = _record_of(event, event.trial)
        trial.seed = event.seed
        self.record.trials.append(trial)

    def _end(self, trial: TrialRecord, state: TrialState, reason: str, at: float) -> None:
        trial.state, trial.reason, trial.ended = state, reason, at
        self.record.ended.append(trial.number)


def _record_of(event: Suggested | Inherited, number: int) -> TrialRecord:
    """The trial of a configuration, of which nothing else is known yet."""
    configuration = Configuration.from_dict(event.configuration)
    return TrialRecord(
        number=number,
        arm=event.arm,
        origin=event.origin,
        configuration=event.configuration,
        parameters=dict(configuration.flat()),
        switch_layer_name=event.switch_layer_name,
        single=event.single,
        max_epochs=configuration.training.epochs,
        started=event.at,
    )
