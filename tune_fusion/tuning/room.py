"""Room on the disk: what a search needs, and what to say where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

from tune_fusion.errors import InputError
from tune_fusion.runs import RunFolder
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.settings import rung_epochs
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.arms import arm_shares
from tune_fusion.tuning.promotion import WAITING

# A checkpoint is the model and at most three values of state a parameter; two are kept of each trial, and a
# third one is there while it replaces them, beside the weights of the trial's best epoch.
_MODELS_A_CHECKPOINT = 4
_CHECKPOINTS = 3
# Weights of the best trial, fusion and control; journal, tables and logs.
_MODELS_KEPT = 3
_OTHER_BYTES = 8 * 2**20


def with_files(space: SearchSpace, slots: int) -> int:
    """How many trials have checkpoints at once where `slots` train: those that wait at a rung have, too."""
    if space.search.scheduler != "promotion":
        return slots
    rungs = rung_epochs(space.asha, space.max_epochs)
    waiting = len(arm_shares(space)) * len(rungs) * WAITING
    return max(slots, min(space.search.trials, slots + waiting))


def needed_bytes(bench: Workbench, slots: int) -> int:
    """The room that a search of `bench`'s model with `slots` trials at once takes at most."""
    model = sum(int(value.nbytes) for value in bench.model.state_dict().values())
    models = slots * (_CHECKPOINTS * _MODELS_A_CHECKPOINT + 1) + _MODELS_KEPT
    return models * model + _OTHER_BYTES


def check_room(folder: Path, bench: Workbench, slots: int) -> None:
    """InputError where the disk of `folder`, which need not exist yet, has not the room for a search.

    What an earlier session has left there has its room already.
    """
    needed, free = _lacking_bytes(folder, bench, slots), free_bytes(folder)
    if free < needed:
        raise InputError(
            f"--storage {folder.parent}: checkpoints and weights of {slots} trials at once need "
            f"{megabytes(needed)}, {megabytes(free)} are free there: make room, choose another folder or "
            "lower --concurrent"
        )


def no_room(error: OSError, folder: Path, bench: Workbench, slots: int) -> str:
    """What to say when writing failed with `error` in the middle of a search."""
    lacking, free = megabytes(_lacking_bytes(folder, bench, slots)), megabytes(free_bytes(folder))
    return f"{folder}: {error.strerror or error}; the search needs {lacking} more there, {free} are free"


def _lacking_bytes(folder: Path, bench: Workbench, slots: int) -> int:
    """The room that is needed beside the checkpoints and weights that are in `folder`."""
    run = RunFolder(folder)
    held = (path for place in (run.checkpoints, run.weights(0).parent) for path in place.rglob("*"))
    return max(0, needed_bytes(bench, slots) - sum(map(_size, held)))


def _size(path: Path) -> int:
    """Bytes of a file; 0 where a worker has just removed it."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def free_bytes(folder: Path) -> int:
    """What is free on the disk of `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(place).free


def megabytes(count: int) -> str:
    """The bytes in words: ``1,234 MB``."""
    return f"{count / 2**20:,.0f} MB"
