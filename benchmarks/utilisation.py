"""How much of a search's slots is training and evaluation, from its process's start to its exit; the rest.

Two searches on two slots of one torch thread: 24 trials of about 10 s, and 100 of about 1 s. Nothing is
stopped early, so that trials have these lengths. The parts add up to the whole.
"""

import statistics
import tempfile
from pathlib import Path

from measuring import Figure, run
from searches import Search

SLOTS = 2
WORKLOADS = {
    "24 trials": (
        0.95,
        ["--space", "fashion_mnist", "--trials", "24", "--epochs", "7", "--set", "data.limit=12000"],
    ),
    "100 trials": (0.85, ["--space", "digits", "--trials", "100", "--epochs", "5"]),
}


def parts(search):
    """Seconds a slot, on average, by what they went into."""
    workers = search.workers
    left = search.started + search.seconds
    imported = search.times("session")[0]
    asked = search.times("suggested")[0]
    idle_slots = SLOTS - len(workers)
    firsts = [epochs[0].started for epochs in workers]
    lasts = [epochs[-1].ended for epochs in workers]
    end = max(lasts)
    seconds = {
        "work": search.work_seconds,
        "imports and checks": SLOTS * (imported - search.started),
        "Ray's start": SLOTS * (asked - imported),
        "workers, to the first epoch": sum(first - asked for first in firsts),
        "between epochs": sum(search.gaps(between_trials=False)),
        "between trials": sum(search.gaps(between_trials=True)),
        "idle at the end": sum(end - last for last in lasts) + idle_slots * (end - asked),
        "ending": SLOTS * (left - end),
    }
    return {name: value / SLOTS for name, value in seconds.items()}


def measure(options):
    figures = []
    for name, (target, words) in WORKLOADS.items():
        if options.only and name.split()[0] not in options.only:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            search = Search(
                Path(scratch), *words, "--concurrent", str(SLOTS), "--set", "search.scheduler=none"
            )
        share = search.work_seconds / (SLOTS * search.seconds)
        length = search.work_seconds / search.trials
        note = f"{search.trials} trials of {length:.1f} s, {search.seconds:.1f} s"
        figures.append(Figure(f"{name}: utilisation", share, "", target=target, at_most=False, note=note))
        figures += [Figure(f"{name}: {part}", value, "s a slot") for part, value in parts(search).items()]
        turnaround = statistics.median(search.gaps(between_trials=True))
        figures.append(Figure(f"{name}: from trial to trial", turnaround, "s", note="median"))
    return figures


def add_options(parser):
    parser.add_argument(
        "--only", nargs="+", choices=[name.split()[0] for name in WORKLOADS], metavar="TRIALS"
    )


if __name__ == "__main__":
    run("utilisation", __doc__, measure, add_options)
