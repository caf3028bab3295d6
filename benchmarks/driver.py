"""What the driver of a search spends on a result: 1,000 trials of up to 10 results, everything on.

``python benchmarks/driver.py`` runs two searches, one with ASHA and one that lets every trial run to its end
(10,000 results). Engine, TPE, journal (on the disk after every line), MLflow on SQLite, live table, log and
the deleting of files are those of a real search; the training is a formula, and Ray has no part in it.
Results arrive at a steady pace, as they do where training takes time. Each search has a process of its own.
With ``--json FILE`` the figures are written there, too.
"""

import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import measuring
from measuring import Figure

TRIALS, EPOCHS, SLOTS = 1000, 10, 4
PACE = 0.025
"""Seconds from one result to the next."""
WARM = 100
"""Trials after which memory is first read: everything is imported and every pool is filled by then."""
LAYERS = ["conv1", "conv2", "fc1", "fc2", "fc3"]


@dataclass
class Spent:
    """What one call of the engine, or one redraw of the table, took."""

    wall: list = field(default_factory=list)
    cpu: list = field(default_factory=list)
    """Seconds of the calling thread."""

    def __call__(self, function, *arguments, **options):
        wall, cpu = time.perf_counter(), time.thread_time()
        result = function(*arguments, **options)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.thread_time() - cpu)
        return result


class Timed:
    """A study whose `ask` is timed."""

    def __init__(self, study, spent):
        self._study = study
        self._spent = spent

    def __getattr__(self, name):
        return getattr(self._study, name)

    def ask(self, **options):
        return self._spent(self._study.ask, **options)


@dataclass
class Measured:
    """What one search has shown."""

    results: Spent = field(default_factory=Spent)
    """Of each result: its report, and the suggestions that it made room for."""
    asks: Spent = field(default_factory=Spent)
    redraws: Spent = field(default_factory=Spent)
    memory: list = field(default_factory=list)
    """Resident bytes whenever a trial had ended."""
    process_cpu: float = 0.0
    """Seconds of all threads from the first trial to the last delivery."""
    problems: list = field(default_factory=list)


def quality(configuration, epoch):
    """A smooth accuracy: rates near 1e-3 and more training are good."""
    halves = [half for half in (configuration["low"], configuration["high"]) if half]
    distance = sum(abs(math.log10(half["lr"]) + 3) for half in halves) / len(halves)
    return max(0.0, 0.95 - 0.1 * distance) * (1 - 0.5 / epoch)


def metrics(configuration, epoch):
    """What a trainer reports of an epoch, in its size."""
    value = quality(configuration, epoch)
    layers = {f"layer_{index:02d}.mean_lambda": 2 + value for index in range(3)}
    return {
        "train_loss": 1.1 - value,
        "train_seconds": 0.9,
        "images_per_second": 1000 * (1 + value),
        "low.lr": configuration["low"]["lr"],
        "eval_seconds": 0.1,
        "val_loss": 1 - value,
        "val_accuracy": value,
        "val_macro_f1": value,
        **layers,
    }


def arrived(epoch):
    """As it comes from a worker: with keys of its own."""
    return json.loads(json.dumps(epoch))


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_engine(scheduler, trials, stack, folder):
    """The engine of the digits search with its journal, as `tune_fusion.tuning.driver` makes it."""
    from tune_fusion.data.catalogue import DATA_SETS
    from tune_fusion.events import Chronicle, Session, SpaceAsRun
    from tune_fusion.journal import Journal
    from tune_fusion.optim.registry import OPTIMIZERS
    from tune_fusion.space.loading import load_space, resolve_space
    from tune_fusion.space.vocabulary import Vocabulary
    from tune_fusion.tuning.arms import make_arms
    from tune_fusion.tuning.engine import Engine

    vocabulary = Vocabulary(OPTIMIZERS, DATA_SETS)
    overrides = (f"search.trials={trials}", f"training.epochs={EPOCHS}", f"search.scheduler={scheduler}")
    space = load_space(resolve_space("digits"), vocabulary, overrides).with_switch(LAYERS)
    session = Session(
        search="measured",
        key="0" * 32,
        started=time.time(),
        host="host",
        pid=os.getpid(),
        space=SpaceAsRun(name="digits", text=space.to_yaml(), origin="", overrides=overrides, rehearse=False),
        metric=space.search.metric,
        direction=space.direction,
        planned_trials=trials,
        fusions=True,
        searched_training=(),
        code={},
        commit="",
        data="",
        tracking=f"sqlite:///{folder.path.parent}/mlflow.db",
    )
    journal = Journal(folder.journal)
    stack.callback(journal.close)
    journal.append(session)
    engine = Engine(space, vocabulary, make_arms(space), Chronicle.begin(session), LAYERS, lambda: SLOTS)
    engine.write = journal.append
    return engine, journal


def listen(engine, journal, stack, folder, measured):
    """Let all hear of the trials that hear of a real search's; `tune_fusion.tuning.running`. The logger."""
    from rich.console import Console

    from tune_fusion.reporting.live import LiveTable, PlainProgress
    from tune_fusion.tracking.mlflow_logger import MlflowLogger
    from tune_fusion.tuning.delivering import acknowledgement, tags
    from tune_fusion.tuning.kept_files import FileKeeper, best_trials

    record, session = engine.record, engine.chronicle.sessions[-1]
    logger = MlflowLogger(
        session.tracking, record, tags=tags(session), acknowledge=acknowledgement(journal), later="sync"
    )
    logger.start()
    while logger.run_id is None:
        time.sleep(0.05)  # MLflow is imported on the logger's thread, and the data base made
    files = FileKeeper(record, folder, best_trials)
    terminal = stack.enter_context((folder.path / "terminal.txt").open("w"))
    log = stack.enter_context((folder.path / "search.txt").open("w"))
    table = LiveTable(record, Console(file=terminal, force_terminal=True, width=140, height=50))
    render = table._render
    table._live._get_renderable = lambda: measured.redraws(render)
    engine.listeners = [files, logger, PlainProgress(record, log), stack.enter_context(table)]
    return logger


def drive(engine, measured, pace):
    """Run the search to its end, its trials in turns and results at the pace."""
    running = []

    def start():
        while (trial := engine.suggest()) is not None:
            running.append(trial)

    def take(trial, epoch):
        if engine.report(trial.number, epoch, node="host:1"):
            running.append(trial)
        else:
            start()

    start()
    started, results = time.perf_counter(), 0
    while running:
        trial = running.pop(0)
        epoch = arrived(metrics(trial.configuration, len(trial.epochs) + 1))
        time.sleep(max(0.0, started + pace * results - time.perf_counter()))
        measured.results(take, trial, epoch)
        results += 1
        if trial.ended is not None:
            measured.memory.append(resident())


def search(scheduler, trials=TRIALS, pace=PACE):
    """Run one search in a folder of its own; what it has shown."""
    from tune_fusion.runs import RunFolder

    measured = Measured()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = RunFolder(Path(scratch) / "measured")
        for path in (folder.path, folder.checkpoints, folder.weights(0).parent):
            path.mkdir()
        engine, journal = make_engine(scheduler, trials, stack, folder)
        for arm in engine.arms:
            arm.study = Timed(arm.study, measured.asks)
        logger = listen(engine, journal, stack, folder, measured)
        before = time.process_time()
        drive(engine, measured, pace)
        measured.problems = logger.close()
        measured.process_cpu = time.process_time() - before
        engine.close("completed")
    return measured


def milliseconds(values):
    return 1000 * statistics.fmean(values)


def p99(values):
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def figures_of(name, measured):
    """The figures of one search."""
    wall, cpu, asks, redraws = (
        measured.results.wall,
        measured.results.cpu,
        measured.asks.wall,
        measured.redraws.cpu,
    )
    some = min(1000, len(wall) // 3)
    growth = (measured.memory[-1] - measured.memory[WARM]) / (len(measured.memory) - 1 - WARM) / 1000
    early, late = (milliseconds(values) for values in (wall[:some], wall[-some:]))
    seen = asks[len(asks) // 20 : len(asks) // 10]
    all_cpu = 1000 * measured.process_cpu / len(wall)
    return [
        Figure(f"{name}: driver time a result", milliseconds(wall), "ms", 15, runs=len(wall)),
        Figure(f"{name}: of that, processor", milliseconds(cpu), "ms", runs=len(wall)),
        Figure(f"{name}: processor of all threads a result", all_cpu, "ms", note="MLflow and the table, too"),
        Figure(f"{name}: first {some} results", early, "ms"),
        Figure(f"{name}: last {some} results", late, "ms"),
        Figure(f"{name}: last over first", late / early, "x", 1.3),
        Figure(f"{name}: memory a trial", growth, "kB", 30, note=f"trials {WARM} to {len(measured.memory)}"),
        Figure(f"{name}: ask, around trial 75", 1000 * statistics.median(seen), "ms", runs=len(seen)),
        Figure(f"{name}: ask, last 100", 1000 * statistics.median(asks[-100:]), "ms", runs=100),
        Figure(f"{name}: ask, last 100, 99th percentile", 1000 * p99(asks[-100:]), "ms", runs=100),
        Figure(f"{name}: redraw of the table, last 100", milliseconds(redraws[-100:]), "ms", runs=100),
    ]


def measure():
    figures = []
    for name, scheduler in (("ASHA", "asha"), ("no early stops", "none")):
        # Memory that another search has left free would hide what this one takes.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            measured = alone.submit(search, scheduler).result()
        assert not measured.problems, measured.problems
        figures += figures_of(name, measured)
    return figures


if __name__ == "__main__":
    measuring.run("driver", __doc__, measure)
