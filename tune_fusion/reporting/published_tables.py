"""The papers' tables: every published number, from the data files beside this module."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tune_fusion.errors import InputError, suggest

_FOLDER = Path(__file__).resolve().parent / "published"


@dataclass(frozen=True)
class Column:
    """One quantity of a table, and what a run has measured of it."""

    key: str
    title: str
    scale: float
    """What a run's value is multiplied with: 100 where the paper prints per cent."""
    confirmed: str | None
    """The metric of a confirmation's runs; None where they do not have it."""
    searched: str | None
    """The metric of a search's epochs."""
    reduce: Literal["best", "min"] = "best"
    """Which epoch of a search counts: the one with the best value of the search's metric, or this metric's
    own smallest value."""


@dataclass(frozen=True)
class Row:
    """One configuration of a table."""

    id: str
    label: str
    low: str
    high: str | None
    """None: `low` trains every layer."""
    switch: int | str
    values: Mapping[str, float]
    """What was published, by column; ``accuracy_sd`` and the like where a spread was printed."""


@dataclass(frozen=True)
class Ordering:
    """A claim: the best of the rows `better` lies above each of the rows `worse` (none: all others)."""

    claim: str
    better: tuple[str, ...]
    worse: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """The part of a table that belongs to one model and one data set."""

    model: str
    models: tuple[str, ...]
    """Beginnings of the names of models that are the paper's."""
    family: str
    """Stands in the names of models that are like it."""
    data: str
    data_sets: tuple[str, ...]
    """Names of data sets that are the paper's."""
    data_family: str
    """Stands in the names of data sets that are like them."""
    test_images: int | None
    """None where the paper does not print it."""
    rows: tuple[Row, ...]
    orderings: tuple[Ordering, ...]

    def row(self, name: str) -> Row:
        """The row with this id."""
        return next(row for row in self.rows if row.id == name)


@dataclass(frozen=True)
class Quoted:
    """Numbers that the text of a paper prints, in its words."""

    where: str
    quote: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Remark:
    """Where a paper's text and tables disagree, or its words need to be seen."""

    what: str
    values: tuple[Quoted, ...]


@dataclass(frozen=True)
class Table:
    """One published table."""

    title: str
    paper: str
    source: str
    settings: str
    columns: tuple[Column, ...]
    remarks: tuple[Remark, ...]
    blocks: tuple[Block, ...]


def table_names() -> list[str]:
    """The names of all published tables, as ``--paper`` knows them."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@functools.cache
def load_table(name: str) -> Table:
    """The published table of this name; InputError where there is none, with the known ones."""
    if name not in table_names():
        known = ", ".join(table_names())
        raise InputError(f"--paper {name}: unknown table; {suggest(name, table_names())} (there are {known})")
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Table(
        title=content["title"],
        paper=content["paper"],
        source=content["source"],
        settings=content["settings"],
        columns=tuple(Column(**column) for column in content["columns"]),
        remarks=tuple(_remark(item) for item in content["disagreements"]),
        blocks=tuple(_block(item) for item in content["blocks"]),
    )


def _block(content: Mapping[str, Any]) -> Block:
    changed = {
        "models": tuple(content["models"]),
        "data_sets": tuple(content["data_sets"]),
        "rows": tuple(_row(row) for row in content["rows"]),
        "orderings": tuple(
            Ordering(item["claim"], tuple(item["better"]), tuple(item["worse"]))
            for item in content["orderings"]
        ),
    }
    return Block(**dict(content, **changed))


def _row(content: Mapping[str, Any]) -> Row:
    named = ("id", "label", "low", "high", "switch")
    return Row(**{key: content[key] for key in named}, values=_without(content, named))


def _remark(content: Mapping[str, Any]) -> Remark:
    quoted = (
        Quoted(item["where"], item["quote"], _without(item, ("where", "quote"))) for item in content["values"]
    )
    return Remark(content["what"], tuple(quoted))


def _without(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float]:
    return {key: value for key, value in content.items() if key not in keys}
