"""Asynchronous successive halving: which trials train on past a rung (Li et al. 2020, arXiv 1810.05934)."""

from __future__ import annotations

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings, rung_epochs
from tune_fusion.tuning.scheduler import RungScheduler


class Asha(RungScheduler):
    """Decides at each rung whether a trial goes on; needs nothing but the values it is told.

    A trial goes on when its value is among the best n // reduction_factor (at least one) of the n values the
    rung has seen, its own included; equal values go on together. Trials never wait for each other.
    """

    def judge(self, trial: int, epoch: int, value: float) -> RungDecision | None:
        """Whether `trial`, whose metric is `value` after `epoch`, goes on; None where there is no rung."""
        if epoch not in self._values:
            return None
        values = self.ranked(trial, epoch, value)
        kept = max(1, len(values) // self._factor)
        cutoff = values[kept - 1]
        return RungDecision(
            seen=len(values), kept=kept, cutoff=self._sign * cutoff, goes_on=self._sign * value >= cutoff
        )


def expected_trials(settings: AshaSettings, max_epochs: int, trials: float) -> list[tuple[int, float]]:
    """For each rung and the last epoch: how many of `trials` are expected to train that far.

    The rule keeps one of reduction_factor trials at each rung in the long run (and more of the first few).
    """
    plan = []
    remaining = trials
    for epoch in rung_epochs(settings, max_epochs):
        plan.append((epoch, remaining))
        remaining = max(min(1.0, remaining), remaining / settings.reduction_factor)
    return [*plan, (max_epochs, remaining)]
