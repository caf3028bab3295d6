"""Batches: images resized, augmented and normalised, in an order that depends on seed and epoch only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tune_fusion.data.augment import AUGMENTATIONS, Choices, Geometry, scoped_generator
from tune_fusion.data.datasets import Split
from tune_fusion.data.feeding import ahead
from tune_fusion.data.mapped import mapped, name_of, new_images
from tune_fusion.errors import InputError, suggest

# Resized images are kept up to the first of these sizes (above the second in the cache), and images of any
# kind on an accelerator up to the third.
_KEPT_BYTES = 512 * 2**20
_OWN_BYTES = 8 * 2**20
_RESIDENT_BYTES = 2**30
_CHUNK = 1024
# On a CPU so many values of pixels are gone through at once: as floats they fit its cache.
_PART_PIXELS = 2**20

_SHUFFLE, _AUGMENT = range(2)
# What `_prepare` made of each split, so that trial after trial of one process finds it ready. Holds no split
# that it is a key for: that one would never be freed.
_prepared: WeakKeyDictionary[Split, dict[tuple[Geometry, torch.device], tuple[Split, bool]]] = (
    WeakKeyDictionary()
)


class Batches:
    """The batches of one split for one trial, epoch after epoch.

    Order and augmentation of an epoch depend on `seed` and its number alone (the order not even on
    `batch_size`), and torch's global random state is neither used nor changed: a resumed trial sees the
    batches it would have seen, and all trials of one seed see the same.

    Images are brought to size by `tune_fusion.data.augment.Geometry`; augmentation works on their uint8
    pixels, each image with its own random choices. Pixels then count in [0, 1] and are normalised as
    ``(pixel - mean) / std``.

    Args:
        split: the labelled images, C channels.
        batch_size: images a batch, at least 1. The last batch of an epoch may be smaller.
        image_size: side S of the square images that the model sees, in pixels.
        mean: one value a channel, or a single one for all.
        std: the same, above 0.
        augment: none, flip, crop_flip, resized_crop or trivial (`tune_fusion.data.augment`).
        shuffle: True for training: a new order each epoch, and a last batch of a single image is left out,
            because batch normalisation cannot train on one value a channel. False: the split's order, and
            every image.
        seed: any integer in [0, 2**63).
        device: where batches are wanted. On an accelerator small splits stay resident as uint8, others
            are copied batch by batch.
        channels_last: memory format of the images.

    Raises:
        ValueError: a value outside the ranges above.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: str = "none",
        shuffle: bool,
        seed: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"unknown augment {augment!r}; {suggest(augment, AUGMENTATIONS)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {list(std)}")
        self._augmentation = AUGMENTATIONS[augment]
        self._device = device
        height, width = split.images.shape[-2:]
        self._geometry = Geometry((height, width), image_size, self._augmentation.wants_room)
        self._split, self._ready = _prepare(split, self._geometry, device)
        channels = split.images.shape[1]
        std_ = torch.tensor(_per_channel("std", std, channels), dtype=torch.float64)
        mean_ = torch.tensor(_per_channel("mean", mean, channels), dtype=torch.float64)
        # In full size where channels come last: the batch is gone through in one run then, and not by pixels.
        full = (channels, image_size, image_size) if channels_last else (channels, 1, 1)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._scale = self._constant(1 / (255 * std_), full)
        self._shift = self._constant(-mean_ / std_, full)
        self._batch_size = batch_size
        self._at_once = batch_size
        if device.type == "cpu":
            largest = max(math.prod(self._split.images.shape[-2:]), image_size**2)
            self._at_once = max(1, min(batch_size, _PART_PIXELS // (channels * largest)))
        self._image_size = image_size
        self._shuffle = shuffle
        self._seed = seed

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._starts())

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number`: float32 [B, C, S, S] and int64 [B], on the device."""
        home = self._split.labels.device
        order = torch.arange(len(self._split))
        if self._shuffle:
            order = torch.randperm(len(order), generator=scoped_generator(self._seed, number, _SHUFFLE))
        order = order.to(home)
        labels = self._split.labels[order].to(self._device)
        taken = self._take(order)
        if self._split.images.device.type != self._device.type:
            taken = ahead(taken)
        for batch, start in enumerate(self._starts()):
            mine = labels[start : start + self._batch_size]
            generator = scoped_generator(self._seed, number, _AUGMENT, batch)
            choices = self._augmentation.draw(len(mine), self._geometry.result, self._image_size, generator)
            shape = (len(mine), self._split.images.shape[1], self._image_size, self._image_size)
            images = torch.empty(shape, device=self._device, memory_format=self._layout)
            for part in self._parts(len(mine)):
                self._finish(next(taken), choices, part, images[part])
            yield images, mine

    def _parts(self, count: int) -> list[slice]:
        """The parts of a batch of `count` images that are gone through one after the other."""
        return [slice(first, first + self._at_once) for first in range(0, count, self._at_once)]

    def _take(self, order: Tensor) -> Iterator[Tensor]:
        """The stored images, part after part of each batch; in memory that an accelerator can read from."""
        for start in self._starts():
            batch = order[start : start + self._batch_size]
            for part in self._parts(len(batch)):
                pixels = self._split.take(batch[part])
                pinned = self._device.type == "cuda" and pixels.device.type == "cpu"
                yield pixels.pin_memory() if pinned else pixels

    def _starts(self) -> range:
        images = len(self._split)
        alone = self._shuffle and self._batch_size > 1 and images % self._batch_size == 1
        return range(0, images - alone, self._batch_size)

    def _constant(self, values: Tensor, shape: tuple[int, int, int]) -> Tensor:
        constant = values.to(torch.float32).view(1, -1, 1, 1).expand(1, *shape)
        return constant.contiguous(memory_format=self._layout).to(self._device)

    def _finish(self, pixels: Tensor, choices: Choices, part: slice, result: Tensor) -> None:
        """Fill `result` with what the model sees of the stored images `pixels`."""
        pixels = pixels.to(self._device, non_blocking=True)
        if not self._ready:
            pixels = self._geometry.apply(pixels)
        floats = choices(pixels, part).to(torch.float32, memory_format=self._layout)
        torch.addcmul(self._shift, floats, self._scale, out=result)


def _prepare(split: Split, geometry: Geometry, device: torch.device) -> tuple[Split, bool]:
    """What batches are best taken from, and whether `geometry` has been applied to it already."""
    known = _prepared.setdefault(split, {})
    if (geometry, device) not in known:
        fitted = _fit(split, geometry)
        made = split if fitted is None else fitted
        if device.type != "cpu" and len(made) * math.prod(made.images.shape[1:]) <= _RESIDENT_BYTES:
            made = _move(made, device)
        if made is split:
            return split, fitted is not None
        known[geometry, device] = made, fitted is not None
    return known[geometry, device]


def _fit(split: Split, geometry: Geometry) -> Split | None:
    """The split with `geometry` applied to its images; None: that is left to its batches."""
    if geometry.is_identity:
        return split
    resized = split if geometry.resized == geometry.stored else _resize(split, geometry)
    if resized is None:
        return None
    # What is cut off stays where it lies: this is a view.
    return Split(geometry.cut(resized.images), resized.labels, resized.rows)


def _resize(split: Split, geometry: Geometry) -> Split | None:
    """The split with its images in another size; None where they are too large to be kept.

    They come from the cache, except for so small ones that each process may have its own.
    """
    rows = torch.arange(len(split)) if split.rows is None else split.rows
    rows, places = torch.unique(rows, return_inverse=True)  # in one order, whatever that of the split
    shape = (len(rows), split.images.shape[1], *geometry.resized)
    if math.prod(shape) > _KEPT_BYTES:
        return None

    def fill(images: Tensor) -> Tensor:
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            images[part] = geometry.resize(split.images.index_select(0, rows[part]))
        return images

    if split.source is None or math.prod(shape) <= _OWN_BYTES:
        return Split(fill(torch.empty(shape, dtype=torch.uint8)), split.labels, places)
    height, width = geometry.resized
    source = f"{split.source.name}, resized to {height}x{width}"

    def write(entry: Path) -> Mapping[str, object]:
        with new_images(entry, shape, source) as pixels:
            fill(torch.from_numpy(pixels))
        return {"source": source, "shape": shape}

    chosen = hashlib.sha256(rows.numpy()).hexdigest()
    name = name_of("resized", torch.__version__, split.source.digest, chosen, shape)
    try:
        return Split(mapped(name, lambda images, _: images, write), split.labels, places)
    except InputError:  # the cache has no room for them, or may only be read
        return None


def _move(split: Split, device: torch.device) -> Split:
    images = split.take(torch.arange(len(split)))
    return Split(images.to(device), split.labels.to(device))


def _per_channel(name: str, values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in {1, channels}:
        raise ValueError(f"{name} needs 1 or {channels} values, got {list(values)}")
    return list(values) * (channels if len(values) == 1 else 1)
