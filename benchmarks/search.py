"""Which way to search takes the fewest epochs: replays of recorded tables, as curves, a table and figures.

``python benchmarks/search.py`` (``make bench-search``) searches ``benchmarks/data/fashion_mnist.jsonl.gz``,
with every contender, and ``digits.jsonl.gz``, by which nothing is ever chosen,
with a few: 100 seeds each, and 2, 8 and 64 trials at once. Nothing is trained. It writes
``benchmarks/results/search.md`` (the table of contenders) and ``search.png`` (the anytime curves) beside it;
with ``--json FILE`` the figures that are held against the targets are written there.
"""

import math
import os

# Two processes search side by side, and each has its share of the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
from matplotlib.figure import Figure as Canvas
from measuring import Figure

from tune_fusion.replay.contenders import Contender
from tune_fusion.replay.judge import Verdict, judge, search, table_of, verdict
from tune_fusion.reporting.figures import style
from tune_fusion.space.settings import AshaSettings, SearchSettings

HERE = Path(__file__).resolve().parent
TABLES = {"Fashion-MNIST": "fashion_mnist", "digits": "digits"}
SLOTS = (2, 8, 64)
BUDGET = 150
"""Epochs of a search: about what the shipped spaces for two cores spend."""
SHOWN = (25, 50, 100, 150)
CHOSEN = {"sampler", "scheduler", "defaults", "stop"}
"""Which settings of a search's section are compared."""


def contender(name, sampler, scheduler, defaults="none", *, habit=False, **asha):
    search = {"sampler": sampler, "scheduler": scheduler, "defaults": defaults, "stop": "never"}
    asha = {"grace_epochs": 1, "reduction_factor": 3, "compare": "metric"} | asha
    return Contender(name, search, asha, habit=habit)


def shipped(name, *, papers=False, **asha):
    """A search with the defaults, but for what is named."""
    search = SearchSettings().model_dump(include=CHOSEN)
    return Contender(name, search, AshaSettings(**asha).model_dump(), papers=papers)


LOSS = {"compare": "val_loss"}
DEFAULTS = "the defaults"
BEFORE = "TPE + ASHA, untuned defaults trained first (the defaults of before)"
ROUNDS = "random, one epoch for all, then the best"
CONTENDERS = [
    contender("random", "random", "none"),
    contender("TPE", "tpe", "none"),
    contender("random + ASHA", "random", "asha"),
    contender("TPE + ASHA, stopped trials told as pruned", "tpe", "asha"),
    contender("TPE + ASHA, told as complete (Ray's habit)", "tpe", "asha", habit=True),
    contender(BEFORE, "tpe", "asha", "trained"),
    contender("TPE + Hyperband by loss", "tpe", "hyperband", **LOSS),
    contender("TPE + learning curves", "tpe", "curves"),
    contender("random + PASHA by loss", "random", "pasha", **LOSS),
    contender(ROUNDS, "random", "one-then-best", **LOSS),
    shipped(DEFAULTS),
    shipped("the defaults, the papers' pairs first", papers=True),
]
CHECKED = ["random", "random + ASHA", BEFORE, DEFAULTS]
"""Contenders that also search the second table; they are drawn as well."""
WHOLE = [
    *(one for one in CONTENDERS if one.name in (BEFORE, ROUNDS, DEFAULTS)),
    shipped("the defaults, but of 15 one", reduction_factor=15),
]
"""Contenders whose searches are looked at when they have ended."""
TRIALS = 48
"""Of such a search, as in the shipped spaces for two cores."""


def path_of(table):
    return HERE / "data" / f"{TABLES[table]}.jsonl.gz"


def contenders_of(table):
    """All of them for the first table, a few for the second."""
    return [one for one in CONTENDERS if TABLES[table] == "fashion_mnist" or one.name in CHECKED]


def replays(seeds, workers):
    """The verdict on each contender, by table, slots and name."""
    jobs = [(table, slots, one) for table in TABLES for slots in SLOTS for one in contenders_of(table)]
    found = {}
    with ProcessPoolExecutor(workers) as pool:
        running = [
            (
                job,
                [pool.submit(search, path_of(job[0]), job[2], job[1], BUDGET, seed) for seed in range(seeds)],
            )
            for job in jobs
        ]
        for (table, slots, one), futures in running:
            traces = [future.result() for future in futures]
            found[table, slots, one.name] = verdict(table_of(path_of(table)), traces, BUDGET)
            print(f"{table}, {slots} at once: {hits(found[table, slots, one.name])}  {one.name}", flush=True)
    return found


def facts(table):
    """What a table holds, in a sentence."""
    read = table_of(path_of(table))
    errors = np.abs(read.neighbour_errors())
    controls = sum(run.arm == "control" for run in read.runs)
    return (
        f"{table}: {len(read.runs)} configurations, {controls} of them single optimizers, {read.grid_epochs} "
        f"epochs. Best {read.metric} {read.best:.4f}. Noise {read.noise:.4f}: the standard deviation of the "
        f"difference between two seeds of a good configuration, from {len(read.pairs())} recorded twice; "
        f"{len(read.good) / len(read.runs):.1%} of the configurations are within it of the best. A "
        f"configuration's nearest neighbour differs from it by {np.median(errors):.4f} in the median."
    )


def markdown(found):
    """The contenders, one line each, a table for each recorded table."""
    lines = []
    for table in TABLES:
        lines += [facts(table), ""]
        heads = [f"{slots} at once" for slots in SLOTS]
        regrets = [f"regret after {epochs}" for epochs in SHOWN]
        lines.append("| " + " | ".join(["contender", *heads, *regrets]) + " |")
        lines.append("|---" * (1 + len(heads) + len(regrets)) + "|")
        for one in contenders_of(table):
            cells = [hits(found[table, slots, one.name]) for slots in SLOTS]
            cells += [f"{100 * found[table, SLOTS[0], one.name].mean_regret(epochs):.2f}" for epochs in SHOWN]
            lines.append("| " + " | ".join([one.name, *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def hits(one: Verdict):
    """Median and quartiles of the epochs to the goal."""
    first, median, third = (
        f"{value:.0f}" if math.isfinite(value) else f">{BUDGET}" for value in one.quartiles()
    )
    return f"{median} ({first}-{third})"


@style.styled
def picture(found, path):
    """Anytime curves: the median of the regret and its quartiles over the epochs trained, for 2 slots."""
    figure = Canvas(figsize=(10, 4.6), layout="constrained", facecolor="white")
    colors = [style.MUTED, "#CC79A7", style.ARM_COLORS["control"], style.ARM_COLORS["fusion"]]
    for index, table in enumerate(TABLES, 1):
        axes = figure.add_subplot(1, len(TABLES), index)
        axes.grid(visible=True)
        for name, color in zip(CHECKED, colors, strict=True):
            regret = 100 * found[table, SLOTS[0], name].regret
            epochs = np.arange(1, regret.shape[1] + 1)
            low, middle, high = np.percentile(
                np.where(np.isfinite(regret), regret, 100), [25, 50, 75], axis=0
            )
            axes.plot(epochs, middle, color=color, label=name, linewidth=1.8)
            axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
        axes.axhline(100 * table_of(path_of(table)).noise, color=style.INK, linewidth=0.8, linestyle=":")
        axes.set(title=table, xlabel="epochs trained, all trials together", ylim=(0, 8), xlim=(1, BUDGET))
        if index == 1:
            axes.set_ylabel("regret (points of accuracy)")
            figure.legend(loc="outside lower center", ncols=2)
    path.write_bytes(style.png(style.Drawn("search", "search", figure, "")))


def figures(found):
    """What is held against the targets."""
    for table in TABLES:
        grid = table_of(path_of(table)).grid_epochs
        for slots in SLOTS:
            ours, rival = found[table, slots, DEFAULTS], found[table, slots, "random + ASHA"]
            chance = found[table, slots, "random"]
            median, theirs = ours.quartiles()[1], rival.quartiles()[1]
            where = f"{table}, {slots} at once"
            interval = "95 % interval {:.0f} to {:.0f}"
            yield Figure(
                f"epochs to the goal, {where}",
                median,
                "epochs",
                0.15 * grid,
                runs=len(ours.hits),
                note=interval.format(*ours.median_interval()),
            )
            yield Figure(
                f"part of random + ASHA's, {where}",
                median / min(theirs, BUDGET),
                "",
                0.5,
                note=""
                if math.isfinite(theirs)
                else f"of the {BUDGET} epochs in which that did not get there",
            )
            # Before the first epoch has ended in all searches there is no mean.
            seen = np.isfinite(ours.regret).all(0) & np.isfinite(chance.regret).all(0)
            worse = np.where(seen, ours.regret.mean(0) - chance.regret.mean(0), 0.0)
            yield Figure(
                f"most that its mean regret exceeds random's, {where}",
                100 * worse.max(),
                "points",
                0.0,
                note=f"last after epoch {np.flatnonzero(worse > 0).max() + 1}" if worse.max() > 0 else "",
            )


def whole(options):
    """What searches of `TRIALS` trials spend and return, two trials at once."""
    for table in TABLES:
        for one in WHOLE:
            ended = replace(one, trials=TRIALS)
            # Nobody trains more.
            most = TRIALS * table_of(path_of(table)).space.max_epochs
            found = judge(path_of(table), ended, 2, range(options.seeds), most, workers=options.workers)
            where, runs = f"{table}, {TRIALS} trials, {one.name}", len(found.spent)
            yield Figure(f"epochs, {where}", float(found.spent.mean()), "epochs", runs=runs)
            regret = 100 * found.regret[:, -1]
            error = regret.std(ddof=1) / math.sqrt(runs)
            yield Figure(f"mean regret, {where}", regret.mean(), "points", runs=runs, note=f"± {error:.2f}")


def measure(options):
    for table in TABLES:
        print(facts(table), flush=True)
    found = replays(options.seeds, options.workers)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    text = markdown(found)
    (results / "search.md").write_text(text, encoding="utf-8")
    picture(found, results / "search.png")
    print(text, flush=True)
    yield from figures(found)
    yield from whole(options)


def add_options(parser):
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="of each contender (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (%(default)s)"
    )


if __name__ == "__main__":
    measuring.run("search", __doc__.split("\n", 1)[0], measure, add_options)
