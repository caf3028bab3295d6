"""What ``--list`` prints: optimizers, search spaces and data sets."""

from __future__ import annotations

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.space.domain import parse_domain, shown, written
from tune_fusion.space.loading import list_spaces


def listing() -> str:
    """Three tables as plain text."""
    lines = ["optimizers"]
    for info in OPTIMIZERS.values():
        lines.append(f"  {info.name:<13} {info.description} [{info.paper}]")
        ranges = ", ".join(
            f"{key} {shown(written(parse_domain(value)))}" for key, value in info.search.items()
        )
        lines.append(f"  {'':<13} searched: {ranges or 'nothing'}")
    lines += ["", "search spaces"]
    spaces = list_spaces()
    width = max((len(name) for name, _, _ in spaces), default=0)
    lines += [f"  {name:<{width}} {description}" for name, description, _ in spaces]
    lines += ["", "data sets"]
    for data in DATA_SETS.values():
        lines.append(f"  {data.name:<16} {data.title}; {data.provide}")
    return "\n".join(lines)
