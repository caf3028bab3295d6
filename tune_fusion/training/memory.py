"""Memory, in bytes: what this process holds for itself, what the machine and its GPU have left."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def own_peak(status: Path = Path("/proc/self/status")) -> int:
    """The most memory that this process has held, less what it shares with others of its kind.

    Shared are code and mapped files, in Linux; elsewhere nothing counts as shared.
    """
    if status.exists():
        sizes = _kilobytes(status)
        return (sizes["VmHWM"] - sizes["RssFile"] - sizes["RssShmem"]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS) -> int:
    """The memory that new processes can have: the machine's, or less where this process is in a container."""
    if meminfo.exists():
        free = _kilobytes(meminfo)["MemAvailable"] * 1024
    else:
        # Elsewhere nothing tells what caches would give back.
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int((cgroups / "memory.max").read_text())
        used = int((cgroups / "memory.current").read_text())
        words = dict(line.split() for line in (cgroups / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    return min(free, limit - used + int(words.get("inactive_file", 0)))


def gpu_used_and_total(device: torch.device) -> tuple[int, int] | None:
    """What all processes together hold of the GPU, and what it has; None: `device` is none of CUDA's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def _kilobytes(file: Path) -> Mapping[str, int]:
    """The sizes in a file of ``/proc``, by name."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
