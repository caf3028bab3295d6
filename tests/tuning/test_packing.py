"""What is chosen from what was measured; tests/training/test_probe.py looks at the measuring itself."""

import pytest

from tune_fusion.errors import InputError
from tune_fusion.space.loading import parse_space
from tune_fusion.training.checks import check_space
from tune_fusion.training.probe import Layout, Memory, Probe, Speed
from tune_fusion.tuning import cluster, packing
from tune_fusion.tuning.packing import (
    Machine,
    as_said,
    choose,
    layouts,
    pack,
    prepare,
    reasons,
    representative,
    with_resources,
)

MB = 2**20


def checked(*overrides):
    return check_space("digits", ("resources.pack=auto", *overrides))


def machine_of(monkeypatch, cpus, gpus=0):
    monkeypatch.setattr(packing.os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(packing.torch.cuda, "device_count", lambda: gpus)


def measured(monkeypatch, rates, *, trial=500 * MB, room=20_000 * MB, gpu=None):
    """Let the probe find these images a second, by (trials, threads); returns the tasks it is given."""
    tasks = []

    def probe(task, cpus, wanted, devices):
        tasks.append((task, cpus, devices))
        memory = [Memory(trial, room)] + ([gpu] if gpu else [])
        found = wanted(min(each.trials for each in memory))
        speeds = [Speed(layout, rates[layout.trials, layout.threads], 0.1) for layout in found]
        return Probe("cuda" if gpu else "cpu", memory[0], gpu, tuple(speeds))

    monkeypatch.setattr(packing, "probe", probe)
    return tasks


@pytest.mark.parametrize(
    ("cpus", "fits", "expected"),
    [
        (1, 9, [(1, 1)]),
        (2, 9, [(1, 2), (2, 1)]),
        (6, 9, [(1, 4), (1, 6), (3, 2), (6, 1)]),
        (8, 99, [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (8, 3, [(1, 8), (2, 4), (3, 1), (3, 2)]),
        (8, 1, [(1, 1), (1, 2), (1, 4), (1, 8)]),
    ],
)
def test_layouts_of_cpus(cpus, fits, expected):
    assert layouts(Machine(cpus, 0), fits) == [Layout(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits", "expected"),
    [
        (16, 1, 1, [(1, 16)]),
        (16, 1, 6, [(1, 16), (2, 8), (4, 4), (6, 2)]),
        (16, 4, 9, [(1, 4), (2, 2), (4, 1)]),
        (2, 4, 9, [(1, 1)]),
    ],
)
def test_layouts_of_a_gpu_share_its_part_of_the_cpus(cpus, gpus, fits, expected):
    assert layouts(Machine(cpus, gpus), fits) == [Layout(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({(1, 4): 100, (2, 2): 150, (4, 1): 200}, (4, 1)),
        # Less than 5 % behind: fewer at once, each of which ends sooner.
        ({(1, 4): 100, (2, 2): 191, (4, 1): 200}, (2, 2)),
        ({(1, 4): 100, (2, 2): 189, (4, 1): 200}, (4, 1)),
        ({(1, 4): 199, (2, 2): 200, (4, 1): 120}, (1, 4)),
        ({(1, 1): 96, (1, 2): 100, (1, 4): 99}, (1, 1)),
    ],
)
def test_the_fastest_of_all_together_is_chosen(rates, chosen):
    speeds = [Speed(Layout(*pair), rate, 0.1) for pair, rate in rates.items()]
    assert choose(speeds).layout == Layout(*chosen)


def test_cpus_are_packed_by_what_was_measured(monkeypatch):
    machine_of(monkeypatch, 4)
    tasks = measured(monkeypatch, {(1, 4): 900.0, (2, 2): 1500.0, (4, 1): 2000.0})
    found = pack(prepare(checked("training.batch_size={choice: [32, 256]}")), None)
    assert (found.trials, found.cpu, found.gpu, found.devices) == (4, 1, 0.0, 1)
    assert found.images_per_second == 2000
    assert found.overrides == ("resources.cpu=1", "resources.gpu=0.0")
    ((task, cpus, devices),) = tasks
    assert (task.gpu, task.seed, task.model.name, cpus, devices) == (False, 0, "lenet5", 4, 1)
    assert task.configuration.training.batch_size == 256
    assert reasons(found) == (
        "packed 4 trials x 1 CPU: 2,000 images/s in all (1 trial x 4 CPUs: 900; 2 trials x 2 CPUs: 1,500); "
        "memory 4 x 500 MB of 20,000 MB"
    )


def test_memory_bounds_what_is_packed(monkeypatch):
    machine_of(monkeypatch, 4)
    rates = {(1, 4): 900.0, (2, 1): 1400.0, (2, 2): 1500.0, (4, 1): 2000.0}
    measured(monkeypatch, rates, trial=9_000 * MB)
    assert pack(prepare(checked()), None).speed.layout == Layout(2, 2)


def test_no_more_trials_than_were_asked_for(monkeypatch):
    machine_of(monkeypatch, 4)
    measured(monkeypatch, {(1, 1): 100.0, (1, 2): 180.0, (1, 4): 300.0})
    found = pack(prepare(checked()), 1)
    assert (found.trials, found.cpu) == (1, 4)


@pytest.mark.parametrize("fits", [1, 2, 3, 6, 7])
def test_a_part_of_a_gpu_is_one_that_ray_grants_to_as_many_trials(monkeypatch, fits):
    machine_of(monkeypatch, 32, gpus=2)
    rates = {(n, 16 // n): 100.0 * n for n in (1, 2, 3, 4, 6, 7)}
    tasks = measured(monkeypatch, rates, gpu=Memory(1000 * MB, fits * 1000 * MB))
    space = prepare(checked("resources.gpu=1"))
    found = pack(space, None)
    assert (found.trials, found.cpu, found.devices) == (2 * fits, 16 // fits, 2)
    assert found.images_per_second == 2 * 100 * fits
    # Ray keeps four decimals; so many of them must not exceed a whole GPU.
    assert round(found.gpu, 4) == found.gpu
    assert found.gpu * fits <= 1
    chosen = with_resources(space, found.cpu, found.gpu).space.resources
    assert cluster.slots(chosen, [cluster.Node("here", 32.0, 2.0)]) == 2 * fits
    ((task, cpus, devices),) = tasks
    assert (task.gpu, cpus, devices) == (True, 16, 2)
    assert f"on each GPU: {100 * fits} images/s in all" in reasons(found)
    assert reasons(found).endswith(
        f"memory {fits} x 500 MB of 20,000 MB, GPU memory {fits} x 1,000 MB of {fits * 1000:,} MB"
    )


def test_a_gpu_whose_trials_slow_each_other_down_is_not_shared(monkeypatch):
    machine_of(monkeypatch, 8, gpus=1)
    measured(monkeypatch, {(1, 8): 100.0, (2, 4): 102.0, (4, 2): 90.0}, gpu=Memory(1, 4))
    found = pack(prepare(checked("resources.gpu=0.5")), None)
    assert (found.trials, found.cpu, found.gpu) == (1, 8, 1.0)


def test_what_the_space_says_is_measured_as_it_stands(monkeypatch):
    machine_of(monkeypatch, 8)
    measured(monkeypatch, {(4, 2): 800.0, (3, 2): 700.0})
    space = check_space("digits", ("resources.cpu=2",))
    found = as_said(space, None)
    assert (found.trials, found.cpu, found.gpu, found.images_per_second) == (4, 2, 0.0, 800)
    assert as_said(space, 3).trials == 3


def test_what_the_space_says_of_gpus_is_measured_on_one_of_them(monkeypatch):
    machine_of(monkeypatch, 8, gpus=2)
    measured(monkeypatch, {(2, 2): 800.0}, gpu=Memory(1, 9))
    found = as_said(check_space("digits", ("resources.cpu=2", "resources.gpu=0.5")), None)
    assert (found.trials, found.devices, found.gpu, found.images_per_second) == (4, 2, 0.5, 1600)


def test_only_what_fits_is_measured(monkeypatch):
    machine_of(monkeypatch, 8)
    measured(monkeypatch, {(2, 1): 800.0}, trial=9_000 * MB)
    found = as_said(check_space("digits"), None)
    assert (found.trials, found.trials_each, found.probe.fits) == (8, 8, 2)


def test_before_it_is_packed_a_trial_takes_a_cpu_and_a_gpu_where_it_trains_on_one():
    space = prepare(checked("resources.gpu=3")).space
    assert (space.resources.cpu, space.resources.gpu) == (1, 1.0)
    assert prepare(checked()).space.resources.gpu == 0
    said = check_space("digits", ("resources.cpu=3",))
    assert prepare(said) is said


def test_cpus_that_are_given_and_chosen_are_refused():
    with pytest.raises(InputError, match=r"^--set resources.cpu: does not go with resources.pack: auto"):
        prepare(checked("resources.cpu=2"))


def test_a_gpu_must_be_there_to_be_measured(monkeypatch):
    machine_of(monkeypatch, 8)
    with pytest.raises(InputError, match=r"--set resources.gpu: 1, and .* has no GPU to measure"):
        pack(prepare(checked("resources.gpu=1")), None)


def test_the_choice_stands_in_the_file_as_run(monkeypatch):
    space = checked().space
    chosen = space.with_resources(2, 0.25)
    assert (chosen.resources.cpu, chosen.resources.gpu, chosen.resources.pack) == (2, 0.25, "auto")
    again = parse_space(chosen.to_yaml(), "again.yaml", checked().vocabulary)
    assert again.resources == chosen.resources
    # The same as if it had been said from outside, which is how the journal keeps it.
    said = checked("resources.cpu=2", "resources.gpu=0.25").space
    assert said.resources == chosen.resources
    assert "# This file is also the one to read first." in chosen.to_yaml()


def test_the_first_configuration_of_a_search_is_the_one_that_is_measured():
    space = checked().space
    first = representative(space)
    assert (first.low.name, first.high.name, first.training.batch_size) == ("adam", "sgd", 64)
