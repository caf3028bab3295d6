"""The layer map of one model of every timm family, built and run on the meta device."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tune_fusion.models.layers import layer_map, resolve_switch
from tune_fusion.vision import timm

# What the names of small models have, smallest first.
SMALL = (
    "test_",
    "zepto",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "_n",
    "micro",
    "tiny",
    "_xs",
    "_t",
    "small",
)
SMALLER_FIRST = (*SMALL, "_s", "lite", "b0", "050", "18", "m0")

# Parameters of the first layers that come into play again, or only, further up: class tokens and position
# embeddings that are added after some layers, and CoaT's relative positions, shared by a stage's blocks.
USED_LATE = {
    "cait": ("cls_token",),
    "coat": ("crpe",),
    "convit": ("cls_token",),
    "volo": ("cls_token", "pos_embed"),
    "xcit": ("cls_token",),
}


def small_model(family: str) -> str:
    models = timm.list_models(module=family)
    for mark in SMALLER_FIRST:
        found = [name for name in models if mark in name]
        if found:
            return min(found, key=len)
    return models[0]


class FirstUse(TorchFunctionMode):
    """Records in which order parameters are first handed to a torch function."""

    # Reading attributes of a parameter is not using it.
    _LOOKS = ("__get__", "size", "dim", "numel", "is_floating_point")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.time: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in self._LOOKS:
            for leaf in tree_leaves((args, kwargs or {})):
                if id(leaf) in self.names:
                    self.time.setdefault(self.names[id(leaf)], len(self.time))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", timm.list_modules())
def test_layer_map(family):
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(small_model(family), num_classes=10).eval()
        size = model.pretrained_cfg.get("input_size", (3, 224, 224))
        with FirstUse(model) as use:
            model(torch.empty(1, *size))

    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = layer_map(model)
    listed = [name for layer in layers for name in layer.parameters]
    assert len(layers) > 2
    assert len({layer.name for layer in layers}) == len(layers)
    assert sorted(listed) == sorted(trainable), "every trainable parameter is in exactly one layer"
    assert all(trainable[name] is p for layer in layers for name, p in layer.parameters.items())

    times = [[use.time[name] for name in layer.parameters if name in use.time] for layer in layers]
    starts = [min(own) for own in times]
    assert starts == sorted(starts), "layers start in the order of their first use in forward"
    for layer, following in zip(layers, starts[1:], strict=False):
        late = [name for name in layer.parameters if use.time.get(name, -1) > following]
        assert all(name.startswith(USED_LATE.get(family, ())) for name in late), (
            "a layer ends before the next"
        )

    for switch in range(len(layers) - 1):
        assert resolve_switch(layers, layers[switch].name) == switch
        low = {id(p) for layer in layers[: switch + 1] for p in layer.parameters.values()}
        high = {id(p) for layer in layers[switch + 1 :] for p in layer.parameters.values()}
        assert low
        assert high
        assert low.isdisjoint(high)
        assert low | high == {id(p) for p in trainable.values()}
