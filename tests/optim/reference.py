"""Slow references in float64: plain loops that follow the papers' notation line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


def power(x: float, y: float) -> float:
    return 0.0 if x == 0.0 else math.pow(x, y)


@dataclass
class HNAdamReference:
    """HN_Adam (Reyad, Sarhan & Arafa 2023) on a list of numbers; equations (20), (23) and (30)."""

    theta: list[float]
    eta: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-8
    Lambda_t0: float = 2.5
    second_moment: str = "paper"
    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False
    Lambda: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.m = [0.0] * len(self.theta)
        self.v = [0.0] * len(self.theta)  # in the root form: n
        self.v_hat = [0.0] * len(self.theta)

    def step(self, gradient: Sequence[float]) -> None:
        self.Lambda = []
        for i, g_t in enumerate(gradient):
            self.Lambda.append(self._step_element(i, -g_t if self.maximize else g_t))

    def _step_element(self, i: int, g_t: float) -> float:
        if self.decoupled:
            self.theta[i] -= self.eta * self.weight_decay * self.theta[i]
        else:
            g_t += self.weight_decay * self.theta[i]
        m_before = self.m[i]
        m_max = max(abs(m_before), abs(g_t))
        ratio = abs(m_before) / m_max if m_max > 0 else 0.0
        lam = self.Lambda_t0 - ratio  # equation (20)
        m_t = self.beta_1 * m_before + (1 - self.beta_1) * g_t
        if self.second_moment == "paper":
            v_t = self.beta_2 * self.v[i] + (1 - self.beta_2) * power(abs(g_t), lam)
        else:
            v_t = self._root_state(self.v[i], abs(g_t), lam)
        if lam < 2:
            self.v_hat[i] = max(self.v_hat[i], v_t)  # AMSGrad
            v_used = self.v_hat[i]
        else:
            v_used = v_t
        norm = power(v_used, 1 / lam) if self.second_moment == "paper" else v_used
        if m_t != 0.0:
            self.theta[i] -= self.eta * m_t / (norm + self.epsilon)  # equation (23)
        self.m[i], self.v[i] = m_t, v_t
        return lam

    def _root_state(self, n: float, g: float, lam: float) -> float:
        largest = max(n, g)
        if largest == 0.0:
            return 0.0
        mean = self.beta_2 * power(n / largest, lam) + (1 - self.beta_2) * power(g / largest, lam)
        return largest * power(mean, 1 / lam)


@dataclass
class AdaBeliefReference:
    """AdaBelief (Zhuang et al. 2020), algorithm 2, with decoupled weight decay."""

    theta: list[float]
    alpha: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-16
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self.t = 0
        self.m = [0.0] * len(self.theta)
        self.s = [0.0] * len(self.theta)

    def step(self, gradient: Sequence[float]) -> None:
        self.t += 1
        for i, g_t in enumerate(gradient):
            self.theta[i] *= 1 - self.alpha * self.weight_decay
            self.m[i] = self.beta_1 * self.m[i] + (1 - self.beta_1) * g_t
            self.s[i] = self.beta_2 * self.s[i] + (1 - self.beta_2) * (g_t - self.m[i]) ** 2 + self.epsilon
            m_hat = self.m[i] / (1 - self.beta_1**self.t)
            s_hat = self.s[i] / (1 - self.beta_2**self.t)
            self.theta[i] -= self.alpha * m_hat / (math.sqrt(s_hat) + self.epsilon)
