"""What the benchmarks share: interleaved timings, targets beside measured values, the machine, JSON."""

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow")


@dataclass(frozen=True)
class Figure:
    """One measured value, and the target it is held against."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = True
    """Whether the target is the most that the value may be, or the least."""
    runs: int = 1
    """Values whose median this is."""
    note: str = ""

    @property
    def met(self):
        """True or False; None without a target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def interleaved(work, rounds, *, warmup=1):
    """Seconds of each function in `work` (by name), called in turn for `rounds` rounds.

    What disturbs the machine for a while disturbs all of them alike, so that ratios hold.
    """
    for _ in range(warmup):
        for function in work.values():
            function()
    seconds = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds):
    """The median of each list in `seconds`."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def median_ratio(seconds, name, other):
    """The median over rounds of how much longer `name` took than `other` in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def machine():
    """Where it was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package):
    """None where it is not installed: not every benchmark needs all of them."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def show(figure):
    """Print a figure as a line of a table, with its target and whether it was met."""
    target = ""
    if figure.target is not None:
        sign, word = ("<=" if figure.at_most else ">="), ("met" if figure.met else "MISSED")
        target = f"target {sign} {figure.target:g}: {word}"
    note = f"  ({figure.note})" if figure.note else ""
    print(f"{figure.name:<64}  {figure.value:>12,.4g} {figure.unit:<10} {target}{note}", flush=True)


def run(name, description, measure, add_options=None):
    """The command line of a benchmark: ``--json FILE``; `measure` gives its figures, each shown as it comes.

    A benchmark with options of its own adds them in `add_options`; `measure` then takes them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args()
    print(f"== {name}", flush=True)
    figures = []
    for figure in measure() if add_options is None else measure(options):
        show(figure)
        figures.append(figure)
    if options.json:
        content = {"benchmark": name, "machine": machine(), "figures": [asdict(figure) for figure in figures]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
