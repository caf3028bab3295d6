import ctypes
import platform
import subprocess
import sys

import pytest

from tune_fusion.training.allocation import keep_freed_memory

FAULTS = """
import resource, torch
from tune_fusion.training.allocation import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{call}
before = faults()
for _ in range(40):
    torch.ones(20_000_000)
print((faults() - before) * 4096 / 80_000_000)
"""


def fresh(call):
    """How many of 40 tensors of 80 MB, one after the other, the system gave new pages for."""
    code = FAULTS.format(call=call)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_the_memory_of_one_tensor_serves_the_next():
    assert fresh("assert keep_freed_memory()") < 20
    assert fresh("") > 30  # without it the system is asked again and again


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()
