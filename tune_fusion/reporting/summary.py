"""The last words of a search: what was found, what it was compared with, where everything lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.live import trial_cells, trial_text


def summary(record: SearchRecord, result: Mapping[str, Any]) -> str:
    """Plain text of a few lines, ready to print; `result` is what ``result.json`` holds."""
    spent = f"{result['wall_seconds']:.0f} s, {result['epochs']} epochs"
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "no trial"
    lines = ["", f"{record.name} {result['status']}: {counts} of {record.planned_trials} trials in {spent}"]
    if record.duplicates:
        lines.append(f"{record.duplicates} suggestions equal in effect to earlier trials were not run again")
    lines += [f"note: {note}" for note in record.notes]
    best, fusion, control = record.best(), record.best_fusion(), record.best_control()
    candidate, rival = ("fusion", "single optimizer") if record.fusions else ("candidate", "control")
    named = [
        ("best configuration", best),
        (f"best {candidate}", fusion if fusion is not best else None),
        (f"best {rival}", control),
        (f"untuned {candidate}", record.untuned("fusion")),
        (f"untuned {rival}", record.untuned("control")),
    ]
    lines += [_line(record, label, trial) for label, trial in named if trial is not None]
    if fusion is not None and control is not None:
        gain = (record.value(fusion) or 0.0) - (record.value(control) or 0.0)
        lines.append(
            f"best {candidate} minus best {rival}: {gain:+.4f} {record.metric} on "
            f"{result['data']['validation_images']} validation images, one seed"
        )
        lines += _noise(record, fusion, control, result["data"]["validation_images"])
    lines.append("")
    lines += [f"{label:<11}{path}" for label, path in result["paths"].items()]
    lines.append(f"MLflow UI  {result['mlflow']['ui_command']}")
    if result["mlflow"]["url"]:
        lines.append(f"           {result['mlflow']['url']}")
    if result["resume_command"]:
        lines.append(f"go on with  {result['resume_command']}")
    return "\n".join(lines)


def _line(record: SearchRecord, label: str, trial: TrialRecord) -> str:
    cells = trial_cells(record, trial)
    return (
        f"{label:<25}{record.metric} {cells['best']}  trial {trial.number}, epoch {cells['epoch']}: "
        f"{trial_text(record, trial)}"
    )


def _noise(record: SearchRecord, fusion: TrialRecord, control: TrialRecord, images: int) -> list[str]:
    """Why the difference is no verdict; nothing where the metric is no share of the images."""
    if record.metric != "val_accuracy":
        return []
    shares = [record.value(trial) or 0.0 for trial in (fusion, control)]
    # Two shares of the same n images, taken as independent; models that err on the same images differ less.
    noise = 1.96 * math.sqrt(sum(p * (1 - p) for p in shares) / images)
    return [
        "(both were chosen on these images; drawing others would move the difference by up to "
        f"±{noise:.4f} in 95 of 100 cases)"
    ]
