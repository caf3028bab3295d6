"""The images of a search: its training and validation splits, and what is known before they are read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tune_fusion.data import arrays, corrupt, splits
from tune_fusion.data.arrays import ARRAY_SETS, ArraySet, LabelledImages
from tune_fusion.data.cache import CachedImages, cached_images
from tune_fusion.data.catalogue import DATA_SETS, DataSetInfo, folder_path
from tune_fusion.data.folder import ImageFolder, scan
from tune_fusion.data.mapped import Source
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

__all__ = ["DATA_SETS", "DataFacts", "DataSetInfo", "ImageData", "Split", "describe_data", "load_data"]

_SMALLEST_SIDE, _LARGEST_SIDE = 4, 2048


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images of one part of the data.

    `images` may hold more than this part and may be memory-mapped: `rows` says which of them are meant.
    """

    images: Tensor
    """uint8 [M, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    rows: Tensor | None = None
    """int64 [N]: position in `images` of each labelled image; None: all of them, in order (M = N)."""
    source: Source | None = None
    """What `images` are, for copies in the cache; None: copies of them stay in this process."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> Tensor:
        """The images at `positions`, int64 [B] in 0..N-1: uint8 [B, C, H, W], in memory."""
        rows = positions if self.rows is None else self.rows[positions]
        return self.images.index_select(0, rows)


def joined(first: Split, second: Split) -> Split:
    """The labelled images of both, one after the other; copied only where they lie in different tensors."""
    labels = torch.cat([first.labels, second.labels])
    if first.images is second.images and first.rows is not None and second.rows is not None:
        return Split(first.images, labels, torch.cat([first.rows, second.rows]), first.source)
    return Split(torch.cat([part.take(torch.arange(len(part))) for part in (first, second)]), labels)


@dataclass(frozen=True)
class ImageData:
    """What a search may see of a data set. Test images are in neither split."""

    name: str
    classes: tuple[str, ...]
    """Names by label."""
    channels: int
    train: Split
    validation: Split
    fingerprint: str
    """64 hex digits: the same contents, classes, split and limit give the same on every machine; other
    skipped images give another one."""
    skipped: tuple[str, ...] = ()
    """The images left out because they cannot be decoded: ``path: reason``, in the order of their names."""


@dataclass(frozen=True)
class DataFacts:
    """A data set as far as it is known without reading pixels."""

    name: str
    classes: tuple[str, ...]
    channels: int
    train_images: int
    validation_images: int
    """Both before unreadable images are left out (``data.on_corrupt: skip``)."""
    test: str
    """Where the test images are, in words; the search never reads them."""


def describe_data(settings: DataSettings) -> DataFacts:
    """What `settings` ask for, without reading pixels or looking for the files of a known data set.

    Raises:
        InputError: unknown data set, folders that are no data set, or settings that the data cannot meet.
            Missing files are found by `check_provided`, damaged images by `load_data` only.
    """
    path = folder_path(settings.name)
    if path is not None:
        return _describe_folder(settings, scan(path, settings.test))
    data_set = ARRAY_SETS[settings.name]
    _check_statistics(settings, data_set.channels)
    images, classes = data_set.images, len(data_set.classes)
    held_out = 0 if data_set.test_images else splits.test_size(images, classes, settings.test)
    train, validation = splits.part_sizes(
        settings, classes=classes, images=images - held_out, given_validation=None
    )
    test = f"{held_out:,} images held out" if held_out else f"{data_set.test_images:,} images, official split"
    return DataFacts(settings.name, data_set.classes, data_set.channels, train, validation, test)


def check_provided(settings: DataSettings) -> None:
    """Make sure that the data are on this machine or can be downloaded; downloads nothing.

    Raises:
        InputError: the files are missing and out of reach; the message says which files to put where.
    """
    if folder_path(settings.name) is None:
        data_set = ARRAY_SETS[settings.name]
        arrays.require(data_set, settings, data_set.files)


def load_data(settings: DataSettings, *, seed: int, image_size: int) -> ImageData:
    """The training and validation images of `settings`, split by `seed`.

    They are cached once a machine (`tune_fusion.data.mapped`). Array data sets keep their own image size. The
    images of a folder are stored a little larger than `image_size` where they are larger; those that cannot
    be decoded end it or are left out, as ``on_corrupt`` says.

    Args:
        settings: the ``data`` section of a search.
        seed: of the training/validation split and of `limit`; the test part does not depend on it.
        image_size: side in pixels of the square images that the model sees, in [4, 2048].

    Raises:
        InputError: whatever is wrong with the data, naming the files, classes or values; nothing else is
            started then.
    """
    if not _SMALLEST_SIDE <= image_size <= _LARGEST_SIDE:
        raise InputError(
            f"data.image_size={image_size} is out of range: images have {_SMALLEST_SIDE} to {_LARGEST_SIDE} "
            "pixels a side"
        )
    path = folder_path(settings.name)
    if path is not None:
        return _load_folder(settings, scan(path, settings.test), seed, image_size)
    return _load_arrays(settings, ARRAY_SETS[settings.name], seed)


def _load_arrays(settings: DataSettings, data_set: ArraySet, seed: int) -> ImageData:
    _check_statistics(settings, data_set.channels)
    stored = arrays.read_training(data_set, settings)
    classes = len(data_set.classes)
    if not data_set.test_images:
        stored = stored.only(splits.hold_out(stored.labels, classes, settings.test))
    selection = splits.select(settings, stored.labels, None, classes=classes, seed=seed)
    return ImageData(
        name=settings.name,
        classes=data_set.classes,
        channels=data_set.channels,
        train=_split(stored, stored.labels, selection.train),
        validation=_split(stored, stored.labels, selection.validation),
        fingerprint=contents_fingerprint(
            data_set.classes, [stored.source.digest], stored.labels, selection.train, selection.validation
        ),
    )


def _describe_folder(settings: DataSettings, folder: ImageFolder) -> DataFacts:
    _check_statistics(settings, folder.channels)
    given = folder.validation
    train, validation = splits.part_sizes(
        settings,
        classes=len(folder.classes),
        images=len(folder.train.files),
        given_validation=None if given is None else len(given.files),
    )
    return DataFacts(settings.name, folder.classes, folder.channels, train, validation, folder.test)


def _load_folder(settings: DataSettings, folder: ImageFolder, seed: int, image_size: int) -> ImageData:
    _check_statistics(settings, folder.channels)
    train_part, validation_part = folder.train, folder.validation or folder.train
    selection = splits.select(
        settings,
        train_part.labels,
        None if folder.validation is None else validation_part.labels,
        classes=len(folder.classes),
        seed=seed,
    )
    chosen = [train_part.files[row] for row in selection.train]
    chosen += [validation_part.files[row] for row in selection.validation]
    labels = np.concatenate(
        [train_part.labels[selection.train], validation_part.labels[selection.validation]]
    )
    # In the order of their names, so that every split of the same images shares one cache entry.
    order = np.asarray(sorted(range(len(chosen)), key=chosen.__getitem__), dtype=np.int64)
    files = [chosen[row] for row in order]
    cached = cached_images(folder.path, files, image_size)
    # The split was drawn from all files, so that unreadable ones do not move the others between its parts.
    skipped = corrupt.skippable(settings, folder.path, files, cached.unreadable)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    trained = len(selection.train)
    sorted_labels = labels[order]
    train = corrupt.without(skipped, place[:trained], "training", sorted_labels, folder.classes)
    validation = corrupt.without(skipped, place[trained:], "validation", sorted_labels, folder.classes)
    return ImageData(
        name=settings.name,
        classes=folder.classes,
        channels=folder.channels,
        train=_split(cached, sorted_labels, train),
        validation=_split(cached, sorted_labels, validation),
        fingerprint=contents_fingerprint(folder.classes, cached.digests, sorted_labels, train, validation),
        skipped=tuple(skipped.values()),
    )


def _split(stored: LabelledImages | CachedImages, labels: splits.Rows, rows: splits.Rows) -> Split:
    return Split(stored.images, torch.from_numpy(labels[rows]), torch.from_numpy(rows), stored.source)


def contents_fingerprint(classes: tuple[str, ...], contents: Sequence[str], *parts: splits.Rows) -> str:
    """64 hex digits that stand for the class names, the contents' own digests and the arrays in `parts`."""
    digest = hashlib.sha256(json.dumps([classes, list(contents)]).encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def _check_statistics(settings: DataSettings, channels: int) -> None:
    """Raises InputError if ``data.mean`` or ``data.std`` cannot normalise images of so many channels."""
    statistics: Mapping[str, list[float] | None] = {"mean": settings.mean, "std": settings.std}
    for name, values in statistics.items():
        if values is None:
            continue
        if len(values) not in {1, channels}:
            raise InputError(
                f"data.{name} has {len(values)} values, but the images of {settings.name} have {channels} "
                f"channel{'s' * (channels > 1)}: give one value a channel, or a single one"
            )
        if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            rule = "finite and above 0" if name == "std" else "finite"
            raise InputError(f"data.{name}={values} must be {rule}: pixels count in [0, 1]")
