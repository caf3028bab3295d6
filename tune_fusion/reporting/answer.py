"""The answer to a search's question: does fusion beat the best single optimizer, by how much, how surely?

Made of the finalists' runs with fresh seeds. Validation data choose the two finalists that are compared; the
test data choose nothing. `Answer` is what ``confirmation.json`` holds, and it reads itself back from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tune_fusion.records import jsonable
from tune_fusion.reporting import statistics
from tune_fusion.reporting.wording import sentence_of

TEST_METRICS = ("test_accuracy", "test_loss", "test_macro_f1")
"""What is compared. Accuracy and F1 lie in [0, 1], the loss is in nats."""

Verdict = Literal["wins", "loses", "open"]


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
    """``wins`` or ``loses``: the whole interval favours the fusion or the control. ``open``: it holds zero,
    or there are fewer than five paired seeds."""

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
    verdict = _verdict(ends, len(values), smaller_is_better(metric))
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
        p_value=statistics.p_value(values),
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
) -> Answer:
    """Compare the best fusion with the best control on the test data.

    Best is the best mean of the search's validation metric over the fresh seeds, among the finalists of its
    kind with the most measured seeds. Without `fusions` (a search without a switch layer) the two kinds are
    the arms: what the space searches, and its controls.
    """
    everyone = tuple(finalists)
    sides = [
        [f for f in everyone if (f.arm == arm if not fusions else f.single == (arm == "control"))]
        for arm in ("fusion", "control")
    ]
    notes = [note for side in sides for note in _left_out(side, metric)]
    fusion, control = (_best(side, metric, direction) for side in sides)
    first = matching_test_metric(metric)
    order = (first, *(other for other in TEST_METRICS if other != first))
    comparisons = (
        tuple(found for other in order if (found := compare(fusion, control, other)) is not None)
        if fusion and control
        else ()
    )
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
        ),
        notes=tuple(notes),
    )


def _verdict(ends: tuple[float, float] | None, n: int, smaller: bool) -> Verdict:
    if ends is None or n < statistics.FEWEST_SEEDS or ends[0] <= 0 <= ends[1]:
        return "open"
    return "wins" if (ends[1] < 0) == smaller else "loses"


def _measured(finalist: Finalist, metric: str) -> int:
    """How many seeds can both choose and be compared."""
    return len(finalist.by_seed(metric).keys() & finalist.by_seed(matching_test_metric(metric)).keys())


def _eligible(side: list[Finalist], metric: str) -> list[Finalist]:
    most = max((_measured(finalist, metric) for finalist in side), default=0)
    return [finalist for finalist in side if most and _measured(finalist, metric) == most]


def _best(side: list[Finalist], metric: str, direction: str) -> Finalist | None:
    """The best by mean validation; ties go to the earlier trial."""
    sign = 1.0 if direction == "max" else -1.0
    eligible = _eligible(side, metric)
    return max(eligible, key=lambda f: (sign * (f.mean(metric) or 0.0), -f.trial)) if eligible else None


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
