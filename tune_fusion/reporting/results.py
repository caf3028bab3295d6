"""The files that a search and its confirmation leave, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tune_fusion.errors import InputError
from tune_fusion.records import SearchRecord, TrialRecord, jsonable
from tune_fusion.reporting.answer import Answer
from tune_fusion.runs import RunFolder


def write_trials(record: SearchRecord, path: Path) -> None:
    """One row a trial: every parameter, final and best metrics, epochs, state, seconds; whole or not at all.

    Columns: ``trial, arm, origin, state, reason, single, switch_layer, switch_layer_name``, the parameters as
    `Configuration.flat` names them, ``epochs``, ``best_epoch``, ``best.METRIC`` (all metrics of the epoch
    with the best value of the search's metric), ``final.METRIC`` (of the last epoch), ``train_seconds``,
    ``eval_seconds``, ``wall_seconds``, ``node``. A cell without a value is empty. Metrics of single layers
    are left out: the journal and MLflow have them.
    """
    # Objects keep whole numbers whole where other rows have none.
    frame = pd.DataFrame([_row(record, trial) for trial in record.trials], dtype=object)
    columns = sorted(frame.columns, key=_column_order) if len(frame) else _FIRST
    part = path.with_name(f".{path.name}.part")
    frame.reindex(columns=columns).to_csv(part, index=False)
    part.replace(path)


_FIRST = ["trial", "arm", "origin", "state", "reason", "single", "switch_layer", "switch_layer_name"]
_LAST = ["epochs", "best_epoch", "best.", "final.", "train_seconds", "eval_seconds", "wall_seconds", "node"]


def _column_order(column: str) -> tuple[int, str]:
    if column in _FIRST:
        return _FIRST.index(column), ""
    for place, prefix in enumerate(_LAST):
        if column == prefix or (prefix.endswith(".") and column.startswith(prefix)):
            return 100 + place, column
    return 50, column


def _row(record: SearchRecord, trial: TrialRecord) -> dict[str, Any]:
    best = dict(trial.best_epoch(record.metric, record.direction) or {})
    best_epoch = best.pop("epoch", None)
    final = trial.epochs[-1] if trial.epochs else {}
    return {
        "trial": trial.number,
        "arm": trial.arm,
        "origin": trial.origin,
        "state": trial.state.value,
        "reason": trial.reason,
        "single": trial.single,
        "switch_layer_name": trial.switch_layer_name,
        **trial.parameters,
        "epochs": len(trial.epochs),
        "best_epoch": None if best_epoch is None else int(best_epoch),
        **{f"best.{key}": value for key, value in best.items() if not key.startswith("layer_")},
        **{f"final.{key}": value for key, value in final.items() if not key.startswith("layer_")},
        "train_seconds": trial.total("train_seconds"),
        "eval_seconds": trial.total("eval_seconds"),
        "wall_seconds": None if trial.ended is None else trial.ended - trial.started,
        "node": trial.node,
    }


def trial_summary(record: SearchRecord, trial: TrialRecord | None) -> dict[str, Any] | None:
    """What ``result.json`` says of one trial; None where there is none."""
    if trial is None:
        return None
    return {
        "trial": trial.number,
        "source": {"search": trial.source, "trial": trial.source_trial} if trial.source else None,
        "arm": trial.arm,
        "origin": trial.origin,
        "state": trial.state.value,
        "value": record.value(trial),
        "epochs": len(trial.epochs),
        "switch_layer_name": trial.switch_layer_name,
        "configuration": trial.configuration,
        "metrics": trial.best_epoch(record.metric, record.direction),
    }


def result(record: SearchRecord, status: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``result.json``; `facts` are the driver's: versions, paths, hardware, seconds."""
    return {
        "status": status,
        "name": record.name,
        "space": record.space,
        "metric": record.metric,
        "direction": record.direction,
        "best": trial_summary(record, record.best()),
        "best_fusion": trial_summary(record, record.best_fusion()),
        "best_control": trial_summary(record, record.best_control()),
        "untuned_fusion": trial_summary(record, record.untuned("fusion")),
        "untuned_control": trial_summary(record, record.untuned("control")),
        "inherited": len(record.inherited),
        "trials": len(record.trials),
        "planned_trials": record.planned_trials,
        "counts": record.counts(),
        "arms": {
            arm: {"trials": trials, "epochs": epochs} for arm, (trials, epochs) in record.arms().items()
        },
        "duplicates": record.duplicates,
        "notes": record.notes,
        "epochs": sum(len(trial.epochs) for trial in record.trials),
        "training_seconds": sum(trial.total("train_seconds") for trial in record.trials),
        "evaluation_seconds": sum(trial.total("eval_seconds") for trial in record.trials),
        **facts,
    }


def write_results(folder: RunFolder, record: SearchRecord, content: Mapping[str, Any]) -> None:
    """Write ``trials.csv`` and ``result.json`` with this `content`, each whole or not at all."""
    write_trials(record, folder.trials)
    write_json(folder.result, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` whole or not at all; numbers that are not finite become null."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file of the search holds; None where there is none yet, or not a whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_answer(folder: RunFolder) -> Answer | None:
    """What the search's confirmation has found; None where it has none.

    InputError where its file is damaged: a report without the answer must not pass for one without a verdict.
    """
    path = folder.confirmation.answer
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return Answer.from_dict((content or {})["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: holds no answer that can be read ({type(error).__name__}: {error}); have it written "
            f"again: python -m tune_fusion.confirm {folder.name}"
        ) from error
