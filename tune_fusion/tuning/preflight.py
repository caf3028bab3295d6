"""What a search needs besides a sound space: a free folder and a tracking store that answers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.errors import InputError
from tune_fusion.folders import new_folder
from tune_fusion.tracking.mlflow_logger import check_tracking
from tune_fusion.training.checks import Checked

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Request:
    """A search as the command line asks for it."""

    space: str
    overrides: tuple[str, ...] = ()
    name: str | None = None
    output: Path = Path("runs")
    tracking_uri: str = "sqlite:///mlflow.db"
    address: str | None = None
    concurrent: int | None = None
    rehearse: bool = False


def check_request(request: Request, checked: Checked) -> Path:
    """The folder the search will make; InputError where it cannot be made or tracking does not answer."""
    name = request.name
    if name is None:
        name = f"{checked.space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = _new_run_folder(request.output, name)
    check_tracking(request.tracking_uri)
    return folder


def _new_run_folder(output: Path, name: str) -> Path:
    """The absolute folder OUTPUT/NAME, free to be made."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name!r}: a name starts with a letter or digit and has letters, digits, '.', '_' and "
            "'-' only, at most 128 of them"
        )
    return new_folder(output / name, f"--output {output}", f"--name {name}")
