"""The last words of a search: what was found, what it was compared with, where everything lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.live import trial_cells


def summary(record: SearchRecord, result: Mapping[str, Any]) -> str:
    """Plain text of a few lines, ready to print; `result` is what ``result.json`` holds."""
    spent = f"{result['wall_seconds']:.0f} s, {result['epochs']} epochs"
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "no trial"
    lines = ["", f"{record.name} {result['status']}: {counts} of {record.planned_trials} trials in {spent}"]
    if record.duplicates:
        lines.append(f"{record.duplicates} suggestions equal in effect to earlier trials were not run again")
    lines += [f"note: {note}" for note in record.notes]
    best, fusion, control = record.best(), record.best(single=False), record.best(single=True)
    named = [
        ("best configuration", best),
        ("best fusion", fusion if fusion is not best else None),
        ("best single optimizer", control),
        ("untuned fusion", record.untuned("fusion")),
        ("untuned single", record.untuned("control")),
    ]
    lines += [_line(record, label, trial) for label, trial in named if trial is not None]
    if fusion is not None and control is not None:
        lines += _comparison(record, fusion, control, result["data"]["validation_images"])
    lines.append("")
    lines += [f"{label:<11}{path}" for label, path in result["paths"].items()]
    lines.append(f"MLflow UI  {result['mlflow']['ui_command']}")
    if result["mlflow"]["url"]:
        lines.append(f"           {result['mlflow']['url']}")
    return "\n".join(lines)


def _line(record: SearchRecord, label: str, trial: TrialRecord) -> str:
    cells = trial_cells(record, trial)
    high = f" | high {cells['high']} {cells['high rates']}" if cells["high"] else ""
    return (
        f"{label:<22}{record.metric} {cells['best']}  trial {trial.number}, epoch {cells['epoch']}: "
        f"switch {cells['switch layer']} | low {cells['low']} {cells['low rates']}{high}"
    )


def _comparison(record: SearchRecord, fusion: TrialRecord, control: TrialRecord, images: int) -> list[str]:
    """The difference on validation data, and why it is no verdict."""
    values = [record.value(trial) or 0.0 for trial in (fusion, control)]
    lines = [
        f"best fusion minus best single optimizer: {values[0] - values[1]:+.4f} {record.metric} on {images} "
        "validation images, one seed",
    ]
    if record.metric == "val_accuracy":
        # Two shares of the same n images, taken as independent: an upper bound of the paired difference's.
        noise = 1.96 * math.sqrt(sum(p * (1 - p) for p in values) / images)
        lines.append(
            "(both were chosen on these images; drawing others would move the difference by up to "
            f"±{noise:.4f} in 95 of 100 cases)"
        )
    return lines
