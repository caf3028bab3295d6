"""torchvision and timm: the one module through which the package imports them.

PyPI's torchvision wheel for Linux is compiled against CUDA. Beside a CPU-only torch its compiled operators do
not load, and ``import torchvision`` then fails with "operator torchvision::nms does not exist", because it
describes the outputs of two operators that nobody has declared. timm imports torchvision and fails with it.
Declaring the two operators first is enough: image transforms, data sets and models are written in Python. Box
suppression itself stays unavailable in such an installation, and nothing here needs it.

The modules are attributes that load on first use, so importing this module costs nothing::

    from tune_fusion.vision import timm, v2       # now torch, torchvision and timm are imported

Code that must import one of the two by its own name calls `prepare_torchvision` before.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import timm
    import torchvision
    from torchvision.transforms import v2

_MODULES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "v2": "torchvision.transforms.v2",
}
__all__ = ["prepare_torchvision", "timm", "torchvision", "v2"]

# The operators whose outputs torchvision describes while it is imported, with the schemas it registers.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
# A torch Library takes its declarations with it when it is collected: keep it as long as the process lives.
_declared: list[Any] = []


def prepare_torchvision() -> None:
    """Make ``import torchvision`` work beside a CPU-only torch; does nothing where it already works.

    May be called any number of times and from any thread. Raises ModuleNotFoundError where torchvision is not
    installed.
    """
    torch = importlib.import_module("torch")
    with _lock:
        if not _missing(torch):
            return
        _load_compiled_operators(torch)
        missing = _missing(torch)
        if missing:
            # FRAGMENT adds to the namespace, whether or not another library has already opened it.
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in missing:
                library.define(_SCHEMAS[name])
            _declared.append(library)


def _missing(torch: Any) -> list[str]:
    return [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def _load_compiled_operators(torch: Any) -> None:
    """Load torchvision's operator library if it fits this torch, as ``import torchvision`` would."""
    package = importlib.util.find_spec("torchvision")
    if package is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install torchvision", name="torchvision")
    library = PathFinder.find_spec("_C", package.submodule_search_locations)
    if library is None or library.origin is None:
        return
    try:
        torch.ops.load_library(library.origin)
    except OSError:
        # Compiled for a CUDA that this torch lacks: the case `prepare_torchvision` exists for.
        return


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_torchvision()
    return importlib.import_module(_MODULES[name])
