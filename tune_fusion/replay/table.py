"""Recorded trials: every epoch of many configurations of a space (``benchmarks/record_table.py``)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import ALL
from tune_fusion.space.domain import Choice, Domain, FloatRange, IntRange, part_of
from tune_fusion.space.loading import parse_space
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary

# Recorded twice, to know the noise.
_LEAST_PAIRS = 4
# How far apart two configurations are that differ by a whole range of the one thing and not at all otherwise.
# Rates decide most (the error of other weights is no smaller: see docs/search.md).
_WEIGHTS = {"lr": 1.0, "momentum": 1.0, "lambda0": 0.25, "switch_layer": 0.5}


@dataclass(frozen=True)
class Run:
    """One recorded training."""

    arm: str
    configuration: Mapping[str, Any]
    """`Configuration.to_dict`."""
    seed: int
    epochs: tuple[Mapping[str, float], ...]
    """The metrics of each epoch that did not diverge."""
    diverged: bool
    """True where the epoch after these had a loss that was not finite."""

    def value(self, metric: str, sign: float, epochs: int | None = None) -> float:
        """The best value of a metric within so many epochs; the worst that there is where none was."""
        return sign * max((sign * epoch[metric] for epoch in self.epochs[:epochs]), default=-np.inf)


class Table:
    """The recorded runs of one space; a configuration between them has the curve of its nearest neighbour.

    Neighbours have the same low and the same high optimizer, and are of the same arm. The distance between
    two of them is Euclidean over their other values, each scaled to its range in the space (rates on a
    logarithmic scale) and weighted.

    Args:
        space: what was recorded, its switch layers resolved.
        layers: names of the model's layers.
        runs: what was recorded, with one or more seeds; the space's own seed is the one that is replayed.
    """

    def __init__(self, space: SearchSpace, layers: Sequence[str], runs: Sequence[Run]) -> None:
        self.space = space
        self.layers = list(layers)
        self.runs = [run for run in runs if run.seed == space.search.seed]
        self._others = [run for run in runs if run.seed != space.search.seed]
        self._groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
        for run in self.runs:
            self._groups[_group(run.arm, run.configuration)].append(run)
        self._points = {
            group: np.array([self._point(run.configuration) for run in members])
            for group, members in self._groups.items()
        }

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary) -> Table:
        """Read a table; InputError where it is none."""
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            facts, *rows = map(json.loads, lines)
            space = parse_space(facts["space"], path.name, vocabulary).with_switch(facts["layers"])
            return cls(space, facts["layers"], [_run(row, facts["metrics"]) for row in rows])
        except OSError as error:
            raise InputError(f"--table {path}: cannot be read: {error}") from error
        except (EOFError, zlib.error, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--table {path}: is no table of benchmarks/record_table.py, or not a whole one: {error}"
            ) from error

    @property
    def metric(self) -> str:
        """What searches of the space select by."""
        return self.space.search.metric

    @property
    def sign(self) -> float:
        """1 where the metric is to grow, -1 where it is to shrink."""
        return 1.0 if self.space.direction == "max" else -1.0

    @property
    def max_epochs(self) -> int:
        """Epochs of a run that did not diverge."""
        return max(len(run.epochs) for run in self.runs)

    @property
    def grid_epochs(self) -> int:
        """What training every recorded configuration once takes."""
        return sum(len(run.epochs) + run.diverged for run in self.runs)

    def nearest(self, arm: str, configuration: Mapping[str, Any], *, but: Run | None = None) -> Run:
        """The recorded run that stands for a configuration; `but` is left out, to measure the error."""
        group = _group(arm, configuration)
        if group not in self._groups:
            raise InputError(f"the table has no {arm} of {group[1]} and {group[2]}")
        distances = np.square(self._points[group] - self._point(configuration)).sum(1)
        if but is not None:
            distances[self._groups[group].index(but)] = np.inf
        return self._groups[group][int(distances.argmin())]

    def value(self, run: Run) -> float:
        """What a configuration is worth: the best epoch of its whole run, as a search selects."""
        return run.value(self.metric, self.sign)

    @cached_property
    def best(self) -> float:
        """The best value of all."""
        return self.sign * max(self.sign * self.value(run) for run in self.runs)

    @cached_property
    def noise(self) -> float:
        """The standard deviation of the difference between two seeds of a good configuration.

        Over the configurations recorded twice whose mean is above the median; what all of them have in common
        (another seed splits the images differently) is taken off.
        """
        pairs = self.pairs()
        if len(pairs) < _LEAST_PAIRS:
            raise InputError(
                f"the table has {len(pairs)} configurations with a second seed, and to know the noise "
                f"{_LEAST_PAIRS} are needed"
            )
        means = self.sign * pairs.mean(1)
        good = pairs[means >= np.median(means)]
        return float(np.std(good[:, 0] - good[:, 1], ddof=1))

    @cached_property
    def good(self) -> list[Run]:
        """The runs that are as good as the best, but for the noise."""
        return [run for run in self.runs if self.sign * (self.best - self.value(run)) <= self.noise]

    def pairs(self) -> NDArray[np.float64]:
        """Values of the configurations recorded with two seeds and not diverged: [configurations, 2]."""
        first = {_identity(run): self.value(run) for run in self.runs}
        found = [(first[_identity(run)], self.value(run)) for run in self._others if _identity(run) in first]
        pairs = np.array(found).reshape(-1, 2)
        finite: NDArray[np.float64] = pairs[np.isfinite(pairs).all(1)]
        return finite

    def neighbour_errors(self) -> NDArray[np.float64]:
        """For each run that did not diverge: its nearest neighbour's value less its own."""
        errors = []
        for run in self.runs:
            if len(self._groups[_group(run.arm, run.configuration)]) > 1:
                other = self.nearest(run.arm, run.configuration, but=run)
                errors.append(self.value(other) - self.value(run))
        found = np.array(errors)
        finite: NDArray[np.float64] = found[np.isfinite(found)]
        return finite

    def _point(self, configuration: Mapping[str, Any]) -> NDArray[np.float64]:
        """The coordinates of a configuration among those with the same optimizers."""
        space, point = self.space, []
        if configuration["high"] is not None and configuration["switch_layer"] != ALL:
            point.append(_WEIGHTS["switch_layer"] * _unit(space.switch_layer, configuration["switch_layer"]))
        for choice in (configuration["low"], configuration["high"]):
            if choice is not None:
                domains = space.optimizers[choice["optimizer"]]
                point += [
                    _WEIGHTS.get(key, 1.0) * _unit(domains[key], choice[key]) for key in sorted(domains)
                ]
        return np.array(point)


def _unit(domain: Domain, value: Any) -> float:
    """Where a value lies in its domain, from 0 to 1."""
    match domain:
        case FloatRange() | IntRange():
            return part_of(domain, value)
        case Choice(values) if len(values) > 1:
            written = [list(v) if isinstance(v, tuple) else v for v in values]
            return written.index(value) / (len(values) - 1)
        case _:
            return 0.0


def _group(arm: str, configuration: Mapping[str, Any]) -> tuple[str, str, str]:
    high = configuration["high"]
    return arm, configuration["low"]["optimizer"], "" if high is None else high["optimizer"]


def _identity(run: Run) -> str:
    return json.dumps([run.arm, run.configuration], sort_keys=True)


def _run(row: Mapping[str, Any], metrics: Sequence[str]) -> Run:
    measured = [epoch for epoch in row["epochs"] if epoch is not None]
    return Run(
        arm=row["arm"],
        configuration=row["configuration"],
        seed=row["seed"],
        epochs=tuple(dict(zip(metrics, epoch, strict=True)) for epoch in measured),
        diverged=len(measured) < len(row["epochs"]),
    )
