from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import AdaBeliefReference
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tune_fusion.errors import InputError
from tune_fusion.optim import registry
from tune_fusion.optim.fused import FusedOptimizer
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.space.domain import extremes, parse_domain

NAMES = list(registry.OPTIMIZERS)


def parabola(p: Tensor) -> Tensor:
    return ((p - torch.tensor([1.0, -2.0])) ** 2 * torch.tensor([1.0, 10.0])).sum()


def rosenbrock(p: Tensor) -> Tensor:
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


# Where torch's own default is far too small (or, for Rosenbrock's valley, too large) to judge progress.
RATES = {"sgd": 1e-3, "msvag": 1e-3, "adadelta": 10.0, "adagrad": 0.1, "adabound": 1e-2}


def descend(name: str, loss: Callable[[Tensor], Tensor], steps: int) -> tuple[float, float]:
    p = nn.Parameter(torch.tensor([-1.5, 2.0]))
    info = registry.get(name)
    rate = RATES.get(name, 1e-2)
    settings: dict[str, object] = {"lr": rate}
    if "final_lr" in info.hyperparameters:
        settings["final_lr"] = 1e-3
    if "weight_decay" in info.hyperparameters:
        settings["weight_decay"] = 0.0
    optimizer = info.build([p], **settings)
    start = loss(p).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(p).backward()
        optimizer.step()
    return start, loss(p).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("loss", "share"), [(parabola, 0.5), (rosenbrock, 0.6)])
def test_descends(name: str, loss: Callable[[Tensor], Tensor], share: float) -> None:
    start, end = descend(name, loss, 300)
    assert end < share * start


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    generator = torch.Generator().manual_seed(5)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        images = torch.randn(6, 1, 6, 6, generator=generator)
        labels = (images.mean((1, 2, 3)) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_splits_reloads_and_copies_bit_for_bit(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    def make(model: nn.Module) -> FusedOptimizer:
        return FusedOptimizer.split(
            model, 0, low=registry.factory("adagrad", {}), high=registry.factory(name, {})
        )

    model = network()
    optimizer = make(model)
    train(model, optimizer, 4)

    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    reloaded_model = copy.deepcopy(model)
    reloaded = make(reloaded_model)
    reloaded.load_state_dict(torch.load(buffer, weights_only=True))
    pairs = [
        (reloaded_model, reloaded),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),  # noqa: S301  # written in this line
    ]
    expected = train(model, optimizer, 4)
    for other_model, other in pairs:
        assert train(other_model, other, 4) == expected
        for one, two in zip(model.parameters(), other_model.parameters(), strict=True):
            assert torch.equal(one, two)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_single_optimizers_load_their_state_with_weights_only(name: str) -> None:
    model = network()
    optimizer = registry.factory(name, {})(model.parameters())
    train(model, optimizer, 3)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twin = copy.deepcopy(model)
    other = registry.factory(name, {})(twin.parameters())
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert train(model, optimizer, 3) == train(twin, other, 3)


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_and_groups(name: str) -> None:
    optimizer = registry.factory(name, {"lr": 0.01})(network().parameters())
    assert {group["optimizer"] for group in optimizer.param_groups} == {name}
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.step()
    scheduler.step()
    assert {round(float(group["lr"]), 12) for group in optimizer.param_groups} == {0.001}


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_complete_and_consistent(name: str) -> None:
    info = registry.get(name)
    assert info.name == name
    assert info.title
    assert info.paper
    assert "\n" not in info.description
    assert info.description.endswith(".")
    assert "lr" in info.hyperparameters
    assert "lr" in info.search
    for key, hyperparameter in info.hyperparameters.items():
        assert hyperparameter.check(hyperparameter.default), key
        assert hyperparameter.rule
    for key, written in info.search.items():
        for value in extremes(parse_domain(written)):
            assert info.hyperparameters[key].check(value), (key, value)


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_reaches_the_optimizer(name: str) -> None:
    info = registry.get(name)
    changed: dict[str, Any] = {}
    for key, hyperparameter in info.hyperparameters.items():
        default = hyperparameter.default
        if isinstance(default, bool):
            changed[key] = not default
        elif isinstance(default, tuple):
            changed[key] = [0.5, 0.75]
        elif key == "lambda0":
            changed[key] = 3.25
        else:
            changed[key] = 0.375
    model = network()
    groups = info.build(model.parameters(), **changed).param_groups
    seen = {key: value for group in groups for key, value in group.items()}
    if name == "muon":
        assert seen.pop("lr") == 0.375 * changed.pop("fallback_ratio")
        assert changed.pop("lr") == groups[0]["lr"]
    for key, value in changed.items():
        assert seen[key] == (tuple(value) if isinstance(value, list) else value), key


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adma", {}, "unknown optimizer 'adma'; did you mean 'adam'?"),
        ("evgo", {}, "unknown optimizer 'evgo'; known: sgd, adam, "),
        ("adam", {"learning_rate": 1}, "adam has no hyperparameter 'learning_rate'; known: lr, betas"),
        ("sgd", {"momentun": 0.9}, "sgd has no hyperparameter 'momentun'; did you mean 'momentum'?"),
        ("msvag", {"weight_decay": 0.1}, "msvag has no hyperparameter 'weight_decay'"),
        ("adam", {"lr": 0}, "adam.lr: needs 0 < lr, got 0"),
        ("adam", {"lr": "1e-3"}, "adam.lr: needs 0 < lr, got '1e-3'"),
        ("adam", {"lr": True}, "adam.lr: needs 0 < lr, got True"),
        ("adam", {"lr": float("nan")}, "adam.lr: needs 0 < lr, got nan"),
        ("adam", {"eps": float("inf")}, "adam.eps: needs 0 <= eps, got inf"),
        ("adam", {"betas": (0.9,)}, "adam.betas: needs two numbers in [0, 1), got (0.9,)"),
        ("adam", {"betas": [0.9, 1.0]}, "adam.betas: needs two numbers in [0, 1), got [0.9, 1.0]"),
        ("sgd", {"nesterov": 1}, "sgd.nesterov: needs one of True, False"),
        ("hn_adam", {"lambda0": 4.5}, "hn_adam.lambda0: needs 2 <= lambda0 <= 4, got 4.5"),
        ("hn_adam_root", {"lambda0": 1}, "hn_adam_root.lambda0: needs 2 <= lambda0 <= 4, got 1"),
        ("muon", {"fallback_ratio": -1.0}, "muon.fallback_ratio: needs 0 < fallback_ratio, got -1.0"),
    ],
)
def test_mistakes_are_named(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        registry.factory(name, settings)
    assert str(caught.value).startswith(message)


def test_build_checks_too() -> None:
    with pytest.raises(InputError, match=r"needs 0 < lr, got -1"):
        registry.get("adam").build([nn.Parameter(torch.ones(1))], lr=-1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_builds_where_torch_has_it_fused_and_where_not(name: str, device: str) -> None:
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(shape, device=device)) for shape in ((4, 3), (4,))]
        assert registry.get(name).build(params).param_groups


def test_nesterov_without_momentum_is_plain_sgd() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for parameter, nesterov in ((p, True), (q, False)):
        optimizer = registry.get("sgd").build([parameter], momentum=0.0, nesterov=nesterov)
        parabola(parameter).backward()
        optimizer.step()
    assert torch.equal(p, q)


def test_adabelief_equals_its_paper() -> None:
    theta = torch.randn(8, dtype=torch.float64)
    p = nn.Parameter(theta.clone())
    optimizer = registry.get("adabelief").build([p], lr=0.01, weight_decay=0.1)
    reference = AdaBeliefReference(theta.tolist(), alpha=0.01, weight_decay=0.1)
    for _ in range(100):
        p.grad = torch.randn(8, dtype=torch.float64)
        reference.step(p.grad.tolist())
        optimizer.step()
    torch.testing.assert_close(
        p.detach(), torch.tensor(reference.theta, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_amsgrad_is_adam_with_the_maximum() -> None:
    optimizer = registry.get("amsgrad").build([nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["amsgrad"] is True


@pytest.mark.parametrize(("name", "form"), [("hn_adam", "paper"), ("hn_adam_root", "root")])
def test_hn_adam_forms(name: str, form: str) -> None:
    optimizer = registry.get(name).build([nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, HNAdam)
    assert optimizer.param_groups[0]["second_moment"] == form


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ([(3, 4), (4,), (2, 2, 3, 3)], {"matrices": [(3, 4)], "others": [(4,), (2, 2, 3, 3)]}),
        ([(3, 4), (4, 5)], {"matrices": [(3, 4), (4, 5)]}),
        ([(4,), ()], {"others": [(4,), ()]}),
    ],
)
def test_muon_trains_matrices_and_adamw_the_rest(
    shapes: list[tuple[int, ...]], parts: dict[str, list[tuple[int, ...]]]
) -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    before = [p.detach().clone() for p in params]
    optimizer = registry.get("muon").build(params, lr=0.01, fallback_ratio=0.5)
    found = {group["part"]: [tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups}
    assert found == parts
    assert {group["part"]: group["lr"] for group in optimizer.param_groups} == {
        part: 0.01 if part == "matrices" else 0.005 for part in parts
    }
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_factories_are_values() -> None:
    made = registry.factory("adam", {"lr": 0.1, "betas": [0.8, 0.9]})
    twin = pickle.loads(pickle.dumps(made))  # noqa: S301  # written in this line
    assert twin == made
    optimizer = twin(nn.Linear(2, 2).parameters())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_importing_the_registry_does_not_import_torch() -> None:
    program = (
        "import sys, tune_fusion.optim.registry as r; r.factory('muon', {'lr': 1e-3}); "
        "print([m for m in ('torch', 'numpy', 'timm', 'pytorch_optimizer', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
