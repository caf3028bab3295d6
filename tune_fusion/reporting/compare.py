"""Several searches side by side on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.events import Chronicle
from tune_fusion.reporting.answer import Answer
from tune_fusion.reporting.figures.progress import Step, best_so_far
from tune_fusion.reporting.figures.space import best_label
from tune_fusion.reporting.figures.style import (
    Drawn,
    counted,
    label_ends,
    metric_label,
    new_figure,
    number,
    search_colors,
    styled,
)
from tune_fusion.reporting.page import Section, render, save_page, status_words
from tune_fusion.reporting.page_tables import Table, interval
from tune_fusion.reporting.wording import in_units, unit


@dataclass(frozen=True)
class Compared:
    """One of the searches, and what its confirmation found."""

    chronicle: Chronicle
    answer: Answer | None

    @property
    def name(self) -> str:
        """The search's name."""
        return self.chronicle.record.name


def write_comparison(storage: Path, searches: Sequence[Compared]) -> list[Path]:
    """Write ``compare.html``, and ``figures/compare-*.png``, into `storage`; returns what was written.

    OSError where a file cannot be written.
    """
    section = Section(
        "progress",
        "Best so far",
        "Each search's best of both arms.",
        [by_epochs(searches), by_seconds(searches)],
    )
    page = render(
        "compare.html",
        names=[search.name for search in searches],
        warnings=warnings(searches),
        tables=[overview(searches), answers(searches)],
        sections=[section],
    )
    return save_page(storage / "compare.html", page, section.figures)


def warnings(searches: Sequence[Compared]) -> list[str]:
    """Why the numbers of these searches do not stand beside each other fairly; none where they do."""
    found = []
    for what, of in (("metrics", _metric), ("data (by fingerprint)", _data)):
        groups: dict[str, list[str]] = {}
        for search in searches:
            groups.setdefault(of(search), []).append(search.name)
        if len(groups) > 1:
            told = "; ".join(f"{', '.join(names)}: {value[:16]}" for value, names in groups.items())
            found.append(f"These searches have different {what}, so their values are not comparable: {told}.")
    return found


def _metric(search: Compared) -> str:
    return search.chronicle.record.metric


def _data(search: Compared) -> str:
    return search.chronicle.sessions[-1].data


def overview(searches: Sequence[Compared]) -> Table:
    """The best of every search, by validation."""
    header = ("search", "status", "metric", "trials", "epochs", "seconds", "best fusion", "best control")
    rows = []
    for search in searches:
        record = search.chronicle.record
        bests = [record.best_fusion(), record.best_control()]
        rows.append(
            (
                record.name,
                status_words(search.chronicle),
                record.metric,
                f"{len(record.trials)} of {record.planned_trials}",
                str(sum(len(trial.epochs) for trial in record.trials)),
                f"{record.elapsed(search.chronicle.last):.0f}",
                *("-" if best is None else best_label(record, best) for best in bests),
            )
        )
    told = counted(len(rows), "search", "searches")
    note = f"n = {told}; validation values of one seed each, chosen for being good."
    return Table("overview", "The searches", header, rows, note)


def answers(searches: Sequence[Compared]) -> Table:
    """What each search's confirmation found, on test data."""
    header = ("search", "metric", "fusion minus control", "95 % interval", "seeds", "verdict", "answer")
    rows = []
    for search in searches:
        answer = search.answer
        if answer is None or not answer.comparisons:
            why = "not confirmed" if answer is None else answer.sentence
            rows.append((search.name, "-", "-", "-", "-", "-", why))
            continue
        first = answer.comparisons[0]
        rows.append(
            (
                search.name,
                first.metric,
                f"{in_units(first.metric, first.mean):+.3f} {unit(first.metric)}",
                interval(first),
                str(len(first.differences)),
                first.verdict,
                answer.sentence,
            )
        )
    confirmed = sum(search.answer is not None for search in searches)
    note = f"n = {confirmed} of {counted(len(searches), 'search', 'searches')} confirmed."
    return Table("answers", "The answers, on test data", header, rows, note)


def seconds(chronicle: Chronicle, steps: Sequence[Step]) -> list[float]:
    """The seconds for which the search had been running at each step, without its pauses.

    A pause lasts from the last thing that a session told of a trial to the beginning of the next.
    """
    record = chronicle.record
    told = [
        at
        for trial in record.trials
        for at in (trial.started, *trial.times, *([] if trial.ended is None else [trial.ended]))
    ]
    pauses = []
    for session in chronicle.sessions[1:]:
        last = max((at for at in told if at < session.started), default=record.started)
        pauses.append((session.started, session.started - last))
    return [
        step.at - record.started - sum(length for end, length in pauses if end <= step.at) for step in steps
    ]


def by_epochs(searches: Sequence[Compared]) -> Drawn:
    """Best so far over epochs spent."""
    return _best(
        searches,
        "compare-epochs",
        "Best so far over epochs spent",
        "epochs trained in all (epochs)",
        lambda _, steps: [float(step.epochs) for step in steps],
    )


def by_seconds(searches: Sequence[Compared]) -> Drawn:
    """Best so far over seconds."""
    return _best(searches, "compare-seconds", "Best so far over time", "search time (s)", seconds)


@styled
def _best(
    searches: Sequence[Compared],
    name: str,
    title: str,
    label: str,
    places: Callable[[Chronicle, Sequence[Step]], list[float]],
) -> Drawn:
    metrics = {_metric(search) for search in searches}
    colors = search_colors(len(searches))
    lines = [
        (search, color, steps)
        for search, color in zip(searches, colors, strict=True)
        if (steps := best_so_far(search.chronicle.record))
    ]
    if not lines:
        return Drawn(name, title, None, "No trial of these searches has finished an epoch.")
    if len(metrics) > 1:
        return Drawn(name, title, None, f"Different metrics share no axis: {', '.join(sorted(metrics))}.")
    figure, axes = new_figure()
    ends = []
    for search, color, steps in lines:
        xs, ys = places(search.chronicle, steps), [step.value for step in steps]
        axes.plot(xs, ys, color=color, linewidth=2, drawstyle="steps-post")
        axes.plot(xs[-1:], ys[-1:], "o", color=color, markersize=5)
        ends.append((xs[-1], ys[-1], f"{search.name} {number(ys[-1])}", color))
    label_ends(axes, ends)
    axes.set_xlabel(label)
    axes.set_ylabel(metric_label(metrics.pop()))
    told = ", ".join(f"{search.name} {counted(steps[-1].epochs, 'epoch')}" for search, _, steps in lines)
    return Drawn(name, title, figure, f"n = {counted(len(lines), 'search', 'searches')}: {told}.")
