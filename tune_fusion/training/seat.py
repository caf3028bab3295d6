"""A trial that is only there to be measured: trains for as long as it is told, and says how that went.

It does what a trial does, with data, model and threads of its own, so that what it measures is what a trial
will take, and nothing of it stays. Its process is `tune_fusion.training.probe_seat`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import torch

from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.training import memory
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device

# Steps queued on a GPU before it is waited for.
_QUEUED = 5


class Seat:
    """A trial that is only there to be measured.

    Args:
        task: ``model``, ``data`` and ``configuration`` as plain values, ``seed``, ``gpu`` and ``threads``.
    """

    def __init__(self, task: Mapping[str, Any]) -> None:
        torch.set_num_threads(task["threads"])
        model, data = ModelSettings(**task["model"]), DataSettings(**task["data"])
        bench = Workbench(model, data, task["seed"], pick_device(task["gpu"]))
        self._device = bench.device
        self._steps = Trainer(bench, Configuration.from_dict(task["configuration"])).steps()

    def begin(self) -> dict[str, Any]:
        """Two steps, of which the first makes all that is made once.

        Returns ``seconds`` of the second, ``memory`` and ``gpu`` (used and total) in bytes, and ``device``.
        """
        next(self._steps)
        self._seconds = self.train(0.0)["seconds"]
        return {
            "seconds": self._seconds,
            "memory": memory.own_peak(),
            "gpu": memory.gpu_used_and_total(self._device),
            "device": self._device.type,
        }

    def stretch(self, threads: int, seconds: float) -> dict[str, Any]:
        """Train with so many torch threads for about so long; see `train`."""
        torch.set_num_threads(threads)
        if self._seconds < seconds:
            # The first step with other threads pays for them. Long steps do not notice.
            next(self._steps)
        return self.train(seconds)

    def train(self, seconds: float) -> dict[str, Any]:
        """Train a step, and others until `seconds` are over.

        Returns ``images`` and ``steps``, and the ``seconds`` that they took.
        """
        images = steps = 0
        self._wait()
        started = time.perf_counter()
        while steps == 0 or time.perf_counter() - started < seconds:
            images += next(self._steps)
            steps += 1
            if steps % _QUEUED == 0:
                self._wait()
        self._wait()
        return {"images": images, "steps": steps, "seconds": time.perf_counter() - started}

    def _wait(self) -> None:
        """Let a GPU end what was asked of it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize()


def serve(orders: Iterable[str], answers: TextIO) -> None:
    """Answer every line of JSON, first a task, then stretches.

    An error is the last answer: ``error`` in words.
    """

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    lines = iter(orders)
    try:
        task = next(lines, None)
        if task is None:
            return
        seat = Seat(json.loads(task))
        answer(seat.begin())
        for line in lines:
            answer(seat.stretch(**json.loads(line)))
    except Exception as error:  # noqa: BLE001  (whatever it is, the search is told)
        answer({"error": f"{type(error).__name__}: {error}"})
