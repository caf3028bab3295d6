"""HN_Adam's step on a CPU as one pass in machine code, compiled where it runs.

``hn_adam.c`` beside this file is compiled once a machine, for its processor, by the C compiler that the
machine has (``$CC``, else cc, gcc or clang), in about half a second. Where there is none, or what it made
does not give the numbers of `adaptive_norm`, there is no kernel, and the optimizer does without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tune_fusion.folders import cache_root
from tune_fusion.optim.hn_adam_step import Entry, Options, is_right

_SOURCE = Path(__file__).with_name("hn_adam.c")
_ALWAYS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-pthread",
)
# Tried in turn: x86 (its compilers know both), ARM, anything else.
_FOR_THIS_PROCESSOR = (("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",), ())
_COMPILE_SECONDS = 60
# Elements that are worth a thread of their own.
_ELEMENTS_A_THREAD = 1 << 15


class _Options(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("lr", "eps", "lambda0", "beta2", "new1", "new2")),
        *((name, ctypes.c_float) for name in ("sign", "decay", "keep")),
        *((name, ctypes.c_int32) for name in ("root", "observed")),
    )


class Kernel:
    """The compiled step; `library` is what the compiler made of ``hn_adam.c``."""

    def __init__(self, library: Path) -> None:
        self._step: Any = ctypes.CDLL(str(library)).hn_adam
        self._step.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
        ]
        self._step.restype = None

    def step(self, entries: Sequence[Entry], options: Options, *, observe: bool) -> Tensor | None:
        """See `StepKernel`. Takes as many threads as torch has where they are worth it: no number changes."""
        tensors = np.array(
            [
                (
                    p.data_ptr(),
                    g.data_ptr(),
                    m.data_ptr(),
                    v.data_ptr(),
                    0 if w is None else w.data_ptr(),
                    p.numel(),
                )
                for p, g, m, v, w in entries
            ],
            dtype=np.int64,
        )
        threads = min(torch.get_num_threads(), 1 + int(tensors[:, 5].sum()) // _ELEMENTS_A_THREAD)
        totals = np.zeros((threads, len(entries), 2))
        beta1, beta2 = options.betas
        given = _Options(
            options.lr,
            options.eps,
            options.lambda0,
            beta2,
            1.0 - beta1,
            1.0 - beta2,
            -1.0 if options.maximize else 1.0,
            options.coupled_decay,
            1.0 - options.lr * options.decoupled_decay,
            options.root,
            observe,
        )
        self._step(tensors.ctypes.data, len(entries), ctypes.byref(given), totals.ctypes.data, threads)
        return torch.from_numpy(totals.sum(axis=0)) if observe else None


@functools.cache
def load_kernel() -> Kernel | None:
    """This machine's kernel, compiled if it never was; None, with a warning, where there can be none."""
    compiler = _compiler()
    if compiler is None:
        reason = "there is no C compiler (cc, gcc, clang or $CC)"
    else:
        library = cache_root() / "kernels" / f"hn_adam-{_key(compiler)}.so"
        try:
            kernel = Kernel(library) if _is_ours(library) else _compiled(compiler, library)
        except OSError as error:
            kernel, reason = None, f"its library cannot be loaded: {error}"
        else:
            reason = f"{shlex.join(compiler)} cannot compile {_SOURCE.name}"
        if kernel is not None and is_right(kernel, torch.device("cpu")):
            return kernel
        if kernel is not None:
            reason = f"what {shlex.join(compiler)} made of {_SOURCE.name} gives wrong numbers"
    warnings.warn(f"HN_Adam's steps take several times as long as they could: {reason}", stacklevel=3)
    return None


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    found = next((name for name in named[:1] or ("cc", "gcc", "clang") if shutil.which(name)), None)
    return None if found is None or os.name != "posix" else [found, *named[1:]]


def _key(compiler: list[str]) -> str:
    """The same where the same compiler would make the same library."""
    digest = hashlib.sha256(_SOURCE.read_bytes())
    digest.update(
        repr((compiler, _ALWAYS, _FOR_THIS_PROCESSOR, platform.machine(), platform.system())).encode()
    )
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        digest.update(
            "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))})).encode()
        )
    return digest.hexdigest()[:16]


def _is_ours(library: Path) -> bool:
    """True for a library that nobody else can have put there: it is going to be run."""
    with suppress(OSError):
        status = library.stat()
        return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return False


def _compiled(compiler: list[str], library: Path) -> Kernel | None:
    """Compile the kernel, and keep it as `library` if that is possible; None where the compiler cannot."""
    with tempfile.TemporaryDirectory(prefix="tune_fusion-") as scratch:
        made = Path(scratch) / library.name
        for flags in _FOR_THIS_PROCESSOR:
            command = [*compiler, *_ALWAYS, *flags, str(_SOURCE), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=_COMPILE_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                return None
            if done.returncode == 0:
                break
        else:
            return None
        with suppress(OSError):
            library.parent.mkdir(parents=True, exist_ok=True)
            partial = library.with_suffix(f".{os.getpid()}")
            shutil.copyfile(made, partial)
            partial.chmod(0o600)
            partial.replace(library)
        return Kernel(made)
