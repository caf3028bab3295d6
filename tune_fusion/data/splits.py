"""Stratified splits: which images train, which validate, which are held out as test data.

Random choices come from the raw stream of NumPy's PCG64, which NumPy guarantees to stay the same: a seed
gives the same split on every machine and with every version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

Rows = NDArray[np.int64]

# The test part must be the same in every search and every confirmation, whatever their seeds.
_TEST_SEED = 20_230_523
_TEST, _VALIDATION, _LIMIT = range(3)


@dataclass(frozen=True)
class Selection:
    """Positions of the training images, and of the validation images, in their label arrays; ascending."""

    train: Rows
    validation: Rows


def allocate(counts: NDArray[np.int64], total: int, *, leave: int = 0) -> NDArray[np.int64]:
    """How many of `total` images each class gives: in proportion to its images, and at least one.

    Args:
        counts: int64 [classes], the images of each class.
        total: images to hand out, in [classes, sum(counts) - leave * classes].
        leave: images that must remain in every class.

    Returns:
        int64 [classes] that sums to `total`. Each entry lies within one image of its exact share, unless the
        share of some class or what remains of it would be less than one image.
    """
    shares = counts * (total / counts.sum())
    given: NDArray[np.int64] = np.clip(np.floor(shares).astype(np.int64), 1, counts - leave)
    while (missing := total - int(given.sum())) != 0:
        step = 1 if missing > 0 else -1
        open_ = np.flatnonzero(given < counts - leave if step > 0 else given > 1)
        due = (shares - given)[open_] * step
        chosen = open_[np.argsort(-due, kind="stable")[: abs(missing)]]
        given[chosen] += step
    return given


def hold_out(labels: Rows, classes: int, fraction: float) -> Rows:
    """Positions of the images that stay for training and validation once the test part is set aside.

    The test part is stratified and the same for every seed. Every class needs three images.
    """
    counts = np.bincount(labels, minlength=classes)
    given = allocate(counts, test_size(len(labels), classes, fraction), leave=2)
    return np.setdiff1d(np.arange(len(labels)), _draw(labels, given, _TEST_SEED, _TEST))


def test_size(images: int, classes: int, fraction: float) -> int:
    """Images of the test part: the fraction of all, at least one a class.

    Raises:
        InputError: fewer than two images a class would remain.
    """
    size = max(round(images * fraction), classes)
    if size > images - 2 * classes:
        raise InputError(
            f"data.test={fraction:g} of {images:,} images leaves {images - size:,} for training and "
            f"validation, but {classes} classes need at least {2 * classes}: use a smaller data.test"
        )
    return size


def part_sizes(
    settings: DataSettings, *, classes: int, images: int, given_validation: int | None
) -> tuple[int, int]:
    """How many images train and how many validate.

    Args:
        settings: its `validation` and `limit` decide.
        classes: number of classes; every part holds at least one image of each.
        images: images that may train (and validate, where no validation images are given).
        given_validation: images of the data set's own validation split; None if it has none. A fraction in
            `settings.validation` then leaves them all, a number takes that many of them.

    Returns:
        (training images, validation images), both after `limit`.

    Raises:
        InputError: the parts cannot be had from so many images.
    """
    train, validation = _unlimited_sizes(settings, classes, images, given_validation)
    limit = settings.limit
    if limit is None or limit >= train:
        return train, validation
    if limit < classes:
        raise InputError(
            f"data.limit={limit} cannot hold one image of each of the {classes} classes: "
            f"use at least {classes}"
        )
    if isinstance(settings.validation, float):
        validation = max(round(validation * limit / train), classes)
    return limit, validation


def _unlimited_sizes(
    settings: DataSettings, classes: int, images: int, given_validation: int | None
) -> tuple[int, int]:
    wanted = settings.validation
    if given_validation is not None and isinstance(wanted, float):
        return images, given_validation
    if isinstance(wanted, int) and wanted < classes:
        raise InputError(
            f"data.validation={wanted} cannot hold one image of each of the {classes} classes: "
            f"use at least {classes}, or a fraction"
        )
    size = wanted if isinstance(wanted, int) else max(round(images * wanted), classes)
    largest = images - classes if given_validation is None else given_validation
    if size > largest:
        source = (
            "validation images of its own" if given_validation is not None else "images that may validate"
        )
        raise InputError(
            f"data.validation={wanted:g} asks for {size:,} images, but the data set has {largest:,} {source}"
            + (f" (of {images:,}; one of each class must train)" if given_validation is None else "")
        )
    return (images if given_validation is not None else images - size), size


def select(
    settings: DataSettings, labels: Rows, given_validation: Rows | None, *, classes: int, seed: int
) -> Selection:
    """The training and validation images under `settings` and `seed`, stratified by class.

    With one seed, the images under a ``limit`` are among those without it.

    Args:
        settings: its `validation` and `limit` decide.
        labels: int64 [N] of the images that may train.
        given_validation: int64 [M] of the data set's own validation split, or None to split `labels`.
        classes: number of classes.
        seed: any integer >= 0.

    Returns:
        Positions in `labels`, and in `given_validation` where it is given (else in `labels`).

    Raises:
        InputError: too few images, as `part_sizes`.
    """
    available = None if given_validation is None else len(given_validation)
    unlimited = settings.model_copy(update={"limit": None})
    train_size, validation_size = part_sizes(
        settings, classes=classes, images=len(labels), given_validation=available
    )
    _, full_validation = part_sizes(
        unlimited, classes=classes, images=len(labels), given_validation=available
    )
    train = np.arange(len(labels))
    if given_validation is None:
        given_validation = labels
        validation = _subset(labels, train, full_validation, seed, _VALIDATION, leave=1)
        train = np.setdiff1d(train, validation)
    else:
        validation = _subset(
            given_validation, np.arange(len(given_validation)), full_validation, seed, _VALIDATION
        )
    return Selection(
        train=_subset(labels, train, train_size, seed, _LIMIT),
        validation=_subset(given_validation, validation, validation_size, seed, _LIMIT),
    )


def _subset(labels: Rows, rows: Rows, size: int, seed: int, purpose: int, *, leave: int = 0) -> Rows:
    """`size` of `rows`, stratified by their labels; `rows` itself where that is all of them."""
    if size == len(rows):
        return rows
    mine = labels[rows]
    counts = np.bincount(mine)
    return rows[_draw(mine, allocate(counts, size, leave=leave), seed, purpose)]


def _draw(labels: Rows, given: NDArray[np.int64], seed: int, purpose: int) -> Rows:
    """Positions of the first `given[c]` images of every class c, in the random order of (seed, purpose)."""
    keys = np.random.PCG64([purpose, seed]).random_raw(len(labels))
    order = np.lexsort((keys, labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=len(given)))[:-1]])
    rank = np.arange(len(labels)) - starts[labels[order]]
    return np.sort(order[rank < given[labels[order]]])
