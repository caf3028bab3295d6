"""Parts of images, other ones of each image, cut out and resized for a whole batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, interpolate

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# On a CPU, results of this side and above are made image by image: calls weigh little then, and pixels much.
_ONE_BY_ONE = 64


def cut_squares(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """The square of side `size` of each image whose upper left corner is given.

    Args:
        images: [B, C, H, W].
        tops: int64 [B] on the CPU, in 0..H - size.
        lefts: the same, in 0..W - size.
        size: at most H and W.

    Returns:
        [B, C, size, size].
    """
    if images.device.type == "cpu":
        return _copy_squares(images, tops, lefts, size)
    return _index_squares(images, tops.to(images.device), lefts.to(images.device), size)


def _copy_squares(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """A square begins at any byte: copied row by row, it costs a tenth of what indexing its pixels does."""
    count, channels, height, width = images.shape
    plane = height * width
    square = (channels - 1) * plane + (size - 1) * width + size
    squares = images.contiguous().as_strided(
        (images.numel() - square + 1, channels, size, size), (1, plane, width, 1)
    )
    return squares.index_select(0, torch.arange(count) * (channels * plane) + tops * width + lefts)


def _index_squares(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    count, channels = images.shape[:2]
    side = torch.arange(size, device=images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    rows, columns = tops.view(-1, 1) + side, lefts.view(-1, 1) + side
    return images[image, channel, rows.view(count, 1, size, 1), columns.view(count, 1, 1, size)]


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them by default (Szegedy et al. 2015).

    A box has 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3 (uniform in its logarithm), and lies
    anywhere in the image. Of ten draws the first that fits counts; where none does, the centre of the image,
    cut to the nearest aspect ratio.

    Returns:
        int64 [count, 4]: top, left, height and width.
    """
    draws = torch.rand(count, _ATTEMPTS, 2, generator=generator, dtype=torch.float64)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[..., 0])
    low, high = map(math.log, _ASPECT)
    aspect = torch.exp(low + (high - low) * draws[..., 1])
    heights, widths = torch.sqrt(area / aspect).round(), torch.sqrt(area * aspect).round()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.int().argmax(1, keepdim=True)
    sides = torch.stack([heights.gather(1, first), widths.gather(1, first)], 2)[:, 0]
    room = torch.tensor([height, width]) - sides + 1
    corners = torch.floor(torch.rand(count, 2, generator=generator, dtype=torch.float64) * room)
    central = torch.tensor(_central_box(height, width), dtype=torch.float64)
    return torch.where(fits.any(1, keepdim=True), torch.cat([corners, sides], 1), central).long()


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    tall, wide = round(width / _ASPECT[0]), round(height * _ASPECT[1])
    box_height, box_width = min(height, tall), min(width, wide)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize_boxes(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """The part of each image that its box names, resized to a square: bilinear, with antialiasing.

    Pixels are within one grey level of what torchvision and Pillow make of each image alone.

    Args:
        images: uint8 [B, C, H, W].
        boxes: int64 [B, 4] on the CPU: top, left, height and width, inside of the images.
        mirrored: bool [B] on the CPU: whether the result is mirrored left to right.
        size: side of the result.

    Returns:
        uint8 [B, C, size, size].
    """
    if images.device.type == "cpu" and size >= _ONE_BY_ONE:
        return _resize_one_by_one(images, boxes, mirrored, size)
    return _resize_at_once(images, boxes, mirrored, size)


def _resize_one_by_one(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """By torch's kernel for bytes, which resizes one part of one image a call."""
    resized = images.new_empty(len(images), images.shape[1], size, size)
    for image, box, turned, result in zip(images, boxes.tolist(), mirrored.tolist(), resized, strict=True):
        top, left, height, width = box
        part = image[None, :, top : top + height, left : left + width]
        made = interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
        result.copy_(made.flip(-1) if turned else made)
    return resized


def _resize_at_once(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """By sums of weighted rows of pixels, in as many calls for a batch as for an image."""
    count, channels, height, width = images.shape
    tops, lefts, heights, widths = boxes.unbind(1)
    rows, row_weights = _taps(tops, heights, size)
    columns, column_weights = _taps(lefts, widths, size)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    column_weights = torch.where(mirrored[:, None, None], column_weights.flip(1), column_weights)
    # Rows of pixels are added up by their weights: those of the images, then those of the images turned on
    # their side.
    image = torch.arange(count).view(-1, 1, 1)
    lying = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    lower = _add_up(lying.view(count * height, channels * width), rows + image * height, row_weights)
    turned = lower.view(count, size * channels, width).transpose(1, 2).reshape(count * width, size * channels)
    smaller = _add_up(turned, columns + image * width, column_weights)
    pixels = smaller.round_().to(torch.uint8).view(count, size, size, channels)
    return pixels.permute(0, 3, 2, 1)


def _taps(starts: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a line make each of `size` new ones, and how much of each.

    Args:
        starts: int64 [B]: the first pixel of a part of the line.
        lengths: int64 [B]: how many pixels the part has.
        size: how many are made of it.

    Returns:
        Positions, int64 [B, size, K], and weights, float32 [B, size, K], which add up to 1.
    """
    scale = (lengths / size).view(-1, 1, 1)
    reach = scale.clamp(min=1)
    first_pixel, end = starts.view(-1, 1, 1), (starts + lengths).view(-1, 1, 1)
    centres = first_pixel + (torch.arange(size).view(1, -1, 1) + 0.5) * scale
    positions = torch.floor(centres - reach + 0.5).long() + torch.arange(math.ceil(2 * float(reach.max())))
    weights = (1 - (positions + 0.5 - centres).abs() / reach).clamp(min=0)
    weights = weights * ((positions >= first_pixel) & (positions < end))
    return positions.clamp(first_pixel, end - 1), weights / weights.sum(2, keepdim=True)


def _add_up(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums of K rows of `table`, float32 [N, D], each by its weight: float32 [M, D]."""
    taps = rows.shape[-1]
    return embedding_bag(
        rows.reshape(-1, taps).to(table.device),
        table,
        mode="sum",
        per_sample_weights=weights.reshape(-1, taps).to(table.device),
    )
