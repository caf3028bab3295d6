"""A sampler that models what trials become with a Gaussian process, from all epochs that are known.

Replays have it to compare with: it costs more than TPE and has found nothing sooner (docs/search.md).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import ndtr, ndtri

from tune_fusion.space.configuration import flat_name
from tune_fusion.space.domain import Choice, Domain, FloatRange, IntRange, part_of, value_at
from tune_fusion.space.sampling import Answering, Arm, Scalar, draw
from tune_fusion.space.schema import SearchSpace
from tune_fusion.tuning.study import Study, Suggestion

# Ended trials without which nothing is modelled.
_STARTUP = 8
# Configurations among which the next one is chosen: drawn anew, and made by changing one thing of the best.
_DRAWN, _CHANGED, _BEST = 100, 10, 5
# How far a changed number moves, as a part of its range.
_STEP = 0.1
# Hyperparameters of the kernel that are tried, and the most trials that are modelled.
_TRIED, _MOST = 10, 300

Floats = NDArray[np.float64]
Answers = dict[str, Scalar]


class ModelStudy(Study):
    """A study whose next configuration the model proposes."""

    def __init__(self, space: SearchSpace, arm: Arm, direction: Literal["max", "min"]) -> None:
        super().__init__(space, arm, direction)
        self._sign = 1.0 if direction == "max" else -1.0

    def ask(self, *, ahead: bool = False) -> Suggestion | None:
        """The next configuration; never made ahead."""
        if not self._defaults:
            seed = zlib.crc32(f"{self._space.search.seed}/{self._arm}/{self._asked}".encode())
            answers = propose(self._space, self._arm, self._known(), seed, self._sign)
            return self._ask(answers, "sampled")
        return super().ask()


def propose(
    space: SearchSpace, arm: Arm, known: Sequence[FrozenTrial], seed: int, sign: float
) -> Answers | None:
    """The answers that make `draw` give the next configuration of an arm; None: too little is known.

    What an ended trial would reach in its last epoch is estimated by what longer trials gained from there
    on; the ranks of these values, as normal scores, are the model's data. Trials that run count at their
    expected value, so that the next one is placed elsewhere. Of the candidates the one with the largest
    expected improvement is taken.

    Args:
        known: the arm's trials that have ended with a result or are running, each epoch reported.
        seed: of whatever is random.
        sign: 1 where the metric is to grow, -1 where it is to shrink.
    """
    ended = [trial for trial in known if trial.state is not TrialState.RUNNING][-_MOST:]
    if len(ended) < _STARTUP:
        return None
    rng = np.random.default_rng(seed)
    scores, epochs = _scores(ended, sign)
    best = [ended[index].params for index in np.argsort(-scores, kind="stable")[:_BEST]]
    candidates = [_answers(space, arm, rng, {}) for _ in range(_DRAWN)]
    candidates += [_changed(space, arm, rng, params) for params in best for _ in range(_CHANGED)]
    running = [trial.params for trial in known if trial.state is TrialState.RUNNING]
    encoder = _Encoder(ended)
    at = encoder.encode([trial.params for trial in ended])
    among, busy = encoder.encode(candidates), encoder.encode(running)
    model = _fitted(at, scores, _noise(epochs), encoder.groups, rng)
    if running:
        believed, _ = model.predict(busy)
        model = _Model(
            np.concatenate([at, busy]),
            np.concatenate([scores, believed]),
            np.concatenate([_noise(epochs), np.full(len(running), 1e-2)]),
            model.scales,
        )
    mean, deviation = model.predict(among)
    return candidates[int(_improvement(mean, deviation, float(scores.max())).argmax())]


def _improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """The expected improvement over `best`."""
    gap = (mean - best) / deviation
    density = np.exp(-0.5 * gap**2) / math.sqrt(2 * math.pi)
    improvement: Floats = deviation * (gap * ndtr(gap) + density)
    return improvement


def _scores(ended: Sequence[FrozenTrial], sign: float) -> tuple[Floats, Floats]:
    """Normal scores of what each trial would reach at its end, and the epochs it was trained."""
    curves = [_curve(trial, sign) for trial in ended]
    longest = max(len(curve) for curve in curves)
    # The median gain of one epoch, of the trials that trained so far.
    gains = [
        float(np.median([c[i + 1] - c[i] for c in curves if len(c) > i + 1])) for i in range(longest - 1)
    ]
    reached = np.array([c[-1] + sum(gains[len(c) - 1 :]) if len(c) else -np.inf for c in curves])
    order = reached.argsort(kind="stable").argsort(kind="stable")
    # Equal values have equal ranks.
    ranks = np.array([order[reached == value].mean() for value in reached])
    scores: Floats = ndtri((ranks + 0.5) / len(ranks))
    return scores, np.array([max(1, len(curve)) / longest for curve in curves])


def _curve(trial: FrozenTrial, sign: float) -> Floats:
    """The best value so far after each epoch, the larger the better; empty where the trial diverged."""
    values = [sign * trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    if not values or any(math.isnan(value) for value in values):
        return np.empty(0)
    curve: Floats = np.maximum.accumulate(values)
    return curve


def _noise(epochs: Floats) -> Floats:
    """Variance of a score: the shorter the trial, the less it says of the end."""
    noise: Floats = 0.02 + 0.15 * (1 - epochs)
    return noise


class _Encoder:
    """Answers as points: rates and other numbers from 0 to 1, optimizers one axis each.

    Answers about different optimizers of the same half share an axis where they have the same name
    (``low.adam.lr`` and ``low.sgd.lr`` are both ``low.lr``): rates lie in each optimizer's own range. What is
    not asked lies in the middle.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._distributions: dict[str, Any] = {}
        for trial in trials:
            self._distributions.update(trial.distributions)
        keys: dict[tuple[str, Scalar], None] = {}
        for name, distribution in sorted(self._distributions.items()):
            if isinstance(distribution, CategoricalDistribution):
                keys.update({(flat_name(name), choice): None for choice in distribution.choices})
            else:
                keys[flat_name(name), None] = None
        self._columns = {key: column for column, key in enumerate(keys)}
        names = list(dict.fromkeys(axis for axis, _ in keys))
        self.groups = np.array([names.index(axis) for axis, _ in keys])
        self._blank = np.array([0.0 if choice is not None else 0.5 for _, choice in keys])

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """[rows, axes]"""
        points = np.tile(self._blank, (len(rows), 1))
        for point, answers in zip(points, rows, strict=True):
            for name, value in answers.items():
                distribution = self._distributions.get(name)
                if isinstance(distribution, CategoricalDistribution):
                    point[self._columns[flat_name(name), value]] = math.sqrt(0.5)
                elif isinstance(distribution, FloatDistribution | IntDistribution):
                    point[self._columns[flat_name(name), None]] = _unit(distribution, value)
        return points


def _unit(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    return part_of(FloatRange(distribution.low, distribution.high, distribution.log), value)


class _Model:
    """A Gaussian process with mean 0, variance 1 and a Matern 5/2 kernel."""

    def __init__(self, points: Floats, scores: Floats, noise: Floats, scales: Floats) -> None:
        self.scales = scales
        self._points = points * scales
        kernel = _kernel(self._points, self._points)
        self._factor = np.linalg.cholesky(kernel + np.diag(noise + 1e-6))
        self._weights = cho_solve((self._factor, True), scores, check_finite=False)
        logarithms = np.log(np.diag(self._factor)).sum()
        self.likelihood = float(-0.5 * scores @ self._weights - logarithms)

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at each point."""
        kernel = _kernel(self._points, points * self.scales)
        whitened = solve_triangular(self._factor, kernel, lower=True, check_finite=False)
        variance = np.maximum(1.0 - np.square(whitened).sum(0), 1e-6)
        return kernel.T @ self._weights, np.sqrt(variance)


def _kernel(some: Floats, others: Floats) -> Floats:
    """[some, others]"""
    squared = np.square(some).sum(1)[:, None] + np.square(others).sum(1)[None, :] - 2 * some @ others.T
    distance = np.sqrt(5 * np.maximum(squared, 0.0))
    kernel: Floats = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel


def _fitted(
    points: Floats, scores: Floats, noise: Floats, groups: NDArray[np.int64], rng: np.random.Generator
) -> _Model:
    """The likeliest of some models that differ by how far each axis reaches."""
    best: _Model | None = None
    likeliest = -math.inf
    count = int(groups.max()) + 1
    for attempt in range(_TRIED):
        # Half of them vary the best one so far.
        if best is None or attempt < _TRIED // 2:
            logs = rng.uniform(math.log(0.2), math.log(4.0), count)
            scales = np.exp(logs)[groups]
        else:
            scales = best.scales * np.exp(rng.normal(0, 0.5, count))[groups]
        model = _Model(points, scores, noise, scales)
        # Axes matter little unless the data say so.
        prior = -0.5 * float(np.square(np.log(scales[np.unique(groups, return_index=True)[1]])).sum()) * 0.25
        if best is None or model.likelihood + prior > likeliest:
            best, likeliest = model, model.likelihood + prior
    assert best is not None
    return best


def _answers(
    space: SearchSpace,
    arm: Arm,
    rng: np.random.Generator,
    given: Mapping[str, Any],
    near: Mapping[str, Any] | None = None,
) -> Answers:
    """The answers to what `draw` asks: as `given`, numbers near those of `near`, all else at random."""
    near = near or {}

    def choose(name: str, domain: Domain) -> Any:
        # Drawn in any case: an answer that is given moves no other one.
        match domain:
            case FloatRange():
                drawn: Any = _near(rng, domain, near.get(name))
            case IntRange(low, high):
                drawn = int(rng.integers(low, high + 1))
            case Choice(values):
                drawn = values[int(rng.integers(len(values)))]
        return given.get(name, drawn)

    trial = Answering(choose)
    draw(space, arm, trial)
    return trial.answers


def _near(rng: np.random.Generator, domain: FloatRange, number: float | None) -> float:
    """A number near another one, or anywhere where there is none."""
    part = rng.random() if number is None else rng.normal(part_of(domain, number), _STEP)
    return min(max(value_at(domain, min(max(part, 0.0), 1.0)), domain.low), domain.high)


def _changed(space: SearchSpace, arm: Arm, rng: np.random.Generator, params: Mapping[str, Any]) -> Answers:
    """One or two of the answers drawn again; numbers near where they were."""
    again = {str(name) for name in rng.choice(list(params), min(len(params), int(rng.integers(1, 3))), False)}
    given = {name: value for name, value in params.items() if name not in again}
    return _answers(space, arm, rng, given, {name: params[name] for name in again})
