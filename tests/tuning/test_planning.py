"""What a search will take, from measurements made up for the tests."""

from pathlib import Path

import pytest

from tune_fusion.training.checks import check_space, prove
from tune_fusion.training.probe import Layout, Memory, Probe, Speed
from tune_fusion.training.workbench import pick_device
from tune_fusion.tuning import planning
from tune_fusion.tuning.packing import Packing
from tune_fusion.tuning.planning import costs, describe_search, expected_seconds, probe_table
from tune_fusion.tuning.room import megabytes, needed_bytes, with_files

MB = 2**20
SPACE = (
    *("search.trials=20", "search.control_share=0.4", "training.epochs=9", "data.limit=1000"),
    "asha.reduction_factor=3",
)


@pytest.fixture(scope="module")
def checked():
    return check_space("digits", SPACE)


@pytest.fixture(scope="module")
def bench(checked):
    return prove(checked, pick_device(0))


def packing(*rates, memory_of_gpu=None, **changes):
    """Two trials at once with one CPU each, or `changes` of that; `rates` belong to 2, 1, 1 trials."""
    shapes = [Layout(2, 1), Layout(1, 2), Layout(1, 1)]
    speeds = tuple(Speed(*pair, 0.0625) for pair in zip(shapes, rates, strict=False))
    probe = Probe("cuda" if memory_of_gpu else "cpu", Memory(500 * MB, 8000 * MB), memory_of_gpu, speeds)
    fields = {"trials": 2, "cpu": 1, "gpu": 0.0, "devices": 1, "probe": probe, "speed": speeds[0]}
    return Packing(**fields | changes)


def test_seconds_by_hand(checked):
    # One in three goes on: 12 fusions train 12 + 2 * 4 + 6 * 4/3 = 28 epochs, 8 controls 8 + 2 * 8/3 + 6 * 1
    # = 19 1/3. An epoch trains 1000 images and measures 250, each at a third of the cost.
    assert (checked.data.train_images, checked.data.validation_images) == (1000, 250)
    epochs, images = 28 + 58 / 3, 1000 + 250 / 3
    assert expected_seconds(checked, packing(1000.0)) == pytest.approx(epochs * images / 1000)
    assert expected_seconds(checked, packing(1000.0, devices=4)) == pytest.approx(epochs * images / 4000)


def test_costs_by_hand(checked, bench):
    # 47 1/3 epochs of 1083 1/3 images at 0.5 a second: 102,556 s or 28.49 hours, on two CPUs.
    text = costs(checked, bench, packing(0.5), Path("runs"))
    # Two train and 18 wait: there are no more, though in each of two arms six might at each of three rungs.
    assert with_files(checked.space, 2) == 20
    needed = megabytes(needed_bytes(bench, 20))
    lines = text.splitlines()
    assert lines[0].startswith("cost with 2 trials at once")
    assert lines[1:5] == [
        "  hours      28.49 (102,556 s), validation included",
        "  GPU-hours  0.00",
        "  CPU-hours  56.98",
        "  memory     2 x 500 MB of 8,000 MB",
    ]
    assert lines[5].startswith(f"  disk       at most {needed} of ")
    assert lines[5].endswith(" MB in runs")


def test_gpu_hours_by_hand(checked, bench):
    shared = packing(0.5, memory_of_gpu=Memory(9000 * MB, 70_000 * MB), trials=4, cpu=2, gpu=0.5, devices=2)
    # Twice as fast on two GPUs: 51,278 s or 14.24 hours, of two GPUs and of eight CPUs.
    lines = costs(checked, bench, shared, Path("runs")).splitlines()
    assert lines[1:6] == [
        "  hours      14.24 (51,278 s), validation included",
        "  GPU-hours  28.49",
        "  CPU-hours  113.95",
        "  memory     2 x 500 MB of 8,000 MB",
        "  GPU memory 2 x 9,000 MB of 70,000 MB",
    ]
    assert probe_table(checked, shared).startswith("probe on cuda (")
    assert ", one of 2 GPUs), 64 images" in probe_table(checked, shared)


def test_trials_that_do_not_fit_are_said(checked, bench):
    text = costs(checked, bench, packing(0.5, trials=32), Path("runs"))
    assert "  memory     32 x 500 MB of 8,000 MB: too many at once, 16 would fit\n" in text


def test_the_probe_shows_every_layout_and_which_was_chosen(checked):
    lines = probe_table(checked, packing(1000.0, 800.0)).splitlines()
    assert lines[0].startswith("probe on cpu (")
    assert lines[0].endswith(
        "), 64 images a step, float32: switch 1 (conv2) low adam lr 1.0e-03 | high sgd lr 1.0e-02 momentum 0"
    )
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "2 trials x 1 CPU 0.0625 s a step 1,000 images/s in all (chosen)",
        "1 trial x 2 CPUs 0.0625 s a step 800 images/s in all",
    ]
    assert "chosen" not in probe_table(checked, packing(1000.0))


@pytest.mark.parametrize("pack", ["auto", "fixed"])
def test_a_plan_has_the_probe_the_rungs_and_the_costs(monkeypatch, checked, bench, pack):
    asked = []
    for name in ("pack", "as_said"):
        monkeypatch.setattr(
            planning, name, lambda space, most, name=name: asked.append((name, most)) or packing(1000.0)
        )
    parts = describe_search(check_space("digits", (*SPACE, f"resources.pack={pack}")), bench, 3, Path("x"))
    assert asked == [("pack" if pack == "auto" else "as_said", 3)]
    assert [part.split()[0] for part in parts.split("\n\n")] == ["digits:", "probe", "rungs,", "cost"]
