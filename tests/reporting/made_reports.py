"""A rich made search and the answer of its made confirmation, for the tests of the report."""

import random

from made_records import make_search, make_session, make_single, make_trial

from tune_fusion.events import Chronicle, SpaceAsRun
from tune_fusion.records import TrialState
from tune_fusion.reporting.answer import Finalist, SeedRun, answer

LAYERS = [f"blocks.{index}" for index in range(5)]
SPACE = "search: {seed: 3}\nasha: {grace_epochs: 1, reduction_factor: 3}\n"
_PAIRS = (("adam", "sgd"), ("sgd", "adam"), ("hn_adam", "sgd"), ("adamw", "hn_adam"))


def rich_search(count=40, **changes):
    """A search of `count` trials with every state but running, both arms, HN_Adam and its statistics."""
    draw = random.Random(7)
    trials = [_rich_trial(number, draw) for number in range(count)]
    return make_search(*trials, planned=count, **changes)


def _rich_trial(number, draw):
    fusion = number % 2 == 1
    low, high = draw.choice(_PAIRS)
    switch = draw.randrange(4)
    rates = [10 ** draw.uniform(-4, -1) for _ in range(2)]
    state, length = draw.choice(
        [
            (TrialState.COMPLETED, 10),
            (TrialState.STOPPED, 1),
            (TrialState.STOPPED, 3),
            (TrialState.STOPPED, 9),
        ]
    )
    if number in (20, 21):
        state, length = TrialState.DIVERGED, 2
    if number == 23:
        state, length = TrialState.FAILED, 0
    quality = draw.gauss(0.8, 0.04)
    epochs = [
        {
            "val_accuracy": quality - 0.4 / (epoch + 1) + draw.gauss(0, 0.004),
            "train_seconds": 4.0,
            "eval_seconds": 1.0,
        }
        for epoch in range(length)
    ]
    parameters = {"switch_layer": "all", "low.optimizer": low, "low.lr": rates[0], "training.epochs": 10}
    if fusion:
        parameters |= {"switch_layer": switch, "high.optimizer": high, "high.lr": rates[1]}
    for half in ("low", "high"):
        if parameters.get(f"{half}.optimizer") == "hn_adam":
            parameters[f"{half}.lambda0"] = draw.uniform(2, 4)
            for epoch, metrics in enumerate(epochs):
                for layer in range(3):
                    metrics[f"layer_{layer:02d}.amsgrad_share"] = 0.1 * layer + 0.01 * epoch
                    metrics[f"layer_{layer:02d}.mean_lambda"] = 2 + 0.1 * layer + 0.01 * epoch
    make = make_trial if fusion else make_single
    started = 1000.0 + 30 * (number // 2)
    return make(
        number,
        state=state,
        epochs=epochs,
        parameters=parameters,
        origin="default" if number < 2 else "sampled",
        switch_layer_name=LAYERS[switch] if fusion else "all",
        started=started,
        times=[started + 2.5 * (epoch + 1) for epoch in range(length)],
        ended=started + 2.5 * length + 1,
        reason="RuntimeError: <b>bad</b> & worse" if state is TrialState.FAILED else "",
    )


def chronicle_of(record, status="completed", space=SPACE, **changes):
    """A chronicle that tells of this record; `changes` are fields of its session."""
    as_run = SpaceAsRun(name=record.space, text=space, origin="/made.yaml", overrides=(), rehearse=False)
    session = make_session(
        search=record.name, metric=record.metric, direction=record.direction, space=as_run, **changes
    )
    ends = [at for trial in record.trials for at in (trial.started, *trial.times, trial.ended or 0.0)]
    return Chronicle(record, [session], status=status, last=max(ends, default=1000.0))


def made_answer(record, seeds=(101, 102, 103, 104, 105), gain=0.02):
    """A fusion (trial 1) and a control (trial 0), whose test accuracies differ by `gain` in the mean."""
    finalists = []
    for trial in (record.trials[1], record.trials[0]):
        shift = gain if trial.arm == "fusion" else 0.0
        runs = tuple(
            SeedRun(
                seed,
                "completed",
                10,
                9,
                {
                    "val_accuracy": 0.81 + shift,
                    "test_accuracy": 0.8 + shift + (0.001 * (place - 2) if trial.arm == "fusion" else 0.0),
                    "test_loss": 0.5 - shift,
                    "test_macro_f1": 0.79 + shift,
                },
            )
            for place, seed in enumerate(seeds)
        )
        finalists.append(
            Finalist(
                trial.number,
                trial.arm,
                trial.origin,
                trial.single,
                trial.label,
                trial.switch_layer_name,
                {},
                {},
                0.85,
                runs,
            )
        )
    return answer(record.name, "val_accuracy", "max", finalists, 1000)
