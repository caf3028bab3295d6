"""How fast the next trial trains: from trial to trial, from the command to the first batch, and ``--help``.

The model is EfficientNet-Lite0, on scikit-learn's digits, so that nothing needs to be downloaded: what takes
the time is renewing a model of that size, not the images. Without Ray: a trainer for the next configuration
and its first batch, on a workbench that has trained another one before. With Ray: the journal's times.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measuring import Figure, interleaved, run
from searches import Search, command

import tune_fusion
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device

MODEL = "tf_efficientnet_lite0"
IMAGES = {"name": "digits", "image_size": 64, "limit": 128, "validation": 0.2}
SEARCHES = {
    "digits": ["--space", "digits", "--trials", "4", "--epochs", "2"],
    "EfficientNet-Lite0": [
        *("--space", "effnet_lite", "--trials", "12", "--epochs", "2", "--set", "search.scheduler=none"),
        *itertools.chain.from_iterable(("--set", f"data.{key}={value}") for key, value in IMAGES.items()),
        *("--set", "data.augment=none"),
    ],
}


def without_ray(rounds=15):
    """Seconds from a trained trial to the first batch of the next one, on a warm workbench."""
    torch.set_num_threads(1)
    bench = Workbench(ModelSettings(name=MODEL), DataSettings(**IMAGES), 0, pick_device(0))
    training = TrainingSettings(epochs=1, batch_size=64, channels_last=True)
    names = itertools.cycle(["adam", "sgd", "adamw"])
    seconds = []
    for _ in range(rounds + 1):
        choices = [OptimizerChoice(next(names), {"lr": 1e-3}) for _ in range(2)]
        configuration = Configuration(4, *choices, training)
        started = time.perf_counter()
        trainer = Trainer(bench, configuration)
        next(bench.training_batches(training).epoch(1))
        seconds.append(time.perf_counter() - started)
        trainer.run_epoch()
    return seconds[1:]


def with_ray(search):
    """The median from the end of a trial to the first batch of the worker's next one."""
    gaps = search.gaps(between_trials=True)
    # An epoch's start is counted back from when the driver heard of its end, after its checkpoint.
    checkpoint = search.result["recovery"]["checkpoint_seconds"] / search.epochs
    return Figure(
        "trial to trial, with Ray",
        statistics.median(gaps) - checkpoint,
        "s",
        target=0.15,
        runs=len(gaps),
        note=f"less {checkpoint:.3f} s, the mean checkpoint of an epoch",
    )


def first_batch(search):
    """Seconds from the command to the first batch of its first trial."""
    return min(epochs[0].started for epochs in search.workers) - search.started


def command_modules():
    """The modules of the package that are commands."""
    folder = Path(tune_fusion.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if "commands.run(" in path.read_text())


def measure():
    seconds = without_ray()
    figures = [
        Figure("trial to trial, without Ray", statistics.median(seconds), "s", target=0.15, runs=len(seconds))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        searches = {name: Search(Path(scratch) / name, *words) for name, words in SEARCHES.items()}
        figures.append(with_ray(searches["EfficientNet-Lite0"]))
        figures += [
            Figure(f"{name}: command to first batch", first_batch(search), "s", target=6.0)
            for name, search in searches.items()
        ]
        helps = {
            name: lambda name=name: command(Path(scratch) / "help", ["-m", f"tune_fusion.{name}", "--help"])
            for name in command_modules()
        }
        for name, values in interleaved(helps, 5).items():
            figures.append(
                Figure(f"{name} --help", statistics.median(values), "s", target=0.5, runs=len(values))
            )
    return figures


if __name__ == "__main__":
    run("turnaround", __doc__, measure)
