"""``resources.pack: auto``: how many trials share the CPUs or a GPU, by what their own step measures."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.domain import largest
from tune_fusion.space.schema import SearchSpace
from tune_fusion.training.checks import Checked
from tune_fusion.training.probe import Layout, Probe, Speed, Task, probe
from tune_fusion.tuning import cluster
from tune_fusion.tuning.arms import make_arms

# Of layouts whose speeds differ by less, the one with fewer trials at once: each ends sooner, so that the
# sampler and the rungs know more when the next one starts.
_NOTICEABLE = 0.05


@dataclass(frozen=True)
class Machine:
    """What one machine gives to trials."""

    cpus: int
    gpus: int
    """That trials train on: 0 where they train on CPUs."""

    @property
    def node(self) -> cluster.Node:
        """It as a node of a cluster."""
        return cluster.Node(socket.gethostname(), float(self.cpus), float(self.gpus))

    @property
    def devices(self) -> int:
        """What is packed one by one: its GPUs, or all its CPUs together."""
        return max(1, self.gpus)

    @property
    def cpus_each(self) -> int:
        """CPUs for the trials of one of those."""
        return max(1, self.cpus // self.devices)


@dataclass(frozen=True)
class Packing:
    """What trials occupy, and what was measured of it."""

    trials: int
    """At once on the whole machine."""
    cpu: int
    """CPUs a trial."""
    gpu: float
    """GPUs a trial."""
    devices: int
    """GPUs in use; 1 for the CPUs."""
    probe: Probe
    speed: Speed
    """Of one of the devices."""

    @property
    def trials_each(self) -> int:
        """Trials that share a GPU, or the CPUs."""
        return -(-self.trials // self.devices)

    @property
    def images_per_second(self) -> float:
        """Of all trials together."""
        return self.speed.images_per_second * self.devices

    @property
    def overrides(self) -> tuple[str, ...]:
        """It as ``KEY=VALUE`` assignments on top of the space file."""
        return (f"resources.cpu={self.cpu}", f"resources.gpu={self.gpu}")


def this_machine(space: SearchSpace) -> Machine:
    """The machine that this process runs on, for trials of `space`.

    Raises InputError where they are to train on GPUs and it has none.
    """
    gpus = torch.cuda.device_count() if space.resources.gpu > 0 else 0
    if space.resources.gpu > 0 and gpus == 0:
        raise InputError(
            f"{space.place('resources.gpu')}: {space.resources.gpu:g}, and {socket.gethostname()} has no GPU "
            "to measure a training step on; --gpus 0 trains on the CPU"
        )
    return Machine(os.cpu_count() or 1, gpus)


def prepare(checked: Checked) -> Checked:
    """The space before anything is chosen: a trial that is to be packed takes a CPU, and a GPU at most.

    Raises InputError where ``resources.cpu`` was given from outside as well.
    """
    space = checked.space
    if space.resources.pack != "auto":
        return checked
    if space.places.touched("resources.cpu"):
        raise InputError(
            f"{space.place('resources.cpu')}: does not go with resources.pack: auto, which chooses it; leave "
            "one of them out, or say --pack fixed"
        )
    return with_resources(checked, 1, float(space.resources.gpu > 0))


def pack(checked: Checked, most: int | None) -> Packing:
    """Measure the step of a space that `prepare` has seen, and choose; at most `most` trials at once.

    Measured on this machine, whose like the others of a cluster are taken to be.
    """
    machine = this_machine(checked.space)
    most = machine.cpus if most is None else most
    limit = -(-most // machine.devices)
    measured = measure(checked, machine, lambda fits: layouts(machine, min(fits, limit)))
    speed = choose(measured.speeds)
    each = speed.layout.trials
    trials = min(each * machine.devices, most)
    # Ray counts GPUs in ten-thousandths.
    gpu = 10_000 // each / 10_000 if machine.gpus else 0.0
    return Packing(trials, speed.layout.threads, gpu, -(-trials // each), measured, speed)


def as_said(checked: Checked, most: int | None) -> Packing:
    """What the space's own ``cpu`` and ``gpu`` mean on this machine, measured as well.

    Where not all of the trials fit into memory, those that do are measured.
    """
    machine, resources = this_machine(checked.space), checked.space.resources
    slots = cluster.slots(resources.anywhere, [machine.node])
    trials = slots if most is None else min(slots, most)
    each = -(-trials // machine.devices)
    measured = measure(checked, machine, lambda fits: [Layout(min(each, fits), resources.cpu)])
    return Packing(trials, resources.cpu, resources.gpu, -(-trials // each), measured, measured.speeds[0])


def measure(checked: Checked, machine: Machine, wanted: Callable[[int], Sequence[Layout]]) -> Probe:
    """Probe the first configuration of the space, at its largest batch size, in the `wanted` layouts."""
    space = checked.space
    task = Task(
        space.model, space.data, space.search.seed, representative(space), gpu=space.resources.gpu > 0
    )
    return probe(task, machine.cpus_each, wanted, devices=machine.devices)


def representative(space: SearchSpace) -> Configuration:
    """The configuration that a search tries first, at the largest batch size of the space."""
    suggestion = make_arms(space)[0].study.ask()
    assert suggestion is not None
    first = suggestion.configuration
    batch_size = int(largest(space.training["batch_size"]))
    return dataclasses.replace(first, training=first.training.model_copy(update={"batch_size": batch_size}))


def layouts(machine: Machine, fits: int) -> list[Layout]:
    """What is worth measuring where at most `fits` trials have room at once, fewest trials first.

    On CPUs all powers of two of threads, and all CPUs; on a GPU all powers of two of trials, and `fits`, with
    the CPUs shared out among them.
    """
    cpus = machine.cpus_each
    if machine.gpus:
        trials = {min(count, cpus) for count in _doubling(fits)}
        return [Layout(count, cpus // count) for count in sorted(trials)]
    return sorted({Layout(min(cpus // threads, fits), threads) for threads in _doubling(cpus)})


def choose(speeds: Sequence[Speed]) -> Speed:
    """The fastest of all trials together; of equally fast ones that with the fewest trials and threads."""
    best = max(speed.images_per_second for speed in speeds)
    fast = [speed for speed in speeds if speed.images_per_second >= (1 - _NOTICEABLE) * best]
    return min(fast, key=lambda speed: speed.layout)


def with_resources(checked: Checked, cpu: int, gpu: float) -> Checked:
    """The same for trials that occupy so much each."""
    return dataclasses.replace(checked, space=checked.space.with_resources(cpu, gpu))


def reasons(packing: Packing) -> str:
    """What was chosen and why, in one line."""
    probe, speed = packing.probe, packing.speed
    others = "; ".join(
        f"{layout_words(other.layout)}: {other.images_per_second:,.0f}"
        for other in probe.speeds
        if other is not speed
    )
    return (
        f"packed {layout_words(speed.layout)}{' on each GPU' if probe.gpu else ''}: "
        f"{speed.images_per_second:,.0f} images/s in all{f' ({others})' if others else ''}; "
        + ", ".join(f"{name} {words}" for name, words in memory_words(packing).items())
    )


def layout_words(layout: Layout) -> str:
    """``2 trials x 1 CPU``."""
    trials, threads = layout.trials, layout.threads
    return f"{trials} trial{'s' * (trials != 1)} x {threads} CPU{'s' * (threads != 1)}"


def memory_words(packing: Packing) -> dict[str, str]:
    """What the trials take, and what there is for them: ``2 x 478 MB of 18,956 MB``, by kind of memory."""
    kinds = {"memory": packing.probe.host, "GPU memory": packing.probe.gpu}
    return {
        name: f"{packing.trials_each} x {memory.trial / 2**20:,.0f} MB of {memory.room / 2**20:,.0f} MB"
        for name, memory in kinds.items()
        if memory is not None
    }


def _doubling(last: int) -> list[int]:
    """1, 2, 4 and so on, and `last`."""
    return [*(2**power for power in range(last.bit_length()) if 2**power < last), last]
