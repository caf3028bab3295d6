"""Records what replays of a search are made from: configurations of a space, all trained to the last epoch.

``python benchmarks/record_table.py --space digits --name digits --fusions 384 --controls 96`` writes
``benchmarks/data/digits.jsonl.gz``: a line of facts (the space, the command, the machine), then a line for
each run with the metrics of every epoch. Trials are trained as a search trains them; test images are never
read. Which configurations is decided by the numbers alone: first the untuned defaults and the pairs of the
papers at the rates of the optimizers' authors, then scrambled Sobol points of each arm. Every fourth
configuration is trained with a second seed (of weights, order and split), which tells the noise.

Runs are appended one by one to ``benchmarks/results/NAME.runs.jsonl``; the same command goes on where it was
stopped, and a longer one adds to a shorter one. Seconds of an epoch are kept for orientation only: replays
count epochs.
"""

import argparse
import gzip
import itertools
import json
import multiprocessing
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import measuring
from scipy.stats import qmc

HERE = Path(__file__).resolve().parent
METRICS = ["train_loss", "val_loss", "val_accuracy", "val_macro_f1"]
AGAIN = 4
"""One of so many configurations is trained with a second seed."""


KEYS = (
    "switch_layer",
    *("low.optimizer", "low.lr", "low.momentum", "low.lambda0"),
    *("high.optimizer", "high.lr", "high.momentum", "high.lambda0"),
)
"""The dimensions of a point: rates of different optimizers share one, as only one of them is asked for."""


def answering(point):
    """Answers what `draw` asks from one point of the unit cube."""
    from tune_fusion.space.configuration import flat_name
    from tune_fusion.space.domain import FloatRange, IntRange, value_at
    from tune_fusion.space.sampling import Answering

    def choose(name, domain):
        part = point[KEYS.index(flat_name(name))]
        if isinstance(domain, FloatRange):
            return value_at(domain, part)
        if isinstance(domain, IntRange):
            return domain.low + int(part * (domain.high - domain.low + 1))
        return domain.values[int(part * len(domain.values))]

    return Answering(choose)


def configurations(space, fusions, controls):
    """The configurations to record, as (arm, configuration); those of a shorter list come first."""
    from tune_fusion.replay.contenders import paper_pairs
    from tune_fusion.space.sampling import draw

    first = [*defaults(space), *(("fusion", pair) for pair in paper_pairs(space))]
    arms = {"fusion": fusions, "control": controls}
    drawn = {}
    for seed, (arm, count) in enumerate(arms.items()):
        points = qmc.Sobol(len(KEYS), rng=seed).random(2**12)[:count]
        drawn[arm] = [(arm, draw(space, arm, answering(point))) for point in points]
    every = max(1, fusions // max(1, controls))
    blocks = itertools.zip_longest(_batched(drawn["fusion"], every), drawn["control"])
    return first + [one for block, control in blocks for one in (*(block or ()), *filter(None, [control]))]


def _batched(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def defaults(space):
    """The untuned defaults, as every search runs them first."""
    from tune_fusion.tuning.arms import make_arms

    for arm in make_arms(space):
        while (suggestion := arm.study.ask()).origin == "default":
            yield arm.name, suggestion.configuration


def planned(space, fusions, controls):
    """All runs to record in their order, as (arm, configuration, seed); no configuration twice."""
    from tune_fusion.optim.registry import OPTIMIZERS
    from tune_fusion.space.effective import effective_key
    from tune_fusion.space.vocabulary import Vocabulary

    known = set()
    for arm, configuration in configurations(space, fusions, controls):
        key = (arm, effective_key(configuration, Vocabulary(OPTIMIZERS, ())))
        if key not in known:
            known.add(key)
            yield arm, configuration, space.search.seed
            if len(known) % AGAIN == 0:
                yield arm, configuration, space.search.seed + 1


def start_worker():
    """A worker trains with one thread, as trials with one CPU do."""
    import torch

    torch.set_num_threads(1)


@cache
def bench(model, data, seed):
    """The workbench of a seed; made once a process."""
    from tune_fusion.space.settings import DataSettings, ModelSettings
    from tune_fusion.training.workbench import Workbench, pick_device

    settings = ModelSettings.model_validate_json(model), DataSettings.model_validate_json(data)
    return Workbench(*settings, seed, pick_device(0))


def train(model, data, seed, configuration):
    """Every epoch of one run (the metrics as METRICS has them; None: it diverged), and its mean seconds."""
    from tune_fusion.training.trainer import Trainer

    trainer = Trainer(bench(model, data, seed), configuration)
    started, epochs = time.perf_counter(), []
    while not trainer.finished:
        result = trainer.run_epoch()
        epochs.append(None if result.diverged else [result.metrics[name] for name in METRICS])
        if result.diverged:
            break
    return epochs, (time.perf_counter() - started) / len(epochs)


def record(space, runs, path, workers):
    """Train what is not in `path` yet, and append it there; all rows in the order of `runs`."""
    done = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[_identity(row)] = row
    rows = [
        {"arm": arm, "configuration": configuration.to_dict(), "seed": seed}
        for arm, configuration, seed in runs
    ]
    settings = space.model.model_dump_json(), space.data.model_dump_json()
    spawn = multiprocessing.get_context("spawn")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, spawn, start_worker) as pool, path.open("a", encoding="utf-8") as log:
        futures = {
            pool.submit(train, *settings, seed, configuration): row
            for row, (_, configuration, seed) in zip(rows, runs, strict=True)
            if _identity(row) not in done
        }
        for count, future in enumerate(as_completed(futures), 1):
            row = futures[future]
            row["epochs"], row["seconds"] = future.result()
            done[_identity(row)] = row
            print(json.dumps(row), file=log, flush=True)
            if count % 20 == 0:
                print(f"{count} of {len(futures)} runs recorded", flush=True)
    return [done[_identity(row)] for row in rows]


def _identity(row):
    return json.dumps([row["arm"], row["configuration"], row["seed"]])


def write(path, space, layers, rows):
    """The table: compressed without time stamps, so that the same rows give the same bytes."""
    facts = {
        "space": space.to_yaml(),
        "layers": layers,
        "metrics": METRICS,
        "images": "validation images only; test images were never read",
        "command": f"python benchmarks/record_table.py {shlex.join(sys.argv[1:])}",
        "machine": measuring.machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in (facts, *rows))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--space", required=True, metavar="NAME|FILE", help="a space as for a search")
    parser.add_argument("--name", required=True, help="of the table: benchmarks/data/NAME.jsonl.gz")
    parser.add_argument("--fusions", type=int, required=True, metavar="N", help="quasi-random fusions")
    parser.add_argument("--controls", type=int, required=True, metavar="N", help="and single optimizers")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (%(default)s)")
    options = parser.parse_args()
    from tune_fusion.training.checks import check_space

    checked = check_space(options.space)
    runs = list(planned(checked.space, options.fusions, options.controls))
    log = HERE / "results" / f"{options.name}.runs.jsonl"
    rows = record(checked.space, runs, log, options.workers)
    layers = [layer.name for layer in checked.layers]
    write(HERE / "data" / f"{options.name}.jsonl.gz", checked.space, layers, rows)


if __name__ == "__main__":
    main()
