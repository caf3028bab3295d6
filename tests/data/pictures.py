"""Small pictures for the tests of this folder."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MakeFolder = Callable[[dict[str, int]], Path]


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """A smooth random picture: JPEG keeps it well."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_picture(path: Path, seed: int = 0, width: int = 12, height: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, width, height).save(path)


def jpeg_bytes(width: int = 12, height: int = 12) -> bytes:
    buffer = io.BytesIO()
    picture(7, width, height).save(buffer, "JPEG")
    return buffer.getvalue()


def touch_later(path: Path) -> None:
    """Move the file's modification time by a second."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
