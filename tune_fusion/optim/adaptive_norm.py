"""The equations of HN_Adam, element by element; `tune_fusion.optim.hn_adam` is the optimizer around them.

Reyad, Sarhan & Arafa, "A modified Adam algorithm for deep neural network optimization", Neural Computing
and Applications, 2023, doi 10.1007/s00521-023-08568-z.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

SecondMoment: TypeAlias = Literal["paper", "root"]


def direction(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    v_max: Tensor | None,
    *,
    lambda0: float,
    betas: tuple[float, float],
    eps: float,
    second_moment: SecondMoment,
) -> tuple[Tensor, Tensor]:
    """One HN_Adam step's direction, element by element; ``m``, ``v`` and ``v_max`` are updated in place.

    Equation (20) with |m|, which keeps the norm Λ in [Λ0 - 1, Λ0], and the update of equations (23), (30)::

        Λ = Λ0 - |m| / max(|m|, |g|)          0/0 counts as 0
        m = β1 m + (1-β1) g
        v = β2 v + (1-β2) |g|^Λ               paper:  d = v^(1/Λ)
        n = (β2 n^Λ + (1-β2) |g|^Λ)^(1/Λ)     root:   d = n
        where Λ < 2: the running maximum of v (or n) takes its place in d, and only there does it grow
        direction = m / (d + ε)

    Args:
        g: gradient, any shape, float32 or float64.
        m: first moment, like ``g``.
        v: second moment v, or its root n, like ``g``.
        v_max: running maximum of ``v``, like ``g``; None where Λ cannot fall below 2 (Λ0 >= 3).
        lambda0: Λ0 in [2, 4].
        betas: β1, β2 in [0, 1).
        eps: ε, not negative.
        second_moment: which of the two forms ``v`` is in.

    Returns:
        The direction (the parameter moves by -lr times it) and Λ, both like ``g``.
    """
    beta1, beta2 = betas
    size = g.abs()
    lam = _norm(m, size, lambda0)
    m.lerp_(g, 1 - beta1)
    if second_moment == "paper":
        v.mul_(beta2).add_(size.pow_(lam), alpha=1 - beta2)
        denominator = _amsgrad(lam, v, v_max).pow(lam.reciprocal())
    else:
        _root_mean(v, size, lam, beta2)
        denominator = _amsgrad(lam, v, v_max)
    return m / denominator.add(eps), lam


def _norm(m: Tensor, size: Tensor, lambda0: float) -> Tensor:
    """Equation (20): Λ = Λ0 - |m| / max(|m|, |g|), with 0/0 = 0."""
    past = m.abs()
    largest = torch.maximum(past, size)
    return lambda0 - past.div_(largest).nan_to_num_(nan=0.0)


def _root_mean(n: Tensor, size: Tensor, lam: Tensor, beta2: float) -> None:
    """n = (β2 n^Λ + (1-β2) |g|^Λ)^(1/Λ) in place, taken relative to the larger of the two: no overflow."""
    larger = torch.maximum(n, size)
    power = torch.minimum(n, size).div_(larger).nan_to_num_(nan=0.0).pow_(lam)
    # The larger one's weight, by arithmetic: torch.where takes longer than a power on a CPU. At a tie the
    # two are equal, and any weight gives their mean.
    weight = torch.sub(size, n).sign_().mul_(0.5 - beta2).add_(0.5)
    mean = power.mul_(1 - weight).add_(weight)
    torch.mul(larger, mean.pow_(lam.reciprocal()), out=n)


def _amsgrad(lam: Tensor, v: Tensor, v_max: Tensor | None) -> Tensor:
    """The running maximum of ``v`` where Λ < 2, elsewhere ``v``; the maximum grows only where Λ < 2."""
    if v_max is None:
        return v
    # Infinite where Λ < 2, else 0: a minimum with it lets values through or not, infinite ones included.
    largest = torch.finfo(v.dtype).max
    gate = (2 - lam).clamp_min_(0).mul_(largest).mul_(largest)
    torch.maximum(v_max, torch.minimum(v, gate), out=v_max)
    return torch.maximum(v, gate.clamp_max_(v_max))
