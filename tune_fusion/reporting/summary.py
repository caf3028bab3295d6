"""The last words of a search: what was found, what it was compared with, where everything lies."""

from __future__ import annotations

from typing import Any

from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.live import trial_cells


def summary(record: SearchRecord, result: dict[str, Any], ui_command: str) -> str:
    """Plain text of a few lines, ready to print."""
    spent = f"{result['wall_seconds']:.0f} s, {result['epochs']} epochs"
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "no trial"
    lines = ["", f"{record.name} {result['status']}: {counts} of {record.planned_trials} trials in {spent}"]
    if record.duplicates:
        lines.append(
            f"{record.duplicates} suggestions were equal in effect to earlier trials and not run again"
        )
    lines += [f"note: {note}" for note in record.notes]
    fusion, control = record.best(single=False), record.best(single=True)
    named = [
        ("best configuration", record.best()),
        ("best fusion", fusion if fusion is not record.best() else None),
        ("best single optimizer", control),
        ("untuned default", record.untuned_default()),
    ]
    lines += [_line(record, label, trial) for label, trial in named if trial is not None]
    if fusion is not None and control is not None:
        lines.append(_comparison(record, fusion, control))
    lines.append("")
    lines += [f"{label:<11}{path}" for label, path in result["paths"].items()]
    lines.append(f"MLflow UI  {ui_command}")
    return "\n".join(lines)


def _line(record: SearchRecord, label: str, trial: TrialRecord) -> str:
    cells = trial_cells(record, trial)
    high = f" | high {cells['high']} {cells['high rates']}" if cells["high"] else ""
    return (
        f"{label:<22}{record.metric} {cells['best']}  trial {trial.number}, epoch {cells['epoch']}: "
        f"switch {cells['switch layer']} | low {cells['low']} {cells['low rates']}{high}"
    )


def _comparison(record: SearchRecord, fusion: TrialRecord, control: TrialRecord) -> str:
    """The difference on validation data, and what it does not say."""
    gain = (record.value(fusion) or 0.0) - (record.value(control) or 0.0)
    return (
        f"fusion minus single optimizer: {gain:+.4f} {record.metric}, on the validation images that chose "
        "both, one seed: too little to say that either is better"
    )
