"""How a process that trains on a CPU treats memory that tensors give back."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt (malloc.h), and the values they get: from this size on, memory comes from the
# system each time, and this much of what was given back is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_KEPT_BYTES_BEFORE_GLIBC_2_35 = 2**25


def keep_freed_memory() -> bool:
    """Keep the memory that tensors give back for the next ones, instead of returning it to the system.

    Activations, gradients and batches come and go with each step. By default glibc gets those of 32 MB and
    more from the system each time, page after cleared page, and returns smaller ones when they lie at the
    end, which can take a quarter of a training step. A process then stays about as large as its largest step.

    Returns False, and changes nothing, where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if not mallopt(_MMAP_THRESHOLD, _KEPT_BYTES):
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES_BEFORE_GLIBC_2_35)
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))
