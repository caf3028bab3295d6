"""What ended a trial, told apart as far as the search must act differently."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from tune_fusion.errors import TuneFusionError
from tune_fusion.training.files import DiskFullError, causes, no_space

# What RuntimeErrors say about memory: torch knows only some devices' in an error class of its own.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@dataclass(frozen=True)
class Failure:
    """Why a trial failed: an error of any kind, too little memory, or a full disk.

    No dictionary: Ray takes those in a result apart.
    """

    kind: Literal["error", "out_of_memory", "disk_full"]
    message: str
    """One line."""


def failure(error: BaseException, batch_size: int, device: torch.device) -> Failure:
    """What `error`, raised while a trial trained with `batch_size` on `device`, means.

    Looks at the device's memory: call it before that is freed.
    """
    full = no_space(error)
    if full is not None:
        # A DiskFullError knows how much is needed; other writers' errors name the file at best.
        told = next((cause for cause in causes(error) if isinstance(cause, DiskFullError)), None)
        place = f": {full.filename}" if full.filename else ""
        return Failure("disk_full", str(told) if told else f"disk full{place}: {full.strerror}")
    if any(map(_is_out_of_memory, causes(error))):
        return Failure("out_of_memory", _out_of_memory(batch_size, device))
    return Failure("error", _brief(error))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def _out_of_memory(batch_size: int, device: torch.device) -> str:
    memory = _memory(device)
    used = f" ({(memory[1] - memory[0]) / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB in use)" if memory else ""
    advice = (
        "run fewer trials at once (--concurrent)"
        if device.type == "cpu"
        else "give a trial more of the GPU (resources.gpu)"
    )
    return (
        f"out of memory on {device}{used} with training.batch_size {batch_size}: lower training.batch_size "
        f"or {advice}"
    )


def _memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes, those of other processes included; None where the device does not say."""
    try:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)
        if device.type == "cpu":
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (RuntimeError, ValueError, OSError):
        pass
    return None


def _brief(error: BaseException) -> str:
    """The error in one line: of foreign ones the first, of our own all, and without their type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, TuneFusionError):
        return " ".join(lines)
    line = lines[0] if lines else ""
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
