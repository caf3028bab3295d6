"""HN_Adam's step on a GPU as one launch for all tensors of a parameter group.

``hn_adam_triton.py`` beside this file is compiled when it is first used, for the GPU that it runs on, by the
Triton that belongs to torch's builds for GPUs. Triton keeps what it compiled (``$TRITON_CACHE_DIR``, else
``.triton/cache`` in the home folder) for later processes. Where there is no Triton, or it cannot compile, or
what it made does not give the numbers of `adaptive_norm`, there is no kernel, and the optimizer does without.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_fusion.optim.hn_adam_step import Entry, Options, is_right

# Tables that are kept: of some optimizers, and of gradients that lie elsewhere in every other step.
_KEPT_TABLES = 16
_loading = threading.Lock()


class GpuKernel:
    """The step in Triton; ImportError where there is none."""

    def __init__(self) -> None:
        from tune_fusion.optim import hn_adam_triton

        self._launch: Any = hn_adam_triton.hn_adam
        self._block: int = hn_adam_triton.BLOCK
        self._warps: int = hn_adam_triton.WARPS

    def step(self, entries: Sequence[Entry], options: Options, *, observe: bool) -> Tensor | None:
        """See `StepKernel`. Never waits for the GPU."""
        device = entries[0][0].device
        addresses: list[int] = []
        for p, g, m, v, v_max in entries:
            addresses += (
                p.data_ptr(),
                g.data_ptr(),
                m.data_ptr(),
                v.data_ptr(),
                0 if v_max is None else v_max.data_ptr(),
                p.numel(),
            )
        # Tables are copied in the order of a stream, and so are ready in that stream alone.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        tensors, alignment = _tensors(tuple(addresses), device, stream)
        chunks = _chunks(tuple(addresses[5::6]), self._block, device, stream)
        totals = tensors.new_zeros((len(entries) if observe else 0, 2), dtype=torch.float64)
        beta1, beta2 = options.betas
        # Triton launches on torch's current device.
        with torch.cuda.device(device if device.type == "cuda" else -1):
            # Only numbers that are floats: Triton compiles anew for whole ones that are 1 or divisible by 16.
            self._launch[(len(chunks),)](
                tensors,
                chunks,
                totals,
                float(options.lr),
                float(options.eps),
                float(options.lambda0),
                float(beta2),
                1.0 - beta1,
                1.0 - beta2,
                -1.0 if options.maximize else 1.0,
                float(options.coupled_decay),
                1.0 - options.lr * options.decoupled_decay,
                int(observe),
                ROOT=options.root,
                ALIGNMENT=alignment,
                BLOCK=self._block,
                num_warps=self._warps,
                enable_fp_fusion=True,
            )
        return totals if observe else None


@functools.lru_cache(_KEPT_TABLES)
def _tensors(addresses: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, int]:
    """The kernel's ``tensors``, and what all addresses are divisible by: a vector's bytes or a number's."""
    table = np.array(addresses, dtype=np.int64).reshape(-1, 6)
    return _on_device(table, device), 4 if (table[:, :5] % 16).any() else 16


@functools.lru_cache(_KEPT_TABLES)
def _chunks(sizes: tuple[int, ...], block: int, device: torch.device, stream: int) -> Tensor:
    """The kernel's ``chunks``."""
    counts = -(-np.array(sizes, dtype=np.int64) // block)
    rows = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _on_device(np.stack([rows, block * within], axis=1), device)


def _on_device(table: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copied without waiting for the device."""
    host = torch.from_numpy(table)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def load_gpu_kernel(device: torch.device) -> GpuKernel | None:
    """The kernel for a GPU, compiled if it never was; None, with one warning, where there can be none."""
    with _loading:
        return _loaded(device)


@functools.cache
def _loaded(device: torch.device) -> GpuKernel | None:
    try:
        kernel = GpuKernel()
        if is_right(kernel, device):
            return kernel
        reason = "what Triton made of hn_adam_triton.py gives wrong numbers"
    except ImportError as error:
        reason = f"Triton cannot be imported: {error}"
    except Exception as error:  # noqa: BLE001  (whatever a compiler or a driver raises: there is another way)
        reason = f"Triton cannot compile or run hn_adam_triton.py: {type(error).__name__}: {error}"
    warnings.warn(
        f"HN_Adam's steps on {device} take several times as long as they could: {reason}", stacklevel=3
    )
    return None
