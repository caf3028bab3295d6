"""The record of a search: what the driver fills, and trackers, tables and files are handed.

Plain data; it knows nothing of torch, Ray or MLflow.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol


class TrialState(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    """Trained to its last epoch."""
    STOPPED = "stopped"
    """Ended by ASHA at a rung."""
    DIVERGED = "diverged"
    """A loss was not finite."""
    FAILED = "failed"
    """An error ended it; `reason` says which."""
    INTERRUPTED = "interrupted"
    """The search was interrupted while it ran."""


@dataclass
class TrialRecord:
    """One trial: its configuration and everything it has reported."""

    number: int
    """0 for the first of the search; those that another search ran have -1, -2, ..."""
    arm: str
    """``fusion`` or ``control``."""
    origin: Literal["default", "sampled"]
    """``default``: the space's untuned default; with `search.defaults` "trained", no rung stops it."""
    configuration: dict[str, Any]
    """Nested plain values: `Configuration.to_dict`."""
    parameters: dict[str, Any]
    """The same flat: ``switch_layer``, ``low.optimizer``, ``low.lr``, ... (`Configuration.flat`)."""
    switch_layer_name: str
    single: bool
    """True where one optimizer with one setting trains every layer."""
    max_epochs: int
    started: float
    """Seconds since 1970, as `time.time` gives them."""
    seed: int | None = None
    """Of its weights, order and split; None: the search's own."""
    state: TrialState = TrialState.RUNNING
    epochs: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each epoch, in order; `EpochResult.metrics` names them."""
    times: list[float] = field(default_factory=list)
    """When the driver heard of each epoch, in seconds since 1970."""
    losses: int = 0
    """How often its worker was lost: killed, crashed or hung."""
    infeasible: bool = False
    """True where it failed because it does not fit into memory."""
    ended: float | None = None
    reason: str = ""
    node: str = ""
    """Host and process id that ran the newest epoch."""
    source: str = ""
    """The search that ran it, where that was another one."""
    source_trial: int | None = None
    """Its number there."""

    @property
    def title(self) -> str:
        """What people call it: ``trial 7``, or ``trial 7 of digits-1`` where another search ran it."""
        return f"trial {self.source_trial} of {self.source}" if self.source else f"trial {self.number}"

    @property
    def label(self) -> str:
        """For people: ``adam|sgd @3`` (low|high @switch layer), or ``adam``."""
        low, high = self.parameters.get("low.optimizer"), self.parameters.get("high.optimizer")
        if self.single or high is None:
            return str(low)
        return f"{low}|{high} @{self.parameters.get('switch_layer')}"

    def best_epoch(self, metric: str, direction: str) -> dict[str, float] | None:
        """The metrics of the best epoch, with its number as ``epoch``; None before the first."""
        measured = [index for index, values in enumerate(self.epochs) if metric in values]
        if not measured:
            return None
        sign = 1.0 if direction == "max" else -1.0
        best = max(measured, key=lambda index: sign * self.epochs[index][metric])
        return dict(self.epochs[best], epoch=float(best + 1))

    def total(self, metric: str) -> float:
        """A metric summed over all epochs, such as ``train_seconds``."""
        return math.fsum(m.get(metric, 0.0) for m in self.epochs)


@dataclass
class SearchRecord:
    """One search and its trials, in order of their numbers."""

    name: str
    space: str
    metric: str
    direction: Literal["max", "min"]
    planned_trials: int
    started: float
    trials: list[TrialRecord] = field(default_factory=list)
    inherited: list[TrialRecord] = field(default_factory=list)
    """Trials of earlier searches that this one was started with: results that it knows and does not run."""
    duplicates: int = 0
    """Suggestions that were the same in effect as an earlier trial and therefore not run again."""
    notes: list[str] = field(default_factory=list)
    fusions: bool = True
    """False where the space has no switch layer: its ``fusion`` arm then searches single optimizers, too."""
    searched_training: tuple[str, ...] = ()
    """The ``training.`` parameters that differ between trials."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this search from every other one; 32 hex digits."""
    ended: list[int] = field(default_factory=list)
    """Numbers of the ended trials, in the order in which they ended."""
    paused_seconds: float = 0.0
    """Seconds between a death or interruption of the search and its resumption, in all."""

    @property
    def sign(self) -> float:
        """1 where the metric is to grow, -1 where it is to shrink: times it, more is better."""
        return 1.0 if self.direction == "max" else -1.0

    @property
    def known(self) -> list[TrialRecord]:
        """Every trial with a result to choose from: the inherited ones, then the search's own."""
        return [*self.inherited, *self.trials]

    def trial(self, number: int) -> TrialRecord:
        """The trial with this number, inherited or not."""
        return self.trials[number] if number >= 0 else self.inherited[-1 - number]

    def elapsed(self, now: float) -> float:
        """Seconds for which the search has been running until `now` (seconds since 1970)."""
        return now - self.started - self.paused_seconds

    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of `TrialState`; inherited ones do not count."""
        counted = Counter(trial.state for trial in self.trials)
        return {state.value: counted[state] for state in TrialState if counted[state]}

    def arms(self) -> dict[str, tuple[int, int]]:
        """For each arm that has run anything: its trials, and the epochs they have trained."""
        totals: dict[str, tuple[int, int]] = {}
        for trial in self.trials:
            trials, epochs = totals.get(trial.arm, (0, 0))
            totals[trial.arm] = trials + 1, epochs + len(trial.epochs)
        return dict(sorted(totals.items(), reverse=True))

    def value(self, trial: TrialRecord) -> float | None:
        """The best value of the search's metric that the trial reached."""
        # Tables ask for the value of every trial several times a second.
        metric = self.metric
        values = [values[metric] for values in trial.epochs if metric in values]
        return (max if self.direction == "max" else min)(values, default=None)

    def best(
        self, *, single: bool | None = None, origin: str | None = None, arm: str | None = None
    ) -> TrialRecord | None:
        """The trial with the best value so far; ties go to the earlier trial, diverged trials do not count.

        It may be an inherited one.

        `single` True looks among single-optimizer trials only, False among true fusions only; `origin` and
        `arm` keep trials of that origin and arm only.
        """
        ranked = [
            (self.sign * value, -position, trial)
            for position, trial in enumerate(self.known)
            if (value := self.value(trial)) is not None
            and (single is None or trial.single == single)
            and (origin is None or trial.origin == origin)
            and (arm is None or trial.arm == arm)
            and trial.state is not TrialState.DIVERGED
        ]
        return max(ranked)[2] if ranked else None

    def best_fusion(self) -> TrialRecord | None:
        """The best true fusion; in a space without a switch layer the best of the arm that is searched."""
        return self.best(single=False) if self.fusions else self.best(arm="fusion")

    def best_control(self) -> TrialRecord | None:
        """The best single optimizer, wherever it was found; without a switch layer the best control."""
        return self.best(single=True) if self.fusions else self.best(arm="control")

    def untuned(self, arm: str) -> TrialRecord | None:
        """The best of the arm's untuned defaults."""
        return self.best(origin="default", arm=arm)


class SearchListener(Protocol):
    """Is told what happens in a search, as it happens, on the driver's thread: return at once."""

    def trial_started(self, trial: TrialRecord) -> None:
        """A trial was handed to the cluster."""

    def epoch_ended(self, trial: TrialRecord) -> None:
        """The newest epoch of `trial` is the last of ``trial.epochs``."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """The trial has its final state."""


def jsonable(value: Any) -> Any:
    """`value` with what JSON cannot hold made plain: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
