"""The same training on a GPU; skipped where there is none."""

import math

import pytest
import torch

from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.checkpoint import newest_checkpoint, save_checkpoint
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench, pick_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_bench(model="lenet5", device="cuda", **data):
    settings = DataSettings(name="digits", validation=300, **data)
    return Workbench(ModelSettings(name=model), settings, 0, torch.device(device))


def train(bench, epochs=3, low="adam", high="sgd", switch=1, **training):
    rates = {"adam": 1e-3, "sgd": 0.05}
    configuration = Configuration(
        switch,
        OptimizerChoice(low, {"lr": rates.get(low, 1e-3)}),
        OptimizerChoice(high, {"lr": rates.get(high, 1e-3)}),
        TrainingSettings(epochs=epochs, batch_size=64, **training),
    )
    trainer = Trainer(bench, configuration)
    results = [trainer.run_epoch() for _ in range(epochs)]
    assert not any(result.diverged for result in results)
    return [result.metrics for result in results]


def test_a_granted_gpu_is_used():
    assert pick_device(1).type == "cuda"
    assert pick_device(0.5).type == "cuda"
    assert pick_device(0).type == "cpu"


def test_the_gpu_trains_to_nearly_the_same_numbers_as_the_cpu():
    gpu, cpu = train(make_bench())[-1], train(make_bench(device="cpu"))[-1]
    assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=0.02)
    assert gpu["val_accuracy"] == pytest.approx(cpu["val_accuracy"], abs=0.02)


@pytest.mark.parametrize(
    "training",
    [
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"precision": "float16", "clip_norm": 1.0},
        {"channels_last": True},
        {"compile": True},
        {"precision": "bfloat16", "channels_last": True, "compile": True},
    ],
)
def test_each_option_trains_on_the_gpu(training):
    plain = train(make_bench())[-1]["val_accuracy"]
    assert train(make_bench(), **training)[-1]["val_accuracy"] > max(plain - 0.1, 0.5)


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "resized_crop", "trivial"])
def test_augmentation_works_on_the_gpu(augment):
    metrics = train(make_bench(augment=augment), epochs=1)[0]
    assert math.isfinite(metrics["train_loss"])


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit", "hn_cifar_cnn", "resnet20_plain"])
def test_models_train_on_the_gpu(model):
    assert math.isfinite(
        train(make_bench(model), epochs=1, low="hn_adam_root", precision="bfloat16")[0]["val_loss"]
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_trainer_continues_on_the_gpu_from_a_checkpoint(tmp_path, precision):
    configuration = Configuration(
        1,
        OptimizerChoice("hn_adam_root", {"lr": 1e-3}),
        OptimizerChoice("sgd", {"lr": 0.05, "momentum": 0.9}),
        TrainingSettings(epochs=3, batch_size=64, precision=precision, schedule="cosine"),
    )
    straight = Trainer(make_bench(), configuration)
    save_checkpoint(tmp_path, 1, {"trainer": (straight.run_epoch(), straight.state_dict())[1]})
    continued = Trainer(make_bench(), configuration)
    continued.load_state_dict(newest_checkpoint(tmp_path, lambda state: True)["trainer"])
    for _ in range(2):
        expected, result = straight.run_epoch().metrics, continued.run_epoch().metrics
        assert result["low.lr"] == expected["low.lr"]
        # Sums on a GPU have no fixed order, so the last bits differ.
        assert result["train_loss"] == pytest.approx(expected["train_loss"], rel=0.01)
    for parameter, state in continued.optimizer.state.items():
        assert {value.device for value in state.values()} == {parameter.device}
