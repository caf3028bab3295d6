"""The report of a search: one self-contained page, and its figures as PNG files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tune_fusion.commands import DEFAULT_STORAGE
from tune_fusion.events import Chronicle
from tune_fusion.records import SearchRecord
from tune_fusion.reporting import page_tables as tables
from tune_fusion.reporting import settings_run
from tune_fusion.reporting.answer import Answer
from tune_fusion.reporting.figures import answer as answer_figures
from tune_fusion.reporting.figures import hn_adam, importance, progress, space, trust
from tune_fusion.reporting.figures.style import Drawn, counted, number, png, svg
from tune_fusion.reporting.page_tables import Table
from tune_fusion.reporting.wording import in_units, kind, unit
from tune_fusion.runs import RunFolder
from tune_fusion.storage import shown

_ENVIRONMENT = Environment(
    loader=PackageLoader("tune_fusion.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["clock"] = lambda at: f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    name: str
    title: str
    lead: str
    figures: list[Drawn] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def write_report(
    folder: RunFolder, chronicle: Chronicle, answer: Answer | None, content: Mapping[str, Any] | None
) -> list[Path]:
    """Write ``report.html`` and ``figures/*.png`` into the search's folder; returns what was written.

    Works at any moment of a search, and touches nothing else in the folder. `answer` is what a confirmation
    found, `content` what ``result.json`` holds; None: there is none yet. Each file is written whole or not at
    all; OSError where one cannot be.
    """
    record, session = chronicle.record, chronicle.sessions[-1]
    sections = make_sections(chronicle, answer, layer_names(folder))
    page = render(
        "report.html",
        record=record,
        status=status_words(chronicle),
        answer=answer,
        validation=validation_words(record, content),
        confirm=confirm_command(folder),
        sections=sections,
        session=session,
        facts=facts(folder, chronicle, answer, content),
        sessions=chronicle.sessions,
        commands=_model_lines(folder),
    )
    return save_page(folder.report, page, [d for s in sections for d in s.figures])


def render(template: str, **values: Any) -> str:
    """The page that the template makes of these values; whatever they hold is escaped."""
    return _ENVIRONMENT.get_template(template).render(picture=lambda drawn: Markup(svg(drawn)), **values)


def save_page(path: Path, page: str, figures: Sequence[Drawn]) -> list[Path]:
    """Write the page, and its figures as PNG files into ``figures`` beside it; returns all paths."""
    pictures = path.parent / "figures"
    pictures.mkdir(exist_ok=True)
    written = [path]
    for drawn in figures:
        picture = pictures / f"{drawn.name}.png"
        if drawn.figure is None:
            picture.unlink(missing_ok=True)  # of an earlier report, when there was something to draw
        else:
            _replace(picture, png(drawn))
            written.append(picture)
    # Last, so that its presence says that everything is there.
    _replace(path, page.encode())
    return written


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def make_sections(chronicle: Chronicle, answer: Answer | None, layers: Sequence[str]) -> list[Section]:
    """Every figure and table of the report, in order."""
    record = chronicle.record
    rungs = settings_run.rungs(record, chronicle.sessions[-1])
    return [
        Section(
            "answer",
            "The evidence",
            "What fresh seeds and held-out test data say." if answer else "",
            [answer_figures.differences(answer), answer_figures.promises(answer)],
            [*_confirmation_tables(answer), tables.bests(record)],
        ),
        Section(
            "space",
            "Where good configurations lie",
            "Validation values of single seeds: good for finding regions, too noisy for a verdict.",
            [
                space.heat_map(record, layers),
                *(space.rates(record, half) for half in ("low", "high", "all")),
                space.initial_norms(record),
                importance.importance(record, "fusion"),
                importance.importance(record, "control"),
                importance.parallel_coordinates(record),
            ],
        ),
        Section(
            "progress",
            "How the search went",
            "",
            [
                progress.learning_curves(record, rungs),
                progress.best_by_epochs(record),
                progress.states(record),
                progress.time(record, chronicle.last),
            ],
            [tables.troubles(record)],
        ),
        Section(
            "hn-adam",
            "HN_Adam at work",
            "Where its norm Λ falls below 2, HN_Adam steps as AMSGrad.",
            [hn_adam.statistics(record, kind_, layers) for kind_ in ("amsgrad_share", "mean_lambda")],
        ),
        Section(
            "trust",
            "Can ASHA be trusted here?",
            "ASHA stops trials by early values. Trust it as far as these rank trials as the end does.",
            [trust.correlations(record, rungs), trust.early_regret(record)],
            [tables.early(record)],
        ),
    ]


def _confirmation_tables(answer: Answer | None) -> list[Table]:
    if answer is None:
        return [tables.confirmed(None)]  # one that says why is enough
    return [tables.comparisons(answer), tables.confirmed(answer), tables.optimism(answer)]


def layer_names(folder: RunFolder) -> list[str]:
    """The model's layer names in order; none where the layer map cannot be read."""
    try:
        return [str(layer["name"]) for layer in json.loads(folder.layers.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def status_words(chronicle: Chronicle) -> str:
    """How the search stands."""
    return chronicle.status or "running, or ended without a word"


def validation_words(record: SearchRecord, content: Mapping[str, Any] | None) -> str:
    """What the validation data say, as a sentence or two, and why that is no verdict."""
    fusion, control = record.best_fusion(), record.best_control()
    candidate, rival = ("fusion", "single optimizer") if record.fusions else ("candidate", "control")
    best = record.best()
    if best is None:
        return "No trial has finished an epoch with a usable value: there is nothing to compare."
    if fusion is None or control is None:
        missing = candidate if fusion is None else rival
        return (
            f"The best trial so far is {space.best_label(record, best)} ({kind(record.metric)}); no "
            f"{missing} has been measured, so there is nothing to compare it with."
        )
    gain = in_units(record.metric, (record.value(fusion) or 0.0) - (record.value(control) or 0.0))
    images = (content or {}).get("data", {}).get("validation_images")
    return (
        f"By validation alone, the best {candidate} ({fusion.label}) reaches "
        f"{number(record.value(fusion))} and the best {rival} ({control.label}) "
        f"{number(record.value(control))}: {gain:+.2f} {unit(record.metric)} of {kind(record.metric)}, "
        f"one seed each{f' on {images} images' if images else ''}. Both were chosen on these images, "
        "so this is no verdict."
    )


def confirm_command(folder: RunFolder) -> str:
    """What to type for a verdict."""
    return f"python -m tune_fusion.confirm {folder.name}{_output(folder)}"


def _output(folder: RunFolder) -> str:
    parent = folder.path.parent
    return "" if parent == DEFAULT_STORAGE.resolve() else f" --storage {shown(parent)}"


def _model_lines(folder: RunFolder) -> list[str]:
    """How to use the model that the search or its confirmation left; none where there is none."""
    for model in (folder.confirmation.model, folder.model):
        if model.is_dir():
            return [
                f'python -c "import tune_fusion; model = tune_fusion.load_model({str(model)!r})"',
                f"python -m tune_fusion.predict {model} IMAGE",
            ]
    return []


def facts(
    folder: RunFolder, chronicle: Chronicle, answer: Answer | None, content: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """What it takes to repeat the search, by name."""
    record, session, result = chronicle.record, chronicle.sessions[-1], content or {}
    data = result.get("data", {})
    hardware = result.get("hardware", {})
    images = ", ".join(
        f"{data[key]} {key.replace('_', ' ')}" for key in ("train_images", "validation_images") if key in data
    )
    nodes = "; ".join(
        f"{node['host']}: {node['cpu']:g} CPU, {node['gpu']:g} GPU" for node in hardware.get("nodes", [])
    )
    found = {
        "command": result.get("command", ""),
        "space": f"{session.space.origin} {' '.join(session.space.overrides)}".strip(),
        "data": " - ".join(part for part in (data.get("name", ""), images) if part),
        "data fingerprint": session.data,
        "search seed": str(settings_run.seed(session)),
        "confirmation seeds": ", ".join(map(str, answer.seeds)) if answer else "",
        "commit": session.commit,
        "versions": ", ".join(f"{name} {version}" for name, version in session.code.items()),
        "hardware": " - ".join(part for part in (hardware.get("processor", ""), nodes) if part),
        "wall time": f"{record.elapsed(chronicle.last):.0f} s",
        "duplicates": f"{counted(record.duplicates, 'suggestion')} equal in effect to earlier trials",
        "tracking": session.tracking,
        "folder": str(folder.path),
    }
    if not found["command"]:
        found["command"] = "not known before the search has ended once"
    return [(key, value) for key, value in found.items() if value]
