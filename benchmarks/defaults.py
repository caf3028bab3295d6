"""Real searches with the defaults of before and with those that replays chose: epochs spent, and what for.

``python benchmarks/defaults.py [--space digits] [--searches 5]``: for each seed a search each way with the
same number of trials, then its confirmation with fresh seeds on the test images. Compared are the epochs that
the searches trained, and the test accuracy of the configuration that each returned. `WAYS` says what differs.
"""

import json
import statistics
import tempfile
from pathlib import Path

from measuring import Figure, run
from searches import Search

HERE = Path(__file__).resolve().parent
SPACES = {
    "digits": HERE.parent / "search_spaces" / "digits.yaml",
    "fashion_mnist": HERE / "data" / "fashion_mnist.yaml",
}
WAYS = {
    "before": ("scheduler=asha", "defaults=trained", "reduction_factor=3", "compare=metric"),
    "after": ("scheduler=promotion", "defaults=judged", "reduction_factor=15", "compare=val_loss"),
}
TRIALS = 48
CONFIRMATIONS = {"digits": 2, "fashion_mnist": 1}
"""Fresh seeds of each confirmation."""


def settings(way):
    """The command line's words for one of `WAYS`."""
    sections = {"scheduler": "search", "defaults": "search", "reduction_factor": "asha", "compare": "asha"}
    return [word for change in WAYS[way] for word in ("--set", f"{sections[change.split('=')[0]]}.{change}")]


def search(space, way, seed, folder):
    """Epochs that a search trained, and the mean test accuracy of what it returned, over fresh seeds."""
    words = ["--space", SPACES[space], "--seed", seed, "--trials", TRIALS, *settings(way)]
    words += ["--confirm", "--top", 1, "--seeds", CONFIRMATIONS[space]]
    found = Search(folder, *map(str, words))
    answer = json.loads((found.folder / "confirmation" / "confirmation.json").read_text(encoding="utf-8"))
    best = found.result["best"]["trial"]
    finalist = next(one for one in answer["answer"]["finalists"] if one["trial"] == best)
    values = [one["values"]["test_accuracy"] for one in finalist["runs"]]
    return found.result["epochs"], statistics.mean(values)


def compare(space, searches, scratch):
    """The figures of one space; each search is told of as it ends."""
    found = {way: [] for way in WAYS}
    for seed in range(searches):
        for way in WAYS:
            epochs, accuracy = search(space, way, seed, scratch / f"{space}-{way}-{seed}")
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
