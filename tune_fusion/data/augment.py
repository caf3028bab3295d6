"""From stored images to the model's input size, and random augmentation, on uint8 batches.

torchvision's v2 transforms draw one set of parameters for a whole batch tensor; here every image of a batch
gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tune_fusion import vision
from tune_fusion.data.boxes import cut_squares, random_boxes, resize_boxes
from tune_fusion.data.cache import stored_side

Apply = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """One way to augment training images."""

    apply: Apply
    """(uint8 [B, C, H, W], S, CPU generator) to uint8 [B, C, S, S]."""
    wants_room: bool
    """Whether it cuts its own S x S out of images that may be larger; else they come in that size."""


@dataclass(frozen=True)
class Geometry:
    """How images of one size are brought to the model's input size S, without chance.

    Images whose shorter side is at most S are resized so that it is S. Images with a shorter side of more
    than ``stored_side(S)`` are resized so that it is that. The centre square S x S is then cut out, unless an
    augmentation wants the room around it.
    """

    stored: tuple[int, int]
    """Height and width of the images as they are."""
    image_size: int
    keep_room: bool

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width after resizing."""
        shorter = min(self.stored)
        target = min(max(shorter, self.image_size), stored_side(self.image_size))
        if shorter == target:
            return self.stored
        height, width = (max(target, round(side * target / shorter)) for side in self.stored)
        return height, width

    @property
    def result(self) -> tuple[int, int]:
        """Height and width that `apply` gives."""
        return self.resized if self.keep_room else (self.image_size, self.image_size)

    @property
    def is_identity(self) -> bool:
        """True if `apply` changes nothing."""
        return self.result == self.stored

    def apply(self, images: Tensor) -> Tensor:
        """uint8 [B, C, *stored] to uint8 [B, C, *result]."""
        if self.resized != self.stored:
            images = vision.v2.functional.resize(images, list(self.resized), antialias=True)
        return images if self.keep_room else _centre(images, self.image_size)


def scoped_generator(*words: int) -> torch.Generator:
    """A CPU generator whose stream depends on `words` (each >= 0), and on nothing else."""
    state = 0x9E3779B97F4A7C15
    for word in words:  # splitmix64: neighbouring seeds and epochs give unrelated streams
        state = (state + word * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = _coin(len(images), generator)
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, (torch.arange(len(images)) + len(images) * mirrored).to(images.device))


def _coin(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < 0.5


def _none(images: Tensor, _size: int, _generator: torch.Generator) -> Tensor:
    return images


def _flip(images: Tensor, _size: int, generator: torch.Generator) -> Tensor:
    return flip(images, generator)


def _crop_flip(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    if min(images.shape[-2:]) <= size:
        images = torch.nn.functional.pad(images, [max(1, size // 8)] * 4)
    height, width = images.shape[-2:]
    tops = torch.randint(height - size + 1, (len(images),), generator=generator)
    lefts = torch.randint(width - size + 1, (len(images),), generator=generator)
    return flip(cut_squares(images, tops, lefts, size), generator)


def _resized_crop(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    height, width = images.shape[-2:]
    boxes = random_boxes(len(images), height, width, generator)
    return resize_boxes(images, boxes, _coin(len(images), generator), size)


def _trivial(images: Tensor, _size: int, generator: torch.Generator) -> Tensor:
    return _one_by_one(vision.v2.TrivialAugmentWide(), flip(images, generator), generator)


def _one_by_one(transform: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a torchvision transform to each image on its own.

    These transforms draw from torch's global CPU generator, which is put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed the accelerators too, which are not put back.
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.default_generator.manual_seed(seed)
        return torch.stack([transform(image) for image in images])


def _centre(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)  # as torchvision rounds
    return images[..., top : top + size, left : left + size]


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "none": Augmentation(_none, wants_room=False),
        "flip": Augmentation(_flip, wants_room=False),
        "crop_flip": Augmentation(_crop_flip, wants_room=True),
        "resized_crop": Augmentation(_resized_crop, wants_room=True),
        "trivial": Augmentation(_trivial, wants_room=False),
    }
)
"""Augmentation by the name that ``data.augment`` takes.

- ``none``: the image as it is.
- ``flip``: mirrored left to right with probability 1/2.
- ``crop_flip``: a square S x S cut out at random, then ``flip``. Where the shorter side is S already, S/8
  black pixels are added on each side first, as is usual for CIFAR (He et al. 2016, section 4.2).
- ``resized_crop``: torchvision's RandomResizedCrop with its defaults (Szegedy et al. 2015), then ``flip``.
- ``trivial``: ``flip``, then torchvision's TrivialAugmentWide (Müller & Hutter 2021).
"""
