"""Words for numbers: differences, intervals, p-values, and the sentence that answers a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_fusion.reporting.statistics import FEWEST_SEEDS, MOST_SEEDS

if TYPE_CHECKING:
    from tune_fusion.reporting.answer import Comparison

UNCONFIRMED = "Nothing is confirmed yet: no test data have been read."


def in_units(metric: str, difference: float) -> float:
    """A difference as it is shown: percentage points of accuracy and F1, nats of loss."""
    return difference if "loss" in metric else 100.0 * difference


def unit(metric: str) -> str:
    """What `in_units` gives: ``points`` or ``nats``."""
    return "nats" if "loss" in metric else "points"


def kind(metric: str) -> str:
    """``validation accuracy`` for ``val_accuracy``, ``test macro-F1`` for ``test_macro_f1``."""
    return metric.replace("val_", "validation_").replace("macro_f1", "macro-F1").replace("_", " ")


def difference_text(comparison: Comparison) -> str:
    """``+0.42 points [+0.10, +0.74]`` of accuracy and F1, ``-0.0123 nats [...]`` of a loss."""
    decimals = 4 if unit(comparison.metric) == "nats" else 2

    def shown(difference: float) -> str:
        return f"{in_units(comparison.metric, difference):+.{decimals}f}"

    text = f"{shown(comparison.mean)} {unit(comparison.metric)}"
    if comparison.low is None or comparison.high is None:
        return text
    return f"{text} [{shown(comparison.low)}, {shown(comparison.high)}]"


def p_text(p: float) -> str:
    """``0.062``, ``0.0002``, ``< 0.0001``."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def sentence_of(
    comparison: Comparison | None,
    fusion: str | None,
    control: str | None,
    *,
    fusions: bool,
    hindrance: str = "",
) -> str:
    """The answer in one sentence.

    `fusion` and `control` are the labels of the best of each kind, None where no run of the kind could be
    measured; `comparison` is theirs on the test metric of the search's kind, None where no seed has both.
    `hindrance` says why there can be no verdict yet.
    """
    one = "fusion" if fusions else "searched optimizer"
    other = "single optimizer" if fusions else "control"
    if fusion is None or control is None:
        missing = " and no ".join(kind for kind, label in ((one, fusion), (other, control)) if label is None)
        return f"Nothing can be said: no {missing} was confirmed on the test images."
    best_one, best_other = f"the best {one} ({fusion})", f"the best {other} ({control})"
    if comparison is None:
        return f"Nothing can be said of {best_one} and {best_other}: they share no measured seed."
    evidence = f"{kind(comparison.metric)} {difference_text(comparison)}, {_basis(comparison)}"
    if hindrance:
        return f"No verdict yet, as {hindrance}; so far {best_one} against {best_other}: {evidence}."
    if comparison.verdict == "wins":
        return f"On the test images {best_one} wins over {best_other}: {evidence}."
    if comparison.verdict == "loses":
        return f"On the test images {best_one} loses to {best_other}: {evidence}."
    return (
        f"On the test images no difference can be told between {best_one} and {best_other}: {evidence}; "
        f"{_more_seeds(comparison)}."
    )


def _basis(comparison: Comparison) -> str:
    """What the numbers rest on."""
    n = len(comparison.differences)
    if n == 1:
        return "one paired seed and therefore no interval"
    lowest = ", the lowest that so few seeds can give" if comparison.p_value <= comparison.smallest_p else ""
    return f"95 % interval of {n} paired seeds, permutation p = {p_text(comparison.p_value)}{lowest}"


def _more_seeds(comparison: Comparison) -> str:
    n = len(comparison.differences)
    if n == 1:
        return f"at least {FEWEST_SEEDS} seeds are needed to tell one"
    few = f"fewer than {FEWEST_SEEDS} seeds decide nothing, and " if n < FEWEST_SEEDS else ""
    if comparison.mean == 0:
        return f"{few}no number of seeds tells a difference of zero"
    if comparison.seeds_needed is None:
        return f"{few}even {MOST_SEEDS:,} seeds would hardly tell a difference of this size"
    return f"{few}about {comparison.seeds_needed} seeds in all would tell a difference of this size"
