"""The tables of the report, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.answer import TEST_METRICS, Answer, Comparison, Finalist, matching_test_metric
from tune_fusion.reporting.figures.style import number
from tune_fusion.reporting.figures.trust import early_choices
from tune_fusion.reporting.live import trial_text
from tune_fusion.reporting.wording import UNCONFIRMED, in_units, kind, unit


@dataclass(frozen=True)
class Table:
    """A table of the report, or why it has no rows."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str
    """What the rows are and how many runs stand behind them; without rows: why there are none."""


def confirmed(answer: Answer | None) -> Table:
    """Mean ± standard deviation of every test metric for every finalist."""
    header = ("finalist", "trial", "arm", "seeds", *(kind(metric) for metric in TEST_METRICS))
    rows = [
        (
            f.label + (" (untuned)" if f.origin == "default" else ""),
            str(f.trial),
            f.arm,
            str(max(f.n(metric) for metric in TEST_METRICS)),
            *(_mean_sd(f, metric) for metric in TEST_METRICS),
        )
        for f in (_ranked(answer) if answer else [])
    ]
    note = UNCONFIRMED
    if answer is not None:
        note = (
            f"Mean ± standard deviation over n = {len(answer.seeds)} seeds ({_listed(answer.seeds)}); "
            f"{answer.test_images} test images, measured once a run, with the weights of the epoch that was "
            "best on the validation images. In order of the validation means."
        )
    return Table("confirmed", "Confirmed on test data", header, rows, note)


def comparisons(answer: Answer | None) -> Table:
    """The paired difference on each test metric, with its interval."""
    header = ("metric", "fusion minus control", "95 % interval", "seeds", "p", "verdict for the fusion")
    rows = [] if answer is None else [_comparison(found) for found in answer.comparisons]
    note = UNCONFIRMED if answer is None else "No seed was measured for both a fusion and a control."
    if answer is not None and rows:
        first = answer.comparisons[0]
        note = (
            f"n = {len(first.differences)} paired seeds: the best fusion minus the best control, chosen by "
            "their validation means. p: exact permutation test, two-sided; so many seeds can give no p below "
            f"{first.smallest_p:.4f}."
        )
    return Table("comparisons", "Best fusion against best control", header, rows, note)


def interval(found: Comparison) -> str:
    """The ends of the 95 % interval in the units that differences are shown in; ``-`` without one."""
    if found.low is None or found.high is None:
        return "-"
    return f"[{in_units(found.metric, found.low):+.3f}, {in_units(found.metric, found.high):+.3f}]"


def _comparison(found: Comparison) -> tuple[str, ...]:
    return (
        kind(found.metric),
        f"{in_units(found.metric, found.mean):+.3f} {unit(found.metric)}",
        interval(found),
        str(len(found.differences)),
        f"{found.p_value:.4f}",
        found.verdict,
    )


def optimism(answer: Answer | None) -> Table:
    """How much better the search's values were than what fresh seeds gave."""
    header = (
        "finalist",
        "trial",
        "search",
        "validation, fresh seeds",
        "test",
        "optimism",
        "against the test",
    )
    if answer is None:
        return Table("optimism", "Selection's optimism", header, [], UNCONFIRMED)
    test = matching_test_metric(answer.metric)
    rows = [
        (
            finalist.label,
            str(finalist.trial),
            number(finalist.search_value),
            number(finalist.mean(answer.metric)),
            number(finalist.mean(test)),
            _difference(answer.metric, finalist.optimism(answer.metric)),
            _difference(answer.metric, finalist.optimism(test)),
        )
        for finalist in _ranked(answer)
    ]
    note = (
        f"n = {len(rows)} finalists. Search: the best {kind(answer.metric)} of one seed, for which the "
        "finalist was chosen. Optimism: how much better that is than the mean over fresh seeds."
    )
    return Table("optimism", "Selection's optimism", header, rows, note)


def _difference(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{in_units(metric, value):+.2f} {unit(metric)}"


def _ranked(answer: Answer) -> list[Finalist]:
    """The finalists, the best by the mean of the search's metric over fresh seeds first."""
    sign = -1.0 if answer.direction == "max" else 1.0

    def rank(finalist: Finalist) -> tuple[bool, float]:
        mean = finalist.mean(answer.metric)
        return mean is None, 0.0 if mean is None else sign * mean

    return sorted(answer.finalists, key=rank)


def _mean_sd(finalist: Finalist, metric: str) -> str:
    spread = finalist.sd(metric)
    return number(finalist.mean(metric)) + ("" if spread is None else f" ± {number(spread)}")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def bests(record: SearchRecord) -> Table:
    """The best of the search: fusion, single optimizer, and the untuned defaults."""
    header = ("", "trial", "value", "epochs", "configuration")
    candidate, rival = ("fusion", "single optimizer") if record.fusions else ("candidate", "control")
    named: list[tuple[str, TrialRecord | None]] = [
        (f"best {candidate}", record.best_fusion()),
        (f"best {rival}", record.best_control()),
        (f"untuned {candidate}", record.untuned("fusion")),
        (f"untuned {rival}", record.untuned("control")),
    ]
    rows = [
        (
            label,
            trial.title.removeprefix("trial "),
            number(record.value(trial)),
            f"{len(trial.epochs)} of {trial.max_epochs}",
            trial_text(record, trial),
        )
        for label, trial in named
        if trial is not None
    ]
    note = (
        f"The best {kind(record.metric)} of n = {len(record.known)} trials, one seed each; chosen on the "
        "same images, so it promises too much."
        if rows
        else "No trial has finished an epoch."
    )
    return Table("bests", "Best of the search, by validation", header, rows, note)


def early(record: SearchRecord) -> Table:
    """What "stop everything after n epochs, take the best" would have chosen."""
    header = ("n", "trials", "chosen", "its best by then", "its best in the end", "worse than the best by")
    rows = [
        (
            str(choice.epoch),
            str(choice.count),
            str(choice.trial),
            number(choice.reached),
            "unknown: not trained to the end" if choice.final is None else number(choice.final),
            _difference(record.metric, choice.regret),
        )
        for choice in early_choices(record)
    ]
    note = (
        f"Of n = {len(record.trials)} trials: those that trained so far. The last column compares with the "
        "best trial that finished."
        if rows
        else "No trial has finished an epoch."
    )
    return Table("early-choices", "Stop everything after n epochs, take the best", header, rows, note)


def troubles(record: SearchRecord) -> Table:
    """Why trials failed or diverged."""
    bad = (TrialState.FAILED, TrialState.DIVERGED)
    counts = Counter((t.state.value, t.reason) for t in record.trials if t.state in bad)
    rows = [(str(count), state, reason) for (state, reason), count in counts.most_common(20)]
    found = f"n = {sum(counts.values())} of {len(record.trials)} trials."
    header = ("trials", "state", "reason")
    return Table(
        "troubles", "What went wrong", header, rows, found if rows else "No trial failed or diverged."
    )
