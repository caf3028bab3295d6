"""Real searches with the defaults of before and with those that replays chose: epochs spent, and what for.

``python benchmarks/defaults.py [--space digits] [--searches 5]``: for each seed a search each way with the
same number of trials. What each returned is then trained anew with fresh seeds, and measured on the test
images at its best epoch by validation accuracy. `WAYS` says what differs.
"""

import itertools
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import Figure, run
from searches import Search

from tune_fusion.space.configuration_file import read_configuration
from tune_fusion.training.checkpoint import weights_of
from tune_fusion.training.checks import check_space, prove
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import pick_device

HERE = Path(__file__).resolve().parent
SPACES = {
    "digits": HERE.parent / "search_spaces" / "digits.yaml",
    "fashion_mnist": HERE / "data" / "fashion_mnist.yaml",
}
WAYS = {
    "before": ("scheduler=asha", "defaults=trained", "reduction_factor=3", "compare=metric"),
    "after": ("scheduler=promotion", "defaults=judged", "reduction_factor=4", "compare=val_loss"),
}
TRIALS = 48
FRESH = (1_000_001, 1_000_002, 1_000_003)
"""Seeds with which no search trains."""


def settings(way):
    """The command line's words for one of `WAYS`."""
    sections = {"scheduler": "search", "defaults": "search", "reduction_factor": "asha", "compare": "asha"}
    return [word for change in WAYS[way] for word in ("--set", f"{sections[change.split('=')[0]]}.{change}")]


def search(space, way, seed, folder):
    """A search; its epochs, and where what it returned stands."""
    words = ["--space", SPACES[space], "--seed", seed, "--trials", TRIALS, *settings(way)]
    found = Search(folder, *map(str, words))
    return found.result["epochs"], found.folder / "result.json"


def tested(space, configuration, seed):
    """Test accuracy of a configuration trained with `seed`, at its best epoch by validation accuracy."""
    torch.set_num_threads(1)
    checked = check_space(str(SPACES[space]), (f"search.seed={seed}",))
    chosen = read_configuration(configuration, checked.space, checked.vocabulary, checked.layer_names)
    trainer = Trainer(prove(checked, pick_device(0)), chosen)
    best, weights = -1.0, {}
    while not trainer.finished:
        value = trainer.run_epoch().metrics["val_accuracy"]
        if value > best:
            best, weights = value, {name: one.clone() for name, one in weights_of(trainer.model).items()}
    return trainer.test(weights)["test_accuracy"]


def compare(space, searches, scratch):
    """The figures of one space; each search is told of as it ends."""
    found = {way: [] for way in WAYS}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for seed, way in itertools.product(range(searches), WAYS):
            epochs, returned = search(space, way, seed, scratch / f"{space}-{way}-{seed}")
            futures = [pool.submit(tested, space, returned, fresh) for fresh in FRESH]
            accuracy = statistics.mean(future.result() for future in futures)
            print(f"{space}, seed {seed}, {way}: {epochs} epochs, test accuracy {accuracy:.4f}", flush=True)
            found[way].append((epochs, accuracy))
    for number, (name, unit) in enumerate((("epochs", "epochs"), ("test accuracy", ""))):
        for way, values in found.items():
            mean = statistics.mean(value[number] for value in values)
            yield Figure(f"{space}: {name}, {way}", mean, unit, runs=searches)
    gains = [after[1] - before[1] for before, after in zip(found["before"], found["after"], strict=True)]
    low, high = min(gains), max(gains)
    name = f"{space}: test accuracy, after - before"
    yield Figure(name, statistics.mean(gains), "", runs=searches, note=f"from {low:+.4f} to {high:+.4f}")
    ratio = statistics.mean(after[0] / before[0] for before, after in zip(*found.values(), strict=True))
    yield Figure(f"{space}: epochs, after / before", ratio, "x", target=1.0, runs=searches)


def add_options(parser):
    parser.add_argument("--space", action="append", choices=SPACES, help="default: all")
    parser.add_argument("--searches", type=int, default=5, metavar="N", help="with seeds 0 to N - 1")


def measure(options):
    with tempfile.TemporaryDirectory() as scratch:
        for space in options.space or SPACES:
            yield from compare(space, options.searches, Path(scratch))


if __name__ == "__main__":
    run("defaults of a search", __doc__, measure, add_options)
