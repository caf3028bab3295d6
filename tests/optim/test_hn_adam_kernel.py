import shutil
import stat
import subprocess

import pytest
import torch
from kernel_contract import KernelContract, options, tensors
from torch import nn

from tune_fusion.optim import hn_adam_kernel
from tune_fusion.optim.hn_adam import HNAdam
from tune_fusion.optim.hn_adam_kernel import Kernel, load_kernel

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture
def new_machine(tmp_path, monkeypatch):
    """A machine that has compiled nothing yet; gives the folder of its kernels."""
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    yield tmp_path / "cache" / "kernels"
    load_kernel.cache_clear()


class TestInC(KernelContract):
    @staticmethod
    def kernel():
        found = load_kernel()
        assert found is not None
        return found


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
