"""Searches without Ray or training: spaces, engines, and a cluster that knows how good a trial is."""

import dataclasses
import math

from made_records import make_session
from made_spaces import VOCABULARY, read_space

from tune_fusion.events import Chronicle, Session, SpaceAsRun
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.engine import Engine

LAYERS = ["conv1", "conv2", "fc1", "fc2", "fc3"]
SPACE = """
model: {name: lenet5}
data: {name: digits}
training: {epochs: 9}
space:
  switch_layer: {int: [0, 3]}
  low: [adam, sgd]
  high: [sgd, adam]
  optimizers:
    adam: {lr: {log: [1e-5, 1e-1]}}
    sgd: {lr: {log: [1e-4, 1e-0]}}
  controls: [adam, sgd]
search: {trials: 40, scheduler: asha, defaults: trained}
asha: {reduction_factor: 3, compare: metric}
"""
WITHOUT_CONTROLS = SPACE.replace("  controls: [adam, sgd]\n", "")
# Fifteen configurations that differ in effect: unequal pairs at two switch layers are 12, equal ones 3.
FINITE = """
model: {name: lenet5}
data: {name: digits}
training: {epochs: 4}
space:
  switch_layer: [0, 1]
  low: [adam, sgd]
  high: [adam, sgd]
  optimizers: {adam: {lr: {choice: [1e-3, 1e-2]}}, sgd: {lr: 0.1}}
search: {trials: 40, sampler: grid, scheduler: asha}
asha: {reduction_factor: 3, compare: metric}
"""


def make_space(text=SPACE, **changes):
    """The space of `text` with `changes` such as ``search__trials=7``."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return read_space(text, LAYERS, overrides)


def session_of(space, **changes):
    """A session that runs `space`."""
    fields = {
        "space": SpaceAsRun(
            name="made", text=space.to_yaml(), origin="/made.yaml", overrides=(), rehearse=False
        ),
        "metric": space.search.metric,
        "direction": space.direction,
        "planned_trials": space.search.trials,
    }
    return make_session(**(fields | changes))


def make_engine(text=SPACE, slots=1, listeners=(), write=lambda event: None, **changes):
    """The engine of a new search."""
    space = make_space(text, **changes)
    return engine_for(space, session_of(space), slots=slots, listeners=listeners, write=write)


def engine_for(space, session, slots=1, **options):
    """The engine of the search that `session` began."""
    return Engine(
        space, VOCABULARY, make_arms(space), Chronicle.begin(session), LAYERS, lambda: slots, **options
    )


def replayed(events, space, slots=1, *, strict=True, **options):
    """A new engine brought to where `events`, the first a session, end."""
    first, *rest = events
    engine = engine_for(space, first, slots)
    for event in rest:
        engine.replay(event, strict=strict)
    for name, value in options.items():
        setattr(engine, name, value)
    return engine


def quality(configuration, epoch):
    """A smooth, known truth: Adam low near lr 1e-3 and a late switch are good; training helps."""
    low, high = configuration["low"], configuration["high"]
    score = 0.9 - 0.1 * abs(math.log10(low["lr"]) + 3)
    if high:
        score += 0.02 * configuration["switch_layer"] - 0.05 * abs(math.log10(high["lr"]) + 1)
    return max(0.0, score) * (1 - 0.5 / epoch)


def metrics(value):
    return {"val_accuracy": value, "val_loss": 1 - value, "train_seconds": 1.0}


def healthy(engine, trial):
    """One epoch of a trial; True when it trains on."""
    return engine.report(
        trial.number, metrics(quality(trial.configuration, len(trial.epochs) + 1)), node="host:1"
    )


def troubled(engine, trial):
    """`healthy`, but what goes wrong depends on the trial alone, as it does with real training."""
    number, epoch = trial.number, len(trial.epochs) + 1
    if number % 6 == 2 and epoch == 1 and trial.losses < (1 if number % 4 else 3):
        engine.lose(number, "killed by signal 9")
        return False
    if number % 7 == 4 and epoch == 1:
        engine.fail(number, "out of memory", infeasible=True)
        return False
    if number % 9 == 5:
        engine.fail(number, "RuntimeError: no")
        return False
    if number % 5 == 3 and epoch == (1 if number % 2 else 2):
        return engine.report(number, {"train_seconds": 1.0}, diverged=True, node="host:1")
    return healthy(engine, trial)


def run(engine, epoch=healthy):
    """Run the search to its end, the running trials in turns as a cluster would; its record."""
    running = []
    while True:
        while (trial := engine.suggest()) is not None:
            running.append(trial)
        if not running:
            assert engine.finished
            return engine.record
        trial = running.pop(0)
        if epoch(engine, trial):
            running.append(trial)


def recorded_run(space, slots=1, epoch=healthy):
    """All events of a whole search."""
    first = session_of(space)
    events = [first]
    engine = engine_for(space, first, slots, write=events.append)
    engine.begin()
    run(engine, epoch)
    engine.close("completed")
    return events


def decided(events):
    """What was decided, without the moments and the sessions."""
    return [
        {key: value for key, value in event.model_dump().items() if key != "at"}
        for event in events
        if not isinstance(event, Session)
    ]


def asked_and_told(study):
    """Everything an Optuna study knows; NaN as text, because it differs from itself."""
    return [
        (
            trial.state,
            trial.params,
            trial.distributions,
            trial.values,
            {epoch: repr(value) for epoch, value in trial.intermediate_values.items()},
            trial.constraints,
        )
        for trial in study.optuna_trials
    ]


def state(engine):
    """All that an engine decides by; which trials are in a worker's hands is no part of it."""
    chronicle = engine.chronicle
    return {
        "record": dataclasses.asdict(chronicle.record),
        "sessions": chronicle.sessions,
        "status": chronicle.status,
        "last": chronicle.last,
        "arms": [
            (
                *(a.name, a.exhausted, a.started, a.running, a.epochs, a.best, a.improved, a.duplicates),
                a.scheduler.values,
            )
            for a in engine.arms
        ],
        "studies": [asked_and_told(arm.study) for arm in engine.arms],
        "asked": [arm.study._asked for arm in engine.arms],
        "known": {key: trial.number for key, trial in engine._known.items()},
        "live": [
            (
                *(number, live.arm.name, live.paused, live.to_end, live.key),
                *(live.suggestion.trial.number, live.suggestion.configuration),
            )
            for number, live in engine._live.items()
        ],
        "finished": engine.finished,
        "most": engine.most,
    }
