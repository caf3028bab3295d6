"""The answer to a search's question: does fusion beat the best single optimizer, by how much, how surely?

Made of the finalists' runs with fresh seeds. Validation data choose the two finalists that are compared; the
test data choose nothing. `Answer` is what ``confirmation.json`` holds, and it reads itself back from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tune_fusion.records import TrialState, jsonable
from tune_fusion.reporting import statistics
from tune_fusion.reporting.wording import sentence_of

TEST_METRICS = ("test_accuracy", "test_loss", "test_macro_f1")
"""What is compared. Accuracy and F1 lie in [0, 1], the loss is in nats."""

Verdict = Literal["wins", "loses", "open"]
_LARGEST_P = 0.05


def smaller_is_better(metric: str) -> bool:
    """True of losses."""
    return "loss" in metric


@dataclass(frozen=True)
class SeedRun:
    """One finalist trained with one fresh seed."""

    seed: int
    state: str
    """A `TrialState`."""
    epochs: int
    """Epochs trained."""
    best_epoch: int | None
    """The epoch, from 1, with the best value of the search's metric; None where no epoch was measured."""
    values: Mapping[str, float]
    """The ``val_*`` metrics of the best epoch and the ``test_*`` metrics of its weights; only finite numbers,
    and no test metrics where they could not be measured."""

    def __post_init__(self) -> None:
        finite = {key: float(value) for key, value in self.values.items() if math.isfinite(value)}
        object.__setattr__(self, "values", finite)


@dataclass(frozen=True)
class Finalist:
    """One configuration of the search and its runs with fresh seeds."""

    trial: int
    """Its number in the search."""
    arm: str
    origin: str
    single: bool
    """True where one optimizer with one setting trains every layer."""
    label: str
    """For people: ``adam|sgd @3``, or ``adam``."""
    switch_layer_name: str
    configuration: Mapping[str, Any]
    """`Configuration.to_dict`."""
    parameters: Mapping[str, Any]
    """`Configuration.flat`."""
    search_value: float
    """The best value of the search's metric in the search: of one seed, and chosen for being good."""
    runs: tuple[SeedRun, ...]

    def __post_init__(self) -> None:
        if len({run.seed for run in self.runs}) != len(self.runs):
            raise ValueError(f"trial {self.trial} has two runs of one seed")
        object.__setattr__(self, "configuration", jsonable(self.configuration))
        object.__setattr__(self, "parameters", jsonable(self.parameters))
        object.__setattr__(self, "runs", tuple(sorted(self.runs, key=lambda run: run.seed)))

    def by_seed(self, metric: str) -> dict[int, float]:
        """The metric of every run that has it, by seed in ascending order."""
        return {run.seed: run.values[metric] for run in self.runs if metric in run.values}

    def n(self, metric: str) -> int:
        """How many runs have the metric."""
        return len(self.by_seed(metric))

    def mean(self, metric: str) -> float | None:
        """The metric's mean over the runs that have it; None where none has."""
        return statistics.mean(list(self.by_seed(metric).values()))

    def sd(self, metric: str) -> float | None:
        """The metric's sample standard deviation over the runs; None of fewer than two."""
        return statistics.sd(list(self.by_seed(metric).values()))

    def optimism(self, metric: str) -> float | None:
        """How much better the search's value was than the mean of `metric` over the fresh seeds.

        `metric` is the search's own validation metric, or its `matching_test_metric`. Positive where the
        search promised too much, of a loss too; None where no run has the metric.
        """
        confirmed = self.mean(metric)
        if confirmed is None:
            return None
        return confirmed - self.search_value if smaller_is_better(metric) else self.search_value - confirmed


@dataclass(frozen=True)
class Comparison:
    """Two finalists on the test data, paired by seed: differences are fusion minus control."""

    metric: str
    fusion: int
    """Trial number of the one finalist."""
    control: int
    """Trial number of the other."""
    differences: Mapping[int, float]
    """By seed, of the seeds that both have measured; never empty."""
    mean: float
    low: float | None
    """Lower end of the 95 % interval of the mean (`statistics.interval`); None with one seed."""
    high: float | None
    p_value: float
    """Of the exact two-sided sign-flip permutation test."""
    smallest_p: float
    """The smallest that this many seeds can give."""
    seeds_needed: int | None
    """Seeds in all that would tell a difference such as this (`statistics.seeds_needed`); None: more than
    1,000, or unknown with one seed."""
    verdict: Verdict
    """``wins`` or ``loses``: the whole interval favours the fusion or the control, and `p_value` is at most
    0.05, or the smallest that so many seeds can give. ``open``: otherwise, with fewer than five paired seeds,
    and where the confirmation is not complete."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The comparison that `dataclasses.asdict` and JSON have made plain."""
        return cls(**dict(values, differences={int(k): v for k, v in values["differences"].items()}))


@dataclass(frozen=True)
class Answer:
    """What a confirmation found."""

    name: str
    """The search's."""
    metric: str
    """The validation metric that the search optimised."""
    direction: Literal["max", "min"]
    seeds: tuple[int, ...]
    """All fresh seeds, ascending."""
    test_images: int
    finalists: tuple[Finalist, ...]
    fusion: int | None
    """Trial number of the best fusion by validation; None where none could be measured."""
    control: int | None
    """Trial number of the best control by validation."""
    comparisons: tuple[Comparison, ...]
    """One for each of `TEST_METRICS`, the one of the search's metric first; empty where no seed was measured
    on both sides."""
    sentence: str
    """The answer in one sentence of plain English."""
    notes: tuple[str, ...]
    """What a reader must know besides: who was left out, and why."""

    def finalist(self, trial: int | None) -> Finalist | None:
        """The finalist with this trial number; None where there is none."""
        return next((finalist for finalist in self.finalists if finalist.trial == trial), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        plain: dict[str, Any] = jsonable(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answer:
        """The answer that `to_dict` wrote."""
        finalists = (
            Finalist(**dict(item, runs=tuple(SeedRun(**run) for run in item["runs"])))
            for item in values["finalists"]
        )
        changed = {
            "seeds": tuple(values["seeds"]),
            "finalists": tuple(finalists),
            "comparisons": tuple(Comparison.from_dict(item) for item in values["comparisons"]),
            "notes": tuple(values["notes"]),
        }
        return cls(**dict(values, **changed))


def matching_test_metric(metric: str) -> str:
    """The test metric of the same kind as a validation metric: ``val_loss`` gives ``test_loss``."""
    return metric.replace("val_", "test_", 1)


def compare(fusion: Finalist, control: Finalist, metric: str) -> Comparison | None:
    """`fusion` against `control` on a metric of their runs, paired by seed; None where no seed has both."""
    ours, theirs = fusion.by_seed(metric), control.by_seed(metric)
    differences = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    values = list(differences.values())
    centre = statistics.mean(values)
    if centre is None:
        return None
    ends = statistics.interval(values)
    p = statistics.p_value(values)
    verdict = _verdict(ends, p, len(values), smaller=smaller_is_better(metric))
    needed = statistics.seeds_needed(values)
    if verdict == "open" and needed is not None:
        needed = max(needed, len(values) + 1)
    return Comparison(
        metric=metric,
        fusion=fusion.trial,
        control=control.trial,
        differences=differences,
        mean=centre,
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        p_value=p,
        smallest_p=statistics.smallest_p(len(values)),
        seeds_needed=needed,
        verdict=verdict,
    )


def answer(
    name: str,
    metric: str,
    direction: Literal["max", "min"],
    finalists: Iterable[Finalist],
    test_images: int,
    *,
    fusions: bool = True,
    complete: bool = True,
) -> Answer:
    """Compare the best fusion with the best control on the test data.

    Best is the best mean of the search's validation metric over the measured fresh seeds, among the finalists
    of its kind with the most measured seeds; there is no verdict where one that was left out looks better.
    These are the runs whose test values are compared: of many equal finalists the chosen ones are a little
    better than they are (with 12 against 2, false wins rise from 3 to 8 %). Without `fusions` (a search
    without a switch layer) the two kinds are the arms: what the space searches, and its controls. With
    `complete` False runs are missing, and there is no verdict.
    """
    everyone = tuple(finalists)
    sides = [
        [f for f in everyone if (f.arm == arm if not fusions else f.single == (arm == "control"))]
        for arm in ("fusion", "control")
    ]
    fusion, control = (_best(side, metric, direction) for side in sides)
    hindrance = "" if complete else "runs are missing"
    for side in sides:
        hindrance = hindrance or _better_left_out(side, metric, direction)
    notes = [note for side in sides for note in (*_left_out(side, metric), *_diverged(side))]
    first = matching_test_metric(metric)
    order = (first, *(other for other in TEST_METRICS if other != first))
    comparisons = (
        tuple(found for other in order if (found := compare(fusion, control, other)) is not None)
        if fusion and control
        else ()
    )
    if hindrance:
        comparisons = tuple(replace(found, verdict="open") for found in comparisons)
    if fusion and control:
        notes += _test_noise(fusion, control, test_images)
    return Answer(
        name=name,
        metric=metric,
        direction=direction,
        seeds=tuple(sorted({run.seed for finalist in everyone for run in finalist.runs})),
        test_images=test_images,
        finalists=everyone,
        fusion=fusion.trial if fusion else None,
        control=control.trial if control else None,
        comparisons=comparisons,
        sentence=sentence_of(
            comparisons[0] if comparisons else None,
            fusion.label if fusion else None,
            control.label if control else None,
            fusions=fusions,
            hindrance=hindrance,
        ),
        notes=tuple(notes),
    )


def _verdict(ends: tuple[float, float] | None, p: float, n: int, *, smaller: bool) -> Verdict:
    if ends is None or n < statistics.FEWEST_SEEDS or ends[0] <= 0 <= ends[1]:
        return "open"
    if p > max(_LARGEST_P, statistics.smallest_p(n)):
        return "open"
    return "wins" if (ends[1] < 0) == smaller else "loses"


def _measured(finalist: Finalist, metric: str) -> int:
    """How many seeds can both choose and be compared."""
    return len(finalist.by_seed(metric).keys() & finalist.by_seed(matching_test_metric(metric)).keys())


def _eligible(side: list[Finalist], metric: str) -> list[Finalist]:
    most = max((_measured(finalist, metric) for finalist in side), default=0)
    return [finalist for finalist in side if most and _measured(finalist, metric) == most]


def _best(side: list[Finalist], metric: str, direction: str) -> Finalist | None:
    """The best by mean validation; ties go to the earlier finalist."""
    sign = 1.0 if direction == "max" else -1.0
    eligible = _eligible(side, metric)
    return max(eligible, key=lambda one: sign * _promise(one, metric)) if eligible else None


def _promise(finalist: Finalist, metric: str) -> float:
    """The mean validation value over the seeds that can be compared."""
    tested = finalist.by_seed(matching_test_metric(metric))
    values = [value for seed, value in finalist.by_seed(metric).items() if seed in tested]
    return statistics.mean(values) or 0.0


def _better_left_out(side: list[Finalist], metric: str, direction: str) -> str:
    """Why the side's choice is none: a finalist that looks better on the fewer seeds it has."""
    sign = 1.0 if direction == "max" else -1.0
    chosen = _best(side, metric, direction)
    if chosen is None:
        return ""
    for one in side:
        better = sign * _promise(one, metric) > sign * _promise(chosen, metric)
        if one not in _eligible(side, metric) and _measured(one, metric) and better:
            return f"{one.label} (trial {one.trial}) looks better on the seeds that it has"
    return ""


def _diverged(side: list[Finalist]) -> list[str]:
    """One note for every finalist with runs that diverged; these were measured at their best epoch before."""
    counts = [(one, sum(run.state == TrialState.DIVERGED for run in one.runs)) for one in side]
    return [
        f"{one.label} (trial {one.trial}): {count} of {len(one.runs)} runs diverged; what was measured of "
        "them is their best epoch before"
        for one, count in counts
        if count
    ]


def _test_noise(fusion: Finalist, control: Finalist, images: int) -> list[str]:
    """What the interval leaves out: it is one over seeds, on these very images."""
    shares = [mean for one in (fusion, control) if (mean := one.mean("test_accuracy")) is not None]
    if len(shares) < 2 or images < 1:
        return []
    noise = 100 * statistics.sampling_noise(shares, images)
    return [
        f"the interval is over seeds, on these {images} test images; drawing others would move the "
        f"difference by up to ±{noise:.2f} points in 95 of 100 cases, less where both err on the same images"
    ]


def _left_out(side: list[Finalist], metric: str) -> list[str]:
    """One note for every finalist that too few of its seeds keep from being chosen."""
    chosen = _eligible(side, metric)
    most = _measured(chosen[0], metric) if chosen else 0
    return [
        f"{finalist.label} (trial {finalist.trial}) was left out of the choice: only "
        f"{_measured(finalist, metric)} of its {len(finalist.runs)} seeds were measured, others have {most}"
        for finalist in side
        if chosen and finalist not in chosen
    ]
