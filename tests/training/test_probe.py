"""The probe with real processes that train, and what it makes of their answers."""

import io
import itertools
import json
import os
import subprocess
import sys

import psutil
import pytest
import torch

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training import probe as module
from tune_fusion.training.probe import Layout, Memory, Task, _gpu_memory, _quick, probe
from tune_fusion.training.seat import Seat, serve
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench

CONFIGURATION = Configuration(
    1,
    OptimizerChoice("adam", {"lr": 1e-3, "betas": (0.9, 0.99)}),
    OptimizerChoice("sgd", {"lr": 0.05}),
    TrainingSettings(batch_size=64),
)
MODEL, DATA = ModelSettings(name="lenet5"), DataSettings(name="digits", validation=200, limit=400)
TASK = Task(MODEL, DATA, 3, CONFIGURATION, gpu=False)
MB = 2**20


@pytest.fixture
def plain_task():
    return {
        "model": MODEL.model_dump(),
        "data": DATA.model_dump(),
        "seed": 3,
        "configuration": CONFIGURATION.to_dict(),
        "gpu": 0.0,
        "threads": 1,
    }


def lines(text):
    return [json.loads(line) for line in text.getvalue().splitlines()]


def test_two_trials_train_side_by_side_and_one_alone():
    before = torch.get_num_threads(), torch.random.get_rng_state()
    layouts = [Layout(1, 2), Layout(2, 1)]
    asked = []
    found = probe(TASK, 2, lambda fits: asked.append(fits) or layouts)
    # First for as many as there are CPUs, to have their processes ready; then for those that fit.
    assert asked == [2, found.fits]
    assert found.fits >= 2
    assert (found.device, found.gpu) == ("cpu", None)
    assert [speed.layout for speed in found.speeds] == layouts
    for speed in found.speeds:
        # A step is at most 64 images, and the last batch of an epoch smaller: 400 = 6 x 64 + 16.
        per_step = speed.images_per_second * speed.step_seconds / speed.layout.trials
        assert 16 <= per_step <= 64 * 1.5
    assert 150 * MB < found.host.trial < 2000 * MB
    assert found.host.room > found.host.trial
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert not [p for p in psutil.Process().children() if "probe_seat" in " ".join(p.cmdline())]


def test_a_step_that_cannot_be_trained_is_said(tmp_path):
    broken = Task(MODEL, DataSettings(name=f"folder:{tmp_path / 'none'}"), 3, CONFIGURATION, gpu=False)
    with pytest.raises(InputError, match=r"training.batch_size 64 cannot be measured: InputError: .*none"):
        probe(broken, 1, lambda fits: [Layout(1, 1)])


def test_a_process_that_dies_is_said(monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="cannot be measured: its process ended with exit code 1"):
        probe(TASK, 1, lambda fits: [Layout(1, 1)])


def test_a_seat_answers_each_line_and_ends_with_its_input(plain_task):
    answers = io.StringIO()
    orders = [plain_task, {"threads": 1, "seconds": 0.0}, {"threads": 1, "seconds": 0.05}]
    serve(io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), answers)
    first, short, longer = lines(answers)
    assert (first["device"], first["gpu"]) == ("cpu", None)
    assert first["memory"] > 50 * MB
    assert first["seconds"] > 0
    assert (short["steps"], short["images"] in (64, 16)) == (1, True)
    assert longer["seconds"] >= 0.05
    assert longer["steps"] >= 1


def test_a_seat_that_is_given_nothing_says_nothing():
    answers = io.StringIO()
    serve(io.StringIO(""), answers)
    assert answers.getvalue() == ""


def test_a_seat_ends_at_once_with_its_input_whatever_it_is_at(plain_task):
    process = subprocess.Popen(
        [sys.executable, "-m", "tune_fusion.training.probe_seat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    forever = {"threads": 1, "seconds": 1e9}
    print(json.dumps(plain_task), json.dumps(forever), sep="\n", file=process.stdin, flush=True)
    assert json.loads(process.stdout.readline())["device"] == "cpu"
    assert process.communicate(timeout=120) == ("", None)
    assert process.returncode == 0


def test_a_seat_ends_with_its_input_while_torch_is_being_imported(tmp_path):
    (tmp_path / "torch.py").write_text(
        "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "tune_fusion.training.probe_seat"],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr.readline() == "importing\n"
        assert process.communicate(timeout=60) == (None, "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_an_error_is_a_seats_last_answer(plain_task):
    answers = io.StringIO()
    model = {"name": "lenet5", "weights": "/nowhere.pth"}
    serve(io.StringIO(json.dumps(plain_task | {"model": model}) + "\n{}\n"), answers)
    (only,) = lines(answers)
    assert "/nowhere.pth" in only["error"]


def test_threads_are_those_that_were_asked_for(plain_task):
    before = torch.get_num_threads()
    try:
        seat = Seat(plain_task | {"threads": 2})
        assert torch.get_num_threads() == 2
        seat.begin()
        seat.stretch(threads=1, seconds=0.0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_steps_of_a_trainer_are_those_of_its_epochs():
    stepped, trained = (Trainer(Workbench(MODEL, DATA, 3, torch.device("cpu")), CONFIGURATION) for _ in "ab")
    trained.run_epoch()
    per_epoch = len(stepped.bench.data.train) // 64 + 1
    images = list(itertools.islice(stepped.steps(), per_epoch))
    assert sum(images) == len(stepped.bench.data.train)
    for one, other in zip(stepped.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(list(itertools.islice(stepped.steps(), 2 * per_epoch))) == 2 * per_epoch


@pytest.mark.parametrize(("trial", "room", "fit"), [(300, 1000, 3), (1000, 1000, 1), (3000, 1000, 1)])
def test_as_many_trials_fit_as_memory_holds_and_at_least_one(trial, room, fit):
    assert Memory(trial, room).trials == fit


class GpuSeats:
    """Seats of which each takes so much of a GPU."""

    def __init__(self, *used):
        self.used = used

    def fill(self, trials):
        return [{"gpu": (used, 80_000)} for used in self.used[:trials]]


def test_a_gpu_trial_takes_what_a_second_one_adds():
    # 90 % of 80,000 may be filled, 3,000 belong to others: (72,000 - 8,000 + 6,000) / 6,000 = 11.
    memory = _gpu_memory(GpuSeats(8_000, 13_000), 8_000, 80_000)
    assert memory == Memory(6_000, 70_000)
    assert memory.trials == 11


def test_no_second_trial_is_tried_on_a_gpu_that_may_not_hold_it():
    memory = _gpu_memory(GpuSeats(), 40_000, 80_000)
    assert memory.trials == 1


@pytest.mark.parametrize(
    ("seconds", "gpu", "expected"),
    [
        (0.1, None, [Layout(1, 8), Layout(4, 2), Layout(8, 1)]),
        # Alone on eight CPUs 4 s: with two CPUs up to 16 s, with one up to 32 s, more than anybody waits.
        (4.0, None, [Layout(1, 8), Layout(4, 2)]),
        (90.0, None, [Layout(1, 8)]),
        # On a GPU it is not the CPUs that slow a step down: 4 trials up to 16 s.
        (4.0, (1, 2), [Layout(1, 8), Layout(4, 2)]),
        (2.0, (1, 2), [Layout(1, 8), Layout(4, 2), Layout(8, 1)]),
    ],
)
def test_layouts_with_long_steps_are_not_measured(seconds, gpu, expected):
    layouts = [Layout(1, 8), Layout(4, 2), Layout(8, 1)]
    assert _quick(layouts, 8, {"seconds": seconds, "gpu": gpu}) == expected


def test_the_environment_is_left_alone():
    before = dict(os.environ)
    probe(TASK, 1, lambda fits: [Layout(1, 1)])
    assert dict(os.environ) == before
