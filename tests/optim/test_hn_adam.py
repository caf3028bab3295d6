from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HNAdamReference
from torch import Tensor, nn

from tune_fusion.optim.adaptive_norm import direction
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_statistics import HNAdamStatistics

FORMS = ["paper", "root"]
STEPS = 200


def gradients(steps: int, size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gradients with a drift, so that Λ takes all values; some elements are zero at times, one always."""
    generator = torch.Generator().manual_seed(7)
    drift = torch.randn(size, generator=generator, dtype=torch.float64)
    rows = []
    for step in range(steps):
        row = drift * math.cos(step / 15) + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
        row[torch.rand(size, generator=generator) < 0.1] = 0.0
        row[0] = 0.0
        row[1] = 0.0 if step < 20 else 1.0
        rows.append(row.to(dtype))
    return rows


def run(rows: list[Tensor], theta: Tensor, shape: tuple[int, ...] = (-1,), **options: Any) -> Tensor:
    p = nn.Parameter(theta.clone().reshape(shape))
    optimizer = HNAdam([p], **options)
    for row in rows:
        p.grad = row.reshape(shape)
        optimizer.step()
    return p.detach().reshape(-1)


def run_reference(rows: list[Tensor], theta: Tensor, **options: Any) -> Tensor:
    reference = HNAdamReference(theta.double().tolist(), **options)
    for row in rows:
        reference.step(row.double().tolist())
    return torch.tensor(reference.theta, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lambda0", [2.0, 2.2, 2.5, 2.9, 3.0, 3.7, 4.0])
def test_equals_reference(form: str, lambda0: float) -> None:
    rows, theta = gradients(STEPS, 24), torch.randn(24, dtype=torch.float64)
    actual = run(rows, theta, lambda0=lambda0, second_moment=form)
    expected = run_reference(rows, theta, Lambda_t0=lambda0, second_moment=form)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lambda0", [2.0, 2.5, 3.0, 4.0])
def test_equals_reference_in_float32(form: str, lambda0: float) -> None:
    rows, theta = gradients(STEPS, 24, torch.float32), torch.randn(24)
    actual = run(rows, theta, lambda0=lambda0, second_moment=form) - theta
    expected = run_reference(rows, theta, Lambda_t0=lambda0, second_moment=form) - theta
    # 200 sums of about lr at a size near 1 lose 200 * 6e-8 at most; the rest are the powers' own errors.
    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_options_equal_reference(form: str, decoupled: bool, maximize: bool) -> None:
    rows, theta = gradients(STEPS, 12), torch.randn(12, dtype=torch.float64)
    actual = run(
        rows,
        theta,
        lr=3e-3,
        betas=(0.8, 0.95),
        eps=1e-4,
        weight_decay=0.1,
        second_moment=form,
        decoupled_weight_decay=decoupled,
        maximize=maximize,
    )
    expected = run_reference(
        rows,
        theta,
        eta=3e-3,
        beta_1=0.8,
        beta_2=0.95,
        epsilon=1e-4,
        weight_decay=0.1,
        second_moment=form,
        decoupled=decoupled,
        maximize=maximize,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def one_step(m: float, v: float, v_max: float, g: float, lambda0: float, form: str) -> dict[str, float]:
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (g, m, v, v_max)]
    step, lam = direction(*tensors, lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment=form)
    return {"step": step.item(), "lam": lam.item(), "v": tensors[2].item(), "v_max": tensors[3].item()}


@pytest.mark.parametrize("form", FORMS)
def test_below_two_divides_by_the_running_maximum(form: str) -> None:
    after = one_step(m=1.0, v=0.5, v_max=3.0, g=0.8, lambda0=2.5, form=form)
    assert after["lam"] == 1.5
    assert after["v_max"] == 3.0
    norm = 3.0 ** (1 / 1.5) if form == "paper" else 3.0
    assert after["step"] == pytest.approx(0.98 / (norm + 1e-8), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_below_two_the_maximum_grows(form: str) -> None:
    after = one_step(m=1.0, v=0.5, v_max=0.1, g=0.8, lambda0=2.5, form=form)
    assert after["v_max"] == after["v"] > 0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("lambda0", "m"), [(3.0, -1.0), (2.0, 0.0)])
def test_at_two_the_maximum_is_neither_read_nor_changed(form: str, lambda0: float, m: float) -> None:
    after = one_step(m=m, v=0.5, v_max=3.0, g=0.8, lambda0=lambda0, form=form)
    assert after["lam"] == 2.0
    assert after["v_max"] == 3.0
    norm = math.sqrt(after["v"]) if form == "paper" else after["v"]
    assert after["step"] == pytest.approx((0.9 * m + 0.08) / (norm + 1e-8), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_above_two_a_large_new_value_leaves_the_maximum(form: str) -> None:
    after = one_step(m=0.1, v=50.0, v_max=3.0, g=0.8, lambda0=2.5, form=form)
    assert after["lam"] == pytest.approx(2.375)
    assert after["v_max"] == 3.0


@pytest.mark.parametrize("form", FORMS)
def test_zero_gradients_move_nothing(form: str) -> None:
    theta = torch.randn(5)
    moved = run([torch.zeros(5)] * 3, theta, second_moment=form)
    assert torch.equal(moved, theta)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lambda0", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-12, 1e-6, 1e6, 1e9])
def test_tiny_and_large_gradients_equal_reference(form: str, lambda0: float, scale: float) -> None:
    rows = [(row * scale).float() for row in gradients(50, 12)]
    theta = torch.zeros(12)
    actual = run(rows, theta, lambda0=lambda0, second_moment=form).double()
    expected = run_reference(rows, theta, Lambda_t0=lambda0, second_moment=form)
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=1e-30)


@pytest.mark.parametrize("lambda0", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("scale", [1e-36, 1e30, 1e37])
def test_root_form_works_over_the_whole_range_without_epsilon(lambda0: float, scale: float) -> None:
    rows = [(row * scale).float() + scale for row in gradients(50, 12)]
    actual = run(rows, torch.zeros(12), lambda0=lambda0, eps=0.0, second_moment="root").double()
    expected = run_reference(rows, torch.zeros(12), Lambda_t0=lambda0, epsilon=0.0, second_moment="root")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("lambda0", [2.0, 2.5, 3.0, 4.0])
def test_paper_form_stops_an_element_whose_power_overflows(lambda0: float) -> None:
    rows = [torch.tensor([1e30, 1.0])] * 2 + [torch.tensor([1.0, 1.0])] * 3
    moved = run(rows, torch.zeros(2), lambda0=lambda0)
    assert moved[0] == 0
    assert torch.isfinite(moved[1])
    assert moved[1] < 0


sizes = st.floats(1e-3, 1e3)
signed = st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))
lambdas = st.floats(2, 4)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(sizes, min_size=3, max_size=3), min_size=1, max_size=12),
    scale=st.floats(1e-20, 1e20),
    lambda0=lambdas,
)
def test_root_form_is_equivariant_to_scale(rows: list[list[float]], scale: float, lambda0: float) -> None:
    alternating = [torch.tensor(row, dtype=torch.float64) * (-1) ** i for i, row in enumerate(rows)]
    theta = torch.zeros(3, dtype=torch.float64)
    options = {"lambda0": lambda0, "eps": 0.0, "second_moment": "root"}
    plain = run(alternating, theta, **options)
    scaled = run([row * scale for row in alternating], theta, **options)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(signed, min_size=3, max_size=3), min_size=1, max_size=12), lambda0=lambdas)
def test_forms_agree_while_lambda_is_constant(rows: list[list[float]], lambda0: float) -> None:
    states = {form: torch.zeros(3, dtype=torch.float64) for form in FORMS}
    for row in rows:
        g = torch.tensor(row, dtype=torch.float64)
        for form, state in states.items():
            m = torch.zeros(3, dtype=torch.float64)  # without a past, Λ = Λ0
            direction(g, m, state, None, lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment=form)
    torch.testing.assert_close(states["root"], states["paper"] ** (1 / lambda0), rtol=1e-9, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    m=st.lists(signed, min_size=4, max_size=4), g=st.lists(signed, min_size=4, max_size=4), lambda0=lambdas
)
def test_lambda_stays_in_range(m: list[float], g: list[float], lambda0: float) -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    past, now = (torch.tensor(x, dtype=torch.float64) for x in (m, g))
    _, lam = direction(
        now, past, zeros, None, lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment="paper"
    )
    assert ((lam >= lambda0 - 1) & (lam <= lambda0)).all()
    assert (lam >= 1).all()
    if lambda0 >= 3:
        assert (lam >= 2).all()


@settings(max_examples=50, deadline=None)
@given(m=st.lists(signed, min_size=4, max_size=4), g=st.lists(signed, min_size=4, max_size=4))
def test_lambda0_of_two_always_reaches_amsgrad(m: list[float], g: list[float]) -> None:
    past = torch.tensor(m, dtype=torch.float64)
    nonzero = past != 0
    _, lam = direction(
        torch.tensor(g, dtype=torch.float64),
        past,
        torch.zeros(4, dtype=torch.float64),
        None,
        lambda0=2.0,
        betas=(0.9, 0.99),
        eps=1e-8,
        second_moment="root",
    )
    assert torch.equal(lam < 2, nonzero)


def layouts() -> list[Tensor]:
    return [
        torch.randn(5),
        torch.randn(()),
        torch.randn(70_000),
        torch.randn(32, 64, 6, 6).to(memory_format=torch.channels_last),
        torch.randn(3, 7, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(300, 250).t(),
        torch.empty(0),
        torch.randn(4, 4, dtype=torch.float64),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lambda0", [2.5, 3.0])
def test_every_way_to_batch_gives_the_same_numbers(form: str, lambda0: float) -> None:
    results = []
    for foreach in (None, True, False):
        torch.manual_seed(1)
        params = [nn.Parameter(x) for x in layouts()]
        optimizer = HNAdam(params, lambda0=lambda0, second_moment=form, foreach=foreach, weight_decay=0.01)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            params[-1].grad = torch.randn(4, 4, dtype=torch.float64)
            params[3].grad = params[3].grad.contiguous()  # a gradient laid out unlike its parameter
            optimizer.step()
        results.append([p.detach() for p in params])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_do_not_depend_on_the_company(form: str, threads: int) -> None:
    torch.set_num_threads(threads)
    # Zeros, since larger numbers would round small differences away.
    values = [torch.zeros(n) for n in (1, 7, 13, 64, 1001, 30_011, 40_009, 140_003, 5)]
    rows = [[torch.randn_like(value) for value in values] for _ in range(4)]
    together = [nn.Parameter(value.clone()) for value in values]
    optimizer = HNAdam(together, second_moment=form)
    for row in rows:
        for p, g in zip(together, row, strict=True):
            p.grad = g
        optimizer.step()
    for index, value in enumerate(values):
        alone = run([row[index] for row in rows], value, second_moment=form)
        assert torch.equal(together[index].detach(), alone), index


def test_large_tensors_equal_reference_at_every_piece() -> None:
    torch.manual_seed(3)
    theta = torch.randn(64, 700, 2, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    p = nn.Parameter(theta.clone(memory_format=torch.preserve_format))
    optimizer = HNAdam([p])
    rows = [torch.randn_like(theta) for _ in range(3)]
    for row in rows:
        p.grad = row
        optimizer.step()
    chosen = torch.arange(0, theta.numel(), 997)
    expected = run_reference([row.reshape(-1)[chosen] for row in rows], theta.reshape(-1)[chosen])
    torch.testing.assert_close(p.detach().reshape(-1)[chosen], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)])
def test_sixteen_bit_parameters_have_float32_state(
    dtype: torch.dtype, decoupled: bool, lr: float | Tensor
) -> None:
    rows, theta = gradients(20, 12, dtype), torch.randn(12).to(dtype)
    p, q = nn.Parameter(theta.clone()), nn.Parameter(theta.float())
    options: dict[str, Any] = {"lr": lr, "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    low, full = HNAdam([p, nn.Parameter(theta.clone())], **options), HNAdam([q], **options)
    for row in rows:
        p.grad, q.grad = row, row.float()
        low.step()
        full.step()
    assert {value.dtype for value in low.state[p].values()} == {torch.float32}
    torch.testing.assert_close(p.float(), q, rtol=0.02, atol=0.05)


def test_loaded_state_of_sixteen_bit_parameters_keeps_its_precision() -> None:
    rows = gradients(10, 12, torch.bfloat16)
    p = nn.Parameter(torch.randn(12).bfloat16())
    optimizer = HNAdam([p])
    for row in rows:
        p.grad = row
        optimizer.step()
    calls = []
    fresh = HNAdam([nn.Parameter(p.detach().clone())])
    fresh.register_load_state_dict_post_hook(
        lambda o: calls.append({v.dtype for s in o.state.values() for v in s.values()})
    )
    fresh.load_state_dict(optimizer.state_dict())
    assert calls == [{torch.float32}]
    (state,) = fresh.state.values()
    for name, value in optimizer.state[p].items():
        assert torch.equal(state[name], value)
        assert state[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize("lr", [torch.tensor(1e-2).double(), torch.tensor([1e-2]).double()])
def test_tensor_learning_rate_follows_a_scheduler(lr: Tensor) -> None:
    rows, theta = gradients(30, 8), torch.randn(8, dtype=torch.float64)
    results = []
    for rate in (lr.item(), lr.clone()):
        p, scalar = nn.Parameter(theta.clone()), nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = HNAdam([p, scalar], lr=rate, weight_decay=0.1, decoupled_weight_decay=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.1)
        for row in rows:
            p.grad, scalar.grad = row, row[2]
            optimizer.step()
            scheduler.step()
        results.append(torch.cat([p.detach(), scalar.detach().reshape(1)]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)


def test_groups_have_options_of_their_own() -> None:
    rows, theta = gradients(30, 8), torch.randn(8, dtype=torch.float64)
    p, q = nn.Parameter(theta.clone()), nn.Parameter(theta.clone())
    optimizer = HNAdam(
        [{"params": [p]}, {"params": [q], "second_moment": "root", "lambda0": 3.5, "lr": 0.1}], lambda0=2.1
    )
    for row in rows:
        p.grad = q.grad = row
        optimizer.step()
    first = run_reference(rows, theta, Lambda_t0=2.1)
    second = run_reference(rows, theta, Lambda_t0=3.5, eta=0.1, second_moment="root")
    torch.testing.assert_close(p.detach(), first, rtol=1e-9, atol=0)
    torch.testing.assert_close(q.detach(), second, rtol=1e-9, atol=0)
    assert "max_exp_avg_power" in optimizer.state[p]
    assert "max_exp_avg_norm" not in optimizer.state[q]


def test_parameters_without_gradient_are_left_alone() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = HNAdam([p, q], weight_decay=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    assert (p < 1).all()
    assert (q == 1).all()
    assert q not in optimizer.state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lambda0": 1.99}, ValueError, r"2 <= lambda0 <= 4 .* got lambda0=1\.99"),
        ({"lambda0": 4.01}, ValueError, r"2 <= lambda0 <= 4 .* got lambda0=4\.01"),
        ({"lambda0": math.nan}, ValueError, "lambda0=nan"),
        ({"lambda0": True}, TypeError, "lambda0 must be a number, got True"),
        ({"lr": -1.0}, ValueError, r"0 <= lr must hold, got lr=-1\.0"),
        ({"lr": math.inf}, ValueError, "lr=inf"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"lr": torch.ones(2)}, ValueError, r"one number, got a tensor of shape \(2,\)"),
        ({"lr": torch.tensor(-1.0)}, ValueError, r"lr=-1\.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"0 <= betas\[1\] < 1 must hold, got betas\[1\]=1\.0"),
        ({"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
        ({"eps": -1e-8}, ValueError, "eps=-1e-08"),
        ({"weight_decay": -0.1}, ValueError, r"weight_decay=-0\.1"),
        ({"second_moment": "square"}, ValueError, "must be 'paper' or 'root', got 'square'"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        ({"decoupled_weight_decay": None}, TypeError, "decoupled_weight_decay must be True or False"),
        ({"foreach": "yes"}, TypeError, "foreach must be True, False or None, got 'yes'"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HNAdam([nn.Parameter(torch.ones(1))], **options)
    optimizer = HNAdam([nn.Parameter(torch.ones(1))])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **options})
    assert len(optimizer.param_groups) == 1


def test_complex_integer_and_sparse_are_refused_by_shape() -> None:
    with pytest.raises(ValueError, match=r"real floating point.*complex one of shape \(2, 3\)"):
        HNAdam([nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))])
    with pytest.raises(ValueError, match=r"torch\.int64 one of shape \(4,\)"):
        HNAdam([torch.ones(4, dtype=torch.int64)])
    p = nn.Parameter(torch.ones(5, 2))
    p.grad = torch.sparse_coo_tensor(
        torch.tensor([[0], [1]]), torch.tensor([1.0]), (5, 2), check_invariants=True
    )
    with pytest.raises(RuntimeError, match=r"dense gradients.*shape \(5, 2\)"):
        HNAdam([p]).step()


def copies(optimizer: HNAdam, p: nn.Parameter) -> dict[str, tuple[HNAdam, nn.Parameter]]:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twin = nn.Parameter(p.detach().clone())
    loaded = HNAdam([twin], lambda0=3.1)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    return {
        "loaded": (loaded, twin),
        "pickled": pickle.loads(pickle.dumps((optimizer, p))),  # noqa: S301  # written one line before
        "copied": copy.deepcopy((optimizer, p)),
    }


@pytest.mark.parametrize("form", FORMS)
def test_copies_continue_bit_for_bit(form: str) -> None:
    rows = gradients(40, 12, torch.float32)
    p = nn.Parameter(torch.randn(12))
    optimizer = HNAdam([p], second_moment=form)
    for row in rows[:20]:
        p.grad = row
        optimizer.step()
    others = copies(optimizer, p)
    for row in rows[20:]:
        for one, parameter in [(optimizer, p), *others.values()]:
            parameter.grad = row.clone()
            one.step()
    for name, (_, parameter) in others.items():
        assert torch.equal(parameter, p), name


def test_closure_is_evaluated_once_with_gradients() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = HNAdam([p])
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert calls == [True]
    assert p.item() < 2


def test_grad_scaler_skips_infinite_gradients() -> None:
    p = nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = HNAdam([p])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((p * torch.tensor([1.0, math.inf])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.tensor([2.0, 3.0]))
    assert scaler.get_scale() == 4.0
    optimizer.zero_grad()
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    assert (p < torch.tensor([2.0, 3.0])).all()


@pytest.mark.parametrize("foreach", [True, False])
def test_statistics_of_each_parameter_count_its_elements_in_the_observed_steps(foreach: bool) -> None:
    shapes = {"flat": (10,), "square": (5, 2), "scalar": ()}
    sizes = [math.prod(shape) for shape in shapes.values()]
    rows = gradients(60, sum(sizes))
    theta = torch.randn(sum(sizes), dtype=torch.float64)
    pieces = torch.split(theta, sizes)
    params = [nn.Parameter(x.clone().view(s)) for x, s in zip(pieces, shapes.values(), strict=True)]
    optimizer, reference = HNAdam(params, foreach=foreach), HNAdamReference(theta.tolist())
    observed: list[list[float]] = [[] for _ in params]
    for step, row in enumerate(rows):
        optimizer.collect_statistics = step % 3 == 0
        for p, grad in zip(params, torch.split(row, sizes), strict=True):
            p.grad = grad.view(p.shape)
        optimizer.step()
        reference.step(row.tolist())
        if step % 3 == 0:
            start = 0
            for index, size in enumerate(sizes):
                observed[index] += reference.Lambda[start : start + size]
                start += size
    statistics = optimizer.pop_statistics()
    assert list(statistics) == params
    for p, seen in zip(params, observed, strict=True):
        assert statistics[p].elements == len(seen) == 20 * p.numel()
        assert statistics[p].mean_lambda == pytest.approx(sum(seen) / len(seen))
        assert statistics[p].amsgrad_share == sum(x < 2 for x in seen) / len(seen)
    assert 0 < statistics[params[0]].amsgrad_share < 1
    assert optimizer.pop_statistics() == {}


def test_statistics_of_a_parameter_that_is_cut_in_pieces_are_those_of_the_whole() -> None:
    large, alone = torch.randn(300_000), torch.randn(3)
    steps = [(torch.randn_like(large), torch.randn_like(alone)) for _ in range(3)]
    p, q = nn.Parameter(large), nn.Parameter(alone)
    optimizer = HNAdam([p, q])
    optimizer.collect_statistics = True
    for p.grad, q.grad in steps:
        optimizer.step()
    statistics = optimizer.pop_statistics()
    for parameter, grads in ((p, [g for g, _ in steps]), (q, [g for _, g in steps])):
        m, lams = torch.zeros_like(parameter), []
        for grad in grads:
            largest = torch.maximum(m.abs(), grad.abs())
            lams.append(2.5 - torch.where(largest > 0, m.abs() / largest, 0.0))
            m = 0.9 * m + 0.1 * grad
        lam = torch.cat([x.detach().double() for x in lams])
        assert statistics[parameter].elements == lam.numel()
        assert statistics[parameter].mean_lambda == pytest.approx(lam.mean().item(), rel=1e-6)
        assert statistics[parameter].amsgrad_share == pytest.approx(
            (lam < 2).double().mean().item(), abs=1e-4
        )


def test_statistics_together_weigh_by_elements() -> None:
    parts = [HNAdamStatistics(10, 10, 15.0), HNAdamStatistics(30, 0, 90.0)]
    whole = HNAdamStatistics.together(parts)
    assert whole is not None
    assert (whole.elements, whole.amsgrad_share, whole.mean_lambda) == (40, 0.25, 2.625)
    assert HNAdamStatistics.together([]) is None


def test_a_parameter_without_gradients_has_no_statistics() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = HNAdam([p, q])
    optimizer.collect_statistics = True
    p.grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.pop_statistics()) == [p]


def test_statistics_change_no_numbers_and_stay_out_of_the_state() -> None:
    rows, theta = gradients(10, 8), torch.randn(8, dtype=torch.float64)
    p = nn.Parameter(theta.clone())
    optimizer = HNAdam([p])
    optimizer.collect_statistics = True
    for row in rows:
        p.grad = row
        optimizer.step()
    assert torch.equal(p.detach(), run(rows, theta))
    assert not any("statistic" in key or "tall" in key for key in optimizer.state_dict()["param_groups"][0])
    assert set(optimizer.state[p]) == {"exp_avg", "exp_avg_power", "max_exp_avg_power"}
    twin, _ = copy.deepcopy((optimizer, p))
    assert twin.collect_statistics is True
    assert twin.pop_statistics() == {}
    assert list(optimizer.pop_statistics()) == [p]
