"""What keeps batches coming: memory that is used again, and a thread that prepares the next one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_SPARE = 2

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order, each made in a thread while the one before it is in use.

    An error comes where its item would have come. Who stops early leaves no thread behind.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # what is not `end` is an item


class Buffers:
    """Memory on the CPU for float32 tensors that come and go: that of one serves the next.

    The system gives a process its pages one by one and cleared, which takes longer than to fill them with a
    batch of larger images. A tensor's memory is used again once nothing refers to it, be it a view of the
    tensor or what a backward pass keeps.
    """

    def __init__(self) -> None:
        self._spare: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], *, channels_last: bool = False) -> Tensor:
        """A tensor [B, C, H, W] of any contents."""
        size = math.prod(shape)
        whole = self._spare.pop() if self._spare else None
        if whole is None or len(whole) < size:
            whole = torch.empty(size)
        # torch keeps this array, of which nobody else knows, for as long as anything uses its memory.
        lease = whole[:size].numpy()
        weakref.finalize(lease, self._take_back, whole).atexit = False
        tensor = torch.from_numpy(lease)
        if not channels_last:
            return tensor.view(shape)
        images, channels, height, width = shape
        return tensor.view(images, height, width, channels).permute(0, 3, 1, 2)

    def _take_back(self, whole: Tensor) -> None:
        if len(self._spare) < _SPARE:
            self._spare.append(whole)
