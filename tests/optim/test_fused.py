from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedules

from tune_fusion.errors import InputError
from tune_fusion.models.layers import layer_map
from tune_fusion.optim.fused import CompositeOptimizer, FusedOptimizer
from tune_fusion.optim.hn_adam import HNAdam

STEPS = 100
adam = functools.partial(Adam, lr=1e-2)
sgd = functools.partial(SGD, lr=0.05, momentum=0.9)


def network(layers: int = 4) -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers)))


def backward(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator)
    loss = ((model(x) - x.flip(1)) ** 2).mean()
    loss.backward()
    return loss


def train(
    model: nn.Module,
    optimizers: list[Optimizer],
    steps: range = range(STEPS),
    schedulers: tuple[Any, ...] = (),
) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def assert_same(one: nn.Module, two: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name


def halves(model: nn.Sequential, k: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return list(model[: k + 1].parameters()), list(model[k + 1 :].parameters())


PAIRS: list[tuple[Callable[..., Optimizer], Callable[..., Optimizer]]] = [
    (adam, sgd),
    (functools.partial(HNAdam, lr=1e-2), functools.partial(RMSprop, lr=1e-3)),
    (functools.partial(HNAdam, lr=1e-2, second_moment="root"), functools.partial(Adagrad, lr=0.05)),
]


@pytest.mark.parametrize(("low", "high"), PAIRS)
@pytest.mark.parametrize(
    "schedule",
    [
        functools.partial(schedules.StepLR, step_size=30, gamma=0.3),
        functools.partial(schedules.CosineAnnealingLR, T_max=STEPS),
    ],
)
def test_equals_two_optimizers_with_a_scheduler(
    low: Callable[..., Optimizer], high: Callable[..., Optimizer], schedule: Callable[..., Any]
) -> None:
    model, twin = network(), network()
    fused = FusedOptimizer.split(model, 1, low=low, high=high)
    below, above = halves(twin, 1)
    pair = [low(below), high(above)]
    train(model, [fused], schedulers=(schedule(fused),))
    train(twin, pair, schedulers=tuple(schedule(optimizer) for optimizer in pair))
    assert_same(model, twin)


@pytest.mark.parametrize("make", [adam, sgd, functools.partial(HNAdam, lr=1e-2)])
def test_all_equals_the_single_optimizer(make: Callable[..., Optimizer]) -> None:
    model, twin = network(), network()
    fused = FusedOptimizer.split(model, "all", low=make)
    train(model, [fused])
    train(twin, [make(twin.parameters())])
    assert fused.high is None
    assert_same(model, twin)


@settings(max_examples=8, deadline=None)
@given(switch=st.integers(0, 2), make=st.sampled_from([adam, sgd, functools.partial(HNAdam, lr=1e-2)]))
def test_equal_halves_equal_the_single_optimizer(switch: int, make: Callable[..., Optimizer]) -> None:
    model, twin = network(), network()
    train(model, [FusedOptimizer.split(model, switch, low=make, high=make)], range(20))
    train(twin, [make(twin.parameters())], range(20))
    assert_same(model, twin)


def test_groups_are_the_halves_own_and_say_whose_they_are() -> None:
    model = network()
    below, above = halves(model, 0)
    low, high = Adam([{"params": below[:1]}, {"params": below[1:], "lr": 0.5}]), SGD(above, lr=0.1)
    fused = FusedOptimizer(low, high)
    assert fused.low is low
    assert fused.high is high
    assert all(a is b for a, b in zip(fused.param_groups, low.param_groups + high.param_groups, strict=True))
    tags = [(group["half"], group["optimizer"], group["lr"]) for group in fused.param_groups]
    assert tags == [("low", "Adam", 1e-3), ("low", "Adam", 0.5), ("high", "SGD", 0.1)]
    assert low.state is fused.state
    assert high.state is fused.state


def test_an_optimizer_that_has_stepped_keeps_its_state() -> None:
    model, twin = network(), network()
    below, above = halves(model, 1)
    low, high = adam(below), sgd(above)
    train(model, [low, high], range(10))
    train(model, [FusedOptimizer(low, high)], range(10, 20))
    below, above = halves(twin, 1)
    train(twin, [adam(below), sgd(above)], range(20))
    assert_same(model, twin)


def rates(fused: FusedOptimizer) -> tuple[float, float]:
    assert fused.high is not None
    return fused.low.param_groups[0]["lr"], fused.high.param_groups[0]["lr"]


def test_lambda_schedules_by_half() -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    scheduler = schedules.LambdaLR(fused, [lambda epoch: 0.5**epoch, lambda epoch: 0.1**epoch])
    fused.step()
    scheduler.step()
    assert rates(fused) == pytest.approx((5e-3, 5e-3))


def test_plateau_schedule_reaches_both_halves() -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    scheduler = schedules.ReduceLROnPlateau(fused, patience=0, factor=0.1)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    assert rates(fused) == pytest.approx((1e-4, 5e-4))


def test_one_cycle_schedule_cycles_momentum_where_both_halves_have_it() -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=functools.partial(AdamW, lr=1e-3))
    scheduler = schedules.OneCycleLR(fused, max_lr=[0.1, 0.01], total_steps=10)
    betas = []
    for _ in range(9):
        fused.step()
        scheduler.step()
        betas.append([group["betas"][0] for group in fused.param_groups])
    assert all(one == two for one, two in betas)
    assert len({one for one, _ in betas}) > 3
    assert rates(fused)[0] == pytest.approx(10 * rates(fused)[1])


def test_one_cycle_schedule_without_momentum_for_unlike_halves() -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    with pytest.raises(ValueError, match="momentum"):
        schedules.OneCycleLR(fused, max_lr=0.1, total_steps=10)
    scheduler = schedules.OneCycleLR(fused, max_lr=0.1, total_steps=10, cycle_momentum=False)
    fused.step()
    scheduler.step()
    assert rates(fused)[0] == rates(fused)[1] > 0.1 / 25


def test_tensor_learning_rates_stay_tensors() -> None:
    model, twin = network(), network()
    lr = torch.tensor(1e-2)
    fused = FusedOptimizer.split(
        model,
        1,
        low=functools.partial(Adam, lr=lr.clone(), foreach=False),
        high=functools.partial(HNAdam, lr=lr.clone()),
    )
    scheduler = schedules.StepLR(fused, 5, gamma=0.1)
    train(model, [fused], range(10), (scheduler,))
    plain = FusedOptimizer.split(twin, 1, low=functools.partial(Adam, lr=1e-2), high=HNAdam)
    assert all(isinstance(group["lr"], Tensor) for group in fused.param_groups)
    assert [float(group["lr"]) for group in fused.param_groups] == pytest.approx([1e-4, 1e-4])
    assert plain.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("infinite", ["low", "high"])
def test_grad_scaler_skips_both_halves_and_halves_its_scale_once(infinite: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    fused = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(model(torch.ones(2, 6)).sum()).backward()
    part = fused.parts[infinite]
    part.param_groups[0]["params"][0].grad[0] = math.inf
    scaler.step(fused)
    scaler.update()
    assert_same(model, before)
    assert scaler.get_scale() == 8.0
    fused.zero_grad()
    scaler.scale(model(torch.ones(2, 6)).sum()).backward()
    scaler.step(fused)
    scaler.update()
    for half in fused.parts.values():
        name = next(n for n, p in model.named_parameters() if p is half.param_groups[0]["params"][0])
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301  # written in this line


def saved(optimizer: Optimizer) -> Any:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_a_loaded_state_continues_bit_for_bit(
    low: Callable[..., Optimizer], high: Callable[..., Optimizer]
) -> None:
    model, other = network(), network()
    fused = FusedOptimizer.split(model, 1, low=low, high=high)
    scheduler = schedules.StepLR(fused, 7, gamma=0.5)
    train(model, [fused], range(10), (scheduler,))

    fresh = FusedOptimizer.split(other, 1, low=low, high=high)
    fresh_scheduler = schedules.StepLR(fresh, 7, gamma=0.5)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(saved(fused))
    fresh_scheduler.load_state_dict(scheduler.state_dict())
    children = fresh.low, fresh.high

    train(model, [fused], range(10, 40), (scheduler,))
    train(other, [fresh], range(10, 40), (fresh_scheduler,))
    assert_same(model, other)
    assert children == (fresh.low, fresh.high)
    assert all(part.state is fresh.state for part in fresh.parts.values())
    assert fresh.param_groups == [group for part in fresh.parts.values() for group in part.param_groups]
    assert all(
        any(group is own for own in fresh.parts[group["half"]].param_groups) for group in fresh.param_groups
    )


def test_parts_load_in_their_own_way() -> None:
    model = network().bfloat16()
    fused = FusedOptimizer.split(model, 1, low=HNAdam, high=sgd)
    fused.zero_grad()
    model(torch.ones(2, 6, dtype=torch.bfloat16)).sum().backward()
    fused.step()
    fresh = FusedOptimizer.split(copy.deepcopy(model), 1, low=HNAdam, high=sgd)
    fresh.load_state_dict(saved(fused))
    for old, new in zip(fused.param_groups, fresh.param_groups, strict=True):
        for p, q in zip(old["params"], new["params"], strict=True):
            assert fused.state[p].keys() == fresh.state[q].keys()
            for name, value in fused.state[p].items():
                assert fresh.state[q][name].dtype == value.dtype
                assert torch.equal(fresh.state[q][name], value)
    assert all(part.state is fresh.state for part in fresh.parts.values())


def test_state_of_other_halves_is_refused() -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    turned = FusedOptimizer.split(network(), 1, low=sgd, high=adam)
    with pytest.raises(ValueError, match=r"\('low', 'Adam'\).*this optimizer has.*\('low', 'SGD'\)"):
        turned.load_state_dict(fused.state_dict())
    single = FusedOptimizer.split(network(), "all", low=adam)
    with pytest.raises(ValueError, match=r"groups \(half, optimizer\) \[\(None, None\)\]"):
        single.load_state_dict(Adam(network().parameters()).state_dict())
    assert single.low.param_groups[0] is single.param_groups[0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_copies_are_whole_and_apart(
    duplicate: Callable[[Any], Any], low: Callable[..., Optimizer], high: Callable[..., Optimizer]
) -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=low, high=high)
    scheduler = schedules.StepLR(fused, 7)
    train(model, [fused], range(5), (scheduler,))
    twin, other = duplicate((model, fused))
    assert type(other.low) is type(fused.low)
    assert other.low is not fused.low
    assert all(part.state is other.state for part in other.parts.values())
    train(model, [fused], range(5, 15))
    before = copy.deepcopy(twin)
    train(twin, [other], range(5, 15))
    assert_same(model, twin)
    assert not torch.equal(before[0].weight, twin[0].weight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies_leave_hooks_and_schedulers_of_a_half_behind(duplicate: Callable[[Any], Any]) -> None:
    model = network()
    below, above = halves(model, 1)
    low, events = sgd(below), []
    scheduler = schedules.StepLR(low, 5)  # replaces low.step by a wrapper of its own
    low.register_step_pre_hook(lambda *_: events.append("low"))
    fused = FusedOptimizer(low, adam(above))
    twin, other = duplicate((model, fused))
    train(twin, [other], range(2))
    assert events == []
    train(model, [fused], range(2), (scheduler,))
    assert events == ["low", "low"]
    assert_same(model, twin)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_half_is_copied_with_its_own_state_alone(duplicate: Callable[[Any], Any]) -> None:
    model = network()
    below, above = halves(model, 1)
    low = sgd(below)
    train(model, [low], range(1))
    # Adagrad reads "step" in the first state it finds, and SGD's, which has none, comes first here.
    fused = FusedOptimizer(low, Adagrad(above, lr=0.05))
    twin, other = duplicate((model, fused))
    other.load_state_dict(saved(fused))
    train(model, [fused], range(3))
    train(twin, [other], range(3))
    assert_same(model, twin)


def test_hooks_fire_once() -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    events: list[str] = []
    fused.register_step_pre_hook(lambda o, args, kwargs: events.append("pre"))
    fused.register_step_post_hook(lambda o, args, kwargs: events.append("post"))
    fused.register_state_dict_pre_hook(lambda o: events.append("save"))
    fused.register_state_dict_post_hook(lambda o, state: events.append("saved"))
    fused.register_load_state_dict_pre_hook(lambda o, state: events.append("load"))
    fused.register_load_state_dict_post_hook(lambda o: events.append("loaded"))
    train(model, [fused], range(1))
    assert events == ["pre", "post"]
    events.clear()
    fused.load_state_dict(fused.state_dict())
    assert events == ["save", "saved", "load", "loaded"]
    fused.load_state_dict(fused.state_dict())
    assert events.count("loaded") == 2


def test_a_hook_may_replace_the_loaded_state() -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=HNAdam, high=sgd)

    def lower_rates(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": 0.125} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    fused.register_load_state_dict_pre_hook(lower_rates)
    fused.load_state_dict(fused.state_dict())
    assert [group["lr"] for group in fused.param_groups] == [0.125, 0.125]


def test_closure_is_evaluated_once() -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    calls: list[bool] = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        fused.zero_grad()
        return backward(model, 0).item()

    with torch.no_grad():
        loss = fused.step(closure)
    assert calls == [True]
    assert loss == pytest.approx(backward(network(), 0).item())
    assert fused.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_reaches_both_halves(set_to_none: bool) -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    backward(model, 0)
    fused.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else not p.grad.any()


def test_step_does_nothing_but_the_halves_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    order: list[str] = []
    for name, part in fused.parts.items():
        monkeypatch.setattr(part, "step", lambda name=name: order.append(name))
    monkeypatch.setattr(fused, "param_groups", None)  # a step that looked at the groups would fail
    fused.step()
    assert order == ["low", "high"]


def test_a_group_can_be_added_to_a_half() -> None:
    model = network()
    below, above = halves(model, 1)
    fused = FusedOptimizer(adam(below), sgd(above[:2]))
    group: dict[str, Any] = {"params": above[2:], "half": "high", "lr": 0.5}
    fused.add_param_group(group)
    assert fused.high is not None
    assert fused.high.param_groups[1] is fused.param_groups[2] is group
    assert group["momentum"] == 0.9
    assert group["optimizer"] == "SGD"
    extra = nn.Parameter(torch.ones(2))
    fused.add_param_group({"params": extra, "half": "low"})
    before = copy.deepcopy(model)
    extra.grad = torch.ones(2)
    train(model, [fused], range(1))
    assert not torch.equal(model[3].weight, before[3].weight)

    fresh_model = copy.deepcopy(model)
    below, above = halves(fresh_model, 1)
    fresh = FusedOptimizer(adam(below), sgd(above[:2]))
    fresh.add_param_group({"params": above[2:], "half": "high"})
    fresh.add_param_group({"params": nn.Parameter(extra.detach().clone()), "half": "low"})
    fresh.load_state_dict(saved(fused))
    assert fresh.high is not None
    assert fresh.high.param_groups[1]["lr"] == 0.5
    train(model, [fused], range(1, 6))
    train(fresh_model, [fresh], range(1, 6))
    assert_same(model, fresh_model)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, "needs a 'half' it belongs to, got None; known: low, high"),
        ({"half": "hihg"}, r"got 'hihg'; did you mean 'high'\?"),
    ],
)
def test_a_group_must_say_its_half(group: dict[str, Any], message: str) -> None:
    fused = FusedOptimizer.split(network(), 1, low=adam, high=sgd)
    with pytest.raises(ValueError, match=message):
        fused.add_param_group({"params": [nn.Parameter(torch.ones(1))], **group})
    assert len(fused.param_groups) == 2


def test_a_group_of_a_single_half_need_not_say_it() -> None:
    fused = FusedOptimizer.split(network(), "all", low=adam)
    fused.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert fused.low.param_groups[1]["half"] == "low"


def test_a_group_may_not_claim_the_other_halfs_parameters() -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    with pytest.raises(ValueError, match=r"in the optimizer already: one of shape \(6, 6\)"):
        fused.add_param_group({"params": [model[0].weight], "half": "high"})
    assert [len(part.param_groups) for part in fused.parts.values()] == [1, 1]


def test_doubly_claimed_parameters_are_named() -> None:
    model = network()
    named = list(model.named_parameters())
    with pytest.raises(ValueError, match=r"more than one half would train: 1\.weight, 1\.bias$"):
        FusedOptimizer(adam(named[:4]), sgd(named[2:]))
    with pytest.raises(ValueError, match=r"one of shape \(6, 6\), one of shape \(6,\)$"):
        FusedOptimizer(adam([p for _, p in named[:4]]), sgd([p for _, p in named[2:]]))
    with pytest.raises(ValueError, match=r"0\.weight, .* and 3 more$"):
        FusedOptimizer(adam(model.parameters()), sgd(model.parameters()), named_parameters=named)


def test_uncovered_parameters_are_named() -> None:
    model = network()
    below, above = halves(model, 1)
    with pytest.raises(ValueError, match=r"no half would train: 1\.weight, 1\.bias$"):
        FusedOptimizer(adam(below[:2]), sgd(above), named_parameters=model.named_parameters())
    model[1].requires_grad_(False)
    FusedOptimizer(adam(below[:2]), sgd(above), named_parameters=model.named_parameters())


def test_split_sees_what_a_factory_drops_or_takes() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"no half would train: 2\.bias, 3\.bias$"):
        FusedOptimizer.split(model, 1, low=adam, high=lambda ps: SGD([p for p in ps if p.ndim > 1], lr=0.1))
    with pytest.raises(
        ValueError, match=r"more than one half would train: 2\.weight, 2\.bias, 3\.weight, 3\.bias$"
    ):
        FusedOptimizer.split(model, 1, low=lambda _: Adam(model.parameters()), high=sgd)


def test_empty_halves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"half 'high' \(SGD\) has no parameters"):
        FusedOptimizer(adam(network().parameters()), SGD([{"params": []}], lr=0.1))
    with pytest.raises(ValueError, match="at least one part, got none"):
        CompositeOptimizer({})


def test_optimizers_that_need_a_closure_are_refused() -> None:
    below, above = halves(network(), 1)
    with pytest.raises(TypeError, match="half 'high' is LBFGS, which evaluates the model several times"):
        FusedOptimizer(adam(below), torch.optim.LBFGS(above))
    with pytest.raises(TypeError, match="half 'low' must be a torch optimizer, got list"):
        FusedOptimizer(below)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("switch", [0, 1, 2])
def test_split_gives_each_half_its_layers(switch: int) -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    fused = FusedOptimizer.split(model, switch, low=adam, high=sgd)
    low = {p for layer in layer_map(model)[: switch + 1] for p in layer.parameters.values()}
    claimed = {
        half: {p for g in part.param_groups for p in g["params"]} for half, part in fused.parts.items()
    }
    trainable = {p for p in model.parameters() if p.requires_grad}
    assert claimed == {"low": low, "high": trainable - low}


def test_split_knows_layers_by_name() -> None:
    model = network()
    name = layer_map(model)[1].name
    by_name = FusedOptimizer.split(model, name, low=adam, high=sgd)
    by_index = FusedOptimizer.split(model, 1, low=adam, high=sgd)
    for one, two in zip(by_name.param_groups, by_index.param_groups, strict=True):
        assert all(p is q for p, q in zip(one["params"], two["params"], strict=True))


@pytest.mark.parametrize("switch", [-1, 3, 99, "nowhere", True])
def test_impossible_switch_layers_are_refused(switch: int | str) -> None:
    with pytest.raises(InputError, match="switch_layer"):
        FusedOptimizer.split(network(), switch, low=adam, high=sgd)


def test_a_real_switch_needs_a_high_factory() -> None:
    with pytest.raises(TypeError, match="switch layer 1 needs a factory for high"):
        FusedOptimizer.split(network(), 1, low=adam)


def test_statistics_survive_inside_the_fusion() -> None:
    model = network()
    fused = FusedOptimizer.split(model, 1, low=HNAdam, high=sgd)
    assert isinstance(fused.low, HNAdam)
    fused.low.collect_statistics = True
    train(model, [fused], range(3))
    twin, other = copy.deepcopy((model, fused))
    fused.load_state_dict(saved(fused))
    train(model, [fused], range(3, 5))
    train(twin, [other], range(3, 5))
    for network_, optimizer in ((model, fused), (twin, other)):
        statistics = optimizer.low.pop_statistics()
        low = halves(network_, 1)[0]
        assert {p: seen.elements for p, seen in statistics.items()} == {p: 5 * p.numel() for p in low}
    assert fused.low.pop_statistics() == {}


def test_a_composite_may_be_a_half() -> None:
    model, twin = network(), network()
    below, above = halves(model, 1)
    inner = CompositeOptimizer({"weights": adam(below[::2]), "biases": HNAdam(below[1::2])})
    fused = FusedOptimizer(inner, sgd(above), named_parameters=model.named_parameters())
    tags = [(group["half"], group.get("part"), group["optimizer"]) for group in fused.param_groups]
    assert tags == [("low", "weights", "Adam"), ("low", "biases", "HNAdam"), ("high", None, "SGD")]
    below, above = halves(twin, 1)
    scheduler = schedules.StepLR(fused, 10, gamma=0.5)
    three = [adam(below[::2]), HNAdam(below[1::2]), sgd(above)]
    train(model, [fused], range(30), (scheduler,))
    train(twin, three, range(30), tuple(schedules.StepLR(o, 10, gamma=0.5) for o in three))
    assert_same(model, twin)

    pairs = [copy.deepcopy((model, fused)), through_pickle((model, fused))]
    fused.load_state_dict(saved(fused))
    assert all(part.state is fused.state for part in (inner, *inner.parts.values()))
    train(model, [fused], range(30, 40))
    for other_model, other in pairs:
        train(other_model, [other], range(30, 40))
        assert_same(model, other_model)
