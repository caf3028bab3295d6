import math
import shutil
import stat
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tune_fusion.optim import hn_adam_kernel
from tune_fusion.optim.adaptive_norm import direction
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_kernel import Kernel, Options, fits, load_kernel

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
FORMS = ["paper", "root"]


@pytest.fixture
def kernel():
    found = load_kernel()
    assert found is not None
    return found


@pytest.fixture
def new_machine(tmp_path, monkeypatch):
    """A machine that has compiled nothing yet; gives the folder of its kernels."""
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    yield tmp_path / "cache" / "kernels"
    load_kernel.cache_clear()


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("lambda0", [2.0, 2.5, 3.0, 4.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Rounding Λ to float32, which all ways of float32 do alike, moves |g|^Λ by up to 3e-6 of these.
    [(torch.float32, 1e-6), (torch.float64, 4e-6)],
)
def test_equals_the_equations(kernel, form, scale, lambda0, dtype, tolerance):
    p, g, m, v, v_max = ours = tensors(5000, scale)
    # Of one sign: where g and m cancel, every way of adding them in float32 loses digits.
    g.abs_(), m.abs_(), p.zero_()
    g[::7] = m[::5] = 0.0
    if form == "paper":
        v.pow_(lambda0 - 0.5), v_max.pow_(lambda0 - 0.5)
    expected = [tensor.to(dtype, copy=True) for tensor in ours[1:]]
    step, _ = direction(*expected, lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment=form)
    kernel.step([(p, g, m, v, v_max)], options(form, lr=1.0, lambda0=lambda0), observe=False)
    for actual, wanted in zip((p, m, v, v_max), (-step, *expected[1:]), strict=True):
        torch.testing.assert_close(actual.to(dtype), wanted, rtol=tolerance, atol=1e-37)


@given(
    st.floats(2.0**-60, 2.0**60, width=32),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.sampled_from([2.0, 2.3, 2.9, 3.0, 3.5, 4.0]),
)
@settings(max_examples=300, deadline=None)
def test_the_root_form_keeps_its_precision_over_the_range_of_float32(g, n, lambda0):
    found = load_kernel()
    ours = [torch.tensor([value], dtype=torch.float32) for value in (0.0, g, 0.5 * g, n, n)]
    expected = [tensor.double() for tensor in ours]
    step, _ = direction(*expected[1:], lambda0=lambda0, betas=(0.9, 0.99), eps=1e-8, second_moment="root")
    found.step([tuple(ours)], options("root", lr=1.0, lambda0=lambda0), observe=False)
    torch.testing.assert_close(ours[0].double(), -step, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[3].double(), expected[3], rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_depend_neither_on_company_nor_on_place_nor_on_threads(kernel, form):
    sizes = [1, 63, 64, 65, 1000, 70_000]
    together = [tensors(size, seed=size) for size in sizes]
    alone = [copies(entry) for entry in together]
    torch.set_num_threads(3)
    kernel.step([tuple(entry) for entry in together], options(form), observe=False)
    torch.set_num_threads(1)
    for entry in alone:
        kernel.step([tuple(entry)], options(form), observe=False)
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    whole, tail = tensors(1000), [tensor[963:].clone() for tensor in tensors(1000)]
    kernel.step([tuple(whole)], options(form), observe=False)
    kernel.step([tuple(tail)], options(form), observe=False)
    assert all(torch.equal(a[963:], b) for a, b in zip(whole, tail, strict=True))


def test_without_a_running_maximum_nothing_beyond_the_four_tensors_is_needed(kernel):
    p, g, m, v, v_max = tensors(100)
    others = copies((p, g, m, v, v_max))
    kernel.step([(p, g, m, v, None)], options(lambda0=3.5), observe=False)
    kernel.step([tuple(others)], options(lambda0=3.5), observe=False)
    assert all(torch.equal(a, b) for a, b in zip((p, g, m, v), others, strict=False))


@pytest.mark.parametrize("threads", [1, 3])
def test_observed_norms_are_those_of_the_equations(kernel, threads):
    entries = [tensors(size, seed=size) for size in (10, 64, 100_001)]
    lams = [
        direction(*copies(e[1:]), lambda0=2.5, betas=(0.9, 0.99), eps=1e-8, second_moment="paper")[1]
        for e in entries
    ]
    torch.set_num_threads(threads)
    totals = kernel.step([tuple(entry) for entry in entries], options(), observe=True)
    assert totals.shape == (3, 2)
    np.testing.assert_array_equal(totals[:, 0], [(lam < 2).sum().item() for lam in lams])
    np.testing.assert_allclose(totals[:, 1], [lam.double().sum().item() for lam in lams], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_stays_visible_in_the_parameter_alone(kernel, form, bad):
    p, g, m, v, v_max = tensors(100)
    g[50] = bad
    kernel.step([(p, g, m, v, v_max)], options(form), observe=False)
    assert not math.isfinite(p[50]) or bad in (math.inf, -math.inf)
    assert not math.isfinite(m[50])
    assert torch.isfinite(p[torch.arange(100) != 50]).all()


def test_an_infinite_second_moment_stops_its_element_as_the_equations_say(kernel):
    p, g, m, v, v_max = tensors(8)
    v[:] = v_max[:] = math.inf
    before = p.clone()
    kernel.step([(p, g, m, v, v_max)], options(), observe=False)
    assert torch.equal(p, before)
    assert torch.isinf(v).all()


def test_elements_without_any_gradient_do_not_move(kernel):
    p, g, m, v, v_max = [torch.ones(70), *(torch.zeros(70) for _ in range(4))]
    for form in FORMS:
        kernel.step([(p, g, m, v, v_max)], options(form), observe=False)
    assert torch.equal(p, torch.ones(70))
    assert not m.any()
    assert not v.any()


@pytest.mark.parametrize("form", FORMS)
def test_the_optimizer_steps_alike_with_and_without_its_kernel(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    start = [p.detach().clone() for p in model.parameters()]
    kwargs = {"second_moment": form, "weight_decay": 0.01, "decoupled_weight_decay": True, "lambda0": 2.3}
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


def test_entries_that_differ_in_dtype_or_layout_do_not_fit():
    like = torch.zeros(2, 3, 4, 4)
    last = like.to(memory_format=torch.channels_last)
    assert fits((like, like, like, like, None))
    assert fits((last, last, last, last, last))
    assert not fits((like, last, like, like, None))
    assert not fits((like, like, like, last, None))
    assert not fits((like.double(), like.double(), like.double(), like.double(), None))
    assert not fits((like, like, like.double(), like, None))
    assert not fits((like[..., ::2], like[..., ::2], like[..., ::2], like[..., ::2], None))


def test_it_is_compiled_once_a_machine_and_kept_for_its_owner_alone(new_machine, monkeypatch):
    assert load_kernel() is not None
    (library,) = new_machine.iterdir()
    assert stat.S_IMODE(library.stat().st_mode) == 0o600
    load_kernel.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert load_kernel() is not None


def test_a_library_that_others_could_have_written_is_not_run(new_machine):
    load_kernel()
    (library,) = new_machine.iterdir()
    library.write_bytes(b"what somebody else has put there")
    library.chmod(0o666)
    load_kernel.cache_clear()
    assert load_kernel() is not None
    assert library.read_bytes()[:4] != b"what"


def compiler_that(folder, script):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_it_says_so_and_steps_all_the_same(new_machine, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="there is no C compiler"):
        HNAdam([p]).step()
    assert (p < 1).all()


def test_a_compiler_that_fails_is_named(new_machine, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", compiler_that(tmp_path, "exit 1"))
    with pytest.warns(UserWarning, match=r"compiler cannot compile hn_adam\.c"):
        assert load_kernel() is None


def test_wrong_numbers_are_found_out(new_machine, tmp_path, monkeypatch):
    """A compiler whose kernel takes another power than it should."""
    source = hn_adam_kernel._SOURCE
    changed = tmp_path / "hn_adam.c"
    changed.write_text(source.read_text().replace("0.69314694f", "0.69f"))
    script = f'exec {COMPILER} $(echo "$@" | sed "s#{source}#{changed}#")'
    monkeypatch.setenv("CC", compiler_that(tmp_path, script))
    with pytest.warns(UserWarning, match="gives wrong numbers"):
        assert load_kernel() is None


def test_a_kept_library_that_cannot_be_loaded_is_named(new_machine):
    load_kernel()
    (library,) = new_machine.iterdir()
    library.write_bytes(b"no library")
    load_kernel.cache_clear()
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert load_kernel() is None


def test_the_kernel_is_the_library_that_it_is_given(new_machine):
    load_kernel()
    (library,) = new_machine.iterdir()
    entry = tensors(10)
    before = entry[0].clone()
    Kernel(library).step([tuple(entry)], options(), observe=False)
    assert not torch.equal(entry[0], before)
