"""The layer map: a model's layers in forward order, and the switch layer that parts them in two halves.

Numbers follow Kim & Moon (J. Inf. Process. Syst., 2025): EfficientNetV2 has Blocks 0-7, of which Block 0 is
the stem and Block 7 the last 1x1 convolution with the classifier; a ViT-B/16 has Encoders 0-11. What a vision
transformer does before its first encoder (patch and position embeddings, class token) belongs to the layer
of Encoder 0, so that ``switch_layer: 10`` means Encoders 0-10 and everything before them; its head, with the
final norm, is the layer after the last encoder.

timm models are divided as timm itself groups them for layer-wise learning rates; any other module, and timm
models without such groups, by the order in which their submodules are registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tune_fusion.errors import InputError
from tune_fusion.switch import switch_index

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A child with this part of all trainable elements is the model's trunk: its children are the layers.
_TRUNK_SHARE = 0.9

# How timm marks parameters that it counts with the group before them: final norms and last convolutions.
_WITH_PREVIOUS = (99999,)
# timm classes whose own groups are not in forward order, with groups that are, in timm's notation.
_IN_FORWARD_ORDER: Mapping[str, Mapping[str, str]] = {
    # Class-attention blocks run after all other blocks; timm counts them with the last of those.
    "Cait": {
        "stem": r"^(?:cls_token|pos_embed|patch_embed)",
        "blocks": r"^blocks\.(\d+)",
        "class_blocks": r"^blocks_token_only\.(\d+)",
    },
    # The hidden state of each of the three stages has a norm of its own; timm counts them with the head.
    "EfficientViM": {"stem": r"^patch_embed", "stages": r"^(?:stages|norm)\.([012])\."},
}

# Names of the parameters of one layer, in the order in which the model registers them.
_Part = list[str]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a model.

    Attributes:
        index: position in forward order, from 0.
        name: the module that holds the layer (``blocks.3``), or ``stem`` / ``head`` where it is several.
        parameters: the trainable parameters, by qualified name; never empty.
    """

    index: int
    name: str
    parameters: dict[str, nn.Parameter]

    @property
    def count(self) -> int:
        """Number of trainable elements."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def layer_map(model: nn.Module) -> tuple[Layer, ...]:
    """The model's layers in forward order; every trainable parameter is in exactly one.

    A parameter that several modules share belongs to the first of them. Frozen parameters are left out, and
    layers of which nothing is trainable with them: indices count the layers that can be trained. Parameters
    may be of any device, the meta device included, and any dtype.

    Raises InputError if nothing is trainable.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError(
            f"{type(model).__name__} has no trainable parameter, so it has no layers to optimise: "
            "set requires_grad on those that shall be trained"
        )
    parts = _timm_parts(model, trainable)
    if len(parts) < 2:
        parts = _module_parts(model, "", list(trainable), trainable)
    names = _names(parts, trainable)
    if len(parts) > 1 and _is_encoder(model, names[1]) and not _is_encoder(model, names[0]):
        # The stem of a transformer has no number of its own: Encoder 0 takes it in and keeps its name.
        parts, names = [parts[0] + parts[1], *parts[2:]], names[1:]
    return tuple(
        Layer(index, name, {key: trainable[key] for key in part})
        for index, (name, part) in enumerate(zip(names, parts, strict=True))
    )


def resolve_switch(layers: Sequence[Layer], switch: int | str) -> int | Literal["all"]:
    """The switch layer as an index into `layers`, or ``"all"``.

    As `tune_fusion.switch.switch_index`, for a layer map. Raises InputError.
    """
    return switch_index([layer.name for layer in layers], switch, place="switch_layer")


def _timm_parts(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> list[_Part]:
    """timm's coarse groups; empty where the model has none."""
    describe = getattr(model, "group_matcher", None)
    if not callable(describe):
        return []
    # Who holds a timm model has imported timm, so this import costs nothing.
    from timm.models import group_parameters

    classes = [cls.__name__ for cls in type(model).__mro__]
    corrected = [matcher for name, matcher in _IN_FORWARD_ORDER.items() if name in classes]
    try:
        matcher = corrected[0] if corrected else _without_tail(describe(coarse=True))
    except (AssertionError, NotImplementedError):  # timm's ways to say "no coarse groups"
        return []
    groups = group_parameters(model, matcher)
    parts = [[name for name in groups[number] if name in trainable] for number in sorted(groups)]
    return [part for part in parts if part]


def _without_tail(matcher: Any) -> Any:
    """`matcher` without the rules that count a trailing norm or convolution with the last block.

    What no rule matches goes to the head. That is where these parameters run, and for EfficientNetV2's last
    1x1 convolution it is where the paper puts it (Block 7).
    """
    if not isinstance(matcher, dict):
        return matcher
    last = list(matcher)[-1]
    rules = matcher[last]
    if not isinstance(rules, list):
        return matcher
    return {**matcher, last: [rule for rule in rules if rule[1] != _WITH_PREVIOUS]}


def _module_parts(
    module: nn.Module,
    prefix: str,
    names: list[str],
    trainable: Mapping[str, nn.Parameter],
    *,
    inside: bool = False,
) -> list[_Part]:
    """The children of `module` as layers, in the order of registration.

    A plain container among them is opened once, so that its members are layers; a child that holds nearly the
    whole model is opened whatever it is. Norms count with the layer before them, and parameters that are the
    module's own with its first layer.

    Args:
        module: where to look.
        prefix: qualified name of `module` with a final dot, or empty.
        names: the trainable parameters below `module`.
        trainable: those of the whole model.
        inside: whether `module` is a container that has been opened.
    """
    total = sum(p.numel() for p in trainable.values())
    parts: list[_Part] = []
    for child_name, child in module.named_children():
        start = f"{prefix}{child_name}."
        own = [name for name in names if name.startswith(start)]
        if not own:
            continue
        is_trunk = sum(trainable[name].numel() for name in own) >= _TRUNK_SHARE * total
        if is_trunk or (type(child) in _CONTAINERS and not inside):
            opened = _module_parts(child, start, own, trainable, inside=type(child) in _CONTAINERS)
        else:
            opened = [own]
        for part in opened:
            if parts and _is_norm(module, prefix, part):
                parts[-1] += part
            else:
                parts.append(part)
    direct = [name for name in names if "." not in name[len(prefix) :]]
    if direct:
        parts[:1] = [direct + (parts[0] if parts else [])]
    return parts


def _is_norm(module: nn.Module, prefix: str, part: _Part) -> bool:
    """Whether `part`, whose names start with the `prefix` of `module`, belongs to normalisation only."""
    owners = (module.get_submodule(name[len(prefix) :].rpartition(".")[0]) for name in part)
    return all("norm" in type(owner).__name__.lower() for owner in owners)


def _is_encoder(model: nn.Module, name: str) -> bool:
    """Whether the layer called `name` is one transformer encoder: it has attention right below it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:  # named after a parameter, or after several modules
        return False
    return any("attn" in child or "attention" in child for child, _ in module.named_children())


def _names(parts: Sequence[_Part], trainable: Mapping[str, nn.Parameter]) -> list[str]:
    """A name for each layer, all different.

    It is the shortest module name under which all parameters of the layer lie and none of another; else
    ``stem`` for the first layer and ``head`` for the last; else that of the layer's largest module.
    """
    owner = {prefix: index for index, part in enumerate(parts) for name in part for prefix in _prefixes(name)}
    shared = {p for index, part in enumerate(parts) for n in part for p in _prefixes(n) if owner[p] != index}
    names: list[str] = []
    for index, part in enumerate(parts):
        sizes: dict[str, int] = {}
        for name in part:
            module = next(prefix for prefix in _prefixes(name) if prefix not in shared)
            sizes[module] = sizes.get(module, 0) + trainable[name].numel()
        end = {0: "stem", len(parts) - 1: "head"}.get(index)
        if len(sizes) > 1 and end is not None and owner.get(end, index) == index and end not in shared:
            names.append(end)
        else:
            names.append(max(sizes, key=sizes.__getitem__))
    return names


def _prefixes(name: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    pieces = name.split(".")
    return [".".join(pieces[: n + 1]) for n in range(len(pieces))]
