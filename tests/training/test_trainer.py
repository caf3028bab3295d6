import functools
import io
import math

import pytest
import torch
from torch import nn

from tune_fusion.optim.registry import OPTIMIZERS
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
    adam = torch.optim.Adam(low, lr=1e-3, fused=True)
    sgd = torch.optim.SGD(high, lr=0.05, momentum=0.9, fused=True)
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


def test_hn_adam_reports_its_norm_for_each_layer_that_it_trains(bench):
    hn_adam = OptimizerChoice("hn_adam", {"lr": 1e-3, "lambda0": 2.5})
    record = history(Trainer(bench, fusion(low=hn_adam)))[-1]
    layers = {f"layer_{layer.index:02d}": layer.count for layer in bench.layers}
    trained = [name for name in layers if f"{name}.mean_lambda" in record]
    assert trained == ["layer_00", "layer_01"]
    for key in ("mean_lambda", "amsgrad_share"):
        values = [record[f"{name}.{key}"] for name in trained]
        assert values[0] != values[1]
        weighted = sum(layers[name] * value for name, value in zip(trained, values, strict=True))
        assert weighted / sum(layers[name] for name in trained) == pytest.approx(
            record[f"low.{key}"], rel=1e-12
        )


def test_the_norms_of_a_layer_are_those_of_its_own_parameters(bench):
    hn_adam = OptimizerChoice("hn_adam", {"lr": 1e-3, "lambda0": 2.5})
    trainer = Trainer(bench, fusion(high=hn_adam, batch_size=25, epochs=1))
    moments, seen = {}, {}
    step = trainer.optimizer.step

    def watched():
        for layer in bench.layers[2:]:
            for p in layer.parameters.values():
                m = moments.setdefault(p, torch.zeros_like(p))
                largest = torch.maximum(m.abs(), p.grad.abs())
                lam = 2.5 - torch.where(largest > 0, m.abs() / largest, 0.0)
                if trainer.optimizer.high.collect_statistics:
                    seen.setdefault(layer.index, []).append(lam.flatten().double())
                moments[p] = 0.9 * m + 0.1 * p.grad
        return step()

    trainer.optimizer.step = watched
    record = trainer.run_epoch().metrics
    assert sorted(seen) == [2, 3, 4]
    for index, lams in seen.items():
        assert len(lams) == 8 * 2, "a weight and a bias on every other of 16 steps"
        lam = torch.cat(lams)
        assert record[f"layer_{index:02d}.mean_lambda"] == pytest.approx(lam.mean().item(), rel=1e-6)
        share = (lam < 2).double().mean().item()
        assert record[f"layer_{index:02d}.amsgrad_share"] == pytest.approx(share, abs=1e-3)


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
    wild = Evaluation(loss=math.inf, accuracy=0.1, macro_f1=0.1, loss_softmax=0.1)
    monkeypatch.setattr(Evaluator, "measure", lambda *_: wild)
    result = Trainer(bench, fusion()).run_epoch()
    assert result.diverged
    assert not any(name.startswith("val_") for name in result.metrics)
    assert math.isfinite(result.metrics["train_loss"])


def same_bits(first, second):
    """Whether two nested states are equal to the bit, memory layout included; NaN equals NaN."""
    if isinstance(first, torch.Tensor):
        layouts = [(t.dtype, t.shape, t.stride()) for t in (first, second)]
        return layouts[0] == layouts[1] and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(v, second[k]) for k, v in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return type(first) is type(second) and first == second


def renewed(trainer):
    """What another process makes of the trainer's state: a new workbench, with the images already read."""
    old = trainer.bench
    bench = Workbench(old.model_settings, old.data_settings, old.seed, old.device)
    vars(bench)["data"] = old.data
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other = Trainer(bench, trainer.configuration)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def check_continuation(bench, configuration):
    """Train straight, and again from a saved state after each epoch: all must be equal, bit for bit."""
    trainer = Trainer(bench, configuration)
    metrics, states = [], []
    while not trainer.finished:
        metrics += history_of_one(trainer)
        file = io.BytesIO()
        torch.save(trainer.state_dict(), file)
        states.append(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    continued = Trainer(bench, configuration)
    for expected, state in zip(metrics, states, strict=True):
        assert history_of_one(continued) == [expected]
        assert same_bits(continued.state_dict(), state)
        continued = renewed(continued)
        assert same_bits(continued.state_dict(), state)
    assert continued.finished
    return states


def history_of_one(trainer):
    result = trainer.run_epoch()
    assert not result.diverged
    return [{k: v for k, v in result.metrics.items() if "second" not in k}]


@pytest.fixture(scope="module")
def small_bench():
    settings = DataSettings(name="digits", validation=64, limit=160, augment="crop_flip")
    return Workbench(ModelSettings(name="lenet5"), settings, 0, CPU)


@pytest.mark.parametrize("low", OPTIMIZERS)
def test_every_optimizer_continues_bit_for_bit_in_either_half(small_bench, low):
    names = list(OPTIMIZERS)
    high = names[names.index(low) - 1]
    training = {"batch_size": 32, "schedule": "cosine", "clip_norm": 1.0, "weight_decay": None}
    momentum = {name: {"momentum": 0.9} for name in ("sgd", "rmsprop")}
    states = check_continuation(
        small_bench,
        fusion(
            OptimizerChoice(low, momentum.get(low, {})),
            OptimizerChoice(high, momentum.get(high, {})),
            **training,
        ),
    )
    assert states[0]["optimizer"]["state"]
    assert not same_bits(states[0]["model"], states[1]["model"])


@pytest.mark.parametrize(
    "training",
    [
        {"precision": "float16", "schedule": "step", "step_epochs": 2},
        {"precision": "float16", "clip_norm": 0.5},
        {"precision": "bfloat16", "channels_last": True},
        {"label_smoothing": 0.1, "batch_size": 159},
    ],
)
def test_every_way_to_train_continues_bit_for_bit(small_bench, training, monkeypatch):
    # A scale that grows after every third step, instead of every two thousandth.
    quick = functools.partial(torch.amp.GradScaler, init_scale=2.0**17, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", quick)
    hn_adam = OptimizerChoice("hn_adam", {"lr": 1e-3, "lambda0": 2.2})
    states = check_continuation(small_bench, fusion(low=hn_adam, **{"batch_size": 32, **training}))
    if training.get("precision") == "float16":
        first, second = (state["scaler"] for state in states[:2])
        assert first["scale"] != 2.0**17
        assert first != second


@pytest.mark.parametrize("model", ["alexnet_cifar", "hn_mnist_cnn", "test_efficientnet"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_and_dropout_continue_bit_for_bit(model, channels_last):
    settings = DataSettings(name="digits", validation=32, limit=96, image_size=32)
    settings = settings.model_copy(update={"image_size": None}) if model == "hn_mnist_cnn" else settings
    bench = Workbench(ModelSettings(name=model), settings, 3, CPU)
    check_continuation(bench, fusion(batch_size=32, epochs=2, channels_last=channels_last))


def test_what_a_model_needs_to_continue_is_there(small_bench):
    noisy = Workbench(ModelSettings(name="alexnet_cifar"), small_bench.data_settings, 0, CPU)
    assert any("running_mean" in name for name in noisy.model.state_dict())
    dropping = Workbench(ModelSettings(name="hn_mnist_cnn"), small_bench.data_settings, 0, CPU)
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in dropping.model.modules())


def test_one_optimizer_for_every_layer_continues_bit_for_bit(small_bench):
    check_continuation(small_bench, fusion(switch="all", high=None, schedule="cosine"))


def test_a_compiled_model_is_saved_under_its_own_names(small_bench):
    state = Trainer(small_bench, fusion(compile=True)).state_dict()
    assert state["model"].keys() == small_bench.model.state_dict().keys()


def test_a_state_of_another_seed_or_optimizer_is_refused(small_bench):
    state = Trainer(small_bench, fusion()).state_dict()
    other = Trainer(make_bench(seed=1), fusion())
    with pytest.raises(ValueError, match="of seed 0, the workbench has 1"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="build it as the saved one was built"):
        Trainer(small_bench, fusion(low=SGD)).load_state_dict(state)
