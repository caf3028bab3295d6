"""Searches as processes, for the tests that start, watch, kill and resume them."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tune_fusion.events import Chronicle
from tune_fusion.journal import read_journal

QUICK = ["--set", "data.limit=300", "--set", "training.batch_size=128"]
"""Options that make an epoch of the space ``digits`` take a few hundredths of a second."""
ASHA = [
    *("--set", "search.scheduler=asha", "--set", "asha.compare=metric", "--set", "search.defaults=trained"),
    *("--set", "asha.reduction_factor=3"),
]
"""Options of searches whose rung decisions a test works out again."""


class Searches:
    """Starts commands of the package; `close` ends what still runs, by its own pid."""

    def __init__(self):
        # Ray's sockets lie in this folder and their paths must be short.
        self._ray_folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
        self._started = []

    def start(self, folder, *arguments, command="search", **environment):
        """Start ``python -m tune_fusion.COMMAND`` in `folder`, in a session of its own."""
        words = [sys.executable, "-m", f"tune_fusion.{command}", *map(str, arguments)]
        return self.launch(folder, words, **environment)

    def launch(self, folder, words, *, streams=None, **environment):
        """Start any command line, such as one that starts a search; `streams` are arguments of ``Popen``."""
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "RAY_TMPDIR": self._ray_folder, "RAY_USAGE_STATS_ENABLED": "0", **environment},
            **(streams or {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}),
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, folder, *arguments, command="search", timeout=300, **environment):
        """The same, to its end: (exit code, standard output, standard error)."""
        process = self.start(folder, *arguments, command=command, **environment)
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err

    def close(self):
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        shutil.rmtree(self._ray_folder, ignore_errors=True)


def journal(folder, name):
    """The events of a search so far; none where it has not begun."""
    path = Path(folder) / "runs" / name / "journal.jsonl"
    return read_journal(path).events if path.exists() else []


def chronicle(folder, name):
    """The search that its journal tells of."""
    return Chronicle.replay(journal(folder, name))


def wait_until(condition, timeout=120, process=None):
    """Wait until `condition()` holds; fails after `timeout` seconds, or when `process` has ended before."""
    deadline = time.monotonic() + timeout
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended or condition(), f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def descendants(process):
    """Every process that descends from `process`."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def trial_workers(process):
    """The worker processes that train trials."""
    found = []
    for child in descendants(process):
        try:
            # Ray names an actor's process after what it does, by the class that `tune.with_resources` makes,
            # and while it does nothing after its own.
            if re.search("ray::(ResourceTrainable|FusionTrial)", " ".join(child.cmdline())):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def marked(mark):
    """Every living process that was started, directly or not, with TF_TEST_MARK=`mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TF_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def ray_cluster(cpus, **environment):
    """A Ray cluster of this machine alone, as somebody else would run it: its process and its address."""
    address = f"127.0.0.1:{free_port()}"
    words = ["--head", "--port", address.rpartition(":")[2], "--include-dashboard", "false"]
    with _ray_process(words, cpus, "127.0.0.1", **environment) as head:
        yield head, address


@contextmanager
def ray_node(address, cpus, ip, *, before=(), resources="{}", **environment):
    """Another node of that cluster, with an address of its own (127.0.0.2, ...): its process.

    `before` are the words of a command that starts it, such as ``unshare``.
    """
    words = ["--address", address, "--resources", resources]
    with _ray_process(words, cpus, ip, before=before, **environment) as node:
        yield node


@contextmanager
def _ray_process(words, cpus, ip, *, before=(), **environment):
    """A raylet, and what belongs to it; ends with the body, unless it has been killed before."""
    with tempfile.TemporaryDirectory(prefix="tf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(*before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
                *("--node-ip-address", ip, "--temp-dir", folder),
                *("--min-worker-port", "0", "--max-worker-port", "0"),
                *("--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", str(200 * 2**20)),
                "--disable-usage-stats",
            ],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                raise AssertionError(f"the node did not start: {said}")
            yield process
        finally:
            family = descendants(process)
            process.terminate()
            process.communicate()
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_end(processes, timeout=20):
    """Wait until all of these processes are gone."""

    def gone():
        return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)

    def safely():
        try:
            return gone()
        except psutil.NoSuchProcess:
            return False

    wait_until(safely, timeout)


def kill(process):
    """SIGKILL to the driver alone, and wait for its end."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def query(folder, sql):
    """Rows of the MLflow store ``mlflow.db`` in `folder`."""
    with sqlite3.connect(Path(folder) / "mlflow.db") as store:
        return store.execute(sql).fetchall()
