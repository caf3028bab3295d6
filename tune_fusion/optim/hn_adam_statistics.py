"""What HN_Adam's steps were like: the share of AMSGrad's branch, and the mean of Λ."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HNAdamStatistics:
    """What observed steps were like, over some elements.

    Attributes:
        elements: elements observed, at least 1; one element in two steps counts twice.
        branch: how many of them were in the AMSGrad branch (Λ < 2).
        total: the sum of Λ over them.
    """

    elements: int
    branch: int
    total: float

    @property
    def amsgrad_share(self) -> float:
        """Share of elements in the AMSGrad branch, in [0, 1]."""
        return self.branch / self.elements

    @property
    def mean_lambda(self) -> float:
        """Mean of Λ over the elements, in [1, 4]."""
        return self.total / self.elements

    @classmethod
    def together(cls, parts: Iterable[HNAdamStatistics]) -> HNAdamStatistics | None:
        """Those of all elements of `parts`; None where there is no part."""
        parts = list(parts)
        if not parts:
            return None
        return cls(
            elements=sum(part.elements for part in parts),
            branch=sum(part.branch for part in parts),
            total=math.fsum(part.total for part in parts),
        )


class Tally:
    """Sums by parameter that stay on the parameters' devices, so that observing makes no device wait."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._elements: defaultdict[Tensor, int] = defaultdict(int)

    def add_norms(self, lam: Tensor, params: Sequence[Tensor], sizes: list[int]) -> None:
        """Count Λ of one step.

        Args:
            lam: Λ; flat, one parameter after the other and possibly a filling, or that of one in its shape.
            params: whose Λ it is.
            sizes: elements of each that `lam` has.
        """
        pieces = torch.split(lam[: sum(sizes)], sizes) if lam.ndim == 1 else (lam,)
        # MPS has no float64; its sums are added in float32.
        kind = torch.float32 if lam.device.type == "mps" else torch.float64
        rows = [torch.stack([(piece < 2).sum(dtype=kind), piece.sum(dtype=kind)]) for piece in pieces]
        self.add(rows, params, sizes)

    def add(self, rows: Sequence[Tensor], params: Sequence[Tensor], sizes: list[int]) -> None:
        """Count one step by its sums: of each of `params`, how many Λ are below 2, and the sum of Λ.

        Args:
            rows: one tensor [2] for each parameter, on its device.
            params: whose Λ they are.
            sizes: elements of each that were counted.
        """
        for p, row, size in zip(params, rows, sizes, strict=True):
            if p not in self._sums:
                self._sums[p] = torch.zeros_like(row)
            self._elements[p] += size
        torch._foreach_add_([self._sums[p] for p in params], list(rows))

    def read(self) -> dict[Tensor, HNAdamStatistics]:
        """What was counted, by parameter. Waits for each device once."""
        by_device: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
        for p, sums in self._sums.items():
            by_device[sums.device].append(p)
        found: dict[Tensor, HNAdamStatistics] = {}
        for params in by_device.values():
            values = torch.stack([self._sums[p] for p in params]).tolist()
            for p, (branch, total) in zip(params, values, strict=True):
                found[p] = HNAdamStatistics(self._elements[p], round(branch), total)
        return found
