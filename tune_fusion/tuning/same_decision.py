"""Whether an engine would decide again as an event of its journal says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_fusion.events import (
    Crowded,
    EpochEnded,
    Event,
    Failed,
    GivenUp,
    Inherited,
    Promoted,
    RungDecision,
    Suggested,
    WorkerLost,
)
from tune_fusion.space.configuration import Configuration

if TYPE_CHECKING:
    from tune_fusion.tuning.engine import Engine


class DivergenceError(ValueError):
    """The engine decides otherwise than the event it is told says."""


def check_same_decision(engine: Engine, event: Event) -> None:
    """Raise DivergenceError where `event` is not what `engine`, as it stands, would have made of it."""
    match event:
        case Suggested():
            _check_suggested(engine, event)
        case Inherited():
            if engine.record.trials or engine.knows(event.key) or engine.arm(event.arm) is None:
                raise DivergenceError(f"trial {event.source_trial} of {event.source} is not taken over here")
            _check_key(engine, event, None)
        case EpochEnded():
            _check_epoch(engine, event)
        case Promoted() | GivenUp():
            if not engine.is_paused(event.trial):
                raise DivergenceError(f"trial {event.trial} does not wait at a rung here")
        case WorkerLost() | Failed() | Crowded():
            if not engine.is_open(event.trial):
                raise DivergenceError(f"trial {event.trial} is not running here")


def _check_suggested(engine: Engine, event: Suggested) -> None:
    arm = engine.arm(event.arm)
    # A list may have grown since: whose turn it was then does not follow from it any more.
    if arm is None or (arm.study.left is None and arm is not engine.next_arm()):
        raise DivergenceError(f"it is not the {event.arm} arm's turn to suggest")
    _check_key(engine, event, event.seed)
    number = len(engine.record.trials) if event.trial is not None else None
    if event.trial != number:
        raise DivergenceError(f"trial {event.trial} comes after trial {len(engine.record.trials) - 1}")


def _check_key(engine: Engine, event: Suggested | Inherited, seed: int | None) -> None:
    if event.key != engine.key_of(Configuration.from_dict(event.configuration), seed):
        raise DivergenceError("the configuration now means something else")


def _check_epoch(engine: Engine, event: EpochEnded) -> None:
    trial = engine.record.trials[event.trial]
    if not engine.is_open(event.trial) or event.epoch != len(trial.epochs) + 1:
        raise DivergenceError(f"trial {event.trial} has no epoch {event.epoch} here")
    rung = engine.judge(event.trial, event.epoch, event.metrics, event.diverged)
    if rung != event.rung:
        raise DivergenceError(f"the rung decides otherwise now: {_words(rung)}, not {_words(event.rung)}")
    if engine.verdict(trial, event.epoch, rung, event.diverged)[0] != event.ends:
        raise DivergenceError(f"trial {event.trial} would not end like this now")


def _words(rung: RungDecision | None) -> str:
    if rung is None:
        return "no rung"
    return f"{'on' if rung.goes_on else 'stop'} at {rung.cutoff:.6g} ({rung.kept} of {rung.seen})"
