"""The image files of a folder, decoded once a machine into the cache (`tune_fusion.data.mapped`).

Which images cannot be decoded is part of the entry; what becomes of them is not decided here
(`tune_fusion.data.corrupt`). An image therefore turns out to be unreadable when its entry is opened or
written, which is before the first epoch of a process, and never later.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tune_fusion.data.mapped import Source, mapped, name_of_files, new_images
from tune_fusion.errors import InputError

ROOM = 1.15
"""Stored images are this much larger than the model's input, so that random crops have room to move."""

_VERSION = 3  # of decoding and layout: raise it when either changes
_CHANNELS = 3
# Pillow goes by the content of a file, whatever its name. Of all its formats one runs a program (EPS:
# Ghostscript), and few are ever needed: these are those of `folder.SUFFIXES`.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
# What Pillow's readers raise on files that are damaged or no images at all.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
# Why a file itself cannot be read. Mending that changes the entry's name, so the entry may remember it.
_FAULTS_OF_THE_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class CachedImages:
    """Decoded images in the order they were asked for."""

    images: Tensor
    """uint8 [N, 3, H, W], memory-mapped; black where the file could not be decoded."""
    digests: tuple[str, ...]
    """SHA-256 of each file's content; empty where it could not be decoded."""
    unreadable: Mapping[str, str]
    """The files that could not be decoded, in the order they were asked for, each with the reason."""
    source: Source


class _MixedSizesError(Exception):
    """An image has another size than the first one."""


def stored_side(image_size: int) -> int:
    """Side in pixels of the stored squares for models that see `image_size`."""
    return round(image_size * ROOM)


def cached_images(
    root: Path, files: Sequence[str], image_size: int, size: tuple[int, int] | None = None
) -> CachedImages:
    """The images `files` below `root`, from the cache; decoded into it first if they are not there.

    Images of one common size that is no larger than `stored_side` keep it. Otherwise the shorter side of
    each image is resized to `stored_side` and its centre square is cut out. Photographs are turned upright
    as their EXIF data say; grey and palette images become colour images.

    Args:
        root: absolute path of the data set.
        files: paths relative to `root`.
        image_size: side in pixels of the square images that the model sees.
        size: height and width in which all are wanted, whatever sizes they have: that of other images of the
            data set, so that these are brought to the model's input size in the same way.

    Raises:
        InputError: a cache that cannot be written, or a disk or network that fails while images are read.
            Files that are gone, forbidden or damaged are no error: see `CachedImages.unreadable`.
    """
    side = stored_side(image_size)
    name = name_of_files(root, files, _VERSION, size or side)

    def read(images: Tensor, index: Mapping[str, Any]) -> CachedImages:
        digests = tuple(index["digests"])
        if len(digests) != len(images):
            raise ValueError("not one digest an image")
        return CachedImages(images, digests, dict(index["unreadable"]), Source(str(root), name))

    return mapped(name, read, lambda folder: _decode_all(folder, root, files, side, size))


def _decode_all(
    folder: Path, root: Path, files: Sequence[str], side: int, wanted: tuple[int, int] | None
) -> dict[str, object]:
    """Decode every file into the entry being written in `folder`; returns its index."""
    native = _common_size(root, files, side) if wanted is None else None
    if native is not None:
        try:
            return _decode_into(folder, root, files, native, fit=False)
        except _MixedSizesError:
            pass
    return _decode_into(folder, root, files, wanted or (side, side), fit=True)


def _common_size(root: Path, files: Sequence[str], side: int) -> tuple[int, int] | None:
    """(height, width) of the first image that can be decoded, if it may be kept; else None."""
    for name in files:
        try:
            with Image.open(root / name, formats=_FORMATS) as image:
                # Decodes it: the size that a damaged file announces must not decide about the others.
                width, height = ImageOps.exif_transpose(image).size
        except _DECODING_ERRORS:
            continue
        return (height, width) if max(height, width) <= side else None
    return None


def _decode_into(
    folder: Path, root: Path, files: Sequence[str], size: tuple[int, int], *, fit: bool
) -> dict[str, object]:
    shape = (len(files), _CHANNELS, *size)
    digests = [""] * len(files)
    reasons: dict[int, str] = {}
    mixed = threading.Event()
    with new_images(folder, shape, str(root)) as pixels:

        def decode(row: int) -> None:
            if mixed.is_set():
                return
            try:
                content = (root / files[row]).read_bytes()
                pixels[row] = decode_image(content, size, fit=fit)
                digests[row] = hashlib.sha256(content).hexdigest()
            except _MixedSizesError:
                mixed.set()
            except _DECODING_ERRORS as error:
                reasons[row] = _reason(error, root / files[row])

        _in_threads(decode, range(len(files)))
        if mixed.is_set():
            raise _MixedSizesError
    return {
        "source": str(root),
        "shape": shape,
        "unreadable": {files[row]: reasons[row] for row in sorted(reasons)},
        "digests": digests,
    }


def _in_threads(work: Callable[[int], None], rows: range) -> None:
    """Run `work` on every row; Pillow decodes and resizes without holding the interpreter's lock."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def run(first: int) -> None:
        for row in rows[first::workers]:
            work(row)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(run, range(workers)):
            pass


def decode_image(content: bytes, size: tuple[int, int], *, fit: bool) -> NDArray[np.uint8]:
    """One image file's content as uint8 [3, *size].

    `fit`: it is resized to cover `size` and cut to it about its centre; else it must have that size.
    """
    if not content:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
        if fit:
            # JPEG files decode faster at a half, quarter or eighth of their size; never below `size`, even
            # where they are turned afterwards.
            opened.draft(None, (max(size), max(size)))
        image = ImageOps.exif_transpose(opened)
        image = to_colour(image)
    if fit:
        image = fit_image(image, size)
    elif (image.height, image.width) != size:
        raise _MixedSizesError
    return np.asarray(image).transpose(2, 0, 1)


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image file at `path`, decoded and fitted as `cached_images` does: uint8 [3, *size].

    Raises:
        InputError: it cannot be read, or is no image.
    """
    try:
        return decode_image(path.read_bytes(), size, fit=True)
    except _DECODING_ERRORS as error:
        raise InputError(f"{path}: {_reason(error, path)}") from error


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized to cover `size` (height, width), and cut to it about its centre."""
    return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)


def to_colour(image: Image.Image) -> Image.Image:
    """The image in RGB; ValueError for pixels of more than 16 bits."""
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey values at 255; keep their upper eight bits instead.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {image.mode} are not supported: convert it to 8 bits a channel")
    return image.convert("RGB")


def _reason(error: Exception, path: Path) -> str:
    """Why `path` cannot be decoded.

    Raises InputError where the machine is to blame: the next attempt, or another node, may read the file, and
    nothing is left out of a search because a disk did not answer once.
    """
    if isinstance(error, OSError) and error.strerror:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise InputError(
                f"{path} cannot be read at the moment: {error.strerror}; see to the machine's disk or "
                "network, or remove the file, and run again"
            ) from error
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "no image that can be read"
    return str(error) or type(error).__name__
