"""Which configurations of a search are confirmed, with which seeds, and what their runs amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.answer import Finalist, SeedRun
from tune_fusion.space.configuration import Configuration
from tune_fusion.tuning.listed import ListedRun

_USABLE = (TrialState.COMPLETED, TrialState.STOPPED)
_FRESH = 1_000_000


def finalists(record: SearchRecord, top: int) -> list[TrialRecord]:
    """The `top` best fusions, the `top` best single optimizers, and every untuned default.

    Single optimizers count wherever the search found them. In a search without fusions the two kinds are its
    arms. Trials that diverged, failed or have not ended are left out; the best of each kind come first.
    """
    sign = record.sign
    usable = [trial for trial in record.known if trial.state in _USABLE and record.value(trial) is not None]
    ranked = sorted(usable, key=lambda trial: -sign * (record.value(trial) or 0.0))  # ties: the earlier one
    chosen = [
        trial
        for kind in ("fusion", "control")
        for trial in [t for t in ranked if _kind(record, t) == kind][:top]
    ]
    return chosen + [trial for trial in usable if trial.origin == "default" and trial not in chosen]


def fresh_seeds(seed: int, count: int) -> tuple[int, ...]:
    """`count` seeds, far from the search's own and from what people type; more begin with the same ones."""
    return tuple((_FRESH + seed + number) % 2**32 for number in range(1, count + 1))


def listed_runs(
    record: SearchRecord,
    trials: Sequence[int],
    seeds: Sequence[int],
    confirmation: SearchRecord | None = None,
) -> dict[Literal["fusion", "control"], list[ListedRun]]:
    """Every finalist with every seed, by arm: one seed after the other, so that pairs are complete early.

    Runs of an earlier `confirmation` that failed come once more, at the end.
    """
    runs: dict[Literal["fusion", "control"], list[ListedRun]] = {"fusion": [], "control": []}
    pairs = [(number, seed) for seed in seeds for number in trials]
    if confirmation is not None:
        by_number = confirmed(record, confirmation, trials)
        pairs += [
            (trial.number, cast(int, run.seed)) for trial, some in by_number for run in some if failed(run)
        ]
    for number, seed in pairs:
        trial = record.trial(number)
        configuration = Configuration.from_dict(trial.configuration)
        runs[_kind(record, trial)].append(ListedRun(number, configuration, trial.origin, seed))
    return runs


def failed(run: TrialRecord) -> bool:
    """True of a run that may do better when it is tried again."""
    return run.state is TrialState.FAILED and not run.infeasible


def confirmed(
    search: SearchRecord, confirmation: SearchRecord, trials: Sequence[int]
) -> list[tuple[TrialRecord, list[TrialRecord]]]:
    """Each finalist of `search` with its runs in `confirmation`, in the order in which they were started."""
    by_configuration: dict[str, list[TrialRecord]] = {}
    for run in confirmation.trials:
        by_configuration.setdefault(_identity(run.configuration), []).append(run)
    finalists_ = [search.trial(number) for number in trials]
    return [(trial, by_configuration.get(_identity(trial.configuration), [])) for trial in finalists_]


def as_finalist(search: SearchRecord, trial: TrialRecord, runs: Sequence[TrialRecord]) -> Finalist:
    """What the statistics need of a finalist and its ended runs."""
    return Finalist(
        trial=trial.number,
        arm=trial.arm,
        origin=trial.origin,
        single=trial.single,
        label=f"{trial.label} ({trial.title})" if trial.source else trial.label,
        switch_layer_name=trial.switch_layer_name,
        configuration=trial.configuration,
        parameters=trial.parameters,
        search_value=cast(float, search.value(trial)),
        # The last of those with one seed: it was tried again because the earlier ones had failed.
        runs=tuple({run.seed: _seed_run(search, run) for run in runs if run.ended is not None}.values()),
    )


def best_run(confirmation: SearchRecord, runs: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete run with the best validation value; None where there is none. Test data choose nothing."""
    sign = confirmation.sign
    valued = [
        (sign * value, -run.number, run)
        for run in runs
        if run.state is TrialState.COMPLETED and (value := confirmation.value(run)) is not None
    ]
    return max(valued)[2] if valued else None


def mean_best_epoch(confirmation: SearchRecord, runs: Sequence[TrialRecord]) -> int:
    """The best epoch of the runs by validation, in the mean, rounded; at least 1."""
    best = [run.best_epoch(confirmation.metric, confirmation.direction) for run in runs]
    epochs = [one["epoch"] for one in best if one is not None]
    return max(1, round(sum(epochs) / len(epochs))) if epochs else 1


def _seed_run(search: SearchRecord, run: TrialRecord) -> SeedRun:
    best = dict(run.best_epoch(search.metric, search.direction) or {})
    epoch = best.pop("epoch", None)
    values = {key: value for key, value in best.items() if key.startswith("val_")}
    last = run.epochs[-1] if run.epochs else {}
    values |= {key: value for key, value in last.items() if key.startswith("test_")}
    return SeedRun(
        seed=cast(int, run.seed),
        state=run.state.value,
        epochs=len(run.epochs),
        best_epoch=None if epoch is None else int(epoch),
        values=values,
    )


def _kind(record: SearchRecord, trial: TrialRecord) -> Literal["fusion", "control"]:
    control = trial.single if record.fusions else trial.arm == "control"
    return "control" if control else "fusion"


def _identity(configuration: Mapping[str, Any]) -> str:
    return repr(Configuration.from_dict(configuration))
