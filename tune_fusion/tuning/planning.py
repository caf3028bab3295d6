"""What a search will take, before it is started: its own step measured, and what follows from that."""

from __future__ import annotations

import socket
from pathlib import Path

from tune_fusion.space.sampling import describe
from tune_fusion.training.checks import Checked
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning import cluster, room
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.dry_run import expected_epochs, header, rungs
from tune_fusion.tuning.packing import (
    Packing,
    as_said,
    layout_words,
    memory_words,
    pack,
    prepare,
    representative,
    this_machine,
)

# Measuring an image costs the forward half of training it, which is a third of the arithmetic.
_EVALUATION = 1 / 3


def check_plan(checked: Checked) -> Checked:
    """The space as its probe needs it; InputError where no trial of it fits on this machine."""
    checked = prepare(checked)
    machine = this_machine(checked.space)
    cluster.check_resources(checked.space.resources.anywhere, [machine.node])
    return checked


def describe_search(checked: Checked, bench: Workbench, concurrent: int | None, storage: Path) -> str:
    """The probe, the expected trials at each rung, and hours, memory, disk and GPU-hours.

    `checked` is what `check_plan` gave and `bench` its proven workbench; at most `concurrent` trials run at
    once. Takes some seconds, in which training steps are measured in processes of their own.
    """
    automatic = checked.space.resources.pack == "auto"
    packing = pack(checked, concurrent) if automatic else as_said(checked, concurrent)
    return "\n\n".join(
        [
            header(checked),
            probe_table(checked, packing),
            rungs(checked, make_arms(checked.space)),
            costs(checked, bench, packing, storage),
        ]
    )


def probe_table(checked: Checked, packing: Packing) -> str:
    """What was measured of which step, one line a layout."""
    first, probe = representative(checked.space), packing.probe
    training = first.training
    several = f", one of {packing.devices} GPUs" if packing.devices > 1 else ""
    lines = [
        f"probe on {probe.device} ({socket.gethostname()}{several}), {training.batch_size} images a step, "
        f"{training.precision}{', compiled' if training.compile else ''}: "
        f"{describe(first, checked.layer_names)}"
    ]
    for speed in probe.speeds:
        chosen = "  (chosen)" if speed is packing.speed and len(probe.speeds) > 1 else ""
        lines.append(
            f"  {layout_words(speed.layout):<22} {speed.step_seconds:>9.4f} s a step  "
            f"{speed.images_per_second:>10,.0f} images/s in all{chosen}"
        )
    return "\n".join(lines)


def costs(checked: Checked, bench: Workbench, packing: Packing, storage: Path) -> str:
    """Hours, memory, disk and GPU-hours of the whole search."""
    seconds = expected_seconds(checked, packing)
    hours = seconds / 3600
    needed = room.needed_bytes(bench, room.with_files(checked.space, packing.trials))
    free = room.free_bytes(storage)
    return "\n".join(
        [
            f"cost with {packing.trials} trials at once (start-up, and slots that wait for the last trials, "
            "not counted)",
            f"  hours      {hours:.2f} ({seconds:,.0f} s), validation included",
            f"  GPU-hours  {hours * packing.trials * packing.gpu:.2f}",
            f"  CPU-hours  {hours * packing.trials * packing.cpu:.2f}",
            *(f"  {name:<10} {words}{_too_much(packing)}" for name, words in memory_words(packing).items()),
            f"  disk       at most {room.megabytes(needed)} of {room.megabytes(free)} in {storage}",
        ]
    )


def expected_seconds(checked: Checked, packing: Packing) -> float:
    """Seconds that the expected epochs take at the measured speed."""
    data = checked.data
    images = data.train_images + _EVALUATION * data.validation_images
    epochs = expected_epochs(checked, make_arms(checked.space))
    return epochs * images / packing.images_per_second


def _too_much(packing: Packing) -> str:
    fits, trials = packing.probe.fits, packing.trials_each
    return f": too many at once, {fits} would fit" if trials > fits else ""
