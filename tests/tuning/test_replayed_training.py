"""With one slot, a replay of recorded training decides as a search that really trains."""

import itertools

import pytest
from in_process import make_bench, search
from made_spaces import VOCABULARY

from tune_fusion.events import Chronicle
from tune_fusion.replay.simulation import Incumbent, session_of, train
from tune_fusion.replay.table import Run, Table
from tune_fusion.space.loading import parse_space
from tune_fusion.space.sampling import draw, grid_parameters
from tune_fusion.training.trainer import Trainer
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.study import Repeating

SPACE = """
model: {name: lenet5}
data: {name: digits, limit: 240, validation: 0.3}
training: {epochs: 4, batch_size: 64}
space:
  switch_layer: [1, 3]
  low: [adam, hn_adam_root]
  high: [sgd]
  controls: [adam]
  optimizers:
    adam: {lr: {choice: [1e-3, 1e-2]}}
    hn_adam_root: {lr: {choice: [1e-3, 1e-2]}}
    sgd: {lr: {choice: [1e-2, 1e-1]}}
search: {trials: 12, scheduler: asha, defaults: trained}
asha: {reduction_factor: 2, compare: metric}
"""


@pytest.fixture(scope="module")
def layers():
    return [layer.name for layer in make_bench(parse_space(SPACE, "small.yaml", VOCABULARY), 0).layers]


@pytest.fixture(scope="module")
def runs(layers):
    """Every configuration of the space, trained to its end."""
    space = parse_space(SPACE, "small.yaml", VOCABULARY).with_switch(layers)
    bench = make_bench(space, space.search.seed)
    recorded = []
    for arm in ("fusion", "control"):
        for answers in grid_parameters(space, arm):
            configuration = draw(space, arm, Repeating(answers))
            trainer = Trainer(bench, configuration)
            results = [trainer.run_epoch() for _ in range(configuration.training.epochs)]
            recorded.append(
                Run(
                    arm,
                    configuration.to_dict(),
                    0,
                    tuple(result.metrics for result in results),
                    diverged=False,
                )
            )
    return recorded


@pytest.mark.parametrize(
    "settings",
    [
        ("search.sampler=tpe", "search.scheduler=asha"),
        (
            "search.sampler=tpe",
            "search.scheduler=promotion",
            "search.defaults=judged",
            "asha.compare=val_loss",
        ),
        ("search.sampler=random", "search.scheduler=promotion", "search.defaults=none"),
        ("search.sampler=random", "search.scheduler=hyperband"),
        ("search.sampler=random", "search.scheduler=curves", "search.stop=auto"),
    ],
    ids=lambda settings: " ".join(word.split("=")[1] for word in settings),
)
def test_a_replay_with_one_slot_decides_as_real_training(settings, runs, layers, tmp_path):
    space = parse_space(SPACE, "small.yaml", VOCABULARY, settings).with_switch(layers)
    real = search(space, tmp_path)
    replayed = replayed_search(space, Table(space, layers, runs))
    assert decisions(replayed) == decisions(real)
    assert len({len(trial.epochs) for trial in real.trials}) > 1


def replayed_search(space, table):
    engine = Engine(
        space, VOCABULARY, make_arms(space), Chronicle.begin(session_of(space)), table.layers, lambda: 1
    )
    incumbent = Incumbent(engine.record)
    while (trial := engine.suggest()) is not None:
        run = table.nearest(trial.arm, trial.configuration)
        while train(engine, trial.number, run, incumbent):
            pass
    return engine.record


def decisions(record):
    """All that was decided, and by which values."""
    return [
        (
            *(trial.arm, trial.origin, trial.configuration, trial.state, trial.reason),
            [(epoch["val_accuracy"], epoch["val_loss"]) for epoch in trial.epochs],
        )
        for trial in record.trials
    ], list(itertools.chain(record.ended, record.notes))
