"""What every kernel of HN_Adam's step must do; `KernelContract` is inherited by the tests of each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tune_fusion.optim import hn_adam
from tune_fusion.optim.adaptive_norm import direction
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_step import Options

FORMS = ["paper", "root"]


def options(form="paper", **changed):
    values = {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "lambda0": 2.5,
        "root": form == "root",
        "maximize": False,
        "coupled_decay": 0.0,
        "decoupled_decay": 0.0,
    }
    return Options(**(values | changed))


def tensors(size, scale=1.0, seed=0):
    """Parameter, gradient, m, v and its maximum, as they may be in the middle of training."""
    generator = torch.Generator().manual_seed(seed)
    p, g, m = (torch.randn(size, generator=generator) for _ in range(3))
    v, v_max = (torch.rand(size, generator=generator) for _ in range(2))
    return [p, scale * g, scale * m, scale * v, scale * v_max]


def copies(given):
    return [tensor.clone() for tensor in given]


class KernelContract(ABC):
    device = torch.device("cpu")

    @staticmethod
    @abstractmethod
    def kernel():
        """The kernel under test."""

    def step(self, entries, given, *, observe=False):
        """Step tensors of the CPU, in place, on the kernel's device; the totals, if observed."""
        there = [
            [None if tensor is None else tensor.to(self.device) for tensor in entry] for entry in entries
        ]
        totals = self.kernel().step([tuple(entry) for entry in there], given, observe=observe)
        for entry, moved in zip(entries, there, strict=True):
            for ours, theirs in zip(entry, moved, strict=True):
                if ours is not None:
                    ours.copy_(theirs)
        return None if totals is None else totals.cpu()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6])
    @pytest.mark.parametrize("lambda0", [2.0, 2.5, 3.0, 4.0])
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        # Rounding Λ to float32, which all ways of float32 do alike, moves |g|^Λ by up to 3e-6 of these.
        [(torch.float32, 1e-6), (torch.float64, 4e-6)],
    )
    def test_equals_the_equations(self, form, scale, lambda0, dtype, tolerance):
        p, g, m, v, v_max = ours = tensors(5000, scale)
        # Of one sign: where g and m cancel, every way of adding them in float32 loses digits.
        g.abs_(), m.abs_(), p.zero_()
        g[::7] = m[::5] = 0.0
        if form == "paper":
            v.pow_(lambda0 - 0.5), v_max.pow_(lambda0 - 0.5)
        expected = [tensor.to(dtype, copy=True) for tensor in ours[1:]]
        step, _ = direction(*expected, lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment=form)
        self.step([ours], options(form, lr=1.0, lambda0=lambda0))
        for actual, wanted in zip((p, m, v, v_max), (-step, *expected[1:]), strict=True):
            torch.testing.assert_close(actual.to(dtype), wanted, rtol=tolerance, atol=1e-37)

    @given(
        st.floats(2.0**-60, 2.0**60, width=32),
        st.floats(2.0**-60, 2.0**60, width=32),
        st.sampled_from([2.0, 2.3, 2.9, 3.0, 3.5, 4.0]),
    )
    @settings(max_examples=300, deadline=None)
    def test_the_root_form_keeps_its_precision_over_the_range_of_float32(self, g, n, lambda0):
        ours = [torch.tensor([value], dtype=torch.float32) for value in (0.0, g, 0.5 * g, n, n)]
        expected = [tensor.double() for tensor in ours]
        step, _ = direction(*expected[1:], lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment="root")
        self.step([ours], options("root", lr=1.0, lambda0=lambda0))
        torch.testing.assert_close(ours[0].double(), -step, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[3].double(), expected[3], rtol=1e-6, atol=0)

    @pytest.mark.parametrize("form", FORMS)
    def test_numbers_depend_neither_on_company_nor_on_place(self, form):
        together = [tensors(size, seed=size) for size in (1, 63, 64, 65, 1000, 70_000)]
        alone = [copies(entry) for entry in together]
        torch.set_num_threads(3)
        self.step(together, options(form))
        torch.set_num_threads(1)
        for entry in alone:
            self.step([entry], options(form))
        for one, other in zip(together, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        whole, tail = tensors(1000), [tensor[963:].clone() for tensor in tensors(1000)]
        self.step([whole], options(form))
        self.step([tail], options(form))
        assert all(torch.equal(a[963:], b) for a, b in zip(whole, tail, strict=True))

    @pytest.mark.parametrize("form", FORMS)
    def test_without_a_running_maximum_nothing_beyond_the_four_tensors_is_needed(self, form):
        ours = tensors(2000)
        others = copies(ours)
        untouched = others[4].clone()
        self.step([[*ours[:4], None]], options(form, lambda0=3.5))
        self.step([others], options(form, lambda0=3.5))
        assert all(torch.equal(a, b) for a, b in zip(ours[:4], others, strict=False))
        assert torch.equal(others[4], untouched)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_observed_norms_are_those_of_the_equations(self, threads):
        entries = [tensors(size, seed=size) for size in (10, 64, 100_001)]
        lams = [
            direction(*copies(e[1:]), lambda0=2.5, betas=(0.9, 0.99), eps=1e-8, second_moment="paper")[1]
            for e in entries
        ]
        torch.set_num_threads(threads)
        totals = self.step(entries, options(), observe=True)
        assert totals.shape == (3, 2)
        np.testing.assert_array_equal(totals[:, 0], [(lam < 2).sum().item() for lam in lams])
        np.testing.assert_allclose(totals[:, 1], [lam.double().sum().item() for lam in lams], rtol=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_gradient_that_is_not_finite_stays_visible_in_the_parameter_alone(self, form, bad):
        p, g, m, v, v_max = tensors(100)
        g[50] = bad
        self.step([[p, g, m, v, v_max]], options(form))
        assert not math.isfinite(p[50]) or bad in (math.inf, -math.inf)
        assert not math.isfinite(m[50])
        assert torch.isfinite(p[torch.arange(100) != 50]).all()

    def test_an_infinite_second_moment_stops_its_element_as_the_equations_say(self):
        p, g, m, v, v_max = tensors(8)
        v[:] = v_max[:] = math.inf
        before = p.clone()
        self.step([[p, g, m, v, v_max]], options())
        assert torch.equal(p, before)
        assert torch.isinf(v).all()

    def test_elements_without_any_gradient_do_not_move(self):
        p, g, m, v, v_max = [torch.ones(70), *(torch.zeros(70) for _ in range(4))]
        for form in FORMS:
            self.step([[p, g, m, v, v_max]], options(form))
        assert torch.equal(p, torch.ones(70))
        assert not m.any()
        assert not v.any()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("decoupled", [True, False])
    def test_the_optimizer_steps_alike_with_and_without_it(self, form, decoupled, monkeypatch):
        monkeypatch.setattr(hn_adam, "kernel_for", lambda _: self.kernel())
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
        start = [p.detach().to(self.device) for p in model.parameters()]
        kwargs = {
            "second_moment": form,
            "weight_decay": 0.01,
            "decoupled_weight_decay": decoupled,
            "maximize": not decoupled,
            "lambda0": 2.3,
            "lr": torch.tensor(1e-3) if decoupled else 1e-3,
        }
        results = []
        for fused in (True, False):
            params = [nn.Parameter(p.clone()) for p in start]
            optimizer = HNAdam(params, fused=fused, **kwargs)
            optimizer.collect_statistics = True
            generator = torch.Generator().manual_seed(1)
            for _ in range(20):
                for p in params:
                    p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
                optimizer.step()
            results.append((params, list(optimizer.pop_statistics().values())))
        (fast, fast_norms), (slow, slow_norms) = results
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(fast_norms, slow_norms, strict=True):
            assert a.elements == b.elements
            assert a.branch == pytest.approx(b.branch, abs=2)
            assert a.mean_lambda == pytest.approx(b.mean_lambda, rel=1e-6)
