"""What a contender is worth: regret over the epochs spent, and the epochs until it is as good as nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.replay.contenders import Contender
from tune_fusion.replay.simulation import Trace
from tune_fusion.replay.table import Table
from tune_fusion.space.vocabulary import Vocabulary

VOCABULARY = Vocabulary(OPTIMIZERS, DATA_SETS)


@dataclass(frozen=True)
class Verdict:
    """A contender's searches of one table with one number of slots."""

    regret: NDArray[np.float64]
    """[seeds, epochs] what the configuration that would be returned lacks to the table's best."""
    noise: float
    """A regret that another seed would have made up for; see `Table.noise`."""
    spent: NDArray[np.float64]
    """[seeds] epochs until the search ended, by itself or by its budget."""
    elapsed: NDArray[np.float64]
    """[seeds] what that took, in epochs of one worker."""

    @property
    def hits(self) -> NDArray[np.float64]:
        """[seeds] epochs until the regret was within the noise for the first time; infinity: never."""
        within = self.regret <= self.noise + 1e-12
        return np.where(within.any(1), within.argmax(1) + 1.0, np.inf)

    def quartiles(self) -> tuple[float, float, float]:
        """Of `hits`."""
        ordered = np.sort(self.hits)
        last = len(ordered) - 1
        first, median, third = (float(ordered[round(part * last)]) for part in (0.25, 0.5, 0.75))
        return first, median, third

    def median_interval(self) -> tuple[float, float]:
        """A 95 % interval of the median of `hits`: order statistics, whatever their distribution."""
        ordered, n = np.sort(self.hits), len(self.hits)
        reach = 0.98 * np.sqrt(n)
        low, high = int(np.floor(n / 2 - reach)), int(np.ceil(n / 2 + reach))
        return float(ordered[max(0, low)]), float(ordered[min(n - 1, high)])

    def mean_regret(self, epochs: int) -> float:
        """After so many epochs of all trials together, or at the search's end."""
        return float(self.regret[:, min(epochs, self.regret.shape[1]) - 1].mean())


def judge(
    path: Path, contender: Contender, slots: int, seeds: Sequence[int], budget: int, workers: int = 1
) -> Verdict:
    """Replay a contender with each of the seeds, for `budget` epochs each; on so many processes."""
    jobs = [(path, contender, slots, budget, seed) for seed in seeds]
    workers = min(workers, len(jobs))
    if workers == 1:
        traces = [search(*job) for job in jobs]
    else:
        # Leaving the block ends the processes, whatever ended it.
        with multiprocessing.Pool(workers, _serve, [os.getpid()]) as pool:
            traces = pool.starmap(search, jobs, chunksize=1)
    return verdict(table_of(path), traces, budget)


def _serve(parent: int) -> None:
    """Make a process one that ends with its parent, and without a word."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def verdict(table: Table, traces: Sequence[Trace], budget: int) -> Verdict:
    """What the traces of one contender say."""
    returned = np.array(
        [trace.returned + [trace.returned[-1]] * (budget - len(trace.returned)) for trace in traces]
    )
    return Verdict(
        regret=table.sign * (table.best - returned),
        noise=table.noise,
        spent=np.array([float(len(trace.returned)) for trace in traces]),
        elapsed=np.array([trace.elapsed[-1] for trace in traces]),
    )


@cache
def table_of(path: Path) -> Table:
    """The table of a file, read once a process."""
    return Table.load(path, VOCABULARY)


def search(path: Path, contender: Contender, slots: int, budget: int, seed: int) -> Trace:
    """One search of a table's file, in any process."""
    return contender.run(table_of(path), VOCABULARY, slots, budget, seed)
