"""What each kernel of HN_Adam's step is given, and how one is held against the equations before its use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from tune_fusion.optim.adaptive_norm import direction

Entry: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Parameter, gradient, m, v (or n) and its running maximum: float32 on one device, alike in memory."""


@dataclass(frozen=True)
class Options:
    """What a step needs besides its tensors; see `tune_fusion.optim.hn_adam.HNAdam`."""

    lr: float
    betas: tuple[float, float]
    eps: float
    lambda0: float
    root: bool
    maximize: bool
    coupled_decay: float
    """Times the parameter, added to the gradient."""
    decoupled_decay: float
    """Times lr: the share by which parameters shrink."""


class StepKernel(Protocol):
    """HN_Adam's step in one pass over its tensors."""

    def step(self, entries: Sequence[Entry], options: Options, *, observe: bool) -> Tensor | None:
        """Step every entry in place; all are on one device.

        Numbers do not depend on which entries are stepped together.

        Returns:
            With `observe`, float64 [entries, 2] on the device: of each entry's elements, how many have Λ < 2,
            and the sum of Λ; else None.
        """
        ...


def fits(entry: Entry) -> bool:
    """True for an entry that a kernel can step: float32 on a CPU or GPU, without gaps, all laid out alike."""
    # Called for every parameter in every step: a loop over the tensors would take three times as long.
    param, grad, m, v, v_max = entry
    layout = param.stride()
    return (
        (param.is_cpu or param.is_cuda)
        and param.dtype is grad.dtype is m.dtype is v.dtype is torch.float32
        and grad.stride() == m.stride() == v.stride() == layout
        and (v_max is None or (v_max.dtype is torch.float32 and v_max.stride() == layout))
        and (param.is_contiguous() or param.is_contiguous(memory_format=torch.channels_last))
    )


def is_right(kernel: StepKernel, device: torch.device) -> bool:
    """Whether a step of both forms on `device`, on either side of Λ = 2, gives the numbers of `direction`."""
    generator = torch.Generator().manual_seed(0)
    size = 3000  # whole blocks of a kernel, and a part of one
    for root in (False, True):
        p, g, m = (torch.randn(size, generator=generator) for _ in range(3))
        v, v_max = (torch.rand(size, generator=generator) for _ in range(2))
        g[:10] = m[5:15] = 0.0
        expected = [tensor.double() for tensor in (m, v, v_max)]
        step, _ = direction(
            g.double(),
            expected[0],
            expected[1],
            expected[2],
            lambda0=2.5,
            betas=(0.9, 0.99),
            eps=1e-8,
            second_moment="root" if root else "paper",
        )
        after = [p.double() - 0.1 * step, *expected]
        p, g, m, v, v_max = (tensor.to(device) for tensor in (p, g, m, v, v_max))
        kernel.step(
            [(p, g, m, v, v_max)], Options(0.1, (0.9, 0.99), 1e-8, 2.5, root, False, 0.0, 0.0), observe=False
        )
        pairs = zip((p, m, v, v_max), after, strict=True)
        if not all(
            torch.allclose(ours.cpu().double(), theirs, rtol=1e-5, atol=1e-6) for ours, theirs in pairs
        ):
            return False
    return True
