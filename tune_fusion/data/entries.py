"""The image cache as it lies on the disk: its entries, how large they may grow, and what is removed first.

An entry is the folder ``NAME``: ``images.u8`` (the pixels) and ``index.json`` (what they are). While it is
built, by whoever holds ``NAME.lock``, its name is ``NAME.partial``. Who has an entry mapped holds a shared
lock on its pixels for as long, so that nothing is removed that a process uses; the system frees the locks of
one that dies. A mapped file outlives its name, so removing it would harm nobody, but the next trial of the
same search would have to decode all images again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tune_fusion.data.locks import locked, locked_if_free
from tune_fusion.errors import InputError
from tune_fusion.folders import CACHE_VARIABLE, cache_root, check_makeable

BOUND_VARIABLE = "TUNE_FUSION_CACHE_GB"
PIXELS, INDEX = "images.u8", "index.json"
LOCK, PARTIAL, _REMOVED = ".lock", ".partial", ".removed"
_GB = 1e9


@dataclass(frozen=True)
class Entry:
    """One entry of the cache."""

    path: Path
    source: str
    """What its images are, such as the folder they come from; empty where the entry is damaged."""
    images: int
    size: int
    """Bytes on the disk."""
    built: float
    """Seconds since 1970, as `used`."""
    used: float
    """When it was last opened."""


def cache_folder() -> Path:
    """Where entries are kept: $TUNE_FUSION_CACHE, else ``~/.cache/tune_fusion``, in both ``images``."""
    return cache_root() / "images"


def list_entries() -> list[Entry]:
    """All complete entries, the one that was not used for the longest time first.

    Raises InputError for a cache that cannot be read, or is not there and cannot be made.
    """
    found = (_entry(path) for path in _children() if path.suffix == "")
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.used, entry.path))


def bound() -> int:
    """How many bytes the cache may hold: $TUNE_FUSION_CACHE_GB, in units of 10**9 bytes.

    By default half of what its disk would have free without it.

    Raises InputError for a value that is no number above 0.
    """
    text = _bound_given()
    if not text:
        return (_held() + _free(cache_folder())) // 2
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise InputError(f"${BOUND_VARIABLE} needs a number of gigabytes above 0, got {text!r}")
    return round(gigabytes * _GB)


def size_words(size: int) -> str:
    """So many bytes in words, such as ``7.7 MB``."""
    for unit, length in (("GB", _GB), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"


def hold(pixels: BinaryIO) -> bool:
    """Keep the entry of this open file as it is, for as long as the file or a mapping of it is open.

    False where the entry has just been removed.
    """
    # A mapping has a duplicate of the file's descriptor, and that shares the lock.
    fcntl.flock(pixels, fcntl.LOCK_SH)
    return os.fstat(pixels.fileno()).st_nlink > 0


def in_use(path: Path) -> bool:
    """Whether a process, this one included, has the entry at `path` mapped."""
    with _alone(path) as alone:
        return not alone


def remove(path: Path) -> bool:
    """Remove the entry at `path`; False, and nothing is removed, where a process uses it or may not."""
    with _alone(path) as alone:
        if not alone:
            return False
        # Under another name first: who looks for the entry sees all of it, or nothing and builds a new one.
        doomed = path.with_suffix(f".{os.getpid()}{_REMOVED}")
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True


def remove_debris() -> None:
    """Remove what killed processes left: entries they were building or removing, and their locks."""
    for path in _children():
        if path.suffix == _REMOVED:
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == PARTIAL:
            with locked_if_free(path.with_suffix(LOCK)) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
    for path in cache_folder().glob(f"*{LOCK}"):
        with locked_if_free(path):
            pass  # the file goes with us


def reserve(path: Path, size: int, images: str) -> None:
    """Make `path` a file of `size` bytes that has its place on the disk: a full one is an error here.

    Later it would end the process, on writing to the mapped file. Entries that nobody uses are removed for
    it, longest unused first, until the cache keeps within its bound and the disk has room. While more is in
    use at once than the bound allows, the cache is larger.

    Raises InputError where `size` alone is more than the bound, or than the disk has; it says that this is
    needed for `images`.
    """
    with locked(cache_folder() / f"room{LOCK}"), path.open("wb") as file:  # what was in it is free now
        remove_debris()
        _make_room(path, size, f"the image cache {cache_folder()} needs {size_words(size)} for {images}")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _make_room(path: Path, size: int, needs: str) -> None:
    elsewhere = f"set ${CACHE_VARIABLE} to a folder with room"
    if size > _held() + _free(path):
        raise InputError(f"{needs}, and its disk has {size_words(_free(path))} free: {elsewhere}")
    limit = bound()
    if size > limit:
        ways = [
            f"set ${BOUND_VARIABLE}={_gigabytes(size)} (gigabytes) or more",
            *([] if _bound_given() else [elsewhere]),
            "or use smaller or fewer images (data.image_size, data.limit)",
        ]
        why = f"${BOUND_VARIABLE}={_bound_given()}" if _bound_given() else "half of its disk's room"
        raise InputError(f"{needs}, and may hold {size_words(limit)} ({why}): {', '.join(ways)}")
    for entry in list_entries():
        if _held() + size <= limit and size <= _free(path):
            break
        remove(entry.path)
    if size > _free(path):
        raise InputError(
            f"{needs}, its disk has {size_words(_free(path))} free, and the rest is in use: {elsewhere}"
        )


def _bound_given() -> str:
    """$TUNE_FUSION_CACHE_GB as it was set; empty where it was not."""
    return os.environ.get(BOUND_VARIABLE, "").strip()


def _gigabytes(size: int) -> str:
    """The least number of gigabytes, with three digits, that holds so many bytes."""
    step = 10 ** max(0, len(str(size)) - 3)
    return f"{math.ceil(size / step) * step / _GB:.9f}".rstrip("0").rstrip(".")


def _children() -> list[Path]:
    """The folders in the cache; none where it is not there and can be made."""
    try:
        with os.scandir(cache_folder()) as found:
            return [Path(child.path) for child in found if child.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        check_makeable(cache_folder(), f"the image cache {cache_folder()} (${CACHE_VARIABLE})")
        return []
    except OSError as error:
        raise InputError(
            f"cannot read the image cache {cache_folder()}: {error.strerror or error}; set ${CACHE_VARIABLE} "
            "to a folder"
        ) from error


def _entry(path: Path) -> Entry | None:
    """The entry at `path`; None where it has just been removed."""
    try:
        used, built, source, images = path.stat().st_mtime, 0.0, "", 0
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            built = (path / INDEX).stat().st_mtime
            index = json.loads((path / INDEX).read_text())
            source, images = str(index["source"]), int(index["shape"][0])
        return Entry(path, source, images, _size(path), built or used, used)
    except FileNotFoundError:
        return None


def _held() -> int:
    """Bytes of everything in the cache, also of what is being built."""
    return sum(map(_size, _children()))


def _size(folder: Path) -> int:
    total = 0
    for name in (PIXELS, INDEX):
        with contextlib.suppress(OSError):
            total += (folder / name).stat().st_size
    return total


def _free(path: Path) -> int:
    """Bytes free on the disk that `path` is on, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Holds the pixels of the entry at `path` alone; gives False where another has them."""
    with contextlib.ExitStack() as stack:
        alone = True
        try:
            handle = stack.enter_context((path / PIXELS).open("r+b"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another may have removed this file and built the entry anew, since it was opened here.
            alone = os.fstat(handle.fileno()).st_nlink > 0
        except (FileNotFoundError, IsADirectoryError):
            pass  # damaged: nobody can have it mapped
        except OSError:  # held, or not ours to write
            alone = False
        yield alone
