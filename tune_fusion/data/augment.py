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

Choices = Callable[[Tensor, slice], Tensor]
"""The random choices for a batch of B images, ready to be applied to one part of it after the other: from
uint8 [b, C, H, W] and its place in the batch to uint8 [b, C, S, S]."""


@dataclass(frozen=True)
class Augmentation:
    """One way to augment training images."""

    draw: Callable[[int, tuple[int, int], int, torch.Generator], Choices]
    """From B, height and width of the images, S and a CPU generator. The choices do not depend on the parts
    that they are applied to, as long as these come in order."""
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
        return self.cut(self.resize(images))

    def resize(self, images: Tensor) -> Tensor:
        """The first half of `apply`: uint8 [B, C, *stored] to uint8 [B, C, *resized]."""
        if self.resized == self.stored:
            return images
        resized: Tensor = vision.v2.functional.resize(images, list(self.resized), antialias=True)
        return resized

    def cut(self, images: Tensor) -> Tensor:
        """The second half: a view of uint8 [B, C, *resized] as uint8 [B, C, *result]."""
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


def _coins(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < 0.5


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """The images, those of `mirrored` (bool [B] on the CPU) turned left to right."""
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, (torch.arange(len(images)) + len(images) * mirrored).to(images.device))


def _none(_count: int, _stored: tuple[int, int], _size: int, _generator: torch.Generator) -> Choices:
    return lambda images, _part: images


def _flip(count: int, _stored: tuple[int, int], _size: int, generator: torch.Generator) -> Choices:
    mirrored = _coins(count, generator)
    return lambda images, part: _mirror(images, mirrored[part])


def _crop_flip(count: int, stored: tuple[int, int], size: int, generator: torch.Generator) -> Choices:
    border = max(1, size // 8) if min(stored) <= size else 0
    tops, lefts = (
        torch.randint(side + 2 * border - size + 1, (count,), generator=generator) for side in stored
    )
    mirrored = _coins(count, generator)

    def apply(images: Tensor, part: slice) -> Tensor:
        if border:
            images = torch.nn.functional.pad(images, [border] * 4)
        return _mirror(cut_squares(images, tops[part], lefts[part], size), mirrored[part])

    return apply


def _resized_crop(count: int, stored: tuple[int, int], size: int, generator: torch.Generator) -> Choices:
    boxes = random_boxes(count, *stored, generator)
    mirrored = _coins(count, generator)
    return lambda images, part: resize_boxes(images, boxes[part], mirrored[part], size)


def _trivial(count: int, _stored: tuple[int, int], _size: int, generator: torch.Generator) -> Choices:
    transform = vision.v2.TrivialAugmentWide()
    mirrored = _coins(count, generator)
    stream = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))

    def apply(images: Tensor, part: slice) -> Tensor:
        # The transform draws from torch's global CPU generator, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(stream.get_state())
            done = torch.stack([transform(image) for image in _mirror(images, mirrored[part])])
            stream.set_state(torch.default_generator.get_state())
        return done

    return apply


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
