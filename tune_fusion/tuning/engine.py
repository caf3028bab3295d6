"""Every decision of a search: what is tried next, what trains on, what is told to whom. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from tune_fusion.records import SearchListener, SearchRecord, TrialRecord, TrialState
from tune_fusion.space.configuration import ALL, Configuration
from tune_fusion.space.domain import largest
from tune_fusion.space.effective import effective_key, is_single
from tune_fusion.space.sampling import Arm, grid_parameters
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.study import Study, Suggestion

# Suggestions in a row that were all tried before: after these an arm has nothing new to say.
_MOST_DUPLICATES = 50
# Trials that fail alike before any trial has finished an epoch: the search is broken, not the trials.
_HOPELESS = 3


@dataclass
class SearchArm:
    """One arm: its own study, its own rungs, its own budget of trials."""

    name: Arm
    study: Study
    asha: Asha
    budget: int
    started: int = 0

    @property
    def spent(self) -> bool:
        """True when no further trial of this arm may start."""
        return self.started >= self.budget


@dataclass
class _Live:
    arm: SearchArm
    suggestion: Suggestion
    key: str


@dataclass
class Engine:
    """The search as a sequence of decisions, driven by whoever runs the trials.

    `suggest` gives trials to run, `report` says whether one trains on, `fail` and `interrupt` end it. The
    arms take their turns in order: controls first, then the fusions.
    """

    space: SearchSpace
    vocabulary: Vocabulary
    record: SearchRecord
    layer_names: Sequence[str]
    slots: Callable[[], int]
    """How many trials may run at once, asked before each start (a cluster may grow)."""
    listeners: Sequence[SearchListener] = ()
    broken: str = ""
    """Why the search cannot go on, where the first trials all failed alike."""
    arms: list[SearchArm] = field(init=False)
    """In the order in which they take their turns."""
    _live: dict[int, _Live] = field(default_factory=dict)
    _known: dict[str, TrialRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arms = make_arms(self.space)
        if self.space.search.sampler == "grid":
            for arm in self.arms:
                if sum(1 for _ in islice(grid_parameters(self.space, arm.name), arm.budget + 1)) > arm.budget:
                    self._note(
                        f"the {arm.name} arm tries the first {arm.budget} points of a larger grid, in the "
                        "file's order; more --trials would try all"
                    )

    @property
    def running(self) -> int:
        """Trials handed out and not yet ended."""
        return len(self._live)

    @property
    def finished(self) -> bool:
        """True when no further trial will be suggested."""
        return bool(self.broken) or all(arm.spent for arm in self.arms)

    def suggest(self) -> TrialRecord | None:
        """The next trial to run, or None: when finished, or while every slot is taken."""
        if self.running >= self.slots():
            return None
        while not self.finished:
            arm = next(arm for arm in self.arms if not arm.spent)
            fresh = self._fresh_suggestion(arm)
            if fresh is not None:
                return self._start(arm, *fresh)
            arm.budget = arm.started
        return None

    def report(self, number: int, metrics: Mapping[str, float], *, diverged: bool = False) -> bool:
        """Take in one epoch of a trial; True when it trains on."""
        live, trial = self._live[number], self.record.trials[number]
        trial.epochs.append(dict(metrics))
        for listener in self.listeners:
            listener.epoch_ended(trial)
        if diverged:
            self._end(number, TrialState.DIVERGED, f"loss not finite in epoch {len(trial.epochs)}")
            return False
        epoch = len(trial.epochs)
        if epoch >= trial.max_epochs:
            self._end(number, TrialState.COMPLETED)
            return False
        goes_on = live.arm.asha.report(number, epoch, metrics[self.record.metric])
        if not goes_on and trial.origin != "default":
            self._end(number, TrialState.STOPPED, f"stopped at rung {epoch}")
            return False
        return True

    def fail(self, number: int, reason: str) -> None:
        """An error ended the trial."""
        if number in self._live:
            self._end(number, TrialState.FAILED, reason)
        failed = [t.reason for t in self.record.trials if t.state is TrialState.FAILED]
        if (
            len(failed) >= _HOPELESS
            and len(set(failed)) == 1
            and not any(t.epochs for t in self.record.trials)
        ):
            self.broken = failed[0]

    def interrupt(self) -> None:
        """End every running trial as interrupted."""
        for number in list(self._live):
            self._end(number, TrialState.INTERRUPTED, "search interrupted")

    def _fresh_suggestion(self, arm: SearchArm) -> tuple[Suggestion, str] | None:
        """A suggestion that differs in effect from every earlier trial; None when there seems to be none."""
        for _ in range(_MOST_DUPLICATES):
            suggestion = arm.study.ask()
            if suggestion is None:
                self._note(f"the {arm.name} arm's grid ended after {arm.started} trials")
                return None
            key = effective_key(suggestion.configuration, self.vocabulary)
            earlier = self._known.get(key)
            if earlier is None:
                return suggestion, key
            self.record.duplicates += 1
            self._tell(arm, suggestion, earlier)
        self._note(f"the {arm.name} arm found no new configuration after {arm.started} trials")
        return None

    def _start(self, arm: SearchArm, suggestion: Suggestion, key: str) -> TrialRecord:
        configuration = suggestion.configuration
        trial = TrialRecord(
            number=len(self.record.trials),
            arm=arm.name,
            origin=suggestion.origin,
            configuration=configuration.to_dict(),
            parameters=dict(configuration.flat()),
            switch_layer_name=self._switch_name(configuration),
            single=is_single(configuration, self.vocabulary),
            max_epochs=configuration.training.epochs,
            started=time.time(),
        )
        arm.started += 1
        self.record.trials.append(trial)
        self._known[key] = trial
        self._live[trial.number] = _Live(arm, suggestion, key)
        for listener in self.listeners:
            listener.trial_started(trial)
        return trial

    def _end(self, number: int, state: TrialState, reason: str = "") -> None:
        live, trial = self._live.pop(number), self.record.trials[number]
        trial.state, trial.reason, trial.ended = state, reason, time.time()
        self._tell(live.arm, live.suggestion, trial)
        if state is TrialState.FAILED:
            # A failure may be the machine's and not the configuration's: it may be suggested again.
            del self._known[live.key]
        for listener in self.listeners:
            listener.trial_ended(trial)

    def _tell(self, arm: SearchArm, suggestion: Suggestion, trial: TrialRecord) -> None:
        arm.study.tell(suggestion, trial, self.record.value(trial), self.record.metric)

    def _switch_name(self, configuration: Configuration) -> str:
        switch = configuration.switch_layer
        return ALL if switch == ALL else self.layer_names[int(switch)]

    def _note(self, text: str) -> None:
        self.record.notes.append(text)


def make_arms(space: SearchSpace) -> list[SearchArm]:
    """The arms of a search with their budgets of trials; a space without controls has one arm."""
    direction: Literal["max", "min"] = space.direction
    wanted = round(space.search.trials * space.search.control_share) if space.controls else 0
    control_trials = min(wanted, space.search.trials - 1)
    budgets: list[tuple[Arm, int]] = [
        ("control", control_trials),
        ("fusion", space.search.trials - control_trials),
    ]
    epochs = int(largest(space.training["epochs"]))
    return [
        SearchArm(
            name,
            Study(space, name, direction),
            Asha(space.asha, epochs, direction, enabled=space.search.scheduler == "asha"),
            budget,
        )
        for name, budget in budgets
        if budget > 0
    ]
