"""Trials as a worker runs them, without Ray around it: taking checkpoints up, and telling failures."""

import copy
import gc
import math
import os
import socket
import weakref

import pytest
import torch
from safetensors.torch import load_file
from small_disk import small_disk
from torch import nn

from tune_fusion.errors import TuneFusionError
from tune_fusion.runs import RunFolder
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.storage import Place
from tune_fusion.training.checkpoint import newest_checkpoint
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.failures import Failure
from tune_fusion.tuning.members import Proof
from tune_fusion.tuning.trainable import FusionTrial, TrialPlan

MODEL = ModelSettings(name="lenet5")
DATA = DataSettings(name="digits", validation=64, limit=96, augment="crop_flip")


def configuration(low="adam", lr=1e-3, epochs=4):
    return Configuration(
        2,
        OptimizerChoice(low, {"lr": lr}),
        OptimizerChoice("sgd", {"lr": 0.05, "momentum": 0.9}),
        TrainingSettings(epochs=epochs, batch_size=32, schedule="cosine"),
    )


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fingerprint():
    return Workbench(MODEL, DATA, 0, torch.device("cpu")).data.fingerprint


@pytest.fixture
def make_plan(tmp_path, fingerprint):
    shared = tmp_path / "shared"
    shared.write_bytes(b"the driver's")

    def make(folder="run", **changes):
        settings = {
            "model": MODEL,
            "data": DATA,
            "seed": 0,
            "fingerprints": {0: fingerprint},
            "threads": 1,
            "gpu": 0.0,
            "metric": "val_loss",
            "direction": "min",
            "run_folder": Place.of(tmp_path / folder),
            "proof": Proof(shared, b"the driver's"),
        }
        return TrialPlan(**(settings | changes))

    return make


def config(number=0, **settings):
    return {"number": number, "configuration": configuration(**settings).to_dict(), "seed": None}


def worker(plan, number=0, **settings):
    """A fresh worker process's trial, as far as one process can make one."""
    trial = FusionTrial.__new__(FusionTrial)
    trial.setup(config(number, **settings), plan)
    return trial


def run(trial, steps):
    """The epochs of so many steps, one list a step."""
    results = [trial.step() for _ in range(steps)]
    assert [result["failure"] for result in results] == [None] * steps
    return [copy.deepcopy(result["epochs"]) for result in results]


def comparable(*steps):
    """Epochs without what a clock says."""
    return [
        {**epoch, "metrics": {k: v for k, v in epoch["metrics"].items() if "second" not in k}}
        for epochs in steps
        for epoch in epochs
    ]


def model_after(epochs):
    trainer = Trainer(Workbench(MODEL, DATA, 0, torch.device("cpu")), configuration())
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer.model.state_dict()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_step_is_an_epoch_and_its_checkpoint(make_plan):
    plan = make_plan()
    result = worker(plan, 7).step()
    assert result.keys() == {"epochs", "failure", "node", "checkpoint_seconds"}
    assert result["node"] == f"{socket.gethostname()}:{os.getpid()}"
    assert result["failure"] is None
    assert result["checkpoint_seconds"] > 0
    (epoch,) = result["epochs"]
    expected = Trainer(Workbench(MODEL, DATA, 0, torch.device("cpu")), configuration()).run_epoch()
    assert (epoch["epoch"], epoch["diverged"]) == (1, False)
    assert comparable([epoch])[0]["metrics"] == comparable([{"metrics": expected.metrics}])[0]["metrics"]
    assert files(plan.run_folder.folder) == ["0007.safetensors", "epoch-0001.pt"]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("trained", [1, 3, 4])
def test_another_worker_goes_on_where_one_was_lost(make_plan, direction, trained):
    # Of a falling loss the last epoch is the lowest, the first the highest.
    undisturbed = make_plan("undisturbed", direction=direction)
    expected = run(worker(undisturbed), 4)
    losses = [epochs[0]["metrics"]["val_loss"] for epochs in expected]
    assert losses == sorted(losses, reverse=True)
    plan = make_plan("disturbed", direction=direction)
    first = run(worker(plan), trained)

    other = worker(plan)
    taken_up = other.step()
    assert taken_up["failure"] is None
    assert taken_up["checkpoint_seconds"] == 0
    # With the seconds that they took when they were trained.
    assert taken_up["epochs"] == [epoch for epochs in first for epoch in epochs]
    rest = run(other, 4 - trained)
    assert comparable(taken_up["epochs"], *rest) == comparable(*expected)
    weights, best = (
        load_file(RunFolder(plan.run_folder.folder).weights(0)),
        model_after(4 if direction == "min" else 1),
    )
    assert all(torch.equal(value, best[name]) for name, value in weights.items())
    last = newest_checkpoint(RunFolder(plan.run_folder.folder).checkpoint_folder(0), lambda state: True)
    assert all(torch.equal(value, last["trainer"]["model"][name]) for name, value in model_after(4).items())
    assert files(RunFolder(plan.run_folder.folder).checkpoint_folder(0)) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_a_trial_lost_again_and_again_is_trained_once(make_plan):
    expected = comparable(*run(worker(make_plan("undisturbed")), 4))
    plan, known = make_plan(), []
    for _ in range(4):
        trial = worker(plan)
        told = run(trial, 2 if known else 1)
        epochs = [epoch for step in told for epoch in step]
        assert epochs[: len(known)] == known
        known = epochs
    assert comparable(known) == expected


def test_a_worker_takes_trial_after_trial(make_plan):
    plan = make_plan()
    trial = worker(plan, 0)
    run(trial, 1)
    assert trial.reset_config(config(1, low="radam"))
    assert len(run(trial, 1)[0]) == 1
    assert trial.reset_config(config(0))
    assert [epoch["epoch"] for epoch in run(trial, 1)[0]] == [1]
    assert [epoch["epoch"] for epoch in run(trial, 1)[0]] == [2]
    assert files(RunFolder(plan.run_folder.folder).checkpoint_folder(1)) == ["epoch-0001.pt"]


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"lr": 2e-3}, {}),
        ({"low": "radam"}, {}),
        ({"epochs": 5}, {}),
        ({}, {"seed": 1}),
        ({}, {"data": DATA.model_copy(update={"augment": "none"})}),
    ],
)
def test_a_checkpoint_of_anything_else_is_not_taken_up(make_plan, settings, changes, fingerprint):
    run(worker(make_plan()), 3)
    if "seed" in changes:
        bench = Workbench(MODEL, DATA, 1, torch.device("cpu"))
        changes["fingerprints"] = {1: bench.data.fingerprint}
    plan = make_plan(**changes)
    elsewhere = make_plan("elsewhere", **changes)
    expected = comparable(*run(worker(elsewhere, **settings), 2))
    assert comparable(*run(worker(plan, **settings), 1)) == expected[:1]
    # Its own first checkpoint is not crowded out by those.
    assert comparable(*run(worker(plan, **settings), 2)) == expected


def test_a_damaged_checkpoint_costs_one_epoch(make_plan):
    plan = make_plan()
    expected = comparable(*run(worker(plan), 3))
    newest = RunFolder(plan.run_folder.folder).checkpoint_folder(0) / "epoch-0003.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    trial = worker(plan)
    told = run(trial, 2)
    assert [len(epochs) for epochs in told] == [2, 1]
    assert comparable(*told) == expected


def test_without_any_checkpoint_a_trial_begins_again(make_plan):
    plan = make_plan()
    expected = comparable(*run(worker(plan), 2))
    for path in RunFolder(plan.run_folder.folder).checkpoint_folder(0).iterdir():
        path.write_bytes(b"")
    assert comparable(*run(worker(plan), 2)) == expected


def test_a_diverged_epoch_is_told_and_not_kept(make_plan):
    plan = make_plan()
    trial = worker(plan, low="sgd", lr=1e30)
    result = trial.step()
    assert result["failure"] is None
    (epoch,) = result["epochs"]
    assert epoch["diverged"]
    assert all(math.isfinite(value) for value in epoch["metrics"].values())
    assert files(plan.run_folder.folder) == []


def fail_with(monkeypatch, error, message, where=nn.CrossEntropyLoss, name="forward"):
    def fail(*_):
        raise error(message)

    monkeypatch.setattr(where, name, fail)


def test_an_error_is_told_in_a_line_and_logged_in_full(make_plan, monkeypatch):
    plan = make_plan()
    trial = worker(plan, 3)
    with monkeypatch.context() as patched:
        fail_with(patched, ValueError, "first\nsecond")
        result = trial.step()
    assert result["epochs"] == []
    assert result["failure"] == Failure("error", "ValueError: first")
    log = RunFolder(plan.run_folder.folder).trial_log(3).read_text()
    assert log.startswith("Traceback")
    assert "second" in log
    trial.reset_config(config(4))
    assert len(run(trial, 1)[0]) == 1


def test_too_little_memory_is_told_and_freed_for_the_next_trial(make_plan, monkeypatch):
    trial = worker(make_plan())
    run(trial, 1)
    optimizer = weakref.ref(trial._trainer.optimizer)
    gc.disable()
    try:
        with monkeypatch.context() as patched:
            # Where the gradients are there already.
            fail_with(patched, torch.OutOfMemoryError, "CUDA out of memory.", torch.amp.GradScaler, "step")
            result = trial.step()
        assert optimizer() is None
    finally:
        gc.enable()
    assert result["failure"].kind == "out_of_memory"
    assert "training.batch_size 32" in result["failure"].message
    assert all(parameter.grad is None for parameter in trial._bench.model.parameters())
    trial.reset_config(config(1))
    assert len(run(trial, 1)[0]) == 1


def test_a_full_disk_is_told_with_what_is_needed(make_plan, tmp_path):
    with small_disk(tmp_path / "disk", 1024) as disk:
        plan = make_plan(run_folder=Place.of(disk / "run"))
        result = worker(plan, low="sgd", lr=0.1).step()
        assert result["failure"] is None
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(100 * 1024))
        # Its best weights find room in place of the old ones, its second checkpoint does not.
        result = worker(plan, 1).step()
        assert result["failure"].kind == "disk_full"
        assert result["epochs"] == []
        assert str(plan.run_folder.folder) in result["failure"].message
        assert "MiB, 0." in result["failure"].message
        assert not [path for path in plan.run_folder.folder.rglob(".*") if path.is_file()]
        # What was there is still good.
        assert [epoch["epoch"] for epoch in run(worker(plan, low="sgd", lr=0.1), 1)[0]] == [1]


def test_a_log_that_cannot_be_written_is_no_second_failure(make_plan, monkeypatch):
    plan = make_plan()
    plan.run_folder.folder.mkdir()
    RunFolder(plan.run_folder.folder).trial_log(0).parent.write_text("no folder")
    trial = worker(plan)
    fail_with(monkeypatch, ValueError, "first")
    assert trial.step()["failure"].message == "ValueError: first"


def test_other_data_than_the_drivers_are_refused(make_plan):
    plan = make_plan(fingerprints={0: "f" * 64})
    result = worker(plan).step()
    assert result["failure"].kind == "error"
    message = result["failure"].message
    assert message.startswith(f"data on {socket.gethostname()} differ from the driver's (fingerprint ")
    assert "ffffffffffff there): the same files must be on every node" in message
    assert files(plan.run_folder.folder) == ["trial-0000.txt"]


def test_a_machine_without_the_data_names_itself_and_their_folder(make_plan, tmp_path):
    data = DataSettings(name=f"folder:{tmp_path / 'photos'}", image_size=32)
    message = worker(make_plan(data=data)).step()["failure"].message
    here = f"data on {socket.gethostname()}: data.name=folder:{tmp_path / 'photos'}: cannot read "
    assert message.startswith(here)


def test_a_machine_without_the_searchs_folder_runs_no_trial(make_plan, tmp_path):
    with pytest.raises(
        TuneFusionError, match=f"^{socket.gethostname()} does not share the folder {tmp_path}"
    ):
        worker(make_plan(proof=Proof(tmp_path / "shared", b"another driver's")))


def test_an_image_that_went_bad_after_the_drivers_check_is_skipped_and_counted(
    make_plan, image_folder, tmp_path, monkeypatch
):
    folder = image_folder(classes=2, images=12, side=32)
    data = DataSettings(name=f"folder:{folder}", image_size=32, on_corrupt="skip")
    model = ModelSettings(name="hn_cifar_cnn")
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache of the driver"))
    fingerprint = Workbench(model, data, 0, torch.device("cpu")).data.fingerprint
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache of the worker"))
    training = Workbench(model, data, 0, torch.device("cpu"))
    assert training.data.fingerprint == fingerprint
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache of another worker"))
    (folder / "class1" / "3.png").write_bytes(b"no image any more")
    (epochs,) = run(worker(make_plan(model=model, data=data, fingerprints={0: fingerprint})), 1)
    assert epochs[0]["metrics"]["skipped_images"] == 1.0
    refusing = make_plan(
        model=model, data=data.model_copy(update={"on_corrupt": "fail"}), fingerprints={0: fingerprint}
    )
    message = worker(refusing, number=1).step()["failure"].message
    assert "class1/3.png" in message
