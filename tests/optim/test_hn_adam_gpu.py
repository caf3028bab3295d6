"""The step in Triton: on a GPU, else in Triton's interpreter on the CPU, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_contract import KernelContract, copies, options, tensors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tune_fusion.optim import hn_adam_gpu
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_gpu import GpuKernel, load_gpu_kernel

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="needs Triton, which comes with torch's builds for GPUs alone: pip install triton"
)
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="runs within the one test of another process")


@needs_triton
@pytest.mark.skipif(GPU or INTERPRETED, reason="the others run in this process")
def test_the_others_in_tritons_interpreter():
    """Whether Triton interprets is decided when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="an interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "root"), [(80, True), (90, False)])
def test_it_compiles_for_gpus_that_are_not_here(capability, root, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tune_fusion.optim.hn_adam_triton import BLOCK, WARPS, hn_adam

    numbers = ("lr", "eps", "lambda0", "beta2", "new1", "new2", "sign", "decay", "keep")
    constants = {"ROOT": root, "ALIGNMENT": 16, "BLOCK": BLOCK}
    source = ASTSource(
        hn_adam,
        signature={
            **{"tensors": "*i64", "chunks": "*i64", "totals": "*fp64"},
            **dict.fromkeys(numbers, "fp32"),
            "observe": "i32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs=constants,
        attrs={(argument,): [["tt.divisibility", 16]] for argument in range(3)},
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"num_warps": WARPS, "enable_fp_fusion": True})
    # Five tensors of eight elements a thread are read, in vectors of four, and four are written.
    assert made.asm["ptx"].count("ld.global.v4.b32") == 5 * 2
    assert made.asm["ptx"].count("st.global.v4.b32") == 4 * 2


@needs_triton
@here
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # its NumPy: 0/0
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
class TestInTriton(KernelContract):
    device = torch.device("cuda", 0) if GPU else torch.device("cpu")

    @staticmethod
    def kernel():
        return GpuKernel()

    def test_it_is_found_right(self):
        assert load_gpu_kernel(self.device) is not None

    def test_gradients_may_lie_elsewhere_in_every_step(self):
        entry, other = tensors(3000), tensors(3000)
        for seed in range(3):
            entry[1] = other[1] = tensors(3000, seed=seed)[1]
            self.step([entry], options())
            hn_adam_gpu._tensors.cache_clear()
            self.step([other], options())
        assert all(torch.equal(a, b) for a, b in zip(entry, other, strict=True))

    def test_tensors_may_begin_anywhere(self):
        whole = [tensor.to(self.device) for tensor in tensors(4001)]
        parts = [tensor[1:] for tensor in copies(whole)]
        assert any(part.data_ptr() % 16 for part in parts)
        kernel = self.kernel()
        kernel.step([tuple(parts)], options(), observe=False)
        kernel.step([tuple(whole)], options(), observe=False)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a[1:], b, rtol=1e-6, atol=1e-37)

    def test_empty_tensors_are_left_alone(self):
        entries = [tensors(0), tensors(10), tensors(0)]
        expected = copies(entries[1])
        self.step([expected], options())
        totals = self.step(entries, options(), observe=True)
        assert all(torch.equal(a, b) for a, b in zip(entries[1], expected, strict=True))
        assert totals[0].tolist() == totals[2].tolist() == [0.0, 0.0]
        assert totals[1, 1] > 0
        self.step([tensors(0)], options())

    @pytest.mark.skipif(not GPU, reason="an interpreter compiles nothing")
    def test_nothing_is_compiled_again_when_numbers_change(self):
        from tune_fusion.optim.hn_adam_triton import hn_adam

        def compiled():
            return sum(len(kept[0]) for kept in hn_adam.device_caches.values())

        for form in ("paper", "root"):
            self.step([tensors(3000)], options(form))
        before = compiled()
        for lr, lambda0, sizes in ((1, 2, [16]), (0.5, 3, [1, 17]), (16, 4, [5000] * 3)):
            given = [tensors(size) for size in sizes]
            self.step(given, options("root", lr=lr, lambda0=lambda0, eps=1), observe=True)
            self.step(given, options("paper", lr=lr, lambda0=lambda0, coupled_decay=1))
        assert compiled() == before


@pytest.fixture
def nothing_loaded():
    hn_adam_gpu._loaded.cache_clear()
    yield
    hn_adam_gpu._loaded.cache_clear()


class Unusable:
    def __init__(self, error=None):
        self._error = error

    def step(self, entries, given, *, observe):
        """Raises, or leaves everything as it was."""
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            lambda: Unusable(RuntimeError("PTX is too new")),
            "cannot compile or run .*: RuntimeError: PTX is too new",
        ),
        (Unusable, "gives wrong numbers"),
    ],
)
def test_a_kernel_that_cannot_be_used_is_named_once(nothing_loaded, monkeypatch, made, reason):
    monkeypatch.setattr(hn_adam_gpu, "GpuKernel", made)
    with pytest.warns(UserWarning, match=f"HN_Adam's steps on cpu take several times .*{reason}") as warned:
        assert [load_gpu_kernel(torch.device("cpu")) for _ in range(2)] == [None, None]
    assert len(warned) == 1


@pytest.mark.skipif(HAS_TRITON, reason="Triton is there")
def test_without_triton_it_says_so(nothing_loaded):
    with pytest.warns(UserWarning, match="Triton cannot be imported: No module named 'triton'"):
        assert load_gpu_kernel(torch.device("cpu")) is None


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU, if the tensors were on one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        assert name not in {
            "_local_scalar_dense",
            "equal",
            "is_nonzero",
            "masked_select",
            "nonzero",
            "unique",
        }
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("second_moment", ["paper", "root"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_the_way_without_a_kernel_waits_for_no_gpu(second_moment, decoupled):
    params = [nn.Parameter(torch.ones(shape)) for shape in ((70_000,), (8, 3, 3, 3), (5,))]
    optimizer = HNAdam(
        params, second_moment=second_moment, decoupled_weight_decay=decoupled, weight_decay=0.1, fused=False
    )
    optimizer.collect_statistics = True
    with NoWaiting():
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
