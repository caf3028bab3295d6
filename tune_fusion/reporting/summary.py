"""The last words of a search, and of its confirmation: what was found, how it compares, where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.answer import TEST_METRICS, Answer, Finalist, matching_test_metric
from tune_fusion.reporting.live import arms_text, trial_cells, trial_text
from tune_fusion.reporting.statistics import sampling_noise


def summary(record: SearchRecord, result: Mapping[str, Any]) -> str:
    """Plain text of a few lines, ready to print; `result` is what ``result.json`` holds."""
    spent = f"{result['wall_seconds']:.0f} s, {result['epochs']} epochs"
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "no trial"
    lines = ["", f"{record.name} {result['status']}: {counts} of {record.planned_trials} trials in {spent}"]
    if record.trials:
        lines.append(arms_text(record))
    if record.inherited:
        lines.append(f"known from the start: {len(record.inherited)} trials of {_sources(record)}")
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
    return "\n".join([*lines, "", *_files(result), *_ways(result)])


def confirmation_summary(result: Mapping[str, Any]) -> str:
    """Plain text, ready to print; `result` is what ``confirmation.json`` holds."""
    answer = Answer.from_dict(result["answer"])
    counts = ", ".join(f"{count} {state}" for state, count in result["counts"].items()) or "no run"
    lines = [
        "",
        f"{result['name']} {result['status']}: {counts} of {len(answer.finalists)} finalists x "
        f"{len(result['seeds'])} seeds in {result['wall_seconds']:.0f} s, {result['epochs']} epochs; "
        f"{answer.test_images} test images, measured once a run",
        "",
        *_confirmed_table(answer),
        "",
        *_optimism(answer),
        *(f"note: {note}" for note in (*answer.notes, *result["notes"])),
        answer.sentence,
        "",
        *_files(result),
    ]
    if "model" in result["paths"]:
        lines.append(f"load it    tune_fusion.load_model({result['paths']['model']!r})")
        if "model" in result["mlflow"]:
            lines.append(f"           mlflow.pyfunc.load_model({result['mlflow']['model']!r})")
    return "\n".join([*lines, *_ways(result)])


def _files(result: Mapping[str, Any]) -> list[str]:
    """Where the files lie; not those that an interrupted or failed session never came to write."""
    return [f"{label:<11}{path}" for label, path in result["paths"].items() if Path(path).exists()]


def _ways(result: Mapping[str, Any]) -> list[str]:
    """Where to look, and how to go on."""
    lines = [f"MLflow UI  {result['mlflow']['ui_command']}"]
    if result["mlflow"]["url"]:
        lines.append(f"           {result['mlflow']['url']}")
    for label, key in (("confirm", "confirm_command"), ("go on with", "resume_command")):
        if result.get(key):
            lines.append(f"{label:<11}{result[key]}")
    return lines


def _confirmed_table(answer: Answer) -> list[str]:
    """One row a finalist, mean ± standard deviation over the seeds; the two that are compared are marked."""
    header = ["", "finalist", "trial", "search", answer.metric, *TEST_METRICS, "seeds"]
    rows = [
        [
            "*" if one.trial in (answer.fusion, answer.control) else "",
            one.label + (" (untuned)" if one.origin == "default" else ""),
            str(one.trial),
            f"{one.search_value:.4f}",
            *(_spread(one, metric) for metric in (answer.metric, *TEST_METRICS)),
            str(one.n(matching_test_metric(answer.metric))),
        ]
        for one in answer.finalists
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _spread(finalist: Finalist, metric: str) -> str:
    mean, sd = finalist.mean(metric), finalist.sd(metric)
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def _optimism(answer: Answer) -> list[str]:
    """How much better the search looked than its finalists are."""
    lines = []
    for one in (answer.finalist(answer.fusion), answer.finalist(answer.control)):
        test = matching_test_metric(answer.metric)
        if one is None or (on_test := one.optimism(test)) is None:
            continue
        lines.append(
            f"optimism of the selection of {one.label} (trial {one.trial}): the search's value less the mean "
            f"with fresh seeds is {one.optimism(answer.metric):+.4f} {answer.metric}, {on_test:+.4f} {test}"
        )
    return lines


def _sources(record: SearchRecord) -> str:
    return " and ".join(dict.fromkeys(trial.source for trial in record.inherited))


def _line(record: SearchRecord, label: str, trial: TrialRecord) -> str:
    cells = trial_cells(record, trial)
    return (
        f"{label:<25}{record.metric} {cells['best']}  {trial.title}, epoch {cells['epoch']}: "
        f"{trial_text(record, trial)}"
    )


def _noise(record: SearchRecord, fusion: TrialRecord, control: TrialRecord, images: int) -> list[str]:
    """Why the difference is no verdict; nothing where the metric is no share of the images."""
    if record.metric != "val_accuracy":
        return []
    shares = [record.value(trial) or 0.0 for trial in (fusion, control)]
    noise = sampling_noise(shares, images)
    return [
        "(both were chosen on these images; drawing others would move the difference by up to "
        f"±{noise:.4f} in 95 of 100 cases)"
    ]
