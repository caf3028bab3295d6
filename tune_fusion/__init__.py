"""Search for the best layer-wise optimizer fusion of an image classifier.

The public names load on first use, so that ``import tune_fusion`` costs neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_fusion.models.build import build_model
    from tune_fusion.models.layers import layer_map
    from tune_fusion.optim.fused import FusedOptimizer
    from tune_fusion.optim.hn_adam import HNAdam
    from tune_fusion.training.saved_model import load_model

__version__ = "0.1.0"
__all__ = ["FusedOptimizer", "HNAdam", "__version__", "build_model", "layer_map", "load_model"]

_HOMES = {
    "FusedOptimizer": "tune_fusion.optim.fused",
    "HNAdam": "tune_fusion.optim.hn_adam",
    "build_model": "tune_fusion.models.build",
    "layer_map": "tune_fusion.models.layers",
    "load_model": "tune_fusion.training.saved_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
