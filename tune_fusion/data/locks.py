"""Locks between the processes of one machine: files that are there for as long as somebody holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path` as a lock, waiting for it first; the system frees it if this process dies.

    The file goes with who holds it, so only a process that was killed leaves one, for the next that takes it.
    That leaves no two with the lock: nobody removes a file that he does not hold, and who has waited for one
    that is gone, or replaced by another, waits for that one.

    Raises OSError where the file cannot be made.
    """
    with _taken(path, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """As `locked`, but without waiting: gives False, and nothing is held, where another has the lock.

    So it does where the file cannot be made, or belongs to others.
    """
    with contextlib.ExitStack() as stack:
        free = True
        try:
            stack.enter_context(_taken(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except OSError:
            free = False
        yield free


@contextlib.contextmanager
def _taken(path: Path, how: int) -> Iterator[None]:
    with _hold(path, how):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a folder that has become read-only, or is gone
                path.unlink()


def _hold(path: Path, how: int) -> BinaryIO:
    """The open file at `path`, locked."""
    while True:
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(path.open("ab"))
            fcntl.flock(handle, how)
            if _is_at(handle, path):
                stack.pop_all()
                return handle


def _is_at(handle: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False
