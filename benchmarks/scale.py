"""What bounds a search on many slots and nodes, where training takes nothing: Ray, driver, journal, MLflow.

``python benchmarks/scale.py``: trials that only sleep, on nodes that Ray simulates on this machine (each with
a raylet, its agents and workers of its own), with everything of a search on: TPE, journal, checkpoints,
MLflow on SQLite, progress. Beside it Ray Tune alone with the same load, as in its own release tests: those of
the loads, there 10,000 trials of 1 s on 16 slots within 1.28 times the ideal 625 s, 100 trials on 100 nodes
within 3.3 times the ideal 300 s, and 1,000 trials with a result every other second within 1.3 times 100 s.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import measuring
import psutil
from measuring import Figure
from searches import Search

HERE = Path(__file__).resolve().parent
OBJECT_STORE_BYTES = 80 * 2**20
"""The least that Ray takes; nothing of a search goes through it."""


@dataclass(frozen=True)
class Load:
    """Trials that sleep, and the nodes that they sleep on."""

    name: str
    nodes: int
    slots: int
    """Of each node."""
    at_once: int
    """Trials; fewer than there are slots where this machine has no memory for as many workers."""
    trials: int
    results: int
    seconds: float
    """From one result to the next."""
    allowed: float | None
    """What Ray's release test of such a load allows, as a multiple of the ideal."""

    @property
    def ideal(self):
        """Seconds, were all slots always taken by trials that sleep."""
        return self.trials * self.results * self.seconds / self.at_once


LOADS = (
    Load("1,000 trials of 1 s, 16 at once on a node", 1, 16, 16, 1000, 1, 1.0, 1.28),
    Load("1,000 trials of 1 s, 24 at once on 50 nodes", 50, 1, 24, 1000, 1, 1.0, None),
    Load("24 trials of 50 results, one every 2 s, on a node", 1, 24, 24, 24, 50, 2.0, 1.3),
)


@contextmanager
def cluster(count, slots):
    """The address of a Ray that simulates so many nodes, beside a head without processors."""
    from ray.cluster_utils import Cluster

    started = time.perf_counter()
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES},
    )
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=slots, num_gpus=0, object_store_memory=OBJECT_STORE_BYTES)
        nodes.wait_for_nodes()
        print(f"{count} nodes started in {time.perf_counter() - started:.0f} s", flush=True)
        yield nodes.address
    finally:
        nodes.shutdown()


class Watched:
    """The most memory that the search's own process has had, sampled while the body runs."""

    def __enter__(self):
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.5):
            for child in psutil.Process().children():
                if any(word.endswith("sleeping_search.py") for word in _words(child)):
                    self.bytes = max(self.bytes, child.memory_info().rss)


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ours(load, address, folder):
    """Figures of a search; the first is of the time from the first suggestion to the last end."""
    words = ["--space", "digits", "--address", address, "--trials", load.trials, "--epochs", load.results]
    words += ["--set", "data.limit=64", "--set", "training.batch_size=64", "--set", "search.scheduler=none"]
    words += ["--set", "search.defaults=none", "--concurrent", load.at_once]
    with Watched() as watched:
        search = Search(
            folder,
            *map(str, words),
            script=HERE / "sleeping_search.py",
            SLEEPING_SECONDS=str(load.seconds),
        )
    assert search.result["counts"] == {"completed": load.trials}, search.result["counts"]
    ended = max(search.times("epoch"))
    seconds = ended - search.times("suggested")[0]
    results = load.trials * load.results
    steady = ended - min(epoch.started for epochs in search.workers for epoch in epochs)
    sizes = {
        "memory of the driver": watched.bytes,
        "journal": (search.folder / "journal.jsonl").stat().st_size,
        "MLflow's SQLite": (folder / "mlflow.db").stat().st_size,
    }
    yield Figure(
        f"{load.name}: search", seconds, "s", note=f"ideal {load.ideal:g} s; with the workers' start"
    )
    note = f"{steady:.0f} s from the first epoch's start"
    yield Figure(
        f"{load.name}: from the first epoch / ideal", steady / load.ideal, "x", load.allowed, note=note
    )
    yield Figure(f"{load.name}: trials a second", load.trials / steady, "1/s")
    yield Figure(f"{load.name}: results a second", results / steady, "1/s")
    yield Figure(f"{load.name}: whole command", search.seconds, "s", note="until MLflow has everything")
    for name, size in sizes.items():
        yield Figure(
            f"{load.name}: {name}", size / 2**20, "MiB", note=f"{size / 2**10 / results:.2f} KiB a result"
        )


def rays(load, address, folder):
    """What Ray Tune alone takes for the same load."""
    words = ["--address", address, "--trials", load.trials, "--results", load.results]
    words += ["--seconds", load.seconds, "--at-once", load.at_once, "--folder", folder]
    done = subprocess.run(
        [sys.executable, HERE / "peers" / "ray_sleeping.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    yield Figure(f"{load.name}: Ray Tune alone", seconds, "s", note="with the workers' start")


def measure(options):
    chosen = [load for number, load in enumerate(LOADS, 1) if number in (options.only or range(9))]
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        for kind, loads in itertools.groupby(chosen, key=lambda load: (load.nodes, load.slots)):
            # The workers of a search end with it.
            with cluster(*kind) as address:
                for number, (load, way) in enumerate(itertools.product(loads, (ours, rays))):
                    yield from way(load, address, Path(scratch) / f"{kind[0]}-{number}")


def add_options(parser):
    parser.add_argument(
        "--only", nargs="+", type=int, choices=range(1, len(LOADS) + 1), help="loads, by number"
    )


if __name__ == "__main__":
    measuring.run("scale", __doc__.split("\n", 1)[0], measure, add_options)
