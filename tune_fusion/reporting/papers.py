"""A run's rows beside the published ones, and what the run says of the papers' orderings."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.answer import Answer, Comparison, Finalist, compare
from tune_fusion.reporting.published_tables import Block, Column, Ordering, Row, Table, load_table
from tune_fusion.reporting.wording import difference_text
from tune_fusion.space.document import Document

_NONE = "-"
_COLUMNS = 3
"""Quantities side by side; more of them go below."""
_WIDTH = 110
_JUDGED = {"wins": "confirms", "loses": "contradicts", "open": "cannot tell"}


def paper_report(record: SearchRecord, answer: Answer | None, table: str, space: str) -> str:
    """Plain text: the published table with the run's rows beside it, then its orderings, each judged.

    `answer` is that of the search's confirmation, None where there is none; `space` is the text of the space
    file as run, whose model and data choose the part of the table. Where they are not the paper's, the text
    says so. Raises InputError for an unknown table.
    """
    published = load_table(table)
    asked = Document.parse(space, record.space).plain()
    block, warnings = _choose_block(published, asked["model"]["name"], asked["data"]["name"])
    runs = {row.id: _find(row, record, answer) for row in block.rows}
    parts = [
        _header(published, block, record, asked, warnings),
        *_tables(published, block, runs, record),
        _legend(answer),
        _orderings(published, block, runs, record),
        _remarks(published),
    ]
    return "\n\n".join(parts)


@dataclass(frozen=True)
class _Run:
    """What a run has of one row."""

    trial: TrialRecord | None = None
    finalist: Finalist | None = None


def _find(row: Row, record: SearchRecord, answer: Answer | None) -> _Run:
    """The row's best confirmed configuration, by validation, else the best trial of the search."""
    sign = record.sign

    def rank(finalist: Finalist) -> tuple[int, float, int]:
        confirmed = finalist.mean(record.metric)
        return finalist.n(record.metric), sign * confirmed if confirmed is not None else 0.0, -finalist.trial

    finalists = [f for f in answer.finalists if _is(row, f.single, f.parameters)] if answer else []
    measured = [finalist for finalist in finalists if finalist.n(record.metric)]
    if measured:
        finalist = max(measured, key=rank)
        return _Run(record.trial(finalist.trial), finalist)
    trials = [
        (sign * value, -trial.number, trial)
        for trial in record.known
        if _is(row, trial.single, trial.parameters)
        and trial.state is not TrialState.DIVERGED
        and (value := record.value(trial)) is not None
    ]
    return _Run(max(trials)[2]) if trials else _Run()


def _is(row: Row, single: bool, parameters: Mapping[str, Any]) -> bool:
    if row.high is None or single:
        return row.high is None and single and parameters["low.optimizer"] == row.low
    found = (parameters["low.optimizer"], parameters.get("high.optimizer"), parameters["switch_layer"])
    return found == (row.low, row.high, row.switch)


def _choose_block(table: Table, model: str, data: str) -> tuple[Block, list[str]]:
    """The part of the table nearest to what was run, and in what it is not the same."""

    def nearness(block: Block) -> tuple[bool, ...]:
        return (
            model.startswith(block.models),
            block.family in model,
            data in block.data_sets,
            block.data_family in data.lower(),
            block.test_images is not None,  # of two that are equally near, the one whose noise is known
        )

    block = max(table.blocks, key=nearness)
    exact_model, _, exact_data, *_ = nearness(block)
    warnings = []
    if not exact_model:
        warnings.append(f"the published rows are of another model ({block.model}) than the run's ({model})")
    if not exact_data:
        warnings.append(f"the published rows are of other data ({block.data}) than the run's ({data})")
    return block, warnings


def _header(
    table: Table, block: Block, record: SearchRecord, asked: Mapping[str, Any], warnings: list[str]
) -> str:
    epochs = sorted({trial.max_epochs for trial in record.trials})
    told = f", {' or '.join(map(str, epochs))} epochs" if epochs else ""
    limit = asked["data"].get("limit")
    told += f", at most {limit:,} training images" if isinstance(limit, int) else ""
    lines = [
        table.title,
        f"  part:  {block.model} on {block.data}",
        f"  paper: {table.paper}; {table.source}",
        f"         {table.settings}",
        f"  run:   {record.name}: {asked['model']['name']} on {asked['data']['name']}{told}",
        *(f"  NOTE:  {warning}" for warning in warnings),
    ]
    return "\n".join(_wrapped(line, "         ") for line in lines)


def _tables(table: Table, block: Block, runs: Mapping[str, _Run], record: SearchRecord) -> Iterator[str]:
    labels = ["", "", *(row.label for row in block.rows)]
    measured = []
    for column in table.columns:
        ours = [_published(row, column) for row in block.rows]
        theirs = [_measured(runs[row.id], column, record) for row in block.rows]
        if {*ours, *theirs} != {_NONE}:
            measured.append((column.title, _aligned(["paper", *ours]), _aligned(["run", *theirs])))
    for start in range(0, len(measured), _COLUMNS):
        stacks = [_aligned(labels)]
        for title, ours, theirs in measured[start : start + _COLUMNS]:
            cells = [f"{one}  {other}" for one, other in zip(ours, theirs, strict=True)]
            stacks.append(_aligned([title, *cells]))
        yield "\n".join("   ".join(cells).rstrip() for cells in zip(*stacks, strict=True))


def _aligned(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _published(row: Row, column: Column) -> str:
    if column.key not in row.values:
        return _NONE
    shown = _number(row.values[column.key], column)
    spread = row.values.get(f"{column.key}_sd")
    return shown if spread is None else f"{shown} ± {spread:{'.2f' if column.scale == 100 else '.3f'}}"


def _measured(run: _Run, column: Column, record: SearchRecord) -> str:
    """``93.10 ± 0.21 (5)`` from the confirmation, else ``93.10 v`` from the search."""
    if run.finalist and column.confirmed:
        centre, spread = run.finalist.mean(column.confirmed), run.finalist.sd(column.confirmed)
        if centre is not None:
            around = "" if spread is None else f" ± {_number(column.scale * spread, column)}"
            return f"{_number(column.scale * centre, column)}{around} ({run.finalist.n(column.confirmed)})"
    value = _searched(run.trial, column, record) if run.trial and column.searched else None
    return _NONE if value is None else f"{_number(column.scale * value, column)} v"


def _searched(trial: TrialRecord, column: Column, record: SearchRecord) -> float | None:
    assert column.searched is not None
    if column.reduce == "min":
        return min((m[column.searched] for m in trial.epochs if column.searched in m), default=None)
    best = trial.best_epoch(record.metric, record.direction) or {}
    return best.get(column.searched)


def _number(value: float, column: Column) -> str:
    if column.scale == 100:
        return f"{value:.2f}"
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def _legend(answer: Answer | None) -> str:
    confirmed = (
        "93.10 ± 0.21 (5): mean ± standard deviation over 5 fresh seeds of the confirmation, test data where "
        "the paper tests; "
        if answer
        else "this search has no confirmation: its test data were never read; "
    )
    return _wrapped(
        f"{confirmed}v: of the search itself, one seed, validation data or training loss; {_NONE}: not in "
        "the run, or not published",
        "",
    )


def _orderings(table: Table, block: Block, runs: Mapping[str, _Run], record: SearchRecord) -> str:
    column = table.columns[0]
    lines = [
        f"the paper's orderings by {column.title}, and what the run says (95 % intervals, "
        "paired seeds, each pair by itself):"
    ]
    for ordering in block.orderings:
        worse = ordering.worse or tuple(row.id for row in block.rows if row.id not in ordering.better)
        lines.append(f"  {ordering.claim}")
        lines += [f"      paper: {_claimed(block, ordering.better, worse, column)}"]
        lines += [f"      run:   {_judged(block, ordering, worse, runs, record, column)}"]
    if block.test_images is None:
        lines.append("  the paper does not print how many test images it had, so its noise is unknown")
    return "\n".join(_wrapped(line, "             ") for line in lines)


def noise(percent: float, test_images: int) -> float:
    """The standard deviation, in points, that so few test images alone give an accuracy in per cent."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / test_images)


def _claimed(block: Block, better: tuple[str, ...], worse: tuple[str, ...], column: Column) -> str:
    """The published difference, marked where the test set's own noise is larger."""

    def highest(names: tuple[str, ...]) -> float | None:
        return max((v for n in names if (v := block.row(n).values.get(column.key)) is not None), default=None)

    ours, theirs = highest(better), highest(worse)
    if ours is None or theirs is None:
        return "the values are not in the text at hand"
    text = f"{ours - theirs:+.2f} points"
    if block.test_images is None:
        return text
    own = noise(ours, block.test_images)
    if abs(ours - theirs) >= own:
        return text
    return f"{text}, below the test set's own noise of {own:.2f} ({block.test_images:,} images)"


def _judged(
    block: Block,
    ordering: Ordering,
    worse: tuple[str, ...],
    runs: Mapping[str, _Run],
    record: SearchRecord,
    column: Column,
) -> str:
    best = _best([runs[name] for name in ordering.better], record)
    if best is None or column.confirmed is None:
        return f"cannot tell: {_lacking(block, ordering.better, runs)}"
    comparisons: dict[str, Comparison | None] = {}
    for name in worse:
        rival = runs[name].finalist
        comparisons[name] = compare(best, rival, column.confirmed) if rival else None
    if len(worse) == 1:
        only = comparisons[worse[0]]
        if only is None:
            return f"cannot tell: {_lacking(block, worse, runs)}"
        n = len(only.differences)
        return f"{_JUDGED[only.verdict]}: {difference_text(only)}, {n} seed{'s' if n > 1 else ''}"
    counts = Counter(c.verdict if c else "missing" for c in comparisons.values())
    confirmed = "confirms" if counts["wins"] == len(worse) else "cannot tell"
    word = "contradicts" if counts["loses"] else confirmed
    return (
        f"{word}: of {len(worse)} other rows {counts['wins']} below, {counts['loses']} above, "
        f"{counts['open']} too near to tell, {counts['missing']} not confirmed"
    )


def _best(runs: list[_Run], record: SearchRecord) -> Finalist | None:
    """The confirmed one with the best mean validation: the test data choose nothing here either."""
    sign = record.sign
    finalists = [run.finalist for run in runs if run.finalist]
    return max(finalists, key=lambda f: sign * (f.mean(record.metric) or 0.0), default=None)


def _lacking(block: Block, names: tuple[str, ...], runs: Mapping[str, _Run]) -> str:
    """Why nothing can be told of these rows."""
    labels = " and ".join(block.row(name).label for name in names)
    if any(runs[name].trial for name in names):
        return f"{labels}: not confirmed, and the search's one seed cannot tell"
    return f"{labels}: not in this run"


def _remarks(table: Table) -> str:
    lines = ["of the published numbers:"]
    for remark in table.remarks:
        lines.append(f"  {remark.what}")
        lines += [f'      {quoted.where}: "... {quoted.quote} ..."' for quoted in remark.values]
    return "\n".join(_wrapped(line, "      ") for line in lines)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
