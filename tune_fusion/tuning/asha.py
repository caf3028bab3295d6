"""Asynchronous successive halving: which trials train on past a rung (Li et al. 2020, arXiv 1810.05934)."""

from __future__ import annotations

from typing import Literal

from tune_fusion.space.settings import AshaSettings


class Asha:
    """Decides at each rung whether a trial goes on; needs nothing but the values it is told.

    A trial goes on when its value is among the best n // reduction_factor (at least one) of the n values the
    rung has seen, its own included; equal values go on together. Trials never wait for each other. Epochs are
    the trials' own counters, so that restarts and reused workers do not shift a rung.
    """

    def __init__(
        self,
        settings: AshaSettings,
        max_epochs: int,
        direction: Literal["max", "min"],
        *,
        enabled: bool = True,
    ) -> None:
        self.reduction_factor = settings.reduction_factor
        self.rungs = rung_epochs(settings, max_epochs) if enabled else ()
        self._sign = 1.0 if direction == "max" else -1.0
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in self.rungs}

    def report(self, trial: int, epoch: int, value: float) -> bool:
        """True when `trial`, whose metric is `value` after `epoch`, goes on. A trial counts once a rung."""
        if epoch not in self._values:
            return True
        rung = self._values[epoch]
        rung[trial] = self._sign * value
        kept = max(1, len(rung) // self.reduction_factor)
        cutoff = sorted(rung.values(), reverse=True)[kept - 1]
        return rung[trial] >= cutoff


def rung_epochs(settings: AshaSettings, max_epochs: int) -> tuple[int, ...]:
    """The epochs at which trials are compared, in ascending order, all below `max_epochs`."""
    epochs = []
    epoch = settings.grace_epochs
    while epoch < max_epochs:
        epochs.append(epoch)
        epoch *= settings.reduction_factor
    return tuple(epochs)


def expected_trials(settings: AshaSettings, max_epochs: int, trials: int) -> list[tuple[int, float]]:
    """For each rung and the last epoch: how many of `trials` are expected to train that far.

    The rule keeps one of reduction_factor trials at each rung in the long run (and more of the first few).
    """
    plan = []
    remaining = float(trials)
    for epoch in rung_epochs(settings, max_epochs):
        plan.append((epoch, remaining))
        remaining = max(min(1.0, remaining), remaining / settings.reduction_factor)
    return [*plan, (max_epochs, remaining)]
