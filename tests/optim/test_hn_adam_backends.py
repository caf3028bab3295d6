import threading

import pytest
import torch

from tune_fusion.optim import hn_adam_backends
from tune_fusion.optim.hn_adam_backends import kernel_for, load_ahead
from tune_fusion.optim.hn_adam_kernel import load_kernel


def test_the_cpu_has_the_kernel_in_c():
    assert kernel_for(torch.device("cpu")) is load_kernel()


@pytest.fixture
def asked(monkeypatch):
    """The devices whose kernels were loaded, each with its thread."""
    seen = []
    monkeypatch.setattr(
        hn_adam_backends, "kernel_for", lambda device: seen.append((device, threading.current_thread()))
    )
    return seen


def test_loading_ahead_keeps_nobody_waiting(asked):
    load_ahead(torch.device("cpu"))
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(10)
    ((device, thread),) = asked
    assert device == torch.device("cpu")
    assert thread is not threading.current_thread()


def test_where_there_is_no_kernel_nothing_is_loaded(asked):
    before = threading.active_count()
    load_ahead(torch.device("meta"))
    assert threading.active_count() == before
    assert asked == []
