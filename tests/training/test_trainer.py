import math

import pytest
import torch
from torch import nn

from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.metrics import Evaluation, Evaluator
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench

CPU = torch.device("cpu")
ADAM = OptimizerChoice("adam", {"lr": 1e-3})
SGD = OptimizerChoice("sgd", {"lr": 0.05, "momentum": 0.9})


def make_bench(seed=0, **data):
    settings = DataSettings(name="digits", validation=200, limit=400, **data)
    return Workbench(ModelSettings(name="lenet5"), settings, seed, CPU)


@pytest.fixture(scope="module")
def bench():
    return make_bench()


def fusion(low=ADAM, high=SGD, switch=1, **training):
    return Configuration(switch, low, high, TrainingSettings(**{"epochs": 3, "batch_size": 64, **training}))


def history(trainer):
    kept = []
    while not trainer.finished:
        result = trainer.run_epoch()
        kept.append({k: v for k, v in result.metrics.items() if "second" not in k})
    return kept


def test_every_epoch_reports_every_metric_in_its_range(bench):
    trainer = Trainer(bench, fusion())
    results = [trainer.run_epoch() for _ in range(3)]
    assert [r.epoch for r in results] == [1, 2, 3]
    assert trainer.finished
    for result in results:
        assert set(result.metrics) == {
            *("train_loss", "val_loss", "val_accuracy", "val_macro_f1"),
            *("low.lr", "high.lr", "train_seconds", "eval_seconds", "images_per_second"),
        }
        assert 0 <= result.metrics["val_accuracy"] <= 1
        assert 0 <= result.metrics["val_macro_f1"] <= 1
        assert result.metrics["low.lr"] == 1e-3
        assert result.metrics["high.lr"] == 0.05
        assert not result.diverged
    assert results[2].metrics["val_accuracy"] > 0.5
    assert results[2].metrics["train_loss"] < results[0].metrics["train_loss"]


def test_two_trainers_with_one_configuration_give_the_same_bits(bench):
    first = history(Trainer(bench, fusion()))
    Trainer(bench, fusion(low=SGD, high=ADAM)).run_epoch()
    torch.randn(3)
    assert history(Trainer(bench, fusion())) == first
    assert history(Trainer(make_bench(), fusion())) == first


def test_dropout_and_augmentation_are_reproducible_too():
    def run():
        bench = Workbench(
            ModelSettings(name="hn_mnist_cnn"),
            DataSettings(name="digits", validation=100, limit=128, augment="crop_flip"),
            1,
            CPU,
        )
        return history(Trainer(bench, fusion(epochs=2)))

    assert run() == run()


def test_trials_start_from_the_same_weights_and_another_seed_changes_them(bench):
    model = Trainer(bench, fusion()).model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Trainer(bench, fusion()).run_epoch()
    again = Trainer(bench, fusion(low=SGD)).model.state_dict()
    assert all(torch.equal(before[k], again[k]) for k in before)
    other = make_bench(seed=1).model.state_dict()
    assert not all(torch.equal(before[k], other[k]) for k in before)


def test_the_loop_equals_a_plain_pytorch_loop_bit_for_bit(bench):
    configuration = fusion(schedule="step", step_epochs=1, step_gamma=0.5)
    trainer = Trainer(bench, configuration)
    result = [trainer.run_epoch() for _ in range(2)][1]
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}

    model = bench.renew_model(configuration.training)
    low = [p for layer in bench.layers[:2] for p in layer.parameters.values()]
    high = [p for layer in bench.layers[2:] for p in layer.parameters.values()]
    adam, sgd = torch.optim.Adam(low, lr=1e-3), torch.optim.SGD(high, lr=0.05, momentum=0.9)
    batches = bench.training_batches(configuration.training)
    for epoch in (1, 2):
        model.train()
        for images, labels in batches.epoch(epoch):
            adam.zero_grad()
            sgd.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            adam.step()
            sgd.step()
        for optimizer in (adam, sgd):
            optimizer.param_groups[0]["lr"] *= 0.5
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())

    model.eval()
    with torch.inference_mode():
        pairs = [
            (model(x).argmax(1), y) for x, y in bench.validation_batches(configuration.training).epoch(1)
        ]
    predicted, target = torch.cat([p for p, _ in pairs]), torch.cat([y for _, y in pairs])
    assert result.metrics["val_accuracy"] == pytest.approx((predicted == target).float().mean().item())


def test_macro_f1_equals_scikit_learn(bench):
    from sklearn.metrics import f1_score

    trainer = Trainer(bench, fusion(epochs=1))
    reported = trainer.run_epoch().metrics["val_macro_f1"]
    trainer.model.eval()
    with torch.inference_mode():
        batches = list(bench.validation_batches(trainer.training).epoch(1))
        predicted = torch.cat([trainer.model(x).argmax(1) for x, _ in batches])
    assert reported == pytest.approx(f1_score(torch.cat([y for _, y in batches]), predicted, average="macro"))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1e-3, 1e-3, 1e-3, 1e-3]),
        ("step", [1e-3, 1e-3, 1e-4, 1e-4]),
        ("cosine", [1e-3 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]),
    ],
)
def test_schedules_reach_both_halves(bench, schedule, rates):
    records = history(Trainer(bench, fusion(epochs=4, schedule=schedule, step_epochs=2)))
    assert [r["low.lr"] for r in records] == pytest.approx(rates)
    assert [r["high.lr"] for r in records] == pytest.approx([50 * rate for rate in rates])


@pytest.mark.parametrize(
    "training",
    [
        {"precision": "bfloat16"},
        {"channels_last": True},
        {"label_smoothing": 0.1},
        {"clip_norm": 1.0},
        {"weight_decay": 1e-3},
    ],
)
def test_each_option_trains_and_changes_the_numbers_it_should(bench, training):
    plain, changed = history(Trainer(bench, fusion())), history(Trainer(bench, fusion(**training)))
    assert changed[-1]["val_accuracy"] > 0.5
    if "channels_last" not in training:
        assert changed != plain


def test_float16_with_its_gradient_scaler_trains(bench):
    assert history(Trainer(bench, fusion(precision="float16")))[-1]["val_accuracy"] > 0.5


def test_training_weight_decay_is_for_optimizers_that_set_none_of_their_own(bench):
    own = OptimizerChoice("adam", {"lr": 1e-3, "weight_decay": 0.5})
    trainer = Trainer(bench, fusion(low=own, weight_decay=0.25))
    assert trainer.optimizer.low.param_groups[0]["weight_decay"] == 0.5
    assert trainer.optimizer.high.param_groups[0]["weight_decay"] == 0.25


def test_one_optimizer_at_all_has_no_high_half(bench):
    record = history(Trainer(bench, fusion(switch="all", high=None)))[0]
    assert "low.lr" in record
    assert "high.lr" not in record


def test_hn_adam_reports_its_norm(bench):
    hn_adam = OptimizerChoice("hn_adam", {"lr": 1e-3, "lambda0": 2.5})
    record = history(Trainer(bench, fusion(low=hn_adam, high=hn_adam)))[-1]
    for half in ("low", "high"):
        assert 1.5 <= record[f"{half}.mean_lambda"] <= 2.5
        assert 0 < record[f"{half}.amsgrad_share"] < 1
    high_norm = OptimizerChoice("hn_adam_root", {"lr": 1e-3, "lambda0": 4.0})
    record = history(Trainer(bench, fusion(low=high_norm)))[-1]
    assert record["low.amsgrad_share"] == 0
    assert "high.mean_lambda" not in record


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_finite_numbers(bench):
    trainer = Trainer(bench, fusion(high=OptimizerChoice("sgd", {"lr": 1e6})))
    results = []
    while not trainer.finished and not (results and results[-1].diverged):
        results.append(trainer.run_epoch())
    assert results[-1].diverged
    assert all(math.isfinite(v) for r in results for v in r.metrics.values())
    assert "val_accuracy" not in results[-1].metrics
    assert not Trainer(bench, fusion()).run_epoch().diverged


def test_the_last_batch_may_be_short(bench):
    record = history(Trainer(bench, fusion(batch_size=399)))
    assert len(record) == 3


def test_validation_metrics_of_a_diverged_epoch_are_left_out(bench, monkeypatch):
    wild = Evaluation(loss=math.inf, accuracy=0.1, macro_f1=0.1)
    monkeypatch.setattr(Evaluator, "measure", lambda *_: wild)
    result = Trainer(bench, fusion()).run_epoch()
    assert result.diverged
    assert not any(name.startswith("val_") for name in result.metrics)
    assert math.isfinite(result.metrics["train_loss"])
