"""Files that are there whole or not at all, and full disks told from other failures."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from tune_fusion.errors import TuneFusionError


class DiskFullError(TuneFusionError):
    """A file could not be written for lack of space; the message names it and the bytes it needs."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill the file at `path`, and bring it onto the disk.

    It is written under another name, which starts with a dot, and then renamed: whoever reads `path`, after
    whatever death, finds it as it was or as it should be. Raises DiskFullError; no part of a file stays after
    an error.
    """
    try:
        _write(path, write)
    except Exception as error:
        if no_space(error) is None:
            raise
        size = _Size()
        write(cast(BinaryIO, size))
        folder = next(folder for folder in path.parents if folder.exists())
        needed, free = (f"{n / 2**20:.1f} MiB" for n in (size.total, shutil.disk_usage(folder).free))
        raise DiskFullError(f"disk full: {path} needs {needed}, {free} are free") from error


def parts_of(path: Path) -> Iterator[Path]:
    """What `write_whole` has begun of the file at `path` and not ended; a writer may still be at it."""
    return path.parent.glob(f".{path.name}.*")


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _Size:
    """A file that only counts the bytes it is given."""

    total = 0

    def write(self, data: bytes) -> int:
        self.total += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def no_space(error: BaseException) -> OSError | None:
    """The system's word among the causes of `error` that a disk or a quota is full; None: it is not."""
    full = (
        cause
        for cause in causes(error)
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
    )
    return next(full, None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    told: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in told:
        yield following
        told.append(following)
        following = following.__cause__ or following.__context__
