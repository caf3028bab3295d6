"""Small tables whose every value is known."""

import gzip
import json

from made_spaces import read_space

from tune_fusion.replay.table import Run, Table

LAYERS = ["conv1", "conv2", "fc1", "fc2", "head"]
EPOCHS = 4
SPACE = """
model: {name: lenet5}
data: {name: digits}
training: {epochs: 4}
space:
  switch_layer: {int: [0, 3]}
  low: [adam, sgd]
  high: [sgd, adam]
  optimizers:
    adam: {lr: {log: [1e-4, 1e-2]}}
    sgd: {lr: {log: [1e-2, 1]}}
  controls: [adam, sgd]
search: {trials: 40, sampler: random, scheduler: asha, defaults: trained}
asha: {reduction_factor: 2, compare: metric}
"""


def make_space():
    return read_space(SPACE, LAYERS)


def fusion(switch, low, low_lr, high, high_lr):
    return {
        "switch_layer": switch,
        "low": {"optimizer": low, "lr": low_lr},
        "high": {"optimizer": high, "lr": high_lr},
        "training": {"epochs": EPOCHS},
    }


def control(name, lr):
    training = {"epochs": EPOCHS}
    return {"switch_layer": "all", "low": {"optimizer": name, "lr": lr}, "high": None, "training": training}


def make_run(configuration, *values, seed=0, diverged=False):
    epochs = tuple({"val_accuracy": value, "val_loss": 1 - value} for value in values)
    arm = "control" if configuration["high"] is None else "fusion"
    return Run(arm, configuration, seed, epochs, diverged)


def grown(value):
    """A curve that ends at `value`."""
    return [value * part for part in (0.5, 0.8, 0.9, 1.0)]


def make_table(space=None):
    """Fusions of every pair at three rates, and controls; late switches and the middle rate are best."""
    runs = []
    for seed in (0, 1):
        for low in ("adam", "sgd"):
            for step, lr in enumerate((1e-4, 1e-3, 1e-2)):
                own = lr * (100 if low == "sgd" else 1)
                value = (0.6, 0.8, 0.7)[step] - 0.01 * (low == "sgd") + 0.002 * seed * (step - 1)
                runs.append(make_run(control(low, own), *grown(value), seed=seed))
                for high, high_lr in (("sgd", 0.1), ("adam", 1e-3)):
                    for switch in (0, 3):
                        better = value + 0.02 * switch + 0.01 * (high == "sgd")
                        runs.append(
                            make_run(fusion(switch, low, own, high, high_lr), *grown(better), seed=seed)
                        )
    return Table(space or make_space(), LAYERS, runs)


def write_table(path, table, extra=()):
    """The file that `Table.load` reads."""
    facts = {"space": SPACE, "layers": LAYERS, "metrics": ["val_accuracy", "val_loss"]}
    rows = [
        {
            "arm": run.arm,
            "configuration": run.configuration,
            "seed": run.seed,
            "epochs": [list(epoch.values()) for epoch in run.epochs] + [None] * run.diverged,
            "seconds": 1.0,
        }
        for run in [*table.runs, *extra]
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in (facts, *rows)).encode()))
