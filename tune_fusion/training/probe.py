"""How fast a search's own training step is, and what a trial takes of memory: measured before it starts.

Every layout that is asked for is measured as it would be run, as so many processes side by side: neighbours
share caches and memory bandwidth, and what one process does alone says little of that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.training import memory

# A layout is measured for about so many batches, within these limits in seconds.
_BATCHES = 20
_SHORTEST, _LONGEST = 0.3, 1.5
# A layout whose steps may take longer than so many seconds is not measured.
_PATIENCE = 20.0
# Other configurations keep more state a parameter, or smaller batches in a more scattered memory.
_MARGIN = 1.2
# What Ray adds to a worker's process (measured), and the part of the memory that trials may fill: Ray ends
# workers at 95 %.
_WORKER_BYTES = 100 * 2**20
_FILLED = 0.9
# A process that has only imported torch.
_WAITING_BYTES = 250 * 2**20


@dataclass(frozen=True)
class Task:
    """What is measured: one configuration of a search."""

    model: ModelSettings
    data: DataSettings
    seed: int
    configuration: Configuration
    gpu: bool


@dataclass(frozen=True, order=True)
class Layout:
    """So many trials at once, on the CPUs or on one GPU, with so many torch threads each."""

    trials: int
    threads: int


@dataclass(frozen=True)
class Speed:
    """How fast a layout is."""

    layout: Layout
    images_per_second: float
    """Of all its trials together."""
    step_seconds: float
    """The mean step of one of them, neighbours and all."""


@dataclass(frozen=True)
class Memory:
    """Bytes a trial takes, margin included, and bytes that there are for all that share them."""

    trial: int
    room: int

    @property
    def trials(self) -> int:
        """How many trials fit, at least one: that was tried."""
        return max(1, self.room // self.trial)


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    device: str
    """As torch calls it."""
    host: Memory
    """Of the machine, or its part for each GPU."""
    gpu: Memory | None
    """Of one GPU; None where none is trained on."""
    speeds: tuple[Speed, ...]
    """In the order of the layouts."""

    @property
    def fits(self) -> int:
        """How many trials memory has room for at once, on the CPUs or on one GPU."""
        return fits(self.host, self.gpu)


def fits(host: Memory, gpu: Memory | None) -> int:
    """How many trials fit into both."""
    return host.trials if gpu is None else min(host.trials, gpu.trials)


def probe(task: Task, cpus: int, layouts: Callable[[int], Sequence[Layout]], *, devices: int = 1) -> Probe:
    """Train `task` in each of the layouts that `layouts` gives for the number of trials that fit into memory.

    Measured is one of `devices` that share the machine's memory (its GPUs), with `cpus` of its own. Layouts
    whose steps would take too long are left out, all but the quickest. Raises InputError where even one trial
    cannot be trained.
    """
    room = int(_FILLED * memory.available() / devices)
    # A GPU has room for few trials; for the CPUs' neighbours importing takes longer than measuring.
    most = 2 if task.gpu else max(layout.trials for layout in layouts(cpus))
    with _Seats(task, cpus) as seats:
        seats.call(min(most, max(1, room // _WAITING_BYTES)))
        (first,) = seats.fill(1)
        host = Memory(int(_MARGIN * first["memory"]) + _WORKER_BYTES, room)
        gpu = None if first["gpu"] is None else _gpu_memory(seats, *first["gpu"])
        window = min(_LONGEST, max(_SHORTEST, _BATCHES * first["seconds"]))
        wanted = _quick(layouts(fits(host, gpu)), cpus, first)
        seats.fill(max(layout.trials for layout in wanted))
        speeds = tuple(seats.train(layout, window) for layout in wanted)
        return Probe(first["device"], host, gpu, speeds)


def _quick(layouts: Sequence[Layout], cpus: int, first: Mapping[str, Any]) -> list[Layout]:
    """The layouts that may be measured soon, by what a trial alone on all `cpus` has measured of itself."""

    def longest(layout: Layout) -> float:
        """Seconds that a step takes at most: neighbours and threads are never worse than taking turns."""
        slower = cpus / layout.threads if first["gpu"] is None else layout.trials
        return float(first["seconds"]) * slower

    return [layout for layout in layouts if longest(layout) <= _PATIENCE] or [min(layouts, key=longest)]


def _gpu_memory(seats: _Seats, used: int, total: int) -> Memory:
    """One trial's share of a GPU of which `used` bytes are taken now that one is there.

    What a second one adds, its CUDA context included, is what a trial takes; where there may not be room for
    it, everything that is taken counts as the first one's.
    """
    room = int(_FILLED * total)
    if 2 * used > room:
        return Memory(used, used)
    second = seats.fill(2)[1]["gpu"][0]
    trial = max(1, int(_MARGIN * (second - used)))
    return Memory(trial, room - used + trial)


class _Seats:
    """The processes of a probe; they end with it, and with whoever runs it, however that ends."""

    def __init__(self, task: Task, cpus: int) -> None:
        self._task: dict[str, Any] = {
            "model": task.model.model_dump(),
            "data": task.data.model_dump(),
            "seed": task.seed,
            "configuration": task.configuration.to_dict(),
            "gpu": float(task.gpu),
        }
        self._cpus = cpus
        self._processes: list[subprocess.Popen[str]] = []
        self._first: list[dict[str, Any]] = []

    def __enter__(self) -> _Seats:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.communicate()

    def call(self, trials: int) -> None:
        """Have at least so many processes, which import what they need."""
        while len(self._processes) < trials:
            self._processes.append(self._start())

    def fill(self, trials: int) -> list[dict[str, Any]]:
        """Have at least so many of them ready to train, and what each has measured of itself at first."""
        self.call(trials)
        new = self._processes[len(self._first) : trials]
        for process in new:
            self._order(process, self._task | {"threads": max(1, self._cpus // len(new))})
        self._first += [self._answer(process) for process in new]
        return self._first

    def train(self, layout: Layout, seconds: float) -> Speed:
        """Train in the first seats, as many as `layout` says, all at once, for about so long."""
        seats = self._processes[: layout.trials]
        for process in seats:
            self._order(process, {"threads": layout.threads, "seconds": seconds})
        answers = [self._answer(process) for process in seats]
        steps = sum(answer["steps"] for answer in answers)
        return Speed(
            layout,
            sum(answer["images"] / answer["seconds"] for answer in answers),
            sum(answer["seconds"] for answer in answers) / steps,
        )

    def _start(self) -> subprocess.Popen[str]:
        # A process group of its own: Ctrl-C is for whoever waits for the probe.
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.probe_seat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )

    def _order(self, process: subprocess.Popen[str], content: dict[str, Any]) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(content), file=process.stdin, flush=True)

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with exit code {process.wait()}"}
        if "error" in answer:
            batch_size = self._task["configuration"]["training"]["batch_size"]
            raise InputError(
                f"a training step with training.batch_size {batch_size} cannot be measured: "
                f"{answer['error'].splitlines()[0]}"
            )
        return dict(answer)
