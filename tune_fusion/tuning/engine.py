"""Every decision of a search: what is tried next, what trains on, what is told to whom. Knows no Ray.

A decision becomes an event, the event is written down, and only then it takes effect. Nothing else changes
the engine, so that the events alone, in their order, bring it back to where it was (`Engine.replay`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tune_fusion.events import (
    ArmExhausted,
    Chronicle,
    Closed,
    Crowded,
    EpochEnded,
    Event,
    Failed,
    GivenUp,
    Inherited,
    Noted,
    Promoted,
    RungDecision,
    Status,
    Suggested,
    WorkerLost,
)
from tune_fusion.records import SearchListener, SearchRecord, TrialRecord, TrialState
from tune_fusion.space.configuration import ALL, Configuration
from tune_fusion.space.effective import effective_key, is_single
from tune_fusion.space.sampling import parameters_of
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.arms import SearchArm, make_arms
from tune_fusion.tuning.same_decision import DivergenceError, check_same_decision
from tune_fusion.tuning.study import Suggestion

# Suggestions in a row that were all tried before: after these an arm has nothing new to say.
_MOST_DUPLICATES = 50
# As many whole trials' epochs must have brought an arm nothing before a search stops itself.
_PATIENCE = 3
_ENOUGH = "search.stop: auto started nothing new"
# Trials that fail alike before any trial has finished an epoch: the search is broken, not the trials.
_HOPELESS = 3


@dataclass
class _Live:
    """A trial without an end."""

    arm: SearchArm | None
    """None where the space has no such arm any more: no rung stops the trial."""
    suggestion: Suggestion | None
    """None where the space does not allow its configuration any more: the study learns nothing of it."""
    key: str
    handed_out: bool = False
    """True while a worker trains it."""
    paused: bool = False
    """True while it waits at a rung to be promoted."""
    to_end: bool = False
    """True where no rung stops it any more."""
    company: int = 0
    """The most trials that have run at once since then, this one included."""


@dataclass
class Engine:
    """The search as a sequence of decisions, driven by whoever runs the trials.

    `suggest` gives trials to run, `report` says whether one trains on, `fail` and `lose` are told what went
    wrong; in a space that packs trials automatically, too little memory first means too many at once. The
    arms run side by side: the next trial is of the arm that has spent the least of its share of the epochs
    (the first of them where they are equal); what an exhausted arm leaves goes to the others.
    """

    space: SearchSpace
    vocabulary: Vocabulary
    arms: Sequence[SearchArm]
    chronicle: Chronicle
    layer_names: Sequence[str]
    slots: Callable[[], int]
    """How many trials may run at once, asked before each start (a cluster may grow)."""
    write: Callable[[Event], None] = lambda event: None
    """Writes an event down before it takes effect; with an error it raises, nothing starts any more."""
    listeners: Sequence[SearchListener] = ()
    broken: str = ""
    """Why the search cannot go on, where the first trials all failed alike."""
    draining: bool = False
    """True: nothing starts any more, as the search is about to be left."""
    most: int | None = None
    """The most trials that memory has room for at once, once it has run out."""
    _live: dict[int, _Live] = field(default_factory=dict)
    _known: dict[str, TrialRecord] = field(default_factory=dict)

    @property
    def record(self) -> SearchRecord:
        """The record of the search; changed by events alone."""
        return self.chronicle.record

    @property
    def running(self) -> int:
        """Trials that workers train right now."""
        return sum(live.handed_out for live in self._live.values())

    @property
    def finished(self) -> bool:
        """True when every trial has ended and no further one will start."""
        return bool(self.broken) or (not self._live and self.next_arm() is None)

    def begin(self) -> None:
        """Say once what should be known before the first trial."""
        if self.space.search.sampler != "grid" or self.record.trials:
            return
        planned, keys = self.record.planned_trials, set[str]()
        for arm in make_arms(self.space):
            while len(keys) <= planned and (point := arm.study.ask()) is not None:
                keys |= {self.key_of(point.configuration, None)} - self._known.keys()
        if len(keys) > planned:
            self.note(
                f"the search tries the first {planned} points of a larger grid, in the file's order; more "
                "--trials would try all"
            )

    def inherit(self, trial: TrialRecord, source: str) -> None:
        """Know the result of an ended trial that the search named `source` ran, or itself inherited.

        To be called before anything is suggested. Nothing happens where a trial that is the same in effect is
        known already. Raises ValueError where the space does not contain its configuration.
        """
        configuration = Configuration.from_dict(trial.configuration)
        key = self.key_of(configuration, None)
        arm = self.arm(trial.arm)
        if arm is None:
            raise ValueError(f"the space has no {trial.arm} arm")
        parameters = parameters_of(self.space, arm.name, configuration)
        if key in self._known:
            return
        event = Inherited(
            source=trial.source or source,
            source_trial=trial.number if trial.source_trial is None else trial.source_trial,
            arm=arm.name,
            origin=trial.origin,
            parameters=parameters,
            configuration=configuration.to_dict(),
            key=key,
            switch_layer_name=self._switch_name(configuration),
            single=is_single(configuration, self.vocabulary),
            epochs=trial.epochs,
            state=trial.state,
            reason=trial.reason,
            infeasible=trial.infeasible,
        )
        self._happen(event, self._repeated(event, strict=True))

    def note(self, text: str) -> None:
        """Keep something that people should know of the search, once."""
        if text not in self.record.notes:
            self._happen(Noted(note=text))

    def replay(self, event: Event, *, strict: bool = True) -> None:
        """Take in an event of an earlier process; it is neither written again nor told to listeners.

        With `strict`, DivergenceError is raised where this engine decides otherwise: its space or its code
        is not the one that wrote the event. Without, what was decided stays decided.
        """
        if strict:
            check_same_decision(self, event)
        if isinstance(event, Suggested | Inherited):
            self._apply(event, self._repeated(event, strict=strict))
        else:
            self._apply(event)

    def suggest(self) -> TrialRecord | None:
        """The next trial to run, or None: when finished, or while every slot is taken.

        A trial whose worker was lost, or that ran when an earlier process ended, comes before a new one.
        """
        if self.draining or self.broken or self.running >= self._room():
            return None
        if self._enough:
            self._note_enough()
        for number, live in self._live.items():
            if not live.handed_out and not live.paused:
                return self._hand_out(number)
        while (arm := self.next_arm()) is not None:
            promoted = arm.scheduler.promote(self._paused(arm))
            if promoted is not None:
                return self._promote(promoted)
            trial = self._new_trial(arm)
            if trial is not None:
                return trial
        return self._last_promoted()

    def report(
        self, number: int, metrics: Mapping[str, float], *, diverged: bool = False, node: str = ""
    ) -> bool:
        """Take in one epoch of a trial, the next one of its record; True when it trains on."""
        trial = self.record.trials[number]
        epoch = len(trial.epochs) + 1
        rung = self.judge(number, epoch, metrics, diverged)
        ends, reason = self.verdict(trial, epoch, rung, diverged)
        event = EpochEnded(
            trial=number,
            epoch=epoch,
            metrics=dict(metrics),
            diverged=diverged,
            node=node,
            rung=rung,
            ends=ends,
            reason=reason,
        )
        self._happen(event)
        if not self.is_paused(number):
            return ends is None
        self._give_up_surplus(number)
        return False

    def set_aside(self, number: int) -> None:
        """No worker trains the trial any more, without any fault of it: it goes on when it is resumed."""
        if number in self._live:
            self._live[number].handed_out = False

    def fail(self, number: int, reason: str, *, infeasible: bool = False) -> None:
        """An error of its training ended the trial; `infeasible`: it does not fit into memory."""
        if number not in self._live or (infeasible and self._make_room(number, reason)):
            return
        self._happen(Failed(trial=number, reason=reason, infeasible=infeasible))
        self._check_broken()

    def lose(self, number: int, reason: str, *, out_of_memory: bool = False) -> None:
        """The trial's worker is gone: `suggest` gives the trial again, until its retries are spent."""
        if number not in self._live or (out_of_memory and self._make_room(number, reason)):
            return
        losses, retries = self.record.trials[number].losses + 1, self.space.search.retries
        ends = losses > retries
        if ends and retries:
            reason = f"{reason} (its worker was lost {losses} times)"
        self._happen(WorkerLost(trial=number, reason=reason, ends=ends))
        self._check_broken()

    def _room(self) -> int:
        """How many trials may run at once."""
        return self.slots() if self.most is None else min(self.most, self.slots())

    def _paused(self, arm: SearchArm) -> list[int]:
        """The arm's trials that wait at a rung."""
        if not arm.scheduler.pauses:
            return []
        return [number for number, live in self._live.items() if live.paused and live.arm is arm]

    def _give_up_surplus(self, number: int) -> None:
        """End what waits in vain in the arm of a trial that has just paused."""
        arm = self._live[number].arm
        if arm is not None:
            for other in arm.scheduler.surplus(self._paused(arm)):
                self._give_up(other)

    def _give_up(self, number: int) -> None:
        epoch = len(self.record.trials[number].epochs)
        self._happen(GivenUp(trial=number, reason=f"not promoted beyond rung {epoch}"))

    def _promote(self, number: int, *, to_end: bool = False) -> TrialRecord:
        """Let a paused trial train on."""
        self._happen(Promoted(trial=number, to_end=to_end))
        return self._hand_out(number)

    def _last_promoted(self) -> TrialRecord | None:
        """Where nothing new starts: a paused trial that trains on all the same; None: there is no such.

        Rungs promote on. Then, when none of an arm's trials runs any more, its best trains to the end, if it
        has not yet, and the others are given up.
        """
        for arm in self.arms:
            number = arm.scheduler.promote(self._paused(arm))
            if number is not None:
                return self._promote(number)
        for arm in self.arms:
            paused = self._paused(arm)
            if not paused or any(live.arm is arm and not live.paused for live in self._live.values()):
                continue
            best = self.record.best(arm=arm.name)
            if best is not None and best.number in paused:
                return self._promote(best.number, to_end=True)
            for number in paused:
                self._give_up(number)
        return None

    def _hand_out(self, number: int) -> TrialRecord:
        """Give a trial to a worker."""
        self._live[number].handed_out, self._live[number].company = True, 0
        running = self.running
        for live in self._live.values():
            if live.handed_out:
                live.company = max(live.company, running)
        return self.record.trials[number]

    def _make_room(self, number: int, reason: str) -> bool:
        """Try a trial that ran out of memory again, beside fewer others; False where that is no way out."""
        company = self._live[number].company
        if self.space.resources.pack != "auto" or company < 2:
            return False
        most = company - 1 if self.most is None else min(self.most, company - 1)
        self._happen(Crowded(trial=number, reason=reason, most=most))
        return True

    def close(self, status: Status, problem: str = "") -> None:
        """Leave the search; trials without an end are interrupted, and go on when it is resumed."""
        running = [self.record.trials[number] for number in self._live]
        self._happen(Closed(status=status, problem=problem))
        for listener in self.listeners:
            for trial in running:
                listener.trial_ended(trial)

    def next_arm(self) -> SearchArm | None:
        """The arm whose turn it is; None where every planned trial was started, or no arm has a new one."""
        if self._enough or len(self.record.trials) >= self.record.planned_trials:
            return None
        open_arms = [arm for arm in self.arms if arm.open]
        return min(open_arms, key=lambda arm: arm.spent, default=None)

    def _note_enough(self) -> None:
        spent = ", ".join(f"{arm.name} {arm.epochs - arm.improved} of {arm.epochs}" for arm in self.arms)
        if not any(note.startswith(_ENOUGH) for note in self.record.notes):
            self.note(
                f"{_ENOUGH} after trial {len(self.record.trials) - 1}: epochs without a better value: {spent}"
            )

    @property
    def _enough(self) -> bool:
        """Whether the search stops itself: every arm has long found nothing better."""
        if self.space.search.stop == "never":
            return False
        least = _PATIENCE * self.space.max_epochs
        return all(arm.epochs - arm.improved >= max(least, arm.improved) for arm in self.arms)

    def _new_trial(self, arm: SearchArm) -> TrialRecord | None:
        """Start a configuration that differs in effect from every earlier one; None: there seems to be none.

        The arm is exhausted then.
        """
        while arm.duplicates < _MOST_DUPLICATES:
            # Where one trial runs at a time, the result that ended the last one is never passed over.
            suggestion = arm.study.ask(ahead=self.slots() > 1)
            if suggestion is None:
                # Every point of a grid was tried, or is being tried: nothing that people need to know.
                self._happen(ArmExhausted(arm=arm.name, note=""))
                return None
            configuration = suggestion.configuration
            key = self.key_of(configuration, suggestion.seed)
            earlier = self._known.get(key)
            event = Suggested(
                arm=arm.name,
                origin=suggestion.origin,
                parameters=suggestion.parameters,
                configuration=configuration.to_dict(),
                key=key,
                trial=len(self.record.trials) if earlier is None else None,
                duplicate_of=None if earlier is None else earlier.number,
                switch_layer_name=self._switch_name(configuration),
                single=is_single(configuration, self.vocabulary),
                seed=suggestion.seed,
            )
            self._happen(event, suggestion)
            if earlier is None:
                return self._hand_out(self.record.trials[-1].number)
        note = f"the {arm.name} arm found no new configuration after {arm.started} trials"
        if any(not other.exhausted for other in self.arms if other is not arm):
            note += ": the rest goes to the other arm"
        self._happen(ArmExhausted(arm=arm.name, note=note))
        return None

    def judge(
        self, number: int, epoch: int, metrics: Mapping[str, float], diverged: bool
    ) -> RungDecision | None:
        """What ASHA makes of a trial after an epoch; None where there is no rung."""
        if diverged or epoch >= self.record.trials[number].max_epochs:
            return None
        arm = self._live[number].arm
        return None if arm is None else arm.scheduler.judge(number, epoch, metrics[self.space.rung_metric])

    def verdict(
        self, trial: TrialRecord, epoch: int, rung: RungDecision | None, diverged: bool
    ) -> tuple[TrialState | None, str]:
        """How the trial ends with this epoch, if it does, and why."""
        if diverged:
            return TrialState.DIVERGED, f"loss not finite in epoch {epoch}"
        if epoch >= trial.max_epochs:
            return TrialState.COMPLETED, ""
        arm = self._live[trial.number].arm
        if self._stops(trial, rung) and not (arm is not None and arm.scheduler.pauses):
            return TrialState.STOPPED, f"stopped at rung {epoch}"
        return None, ""

    def _stops(self, trial: TrialRecord, rung: RungDecision | None) -> bool:
        """Whether a rung keeps the trial from training on."""
        if rung is None or rung.goes_on or self._live[trial.number].to_end:
            return False
        return trial.origin != "default" or self.space.search.defaults == "judged"

    def _check_broken(self) -> None:
        failed = [t.reason for t in self.record.trials if t.state is TrialState.FAILED]
        alike = len(failed) >= _HOPELESS and len(set(failed)) == 1
        if alike and not any(t.epochs for t in self.record.trials):
            self.broken = failed[0]

    def _happen(self, event: Event, suggestion: Suggestion | None = None) -> None:
        """Write an event down, let it take effect, and tell the listeners."""
        try:
            self.write(event)
        except OSError:
            # The study may have been asked for what is nowhere written: it must not be asked again.
            self.draining = True
            raise
        self._apply(event, suggestion)
        match event:
            case Suggested(trial=int(number)):
                for listener in self.listeners:
                    listener.trial_started(self.record.trials[number])
            case EpochEnded() | WorkerLost() | Failed() | GivenUp():
                trial = self.record.trials[event.trial]
                for listener in self.listeners:
                    if isinstance(event, EpochEnded):
                        listener.epoch_ended(trial)
                    if trial.ended is not None:
                        listener.trial_ended(trial)

    def _apply(self, event: Event, suggestion: Suggestion | None = None) -> None:
        """Let an event take effect; `suggestion` is what the study gave for it."""
        match event:
            case Suggested():
                self._apply_suggested(event, suggestion)
                return
            case Inherited():
                self._apply_inherited(event, suggestion)
                return
            case EpochEnded():
                self._apply_epoch(event)
                return
            case Promoted():
                live = self._live[event.trial]
                live.paused, live.to_end = False, event.to_end
                if live.arm is not None:
                    live.arm.running += 1
            case WorkerLost():
                self._live[event.trial].handed_out = False
            case Crowded():
                self._live[event.trial].handed_out, self.most = False, event.most
            case ArmExhausted():
                arm = self.arm(event.arm)
                if arm is not None:
                    arm.exhausted = True
        self.chronicle.apply(event)
        if isinstance(event, WorkerLost | Failed | GivenUp):
            self._settle(self.record.trials[event.trial])

    def _apply_epoch(self, event: EpochEnded) -> None:
        live, trial = self._live[event.trial], self.record.trials[event.trial]
        arm = live.arm
        self.chronicle.apply(event)
        if arm is not None:
            arm.took_epoch(self.record.sign * event.metrics.get(self.record.metric, math.nan))
        if arm is not None and event.rung is not None:
            arm.scheduler.tell(event.trial, event.epoch, event.metrics[self.space.rung_metric])
        if arm is not None and arm.scheduler.pauses and event.ends is None and self._stops(trial, event.rung):
            live.paused, live.handed_out = True, False
            arm.running -= 1
            if live.suggestion is not None:
                arm.study.pause(live.suggestion, trial, self.record.metric)
        self._settle(trial)

    def _apply_suggested(self, event: Suggested, suggestion: Suggestion | None) -> None:
        arm = self.arm(event.arm)
        self.chronicle.apply(event)
        if event.trial is None:
            if arm is not None:
                arm.duplicates += 1
            if arm is not None and suggestion is not None and event.duplicate_of is not None:
                self._tell(arm, suggestion, self.record.trial(event.duplicate_of))
            return
        trial = self.record.trials[event.trial]
        self._known[event.key] = trial
        if arm is not None:
            arm.started, arm.running, arm.duplicates = arm.started + 1, arm.running + 1, 0
        self._live[trial.number] = _Live(arm, suggestion, event.key)

    def _apply_inherited(self, event: Inherited, suggestion: Suggestion | None) -> None:
        self.chronicle.apply(event)
        trial = self.record.inherited[-1]
        self._known[event.key] = trial
        arm = self.arm(event.arm)
        if arm is not None and suggestion is not None:
            self._tell(arm, suggestion, trial)

    def _repeated(self, event: Suggested | Inherited, *, strict: bool) -> Suggestion | None:
        """What the study gave for an earlier suggestion; None where the space does not allow it any more."""
        arm = self.arm(event.arm)
        if arm is None:
            return None
        try:
            return arm.study.repeat(
                event.parameters, Configuration.from_dict(event.configuration), event.origin
            )
        except ValueError as error:
            if strict:
                raise DivergenceError(f"the space does not allow this suggestion: {error}") from error
            if isinstance(event, Suggested):
                arm.study.skip()
            return None

    def _settle(self, trial: TrialRecord) -> None:
        """Tell the study how a trial ended, if it did."""
        if trial.ended is None:
            return
        live = self._live.pop(trial.number)
        if live.arm is not None and not live.paused:
            live.arm.running -= 1
        if live.arm is not None and live.suggestion is not None:
            self._tell(live.arm, live.suggestion, trial)
        if trial.state is TrialState.FAILED and not trial.infeasible:
            # The failure may be the machine's and not the configuration's: it may be suggested again.
            del self._known[live.key]

    def _tell(self, arm: SearchArm, suggestion: Suggestion, trial: TrialRecord) -> None:
        arm.study.tell(suggestion, trial, self.record.value(trial), self.record.metric)

    def arm(self, name: str) -> SearchArm | None:
        """The arm, or None where the space has no such arm any more."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def is_open(self, number: int) -> bool:
        """True for a trial that has not ended."""
        return number in self._live

    def is_paused(self, number: int) -> bool:
        """True for a trial that waits at a rung."""
        return number in self._live and self._live[number].paused

    def knows(self, key: str) -> bool:
        """True where a configuration that is the same in effect was tried, or is."""
        return key in self._known

    def key_of(self, configuration: Configuration, seed: int | None) -> str:
        """The same for configurations that are the same in effect, with the same seed."""
        text = effective_key(configuration, self.vocabulary) + ("" if seed is None else f"/{seed}")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _switch_name(self, configuration: Configuration) -> str:
        switch = configuration.switch_layer
        return ALL if switch == ALL else self.layer_names[int(switch)]
