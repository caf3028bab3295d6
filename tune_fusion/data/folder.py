"""Class folders: which images a folder holds, by part and class, without opening any of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tune_fusion.data import splits
from tune_fusion.data.splits import Rows
from tune_fusion.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
"""Endings of the files that count as images, in lower case; every other file is ignored."""
_ENDINGS = tuple(SUFFIXES)

_TRAIN = "train"
_VALIDATIONS = ("val", "validation", "valid")
_TEST = "test"
_NAMED = 5


@dataclass(frozen=True)
class Part:
    """The images of one part, in the order of their names."""

    files: tuple[str, ...]
    """Paths relative to the data set's folder, with forward slashes."""
    labels: Rows
    """int64 [N]."""


@dataclass(frozen=True)
class ImageFolder:
    """A data set of class folders. Files of the test part are not listed."""

    path: Path
    classes: tuple[str, ...]
    """Names by label, in alphabetical order."""
    train: Part
    """The images that may train; where `validation` is None some of them will validate."""
    validation: Part | None
    test: str
    """Where the test images are, in words."""
    channels: int = 3
    """Grey images are read as colour images too."""


def scan(path: Path, test_fraction: float) -> ImageFolder:
    """List the images below `path`.

    Two layouts are known. With a folder ``train`` of class folders: ``train/CLASS/...``, beside it
    ``val`` (or ``validation``, ``valid``) with the same classes, and ``test``, which is left alone; without
    ``val`` the validation images come from ``train``. Otherwise one tree: ``CLASS/...``, of which a
    stratified part, `test_fraction`, the same in every search, is held out as test data. A class folder may
    hold folders. Names that begin with a dot are ignored.

    Raises:
        InputError: `path` cannot be read or is no such folder; a class without images, with too few of them
            or missing from a part; a single class.
    """
    path = path.absolute()
    with _readable(path):
        names = _folders(path)
        if _TRAIN in names and _folders(path / _TRAIN):
            return _scan_parts(path, names)
        return _scan_tree(path, names, test_fraction)


def scan_test(path: Path, test_fraction: float) -> tuple[tuple[str, ...], Part]:
    """The classes, and the test images below `path`: those that `scan` leaves out. Opens none of them.

    Raises:
        InputError: as `scan`; images sorted into parts without ``test`` among them, or other classes in it.
    """
    path = path.absolute()
    with _readable(path):
        names = _folders(path)
        if _TRAIN in names and _folders(path / _TRAIN):
            return _scan_test_part(path, names)
        everything, kept = _divide_tree(path, names, test_fraction)
    return tuple(names), _chosen(everything, np.setdiff1d(np.arange(len(everything.files)), kept))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """An error of the system inside becomes one that a user can act on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"data.name=folder:{path}: cannot read {error.filename or path}: {error.strerror}"
        ) from error


def _scan_parts(path: Path, names: list[str]) -> ImageFolder:
    found = [name for name in _VALIDATIONS if name in names]
    if len(found) > 1:
        raise _unusable(
            path, f"has {len(found)} folders of validation images ({', '.join(found)}): keep one of them"
        )
    train_classes = _folders(path / _TRAIN)
    per_class = 1 if found else 2
    train = _read_part(path, f"{_TRAIN}/", train_classes, needs=per_class)
    validation = None
    if found:
        classes = _folders(path / found[0])
        if not classes:
            raise _unusable(
                path, f"has no class folders in {found[0]}: sort its images into one folder a class"
            )
        _require_same_classes(path, found[0], train_classes, classes)
        validation = _read_part(path, f"{found[0]}/", classes, needs=1)
    test = f"{path / _TEST}, left unread" if _TEST in names else f"none: {path} has no folder {_TEST!r}"
    return ImageFolder(path, tuple(train_classes), train, validation, test)


def _scan_test_part(path: Path, names: list[str]) -> tuple[tuple[str, ...], Part]:
    classes = _folders(path / _TEST) if _TEST in names else []
    if not classes:
        raise _unusable(
            path,
            f"has no test images: it has {_TRAIN}, so they must be in {path / _TEST}, in the same class "
            f"folders as in {_TRAIN}; images that neither train nor validate have to be put there",
        )
    _require_same_classes(path, _TEST, _folders(path / _TRAIN), classes)
    return tuple(classes), _read_part(path, f"{_TEST}/", classes, needs=1)


def _scan_tree(path: Path, names: list[str], test_fraction: float) -> ImageFolder:
    everything, kept = _divide_tree(path, names, test_fraction)
    held_out = len(everything.files) - len(kept)
    return ImageFolder(
        path, tuple(names), _chosen(everything, kept), None, f"{held_out:,} images held out, left unread"
    )


def _divide_tree(path: Path, names: list[str], test_fraction: float) -> tuple[Part, Rows]:
    """All images of one tree, and the positions of those that are not held out."""
    parts = [name for name in names if name in {_TEST, *_VALIDATIONS}]
    if parts and len(parts) >= len(names) - 1:
        raise _unusable(path, f"has {' and '.join(parts)} but no folder {_TRAIN!r} with class folders in it")
    everything = _read_part(path, "", names, needs=3)
    return everything, splits.hold_out(everything.labels, len(names), test_fraction)


def _chosen(part: Part, rows: Rows) -> Part:
    return Part(tuple(part.files[row] for row in rows), part.labels[rows])


def _folders(path: Path) -> list[str]:
    """Names of the folders in `path`, in alphabetical order."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _read_part(path: Path, prefix: str, classes: list[str], *, needs: int) -> Part:
    """List the images of the class folders in ``path/prefix``; each class must have `needs` of them."""
    place = path / prefix
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise _unusable(path, f"needs at least two class folders with images in {place}, found {found}")
    files: list[str] = []
    counts = []
    for name in classes:
        listed = sorted(images_below(place / name))
        files += [f"{prefix}{name}/{inner}" for inner in listed]
        counts.append(len(listed))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise _unusable(
            path,
            f"has no image in {listing(str(place / name) for name in empty)}: add images or remove it "
            f"(images end in {', '.join(sorted(SUFFIXES))})",
        )
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < needs]
    if few:
        roles = {2: "training and validation", 3: "training, validation and test"}[needs]
        raise _unusable(path, f"has fewer than {needs} images, one each for {roles}, in class {listing(few)}")
    return Part(tuple(files), np.repeat(np.arange(len(classes)), counts))


def images_below(folder: Path) -> Iterator[str]:
    """Paths of all images below `folder`, relative to it. Follows links, but into no folder twice."""
    visited: set[Path] = set()
    pending = [""]
    while pending:
        inner = pending.pop()
        current = folder / inner
        real = current.resolve()
        if real in visited:
            continue
        visited.add(real)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(f"{inner}{entry.name}/")
                elif entry.name.lower().endswith(_ENDINGS):
                    yield inner + entry.name


def _require_same_classes(path: Path, part: str, train: list[str], other: list[str]) -> None:
    problems = []
    if absent := sorted(set(train) - set(other)):
        problems.append(f"{part} lacks class {listing(absent)}")
    if extra := sorted(set(other) - set(train)):
        problems.append(f"{_TRAIN} lacks class {listing(extra)}")
    if problems:
        raise _unusable(
            path, f"needs the same class folders in {_TRAIN} and {part}, but {'; '.join(problems)}"
        )


def listing(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def _unusable(path: Path, problem: str) -> InputError:
    return InputError(f"data.name=folder:{path} {problem}")
