"""What a search needs besides a sound space: a free folder and a tracking store that answers."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.errors import InputError
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
    name = request.name or f"{checked.space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = _check_output(request.output, name)
    check_tracking(request.tracking_uri)
    return folder


def _check_output(output: Path, name: str) -> Path:
    """The absolute folder OUTPUT/NAME, free to be made. Makes nothing."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name!r}: a name starts with a letter or digit and has letters, digits, '.', '_' and "
            "'-' only, at most 128 of them"
        )
    folder = output.expanduser().resolve() / name
    if folder.exists():
        raise InputError(
            f"--name {name}: {folder} exists already and is never overwritten; choose another name"
        )
    existing = next(parent for parent in folder.parents if parent.exists())
    if not existing.is_dir():
        raise InputError(f"--output {output}: {existing} is not a folder")
    try:
        # The one sure test: permissions alone say nothing of read-only and special file systems.
        Path(tempfile.mkdtemp(prefix=".tune_fusion-", dir=existing)).rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--output {output}: {existing} is not writable ({reason}); choose another folder"
        ) from error
    return folder
