"""Images in one memory-mapped array of the cache, made once a machine and shared by all its processes.

An entry of the cache is named by a hash of what it was made from. It is written beside its final place and
renamed, under a lock, so that a reader sees all of it or nothing, and a second process that wants it waits
for the first. How large the cache may grow, and what is removed from it, is decided in
`tune_fusion.data.entries`.

Batches come from the mapped array, and no epoch opens a file. What can still happen to a running process is
that the entry's own file is cut short or its disk fails; the system then ends the process (SIGBUS), and the
next one finds the entry damaged and writes it again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_fusion.data.entries import INDEX, LOCK, PARTIAL, PIXELS, cache_folder, hold, reserve
from tune_fusion.data.locks import locked
from tune_fusion.errors import InputError
from tune_fusion.folders import CACHE_VARIABLE

Contents = TypeVar("Contents")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Source:
    """What images are, so that copies of them in another size can be kept in the cache, too."""

    name: str
    """In words, such as the folder that they come from."""
    digest: str
    """Hex digits that stand for their content."""


def mapped(
    name: str,
    read: Callable[[Tensor, Mapping[str, Any]], Contents],
    write: Callable[[Path], Mapping[str, object]],
) -> Contents:
    """What `read` makes of an entry of the cache, which `write` writes first if it is not there or damaged.

    Args:
        name: of the entry, as `name_of` and `name_of_files` give it.
        read: from the images, uint8 [N, C, H, W] and mapped, and what the entry's index says of them. An
            error of the kinds that come of a damaged index has the entry written again.
        write: fills an empty folder, by `new_images`. What it returns becomes the index: the images' `shape`,
            their `source` in words, and whatever `read` wants to know; as JSON has it.

    Raises:
        InputError: the cache cannot be written or has no room.
    """
    entry = cache_folder() / name
    contents = _open(entry, read)
    if contents is None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with locked(entry.with_suffix(LOCK)):
                contents = _open(entry, read)
                if contents is None:
                    contents = _write(entry, read, write)
        except OSError as error:
            wanted = "with room" if error.errno in _FULL else "that can be written"
            raise InputError(
                f"cannot write the image cache {entry.parent}: {error}; set ${CACHE_VARIABLE} to a folder "
                f"{wanted}"
            ) from error
    with suppress(OSError):  # a cache that may only be read
        os.utime(entry)
    return contents


@contextlib.contextmanager
def new_images(folder: Path, shape: Sequence[int], source: str) -> Iterator[NDArray[np.uint8]]:
    """The array uint8 [N, C, H, W] of an entry that is being written, to be filled; its room is taken first.

    Raises:
        InputError: there is no room for it. It names the images by their `source`.
    """
    count, _, height, width = shape
    reserve(folder / PIXELS, math.prod(shape), f"{count:,} images of {height}x{width} pixels from {source}")
    pixels = np.memmap(folder / PIXELS, np.uint8, "r+", shape=tuple(shape))
    yield pixels
    pixels.flush()


def name_of(*words: object) -> str:
    """The name of the entry that is made from what `words` say, and from nothing else."""
    return _name(_digest(words))


def name_of_files(root: Path, files: Sequence[str], *words: object) -> str:
    """The name of the entry that is made from `files` below `root`, and from what `words` say.

    It depends on where the files lie, on their sizes and times. None is read for that.
    """
    digest = _digest(words)
    digest.update(os.fsencode(root.resolve()))
    for name in files:
        digest.update(b"\0" + os.fsencode(name) + b"\0")
        # A file that is gone makes another entry than the same file back in its place.
        with suppress(OSError):
            status = (root / name).stat()
            # The change time notices a file replaced by one of the same size with its times restored.
            digest.update(struct.pack("<qqq", status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return _name(digest)


def _digest(words: Sequence[object]) -> hashlib._Hash:
    return hashlib.sha256("".join(f"{word}\0" for word in words).encode())


def _name(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:32]


def _open(entry: Path, read: Callable[[Tensor, Mapping[str, Any]], Contents]) -> Contents | None:
    """The entry's contents, or None if it does not exist or is damaged."""
    try:
        index = json.loads((entry / INDEX).read_text())
        shape = tuple(index["shape"])
        with (entry / PIXELS).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not hold(file) or size != math.prod(shape):
                return None
            # A private mapping: pages are shared by all processes as long as nobody writes to them.
            pixels = np.memmap(file, np.uint8, "c", shape=shape)
        return read(torch.from_numpy(pixels), index)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):  # whatever half a file may hold
        return None


def _write(
    entry: Path,
    read: Callable[[Tensor, Mapping[str, Any]], Contents],
    write: Callable[[Path], Mapping[str, object]],
) -> Contents:
    partial = entry.with_suffix(PARTIAL)
    for stale in (partial, entry):  # left by a process that was killed, or damaged
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir()
    try:
        (partial / INDEX).write_text(json.dumps(write(partial), indent=0))
        # Held before others can see it: nobody may remove it to make room for another.
        contents = _open(partial, read)
        if contents is None:
            raise InputError(f"the image cache {partial} changed while it was written: run again")
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return contents
