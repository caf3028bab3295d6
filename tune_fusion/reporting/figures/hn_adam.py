"""Figures of HN_Adam at work: how often it steps like AMSGrad, and with which norm, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib as mpl

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.figures.style import (
    SEQUENTIAL,
    Drawn,
    counted,
    label_ends,
    new_figure,
    styled,
    whole_numbers,
)

_KINDS = {
    "amsgrad_share": (
        "amsgrad-share",
        "HN_Adam: share of AMSGrad steps",
        "share of elements stepped as AMSGrad",
    ),
    "mean_lambda": ("mean-norm", "HN_Adam: mean norm Λ", "mean Λ over the epoch"),
}
_MOST_NAMED = 8


def best_trial(record: SearchRecord) -> TrialRecord | None:
    """The best trial that has HN_Adam's statistics; diverged ones do not count."""
    sign = record.sign
    ranked = [
        (sign * value, -place, trial)
        for place, trial in enumerate(record.known)
        if trial.state is not TrialState.DIVERGED
        and (value := record.value(trial)) is not None
        and any(key.endswith(".mean_lambda") for epoch in trial.epochs for key in epoch)
    ]
    return max(ranked)[2] if ranked else None


def lines(trial: TrialRecord, kind: str, layers: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """A statistic over the epochs (from 1) by layer, or by half where the trial has none of its layers.

    `kind` is ``amsgrad_share`` or ``mean_lambda``; `layers` are the layers' names, where they are known.
    """
    keys = {key for epoch in trial.epochs for key in epoch if key.endswith(f".{kind}")}
    by_index = {int(found[1]): key for key in keys if (found := re.match(r"layer_(\d+)\.", key))}
    named = {
        f"{index} {layers[index]}" if index < len(layers) else f"layer {index}": by_index[index]
        for index in sorted(by_index)
    } or {f"{half} half": f"{half}.{kind}" for half in ("low", "high") if f"{half}.{kind}" in keys}
    return [
        (label, [(n, epoch[key]) for n, epoch in enumerate(trial.epochs, start=1) if key in epoch])
        for label, key in named.items()
    ]


@styled
def statistics(record: SearchRecord, kind: str, layers: Sequence[str]) -> Drawn:
    """``amsgrad_share`` or ``mean_lambda`` over the epochs of the best trial with HN_Adam."""
    name, title, label = _KINDS[kind]
    trial = best_trial(record)
    shown = lines(trial, kind, layers) if trial is not None else []
    if trial is None or not shown:
        return Drawn(name, title, None, "No trial with HN_Adam has finished an epoch.")
    figure, axes = new_figure()
    scale = mpl.colormaps[SEQUENTIAL]
    # The lightest fifth of the scale is too faint for lines on white.
    colors = [scale(0.8 * place / max(1, len(shown) - 1)) for place in range(len(shown))]
    for (_, points), color in zip(shown, colors, strict=True):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=color, linewidth=1.8, marker="o", markersize=3.5)
    whole_numbers(axes.xaxis)
    if len(shown) <= _MOST_NAMED:
        ends = [
            (float(points[-1][0]), points[-1][1], text, mpl.colors.to_hex(color))
            for (text, points), color in zip(shown, colors, strict=True)
        ]
        label_ends(axes, ends)
    else:
        for (text, _), color in zip(shown, colors, strict=True):
            axes.plot([], [], color=color, linewidth=1.8, label=text)
        figure.legend(loc="outside right upper", fontsize=8, handlelength=1, labelspacing=0.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    note = (
        f"{trial.title.capitalize()} ({trial.label}), the best with HN_Adam: "
        f"n = {counted(len(trial.epochs), 'epoch')}, {counted(len(shown), 'line')}."
    )
    return Drawn(name, title, figure, note)
