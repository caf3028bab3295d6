import errno

import pytest
import torch

from tune_fusion.errors import InputError
from tune_fusion.training.files import DiskFullError
from tune_fusion.tuning.failures import Failure, failure

CPU = torch.device("cpu")


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever it is, it is looked at)
        function()
    return caught.value


def wrapped(error):
    outer = RuntimeError("the compiler failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        wrapped(torch.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_too_little_memory_is_told_with_the_batch_size_and_what_to_do(error):
    told = failure(error, 512, CPU)
    assert told.kind == "out_of_memory"
    for words in (
        "training.batch_size 512",
        "lower training.batch_size",
        "GiB in use",
        "--concurrent",
        "cpu",
    ):
        assert words in told.message
    assert "\n" not in told.message


def test_torchs_own_allocation_failures_are_known():
    for function in (lambda: torch.empty(2**60), lambda: bytearray(2**60)):
        assert failure(raised(function), 1, CPU).kind == "out_of_memory"


def test_a_gpu_is_told_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**29, 2**33))
    told = failure(torch.OutOfMemoryError("CUDA out of memory."), 64, torch.device("cuda"))
    assert told.message.startswith("out of memory on cuda (6.5 of 8.0 GiB in use) with ")
    assert "resources.gpu" in told.message


def test_a_device_that_says_nothing_about_its_memory_is_no_second_failure(monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    assert failure(error, 64, torch.device("cuda")).message.startswith("out of memory on cuda with ")
    assert failure(error, 64, torch.device("mps")).message.startswith("out of memory on mps with ")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_its_file(code):
    error = OSError(code, "No room", "/runs/one/file")
    for each in (error, wrapped(error)):
        told = failure(each, 64, CPU)
        assert told == Failure("disk_full", "disk full: /runs/one/file: No room")
    full = DiskFullError("disk full: /runs/one/file needs 2.0 MiB, 0.1 MiB are free")
    full.__cause__ = wrapped(OSError(code, "No room"))
    assert failure(full, 64, CPU) == Failure("disk_full", str(full))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError"),
        (InputError("space.yaml:1: too small:\n  see there"), "space.yaml:1: too small: see there"),
        (
            OSError(errno.EACCES, "Permission denied", "/f"),
            "PermissionError: [Errno 13] Permission denied: '/f'",
        ),
        (RuntimeError("shape '[3]' is invalid"), "RuntimeError: shape '[3]' is invalid"),
    ],
)
def test_any_other_error_is_told_in_one_line(error, message):
    assert failure(error, 64, CPU) == Failure("error", message)
