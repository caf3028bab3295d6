"""A search over a table: the engine of real searches, with workers that take simulated time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tune_fusion.events import Chronicle, Session, SpaceAsRun
from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.replay.table import Run, Table
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.arms import SearchArm, make_arms
from tune_fusion.tuning.engine import Engine

# Epochs of different trials differ in length by at most so much either way.
_UNEVEN = 0.1


@dataclass
class Trace:
    """What a simulated search would have returned, after every epoch trained."""

    returned: list[float] = field(default_factory=list)
    """The value of the configuration it would return, trained to its end; after 1, 2, ... epochs in all."""
    elapsed: list[float] = field(default_factory=list)
    """When that was, in nominal epochs of one worker."""
    notes: list[str] = field(default_factory=list)
    stopped: bool = False
    """True where the search ended by itself within the budget."""


class Incumbent:
    """The trial that `SearchRecord.best` gives, kept up to date epoch by epoch."""

    def __init__(self, record: SearchRecord) -> None:
        self._record = record
        self._values: dict[int, float] = {}
        self.trial: TrialRecord | None = None

    def epoch_ended(self, trial: TrialRecord, *, diverged: bool) -> None:
        """Take in the newest epoch of a trial."""
        if diverged:
            self._values.pop(trial.number, None)
        else:
            value = self._record.sign * trial.epochs[-1][self._record.metric]
            self._values[trial.number] = max(value, self._values.get(trial.number, value))
        best = max(self._values, key=lambda number: (self._values[number], -number), default=None)
        self.trial = None if best is None else self._record.trials[best]


UNLIMITED = 10**6
"""Trials of a search that its budget of epochs ends."""


def replay(
    table: Table,
    space: SearchSpace,
    vocabulary: Vocabulary,
    slots: int,
    budget: int,
    *,
    trials: int = UNLIMITED,
    make: Callable[[SearchSpace], Sequence[SearchArm]] = make_arms,
) -> Trace:
    """Search `table` with `slots` workers until `budget` epochs are trained, or the search of `trials` ends.

    `space` is the table's with the search settings to try; its seed decides everything.
    """
    space = replace(space, search=space.search.model_copy(update={"trials": trials}))
    chronicle = Chronicle.begin(session_of(space))
    engine = Engine(space, vocabulary, make(space), chronicle, table.layers, lambda: slots)
    incumbent, trace = Incumbent(engine.record), Trace()
    runs: dict[int, Run] = {}
    pace = random.Random(space.search.seed)
    waiting: list[tuple[float, int, float]] = []
    now = 0.0
    engine.begin()
    while len(trace.returned) < budget:
        while (trial := engine.suggest()) is not None:
            runs[trial.number] = table.nearest(trial.arm, trial.configuration)
            seconds = pace.uniform(1 - _UNEVEN, 1 + _UNEVEN)
            heapq.heappush(waiting, (now + seconds, trial.number, seconds))
        if not waiting:
            trace.stopped = True
            break
        now, number, seconds = heapq.heappop(waiting)
        if train(engine, number, runs[number], incumbent):
            heapq.heappush(waiting, (now + seconds, number, seconds))
        returned = incumbent.trial
        value = -table.sign * float("inf") if returned is None else table.value(runs[returned.number])
        trace.returned.append(value)
        trace.elapsed.append(now)
    trace.notes = engine.record.notes
    return trace


def train(engine: Engine, number: int, run: Run, incumbent: Incumbent) -> bool:
    """One epoch of a trial as `run` tells it; True when it trains on."""
    trial = engine.record.trials[number]
    epoch = len(trial.epochs)
    diverged = epoch == len(run.epochs)
    goes_on = engine.report(number, {} if diverged else run.epochs[epoch], diverged=diverged)
    incumbent.epoch_ended(trial, diverged=diverged)
    return goes_on


def session_of(space: SearchSpace) -> Session:
    """The session of a search that nobody keeps."""
    return Session(
        search="replay",
        key="",
        started=0.0,
        host="",
        pid=0,
        space=SpaceAsRun(name=space.name, text="", origin=space.source, overrides=(), rehearse=False),
        metric=space.search.metric,
        direction=space.direction,
        planned_trials=space.search.trials,
        fusions=not space.single,
        searched_training=(),
        code={},
        commit="",
        data="",
        tracking="",
    )
