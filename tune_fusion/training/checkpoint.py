"""A trial on disk: its best weights as safetensors, and checkpoints to continue from; never as pickle."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tune_fusion.training.files import write_whole

_NAME = re.compile(r"epoch-(\d+)\.pt")
# Seconds without a change after which an unfinished file has no writer any more. A younger one may be that
# of a worker whose driver died, still busy beside the worker that took its trial over.
_ABANDONED = 600.0


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU under its own names, whether or not it stands behind ``torch.compile``."""
    plain = getattr(model, "_orig_mod", model)
    return {name: value.detach().cpu().contiguous() for name, value in plain.state_dict().items()}


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `weights` to `path` as one safetensors file, whole or not at all.

    Tensors that share memory (tied weights) are written once each. Raises DiskFullError.
    """
    separate = {name: value.clone() for name, value in weights.items()}
    content = safetensors.torch.save(separate, metadata=dict(metadata or {}))
    write_whole(path, lambda file: file.write(content))


def save_checkpoint(folder: Path, epoch: int, state: Mapping[str, Any]) -> Path:
    """Write `state`, as it is after `epoch`, to ``epoch-0003.pt`` in `folder`, whole or not at all.

    Returns that file. Of the others then only the newest earlier one stays, for the day on which the disk
    damages this one; those of later epochs are of something else that once had this folder. `state` holds
    tensors and plain values, nested as one likes. Raises DiskFullError, with the earlier checkpoints still
    there.
    """
    written = folder / f"epoch-{epoch:04d}.pt"
    write_whole(written, lambda file: torch.save(dict(state), file))
    others = [path for path in _checkpoints(folder) if _epoch(path) != epoch]
    spare = next((path for path in others if _epoch(path) < epoch), None)
    for path in (*others, *_abandoned(folder)):
        if path != spare:
            path.unlink(missing_ok=True)
    return written


def newest_checkpoint(folder: Path, usable: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
    """The state of the newest checkpoint in `folder` that is undamaged and `usable`; None: there is none.

    Tensors are on the CPU, wherever they were when they were saved.
    """
    states = (_read(path) for path in _checkpoints(folder))
    return next((state for state in states if state is not None and usable(state)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    named = (path for path in _files(folder) if _NAME.fullmatch(path.name))
    return sorted(named, key=_epoch, reverse=True)


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def _abandoned(folder: Path) -> Iterator[Path]:
    """Unfinished files whose writers died."""
    for path in _files(folder):
        with suppress(FileNotFoundError):
            if path.name.startswith(".") and time.time() - path.stat().st_mtime > _ABANDONED:
                yield path


def _files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _read(path: Path) -> dict[str, Any] | None:
    """The checkpoint's content; None where it is damaged or has vanished."""
    try:
        with path.open("rb") as file:
            # torch stores a checksum of each tensor and does not look at it again.
            if zipfile.ZipFile(file).testzip() is not None:
                return None
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  (arbitrary bytes make the readers raise anything)
        return None
    return content if isinstance(content, dict) else None
