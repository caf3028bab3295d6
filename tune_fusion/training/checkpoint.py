"""Weights on disk, as safetensors and never as pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU under its own names, whether or not it stands behind ``torch.compile``."""
    plain = getattr(model, "_orig_mod", model)
    return {name: value.detach().cpu().contiguous() for name, value in plain.state_dict().items()}


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `weights` to `path` as one safetensors file, whole or not at all.

    Tensors that share memory (tied weights) are written once each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    separate = {name: value.clone() for name, value in weights.items()}
    try:
        save_file(separate, part, metadata=dict(metadata or {}))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
