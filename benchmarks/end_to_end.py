"""Trials an hour, side by side: our search, the script from Ray's documentation, and Optuna alone.

The same space file, data, split, seed, numbers of trials, epochs and images, two slots of one torch thread;
each runs as a command from start to exit, in turn, in an empty folder, with MLflow on SQLite of its own. The
peers are `peers/ray_documentation.py` and `peers/optuna_alone.py`. Their images lie in memory or in the page
cache as ours do; ours are decoded anew in each run (an empty cache).

EfficientNet-Lite0 needs a folder of class folders: $TUNE_FUSION_BENCH_JPEGS or ``--images DIR``, with the
images in DIR/train. Its space file asks for channels_last, which the documentation's scripts do not use: a
third peer is Ray's with it.
"""

import gzip
import json
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measuring import Figure, interleaved, median_ratio, medians, run
from searches import Search, command

HERE = Path(__file__).resolve().parent
SPACES = HERE.parent / "search_spaces"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SLOTS = 2
OURS = "tune_fusion"


@dataclass(frozen=True)
class Workload:
    space: str
    trials: int
    epochs: int
    target: float
    """How many times as many trials an hour as each peer."""
    limit: int | None = None


WORKLOADS = {
    "digits": Workload("digits", trials=40, epochs=10, target=5.0),
    "fashion_mnist": Workload("fashion_mnist", trials=24, epochs=10, limit=6000, target=2.0),
    "fashion_cnn": Workload("fashion_cnn", trials=12, epochs=8, limit=6000, target=2.0),
    "effnet_lite": Workload("effnet_lite", trials=8, epochs=3, limit=1000, target=1.5),
}
DEFAULT = ("digits", "fashion_mnist", "effnet_lite")


def ours(workload, images, folder):
    """Run our search; its seconds and what came of it."""
    words = ["--space", SPACES / f"{workload.space}.yaml", "--trials", workload.trials]
    words += ["--epochs", workload.epochs, "--concurrent", SLOTS]
    if workload.limit:
        words += ["--set", f"data.limit={workload.limit}"]
    if images:
        words += ["--set", f"data.name=folder:{images}"]
    search = Search(folder, *map(str, words), TUNE_FUSION_CACHE=str(folder / "cache"))
    return {
        "trials": search.trials,
        "epochs": search.epochs,
        "best": search.result["best"]["value"],
        "work_seconds": search.work_seconds,
    }


def peer(script, workload, images, folder, *more):
    """Run a peer; the same of it."""
    words = [HERE / "peers" / f"{script}.py", "--space", SPACES / f"{workload.space}.yaml", "--slots", SLOTS]
    words += ["--trials", workload.trials, "--epochs", workload.epochs, "--folder", folder, *more]
    if workload.limit:
        words += ["--limit", workload.limit]
    words += ["--images", images] if images else ["--data", folder.parent]
    command(folder, list(map(str, words)))
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def contenders(name, images):
    """What is run for a workload, by name: functions of a folder."""
    workload = WORKLOADS[name]
    images = images if name == "effnet_lite" else None
    found = {
        OURS: lambda folder: ours(workload, images, folder),
        "ray_documentation": lambda folder: peer("ray_documentation", workload, images, folder),
        "optuna_alone": lambda folder: peer("optuna_alone", workload, images, folder),
    }
    if name == "effnet_lite":
        found["ray_documentation, channels_last"] = lambda folder: peer(
            "ray_documentation", workload, images, folder, "--channels-last"
        )
    return found


def unpack(folder):
    """Fashion-MNIST as torchvision wants it, unpacked; our own search reads the packed files."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in FASHION_MNIST.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))


def compare(name, images, rounds, scratch):
    """The figures of one workload."""
    workload = WORKLOADS[name]
    results = {}
    work = {}
    for contender, function in contenders(name, images).items():
        runs = results[contender] = []

        def once(contender=contender, function=function, runs=runs):
            runs.append(function(scratch / f"{name}-{contender.replace(', ', '-')}-{len(runs)}"))

        work[contender] = once
    seconds = interleaved(work, rounds, warmup=0)
    median = medians(seconds)
    figures = []
    for contender, runs in results.items():
        first = runs[0]
        share = statistics.median(
            one["work_seconds"] / (SLOTS * took) for one, took in zip(runs, seconds[contender], strict=True)
        )
        figures.append(
            Figure(
                f"{name}: {contender}",
                3600 * first["trials"] / median[contender],
                "trials/h",
                runs=rounds,
                note=f"{first['trials']} trials, {first['epochs']} epochs in {median[contender]:.1f} s, "
                f"{share:.0%} of the slots training; best val_accuracy {first['best']:.4f}",
            )
        )
    best = results[OURS][0]
    for contender, runs in list(results.items())[1:]:
        other = runs[0]
        ratio = median_ratio(seconds, contender, OURS)
        epochs = ratio * best["epochs"] / other["epochs"]
        figures.append(
            Figure(
                f"{name}: {OURS} / {contender}",
                ratio * best["trials"] / other["trials"],
                "x",
                target=None if "channels_last" in contender else workload.target,
                at_most=False,
                runs=rounds,
                note=f"epochs an hour {epochs:.2f} x; val_accuracy {best['best'] - other['best']:+.4f}",
            )
        )
    return figures


def measure(options):
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        if any(name.startswith("fashion") for name in options.workloads):
            unpack(Path(scratch))
        for name in options.workloads:
            if name == "effnet_lite" and options.images is None:
                print("effnet_lite is left out: it needs --images DIR", flush=True)
                continue
            images = options.images and options.images.absolute()
            figures += compare(name, images, options.rounds, Path(scratch))
    return figures


def add_options(parser):
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=WORKLOADS,
        default=DEFAULT,
        metavar="NAME",
        help=", ".join(WORKLOADS),
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="runs of each (default: 1)")
    given = os.environ.get("TUNE_FUSION_BENCH_JPEGS")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        default=given and Path(given),
        help="class folders in DIR/train (default: $TUNE_FUSION_BENCH_JPEGS)",
    )


if __name__ == "__main__":
    run("end_to_end", __doc__, measure, add_options)
