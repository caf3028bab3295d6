"""The test images: those that a search never sees, read once a run by its confirmation.

Only `tune_fusion.training.workbench` imports this module (a contract of import-linter), and only what
confirms finalists asks the workbench for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tune_fusion.data import arrays, corrupt, splits
from tune_fusion.data.arrays import ARRAY_SETS, ArraySet, LabelledImages
from tune_fusion.data.cache import cached_images
from tune_fusion.data.catalogue import folder_path
from tune_fusion.data.datasets import Split, contents_fingerprint
from tune_fusion.data.folder import listing, scan_test
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings


@dataclass(frozen=True)
class HeldOut:
    """The test images of a data set. Neither a search's seed nor ``data.limit`` change them."""

    split: Split
    fingerprint: str
    """64 hex digits: the same contents, labels and classes give the same on every machine."""
    skipped: tuple[str, ...] = ()
    """The images left out because they cannot be decoded: ``path: reason``, in the order of their names."""


def check_heldout(settings: DataSettings) -> int:
    """How many test images there are, as far as that is known without reading one.

    Raises:
        InputError: the data have no test part, or its files are neither here nor within reach; the message
            says what to put where.
    """
    path = folder_path(settings.name)
    if path is not None:
        return len(scan_test(path, settings.test)[1].files)
    data_set = ARRAY_SETS[settings.name]
    arrays.require(data_set, settings, data_set.test_files)
    if data_set.test_files:
        return data_set.test_images
    return splits.test_size(data_set.images, len(data_set.classes), settings.test)


def load_heldout(
    settings: DataSettings, *, classes: tuple[str, ...], image_size: int, size: tuple[int, int]
) -> HeldOut:
    """The test images of `settings`.

    Args:
        settings: the ``data`` section of the search. Its `limit` does not matter here, its `on_corrupt` does.
        classes: the names by label that the model was trained with; the test images must have the same.
        image_size: side in pixels of the square images that the model sees.
        size: height and width of the stored training images. Test images of other sizes are brought to it,
            so that the model sees both in the same way.

    Raises:
        InputError: as `check_heldout`; damaged files, and other classes than those of `classes`.
    """
    path = folder_path(settings.name)
    if path is None:
        return _load_arrays(settings, ARRAY_SETS[settings.name], classes)
    return _load_folder(settings, path.absolute(), classes, image_size, size)


def _load_arrays(settings: DataSettings, data_set: ArraySet, classes: tuple[str, ...]) -> HeldOut:
    _require_classes(settings, data_set.classes, classes)
    stored = _read(settings, data_set)
    return HeldOut(
        Split(stored.images, torch.from_numpy(stored.labels), source=stored.source),
        contents_fingerprint(classes, [stored.source.digest], stored.labels),
    )


def _read(settings: DataSettings, data_set: ArraySet) -> LabelledImages:
    if data_set.test_files:
        return arrays.read_test(data_set, settings)
    stored = arrays.read_training(data_set, settings)
    kept = splits.hold_out(stored.labels, len(data_set.classes), settings.test)
    return stored.only(np.setdiff1d(np.arange(len(stored.labels)), kept))


def _load_folder(
    settings: DataSettings, path: Path, classes: tuple[str, ...], image_size: int, size: tuple[int, int]
) -> HeldOut:
    found, part = scan_test(path, settings.test)
    _require_classes(settings, found, classes)
    cached = cached_images(path, part.files, image_size, size)
    skipped = corrupt.skippable(settings, path, part.files, cached.unreadable)
    rows = corrupt.without(skipped, np.arange(len(part.files)), "test", part.labels, classes)
    return HeldOut(
        Split(
            cached.images, torch.from_numpy(part.labels[rows]), torch.from_numpy(rows), source=cached.source
        ),
        contents_fingerprint(classes, cached.digests, part.labels, rows),
        tuple(skipped.values()),
    )


def _require_classes(settings: DataSettings, found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if found != wanted:
        raise InputError(
            f"data.name={settings.name}: the test images are of the classes {listing(found)}, but training "
            f"knew {listing(wanted)}: the data have changed; restore them, or search again"
        )
