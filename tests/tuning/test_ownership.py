"""Real processes that own a folder, and die in every way."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tune_fusion.errors import InputError
from tune_fusion.tuning.ownership import owned, owner

HOST = socket.gethostname()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "night"
    path.mkdir()
    return path


@pytest.fixture
def driver(folder):
    """Starts a process that owns the folder; it is ready when this returns."""
    started = []

    def start(*, body="time.sleep(300)", path=folder):
        script = (
            "import subprocess, sys, time\n"
            "from pathlib import Path\n"
            "from tune_fusion.tuning.ownership import owned\n"
            f"with owned(Path({str(path)!r})):\n    print('ready', flush=True)\n    {body}\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def taken(folder):
    """What a second driver is told; fails the test where it is let in."""
    with pytest.raises(InputError) as refused, owned(folder):
        pass
    return str(refused.value)


def test_a_second_process_is_refused_with_the_first_ones_host_and_pid(folder, driver):
    first = driver()
    who = rf"pid {first.pid} on {re.escape(HOST)} since \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"night is being run by {who}; wait for it, or stop it there", taken(folder))
    assert re.fullmatch(who, owner(folder))
    # Having been asked, the lock is still held.
    assert taken(folder).startswith(f"night is being run by pid {first.pid} ")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over_without_a_word(folder, driver, signum):
    first = driver()
    first.send_signal(signum)
    first.wait()
    assert (folder / "lock").exists()
    assert owner(folder) is None
    with owned(folder):
        assert owner(folder).startswith(f"pid {os.getpid()} on {HOST} since ")


def test_a_process_that_the_driver_has_started_does_not_keep_the_lock(folder, driver):
    first = driver(
        body="print(subprocess.Popen(['sleep', '300']).pid, flush=True); time.sleep(300)",
    )
    child = int(first.stdout.readline())
    try:
        first.kill()
        first.wait()
        os.kill(child, 0)  # it lives
        with owned(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_has_left_owns_no_more(folder):
    with owned(folder):
        assert owner(folder) is not None
    assert owner(folder) is None
    with pytest.raises(KeyError), owned(folder):
        raise KeyError
    with owned(folder):
        pass


def test_one_process_owns_a_folder_once(folder):
    with owned(folder):
        assert f"pid {os.getpid()}" in taken(folder)


def test_a_folder_may_be_renamed_by_its_owner(folder, driver):
    renamed = folder.with_name("day")
    first = driver(
        body=f"Path({str(folder)!r}).rename({str(renamed)!r}); print('done', flush=True); time.sleep(300)"
    )
    assert first.stdout.readline() == "done\n"
    assert taken(renamed).startswith("day is being run by pid ")


def test_the_content_of_the_lock_is_json(folder):
    before = time.time()
    with owned(folder):
        content = json.loads((folder / "lock").read_text())
    assert (content["host"], content["pid"]) == (HOST, os.getpid())
    assert before <= content["since"] <= time.time()


def test_nobody_owns_what_is_not_there(tmp_path, folder):
    assert owner(tmp_path / "nowhere") is None
    assert owner(folder) is None
    assert not (folder / "lock").exists()


def test_a_folder_that_cannot_be_locked(tmp_path):
    with (
        pytest.raises(InputError, match="nowhere: its lock cannot be taken: No such file"),
        owned(tmp_path / "nowhere"),
    ):
        pass


def test_an_owner_of_another_day_is_named_with_its_date(folder, driver):
    driver()
    content = json.loads((folder / "lock").read_text())
    (folder / "lock").write_text(json.dumps(content | {"since": 0.0}))
    assert re.search(r"since 19(69|70)-\d\d-\d\d \d\d:\d\d:\d\d$", owner(folder))


def test_a_holder_that_has_not_written_yet(folder, driver):
    driver()
    (folder / "lock").write_text("")
    assert owner(folder) == "another process"
    assert taken(folder) == "night is being run by another process; wait for it, or stop it there"


class TestWithoutLocks:
    """A file system that knows no locks: what stands in the file must do."""

    @pytest.fixture(autouse=True, params=[errno.ENOLCK, errno.EOPNOTSUPP])
    def _no_locks(self, monkeypatch, request):
        def refuse(descriptor, operation):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)

    @pytest.fixture
    def left(self, folder, driver):
        """A lock file as a driver has written it, with changes."""

        def leave(process, **changes):
            content = json.loads((folder / "lock").read_text())
            assert content["pid"] == process.pid
            (folder / "lock").write_text(json.dumps(content | changes))

        return leave

    def test_a_living_process_of_this_host_is_respected(self, folder, driver):
        first = driver()
        assert re.fullmatch(
            rf"night is being run by pid {first.pid} on {re.escape(HOST)} since [\d:]+; wait for it, or stop "
            rf"it there; if that process is surely gone, delete {re.escape(str(folder / 'lock'))}",
            taken(folder),
        )
        assert owner(folder).startswith(f"pid {first.pid} ")

    def test_a_dead_one_is_not(self, folder, driver):
        first = driver()
        first.kill()
        first.wait()
        with owned(folder):
            assert owner(folder).startswith(f"pid {os.getpid()} ")

    def test_nor_one_that_only_has_its_pid(self, folder, driver, left):
        first = driver()
        left(first, began="another boot:1")
        with owned(folder):
            pass

    def test_of_another_host_nothing_is_known(self, folder, driver, left):
        first = driver()
        first.kill()
        first.wait()
        left(first, host="elsewhere")
        assert f"pid {first.pid} on elsewhere since " in taken(folder)

    @pytest.mark.parametrize("content", ["", "no json", "[1]", '{"pid": 1}'])
    def test_what_no_driver_has_written_is_overwritten(self, folder, content):
        (folder / "lock").write_text(content)
        with owned(folder):
            assert owner(folder).startswith(f"pid {os.getpid()} ")

    def test_who_has_left_owns_no_more(self, folder):
        with owned(folder):
            pass
        assert owner(folder) is None


def test_other_errors_of_the_file_system_are_told(folder, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InputError, match="its lock cannot be taken: Input/output error"), owned(folder):
        pass
