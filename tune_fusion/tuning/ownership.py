"""One driver a search: a lock in the search's folder that ends with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tune_fusion.errors import InputError

_LOCK = "lock"
# What a file system without locks answers; the file's content then has to do.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Holder:
    """The process that wrote a lock file."""

    host: str
    pid: int
    began: str
    """When the process began, in the system's own measure: a later process may have the same pid."""
    since: float
    """When it took the lock, in seconds since 1970."""

    def __str__(self) -> str:
        since, now = time.localtime(self.since), time.localtime()
        clock = "%H:%M:%S" if since[:3] == now[:3] else "%Y-%m-%d %H:%M:%S"
        return f"pid {self.pid} on {self.host} since {time.strftime(clock, since)}"


class _TakenError(Exception):
    """Somebody else holds the lock; `certain` where the system says so, not only the file's content."""

    def __init__(self, holder: Holder | None, *, certain: bool) -> None:
        super().__init__(holder)
        self.holder = holder
        self.certain = certain


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the only driver of the search in `folder` until the body ends or this process does, however it does.

    The folder may be renamed meanwhile. A lock that a dead driver has left is taken over.

    Raises InputError where another driver holds it, on this host or, in a shared folder, on another one, and
    where the lock cannot be written.
    """
    # Python's files are closed in the processes it starts, so that none of those keeps the lock.
    descriptor = -1
    try:
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            _take(descriptor)
            _write(descriptor, ourselves())
        except _TakenError as taken:
            raise InputError(_refusal(folder, taken)) from None
        except OSError as error:
            raise InputError(f"{folder}: its lock cannot be taken: {error.strerror or error}") from error
        try:
            yield
        finally:
            _write(descriptor, None)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def owner(folder: Path) -> str | None:
    """Who runs the search in `folder`, such as ``pid 123 on HOST since 12:03:44``.

    None for nobody, and where the lock is not ours to ask.
    """
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        _take(descriptor)
    except _TakenError as taken:
        return str(taken.holder or "another process")
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int) -> None:
    """Take the lock; raises _TakenError where somebody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _TakenError(_read(descriptor), certain=True) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        holder = _read(descriptor)
        if holder is not None and not is_gone(holder):
            raise _TakenError(holder, certain=False) from None


def _refusal(folder: Path, taken: _TakenError) -> str:
    message = (
        f"{folder.name} is being run by {taken.holder or 'another process'}; wait for it, or stop it there"
    )
    if taken.certain:
        return message
    # The file system knows no locks, so this may be what a driver has left that died on another host.
    return f"{message}; if that process is surely gone, delete {folder / _LOCK}"


def ourselves() -> Holder:
    """This process."""
    return Holder(socket.gethostname(), os.getpid(), _began(os.getpid()), time.time())


def is_gone(holder: Holder) -> bool:
    """True where the process is surely dead; of other hosts nothing is known."""
    return holder.host == socket.gethostname() and _began(holder.pid) != holder.began


def _began(pid: int) -> str:
    """When the process `pid` began, with the machine's boot: ``""`` where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    # Behind the name, which may hold anything; field 22 in clock ticks since the boot, field 3 the state.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _read(descriptor: int) -> Holder | None:
    """Who wrote the file; None where it is empty or no lock file of ours."""
    content = os.pread(descriptor, 4096, 0)
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, holder: Holder | None) -> None:
    os.ftruncate(descriptor, 0)
    if holder is not None:
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
