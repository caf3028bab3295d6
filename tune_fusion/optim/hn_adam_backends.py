"""Which kernel takes HN_Adam's step on a device."""

from __future__ import annotations

import threading

import torch

from tune_fusion.optim.hn_adam_gpu import load_gpu_kernel
from tune_fusion.optim.hn_adam_kernel import load_kernel
from tune_fusion.optim.hn_adam_step import StepKernel


def kernel_for(device: torch.device) -> StepKernel | None:
    """The kernel for a CPU or GPU, compiled if it never was; None, with a warning, where there is none."""
    return load_gpu_kernel(device) if device.type == "cuda" else load_kernel()


def load_ahead(device: torch.device) -> None:
    """Have the kernel compiled while everything else is made ready, so that no step waits for it."""
    if device.type in ("cpu", "cuda"):
        exact = torch.empty(0, device=device).device  # with its number, as parameters have it
        threading.Thread(target=kernel_for, args=(exact,), daemon=True).start()
