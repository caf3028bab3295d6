"""The optimizers on a GPU; skipped where there is none."""

import math

import pytest
import torch
from reference import HNAdamReference
from torch import nn

from tune_fusion.optim.fused import FusedOptimizer
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.registry import OPTIMIZERS, factory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_on_the_gpu(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).cuda()
    optimizer = FusedOptimizer.split(model, 0, low=factory(name, {}), high=factory("sgd", {}))
    images, target = torch.randn(64, 8, device="cuda"), torch.randint(4, (64,), device="cuda")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("second_moment", ["paper", "root"])
def test_hn_adam_equals_its_reference_on_the_gpu(second_moment):
    torch.manual_seed(0)
    start = torch.randn(257, dtype=torch.float64)
    parameter = nn.Parameter(start.cuda())
    optimizer = HNAdam([parameter], lr=1e-3, lambda0=2.3, second_moment=second_moment)
    reference = HNAdamReference(start.tolist(), eta=1e-3, Lambda_t0=2.3, second_moment=second_moment)
    for _ in range(200):
        gradient = torch.randn(257, dtype=torch.float64)
        parameter.grad = gradient.cuda()
        optimizer.step()
        reference.step(gradient.tolist())
    torch.testing.assert_close(
        parameter.detach().cpu(), torch.tensor(reference.theta, dtype=torch.float64), rtol=1e-6, atol=1e-12
    )


def test_a_gradient_that_is_not_finite_in_one_half_skips_both_on_the_gpu():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).cuda()
    optimizer = FusedOptimizer.split(model, 0, low=factory("adam", {}), high=factory("sgd", {}))
    scaler = torch.amp.GradScaler("cuda")
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(model(torch.randn(8, 4, device="cuda")).sum()).backward()
    model[1].weight.grad[0, 0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_hn_adam_does_not_wait_for_the_gpu(fused, dtype):
    params = [nn.Parameter(torch.ones(size, device="cuda", dtype=dtype)) for size in (100_000, 10)]
    optimizer = HNAdam(params, lr=0.1, weight_decay=0.01, fused=fused)  # which bfloat16 can tell from none
    optimizer.collect_statistics = True
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all((p < 1).all() for p in params)
