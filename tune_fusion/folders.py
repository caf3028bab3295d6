"""Folders: the cache, and those that a command is going to make, checked before hours are spent for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tune_fusion.errors import InputError

CACHE_VARIABLE = "TUNE_FUSION_CACHE"


def cache_root() -> Path:
    """Where what can be made again is kept: $TUNE_FUSION_CACHE, else ``~/.cache/tune_fusion``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/tune_fusion").expanduser()


def new_folder(path: Path, place: str, name_place: str | None = None) -> Path:
    """The absolute form of `path`, which does not exist yet and can be made. Makes nothing.

    Raises InputError where it cannot be made, starting with `place` (such as ``--storage runs``), and where
    it exists already, starting with `name_place` if its last part was given apart.
    """
    try:
        folder = path.expanduser().resolve()
        taken = folder.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{place}: cannot be used as a folder: {reason}") from error
    if taken:
        raise InputError(
            f"{name_place or place}: {folder} exists already and is never overwritten; choose another name"
        )
    check_makeable(folder, place)
    return folder


def check_makeable(folder: Path, place: str) -> None:
    """InputError, starting with `place`, where `folder`, which is not there, cannot be made.

    Makes nothing.
    """
    try:
        existing = next(parent for parent in folder.parents if parent.exists())
    except OSError as error:
        raise InputError(f"{place}: cannot be used as a folder: {error.strerror or error}") from error
    if not existing.is_dir():
        raise InputError(f"{place}: {existing} is not a folder")
    try:
        # The one sure test: permissions alone say nothing of read-only and special file systems.
        Path(tempfile.mkdtemp(prefix=".tune_fusion-", dir=existing)).rmdir()
    except OSError as error:
        raise InputError(
            f"{place}: {existing} is not writable ({error.strerror or error}); choose another folder"
        ) from error
