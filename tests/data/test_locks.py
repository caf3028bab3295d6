import fcntl
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from tune_fusion.data import locks
from tune_fusion.data.locks import locked, locked_if_free

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def test_a_lock_is_there_while_it_is_held(lock: Path):
    with locked(lock):
        assert lock.exists()
        with locked_if_free(lock) as free:
            assert not free
        assert lock.exists()
    assert not lock.exists()
    with locked_if_free(lock) as free:
        assert free
        assert lock.exists()
    assert not lock.exists()


def test_it_goes_with_an_error_too(lock: Path):
    with pytest.raises(ZeroDivisionError), locked(lock):
        raise ZeroDivisionError
    assert not lock.exists()


def _die_with(lock: Path) -> None:
    with locked(lock):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_is_nobodys(lock: Path):
    process = CONTEXT.Process(target=_die_with, args=(lock,))
    process.start()
    process.join()
    assert lock.exists()
    with locked_if_free(lock) as free:
        assert free
    assert not lock.exists()


def test_a_lock_that_cannot_be_made(tmp_path: Path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / "a.lock"):
        pass
    with locked_if_free(tmp_path / "none" / "a.lock") as free:
        assert not free


@pytest.mark.parametrize("replaced", [False, True])
def test_who_waited_for_a_file_that_is_gone_does_not_hold_the_lock(lock: Path, monkeypatch, replaced: bool):
    """Between opening the file and locking it, its holder removes it, and perhaps another makes a new one."""
    real, seen = fcntl.flock, []

    def flock(handle, how: int) -> None:
        if not seen:
            lock.unlink()
            if replaced:
                lock.touch()
        seen.append(os.fstat(handle.fileno()).st_ino)
        real(handle, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(lock):
        assert len(seen) == 2
        assert seen[-1] == lock.stat().st_ino


def _count(lock: Path, number: Path, turns: int) -> None:
    for _ in range(turns):
        with locked(lock):
            number.write_text(str(int(number.read_text()) + 1))


def test_of_many_processes_one_has_it_at_a_time_while_others_clear_away(lock: Path, tmp_path: Path):
    number = tmp_path / "number"
    number.write_text("0")
    over = threading.Event()

    def clear() -> None:
        while not over.is_set():
            with locked_if_free(lock):
                pass

    clearing = threading.Thread(target=clear)
    processes = [CONTEXT.Process(target=_count, args=(lock, number, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    clearing.start()
    for process in processes:
        process.join()
    over.set()
    clearing.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert number.read_text() == "400"
    assert not lock.exists()
