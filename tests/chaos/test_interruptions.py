"""Ctrl-C and SIGTERM at every moment of a search: what it says and leaves, and that it goes on from there."""

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections import Counter

import pytest
from evidence import check_mlflow, decisions
from running import (
    QUICK,
    chronicle,
    descendants,
    journal,
    marked,
    query,
    ray_cluster,
    trial_workers,
    wait_for_end,
    wait_until,
)

from tune_fusion.events import Closed, EpochEnded, Session, Suggested, WorkerLost

pytestmark = pytest.mark.chaos

TRIALS = 6
SMALL = ["--space", "digits", "--name", "cut", "--trials", TRIALS, "--epochs", 3, "--concurrent", 1]
# Epochs of a few tenths of a second.
SMALL += ["--set", "data.limit=300", "--set", "training.batch_size=8"]
COMMAND = [sys.executable, "-m", "tune_fusion.search"]
BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
_STATUS = {
    "completed": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


class Watched:
    """A search named ``cut`` while it runs, with the lines it has written so far."""

    def __init__(self, searches, folder, words):
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.out, self.err = [], []
        self.process = searches.launch(folder, list(map(str, words)), TF_TEST_MARK=self.mark)
        streams = [(self.process.stdout, self.out), (self.process.stderr, self.err)]
        self._readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def until(self, condition):
        wait_until(condition, process=self.process)

    def interrupt(self, signum):
        """A terminal sends Ctrl-C to the whole process group, a service manager SIGTERM to the process."""
        if signum == signal.SIGINT:
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)

    def end(self):
        """Wait for the end; returns the exit code."""
        self.process.wait(timeout=120)
        for reader in self._readers:
            reader.join(timeout=60)
        return self.process.returncode

    @property
    def events(self):
        return journal(self.folder, "cut")

    @property
    def ended(self):
        return ended(self.folder)

    def has(self, kind, count=1):
        return sum(isinstance(event, kind) for event in self.events) >= count

    def starts_ray(self):
        return any("gcs_server" in child.name() for child in descendants(self.process))


def ended(folder):
    """How many trials of the search have ended so far."""
    return len(chronicle(folder, "cut").record.ended) if journal(folder, "cut") else 0


def _read(stream, lines):
    for line in stream:
        lines.append(line)


def _middle_of_an_epoch(watched):
    watched.until(lambda: watched.has(EpochEnded, 2))
    time.sleep(0.1)


MOMENTS = {
    "after 0.3 s": lambda watched: time.sleep(0.3),
    "after 1.5 s": lambda watched: time.sleep(1.5),
    "after 3 s": lambda watched: time.sleep(3),
    "while Ray starts": lambda watched: watched.until(watched.starts_ray),
    "when the folder appears": lambda watched: watched.until(lambda: watched.events),
    "before the first epoch": lambda watched: watched.until(lambda: watched.has(Suggested)),
    "in the middle of an epoch": _middle_of_an_epoch,
    "when trials have ended": lambda watched: watched.until(lambda: watched.ended >= 3),
    "when the last trial has ended": lambda watched: watched.until(lambda: watched.ended == TRIALS),
    "while MLflow takes the rest": lambda watched: watched.until(lambda: watched.has(Closed)),
}
# Where the resume command is run, too.
RESUMED = [("in the middle of an epoch", signal.SIGINT), ("when trials have ended", signal.SIGTERM)]


def check_left(searches, watched, code):
    """What an interrupted search has said and left agrees with its exit code and with itself.

    Returns its journal's status; None: it was interrupted before anything was written.
    """
    assert watched.end() == code, watched.err
    out, err = "".join(watched.out), "".join(watched.err)
    assert "Traceback" not in err
    wait_for_end(marked(watched.mark), timeout=15)
    if not (watched.folder / "runs").exists():
        assert out == ""
        assert err in ("", "tune_fusion.search: interrupted before anything was written\n")
        assert list(watched.folder.iterdir()) == []
        return None
    told = chronicle(watched.folder, "cut")
    record, status = told.record, told.status
    result = json.loads((watched.folder / "runs" / "cut" / "result.json").read_text())
    assert result["status"] == status
    assert result["counts"] == record.counts()
    lines = [re.match(r"\[\d+/\d+\] trial (\d+) (\w+): ", line) for line in watched.out]
    assert {int(line[1]): line[2] for line in lines if line} == {
        trial.number: trial.state.value for trial in record.trials
    }
    assert sum(line is not None for line in lines) == len(record.trials)
    assert f"\ncut {status}: " in f"\n{out}"
    assert not any(isinstance(event, WorkerLost) for event in watched.events)
    if status == "interrupted":
        assert f"go on with {result['resume_command']}\n" in out
    else:
        assert result["resume_command"] is None
    check_store(searches, watched, record, status)
    return status


def check_store(searches, watched, record, status):
    """No run is left running: what MLflow has not taken in time it has after the command that was printed."""
    later = re.search(r"deliver it later with: (.*)", "".join(watched.err))
    if later:
        synced = Watched(searches, watched.folder, shlex.split(later[1]))
        assert synced.end() == 0, synced.err
    parent = "KILLED" if status == "interrupted" else "FINISHED"
    expected = [parent, *(_STATUS[trial.state.value] for trial in record.trials)]
    stored = [status for (status,) in query(watched.folder, "select status from runs")]
    assert Counter(stored) == Counter(expected)
    assert query(watched.folder, "select status from runs where name = 'cut'") == [(parent,)]


@pytest.fixture(scope="module")
def undisturbed(searches, tmp_path_factory):
    """What the search decides that nobody interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = searches.run(folder, *SMALL)
    assert (code, err) == (0, "")
    return decisions(folder / "runs" / "cut")


@BOTH
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_search_in_order(searches, tmp_path, undisturbed, moment, signum):
    watched = Watched(searches, tmp_path, [*COMMAND, *SMALL])
    MOMENTS[moment](watched)
    signalled = time.monotonic()
    watched.interrupt(signum)
    watched.end()
    print(f"{moment}, {signum.name}: {time.monotonic() - signalled:.1f} s")
    status = check_left(searches, watched, 128 + signum)
    run = tmp_path / "runs" / "cut"
    if status == "completed":
        assert "nothing of it is missing" in "".join(watched.err)
        assert decisions(run) == undisturbed
        check_mlflow(tmp_path / "mlflow.db", run)
    if (moment, signum) in RESUMED:
        assert status == "interrupted"
        command = json.loads((run / "result.json").read_text())["resume_command"]
        resumed = Watched(searches, tmp_path, ["bash", "-c", command])
        assert (resumed.end(), resumed.err) == (0, [])
        assert decisions(run) == undisturbed
        check_mlflow(tmp_path / "mlflow.db", run)
        assert list((run / "checkpoints").iterdir()) == []


def test_the_first_line_of_the_summary_is_not_too_late_for_a_signal(searches, tmp_path):
    # The search has to wait in the middle of its summary, as nobody reads and the pipe holds a page.
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"." * 2000)
    streams = {"stdout": writer, "stderr": subprocess.PIPE, "text": True}
    process = searches.launch(tmp_path, list(map(str, [*COMMAND, *SMALL])), streams=streams)
    os.close(writer)
    wait_until(lambda: any(isinstance(event, Closed) for event in journal(tmp_path, "cut")), process=process)
    wait_until(lambda: not descendants(process), process=process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    with os.fdopen(reader, encoding="utf-8") as out:
        told = out.read()
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == ""
    assert "cut completed: " in told
    assert re.search(r"\nMLflow UI  .*\n {11}http.*\nconfirm    .*\n$", told)
    assert chronicle(tmp_path, "cut").status == "completed"
    check_mlflow(tmp_path / "mlflow.db", tmp_path / "runs" / "cut")


@pytest.mark.parametrize("moment", ["while Ray starts", "in the middle of an epoch"])
def test_a_second_ctrl_c_ends_the_search_at_once(searches, tmp_path, undisturbed, moment):
    watched = Watched(searches, tmp_path, [*COMMAND, *SMALL])
    MOMENTS[moment](watched)
    watched.interrupt(signal.SIGINT)
    time.sleep(0.5)
    signalled = time.monotonic()
    watched.interrupt(signal.SIGINT)
    assert watched.end() == 130
    print(f"second Ctrl-C {moment}: {time.monotonic() - signalled:.1f} s")
    # Of trials perhaps, of the search not: its end was not waited for.
    assert "cut interrupted" not in "".join([*watched.out, *watched.err])
    wait_for_end(marked(watched.mark), timeout=15)
    run = tmp_path / "runs" / "cut"
    if moment == "while Ray starts":
        assert not run.exists()
        return
    resumed = Watched(searches, tmp_path, [*COMMAND, "--resume", "cut", "--concurrent", 1])
    assert (resumed.end(), resumed.err) == (0, [])
    assert decisions(run) == undisturbed
    check_mlflow(tmp_path / "mlflow.db", run)


def test_ctrl_c_leaves_a_sane_terminal(searches, tmp_path):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 150))
    before = termios.tcgetattr(slave)
    process = searches.launch(
        tmp_path,
        list(map(str, [*COMMAND, *SMALL])),
        streams={
            **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
            "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        },
        TERM="xterm-256color",
    )
    shown = bytearray()
    reader = threading.Thread(target=_read_terminal, args=(master, shown), daemon=True)
    reader.start()
    wait_until(lambda: process.poll() is not None or ended(tmp_path) >= 2)
    os.write(master, b"\x03")
    assert process.wait(timeout=60) == 130, shown.decode()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    reader.join(timeout=60)
    text = shown.decode()
    assert "Traceback" not in text
    assert "\x1b[?25l" in text  # hidden while the table is redrawn
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    # The last state of the table, then the summary, each line from the terminal's left edge.
    table, _, summary = text.rpartition("\r\ncut interrupted: ")
    result = json.loads((tmp_path / "runs" / "cut" / "result.json").read_text())
    last = re.sub(r"\x1b\[[^m]*m", "", table.rpartition("switch layer")[2])
    # A trial that was at its last epoch may have ended as usual.
    for state in result["counts"]:
        assert state in last
    assert f"\r\ngo on with {result['resume_command']}\r\n" in summary
    assert "\x1b" not in summary


def _read_terminal(master, shown):
    while True:
        try:
            content = os.read(master, 65536)
        except OSError:  # nobody has the other end open any more
            break
        if not content:
            break
        shown += content
    os.close(master)


def test_a_long_epoch_does_not_delay_the_end_and_is_trained_again(searches, tmp_path):
    words = [*COMMAND, "--space", "digits", "--name", "cut", "--trials", 1, "--epochs", 2]
    words += [
        "--set",
        "model.name=hn_mnist_cnn",
        "--set",
        "training.batch_size=1",
        "--set",
        "data.limit=1000",
    ]
    watched = Watched(searches, tmp_path, words)
    watched.until(lambda: watched.has(EpochEnded))
    time.sleep(0.5)
    signalled = time.monotonic()
    watched.interrupt(signal.SIGINT)
    watched.end()
    print(f"in a long epoch: {time.monotonic() - signalled:.1f} s")
    assert check_left(searches, watched, 130) == "interrupted"
    assert [e.epoch for e in watched.events if isinstance(e, EpochEnded)] == [1]
    resumed = Watched(searches, tmp_path, [*COMMAND, "--resume", "cut"])
    assert (resumed.end(), resumed.err) == (0, [])
    kinds = [type(e) for e in resumed.events if isinstance(e, EpochEnded | Session)]
    assert kinds == [Session, EpochEnded, Session, EpochEnded]
    check_mlflow(tmp_path / "mlflow.db", tmp_path / "runs" / "cut")


def test_a_cluster_that_was_joined_goes_on(searches, tmp_path):
    with ray_cluster(2) as (cluster, address):
        watched = Watched(searches, tmp_path, [*COMMAND, *SMALL, "--address", address])
        watched.until(lambda: watched.ended >= 2)
        workers = []
        watched.until(lambda: workers.extend(trial_workers(cluster)) or workers)
        watched.interrupt(signal.SIGINT)
        assert check_left(searches, watched, 130) == "interrupted"
        wait_for_end(workers)
        assert cluster.poll() is None
        names = {child.name() for child in descendants(cluster)}
        assert {"gcs_server", "raylet"} <= names


@pytest.mark.parametrize(("options", "signum"), [(["-s", "INT"], signal.SIGINT), ([], signal.SIGTERM)])
def test_the_end_of_its_time_ends_a_search_in_order(searches, tmp_path, options, signum):
    words = [
        "timeout",
        *options,
        12,
        *COMMAND,
        "--space",
        "digits",
        "--name",
        "cut",
        "--trials",
        2000,
        *QUICK,
    ]
    watched = Watched(searches, tmp_path, words)
    check_left(searches, watched, 124)
    if (tmp_path / "runs").exists():
        assert chronicle(tmp_path, "cut").status == "interrupted"


def test_ctrl_c_ends_what_reads_the_output_too(searches, tmp_path):
    # As in a terminal with "... | tee log": tee is gone before the search has said its last words.
    reader, writer = os.pipe()
    streams = {"stdout": writer, "stderr": subprocess.PIPE, "text": True}
    process = searches.launch(tmp_path, list(map(str, [*COMMAND, *SMALL])), streams=streams)
    os.close(writer)
    wait_until(lambda: ended(tmp_path) >= 2, process=process)
    os.close(reader)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in process.stderr.read()
    result = json.loads((tmp_path / "runs" / "cut" / "result.json").read_text())
    assert result["status"] == chronicle(tmp_path, "cut").status == "interrupted"


def test_a_tracking_server_that_is_silent_does_not_delay_the_end(searches, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = [*COMMAND, *SMALL, "--trials", 2, "--offline", "--tracking-uri", uri]
        watched = Watched(searches, tmp_path, words)
        watched.until(lambda: watched.has(Closed))
        signalled = time.monotonic()
        watched.interrupt(signal.SIGINT)
        watched.end()
        print(f"while a silent server is waited for: {time.monotonic() - signalled:.1f} s")
    err = "".join(watched.err)
    assert watched.process.returncode == 130
    assert "Traceback" not in err
    assert f"deliver it later with: {sys.executable} -m tune_fusion.sync cut --tracking-uri {uri}" in err
    assert chronicle(tmp_path, "cut").status == "completed"
