"""Fetching torchvision's data sets: fails within seconds without a network, and never leaves half a file."""

from __future__ import annotations

import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tune_fusion import vision
from tune_fusion.data.locks import locked

_PROBE_SECONDS = 4.0
# A server that sends nothing for so long while a file is on its way has stopped.
_STALL_SECONDS = 30.0


def reachable(url: str, seconds: float = _PROBE_SECONDS) -> str | None:
    """None if the server answers for `url` within `seconds`, else what went wrong."""
    problem = [f"no answer within {seconds:g} s"]

    def probe() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except (OSError, urllib.error.URLError) as error:
            problem[:] = [str(getattr(error, "reason", error))]
        else:
            problem.clear()

    # Looking up a host name has no time limit of its own, so it happens where it can be left behind.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    return problem[0] if problem else None


def download(
    torchvision_class: str, root: Path, *, url: str, archive: Path | None, ready: Callable[[], bool]
) -> str | None:
    """Let torchvision fetch (or unpack) a data set into `root`, one process at a time.

    Args:
        torchvision_class: name in ``torchvision.datasets``.
        root: data folder; made if it does not exist.
        url: a file of the data set, asked for first to find out whether the server answers.
        archive: the data set's archive if it is on this machine: unpacked instead of downloaded.
        ready: tells, once this process has its turn, that another one has done the work.

    Returns:
        None on success, else what went wrong.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{torchvision_class}.lock"):
            if ready():
                return None
            problem = reachable(url) if archive is None else _damaged(torchvision_class, archive)
            return problem or _fetch(torchvision_class, root, archive)
    except OSError as error:
        return f"{root} cannot be written: {error}"


def _damaged(torchvision_class: str, archive: Path) -> str | None:
    expected = getattr(vision.torchvision.datasets, torchvision_class).tgz_md5
    if vision.torchvision.datasets.utils.check_integrity(str(archive), expected):
        return None
    return f"{archive} is damaged (its MD5 is not {expected}): delete it"


def _fetch(torchvision_class: str, root: Path, archive: Path | None) -> str | None:
    partial = root / f".{torchvision_class}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    data_set = getattr(vision.torchvision.datasets, torchvision_class)
    if archive is not None:
        (partial / archive.name).symlink_to(archive.resolve())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)
    try:
        data_set(partial, train=True, download=True)
    except (OSError, RuntimeError) as error:
        return f"download failed: {error}"
    else:
        _move(partial, root)
        return None
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(partial, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Move every file below `source` to its place below `target`, replacing what is there."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_file() and not path.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
