"""What a result needs to be understood later: code, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "optuna",
    "mlflow",
    "pandas",
    "numpy",
    "pytorch-optimizer",
)


def versions() -> dict[str, str]:
    """Versions of this package, Python and the packages that decide a result."""
    from tune_fusion import __version__

    found = {"tune_fusion": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def code() -> dict[str, str]:
    """What a search must find unchanged to go on as it began: `versions`, and a digest of the sources."""
    return versions() | {"sources": _source_digest()}


def _source_digest() -> str:
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.c")]):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def git_commit() -> str:
    """The commit of the checkout this package runs from, ``+changes`` appended where files differ from it.

    Empty outside a git checkout.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    # Only files that git tracks say which commit the code is: an installed copy inside some other
    # project's checkout does not belong to that project's commit.
    if not git("ls-files", "--", str(Path(__file__).resolve())):
        return ""
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def hardware(cluster: list[Any]) -> dict[str, Any]:
    """The machine the driver runs on and the nodes that train."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "driver_cpus": os.cpu_count(),
        "nodes": [{"host": node.host, "cpu": node.cpu, "gpu": node.gpu} for node in cluster],
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
