"""The sampler that models what a study was told: Optuna's TPE, with what it knows fixed when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class TpeSampler(optuna.samplers.TPESampler):
    """TPE for conditional spaces and trials side by side, for one suggestion.

    It draws what Optuna's own draws for a study that holds exactly the trials `known`, with ``multivariate``,
    ``group`` and ``constant_liar``, but looks through them once, not once for each group of parameters. So
    one that is made now may draw later, on another thread, whatever the study is told meanwhile.

    Of a running trial it knows what that runs with, and nothing else. Optuna also remembers what it drew for
    the branches that the trial did not take (the rates of optimizers that were not chosen); a study that
    repeats earlier suggestions cannot know that.

    Args:
        known: trials that have ended with a result or are running, in the order in which they were asked for.
        seed: of what is drawn.
    """

    def __init__(self, known: Sequence[FrozenTrial], seed: int) -> None:
        with warnings.catch_warnings():
            # `group` is what makes TPE model conditional spaces jointly; Optuna still calls it experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=seed, multivariate=True, group=True, constant_liar=True)
        self._known = list(known)
        self._ended = ended(known)
        self._split: tuple[list[FrozenTrial], list[FrozenTrial]] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of all ended trials, in groups that always occur together."""
        group, seen = _SearchSpaceGroup(), set[frozenset[str]]()
        for other in self._ended:
            names = frozenset(other.distributions)
            # The same names once more change no group.
            if names not in seen:
                seen.add(names)
                group.add_distributions(other.distributions)
        self._search_space_group = group
        return {
            name: distribution
            for space in group.search_spaces
            for name, distribution in sorted(space.items())
            if not distribution.single()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that no ended trial has had."""
        if self._starts:
            return self._random_sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    @property
    def _starts(self) -> bool:
        """True while too little is known to model anything."""
        return len(self._ended) < self._n_startup_trials

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sample(study, trial, search_space) if search_space and not self._starts else {}

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._split is None:
            self._split = _split_trials(study, self._known, default_gamma(len(self._ended)))
        good, rest = self._split
        below = self._build_parzen_estimator(study, search_space, good, handle_below=True)
        above = self._build_parzen_estimator(study, search_space, rest, handle_below=False)
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: search_space[name].to_external_repr(value) for name, value in best.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        names = search_space.keys()
        having = [params for trial in trials if names <= (params := trial.params).keys()]
        return {
            name: np.asarray([distribution.to_internal_repr(params[name]) for params in having])
            for name, distribution in search_space.items()
        }


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those of `trials` that do not run any more."""
    return [trial for trial in trials if trial.state is not TrialState.RUNNING]
