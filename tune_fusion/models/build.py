"""Models by name: every classifier of timm and the papers' own networks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tune_fusion import vision
from tune_fusion.errors import InputError, suggest
from tune_fusion.models import weights as trained
from tune_fusion.models.zoo import ZOO

# What timm's models raise when an argument or an image size does not suit them.
_REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, LookupError)


@dataclass(frozen=True)
class ModelFacts:
    """What a model expects of its images.

    Attributes:
        input_size: side of the square images it was made for, in pixels.
        fixed_input: whether a model of another size has other parameters (or does not exist).
        mean: subtracted from pixels in [0, 1], one value a channel of the original images.
        std: divides the result.
        family: timm's module (``efficientnet``, ``vision_transformer``), or ``zoo``.
    """

    input_size: int
    fixed_input: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    family: str


def build_model(
    name: str,
    num_classes: int = 10,
    pretrained: bool = False,
    weights: str | None = None,
    in_channels: int = 3,
    image_size: int | None = None,
) -> nn.Module:
    """A classifier: (N, in_channels, H, W) images of float32 to (N, num_classes) logits, on the CPU.

    Args:
        name: one of `tune_fusion.models.zoo.ZOO`, or a timm name with or without its tag.
        num_classes: outputs, at least 1.
        pretrained: start from timm's trained weights. Those in the hub's cache are taken without network.
        weights: start from this file instead (.safetensors, .pth), or from ``package:NAME``, the weight file
            in an installed package. A head for another number of classes is made anew, the first convolution
            is adapted to another number of channels, and nothing else may differ.
        in_channels: channels of the images, at least 1.
        image_size: side of the images in pixels; None: the model's own input size.

    Raises InputError for an unknown name, weights that are missing, out of reach or do not fit, and an image
    size or a number of channels that the model cannot take.
    """
    _check_arguments(name, num_classes, in_channels, image_size)
    if name in ZOO:
        trained.check_weights(name, pretrained=pretrained, weights=weights)
        model = ZOO[name].make(num_classes, in_channels)
        if weights is not None:
            trained.load_zoo(model, weights)
        return model
    if weights is not None:
        return _with_weights(name, num_classes, weights, in_channels, image_size)
    if pretrained:
        return _pretrained(name, num_classes, in_channels, image_size)
    return _create(name, num_classes, in_channels, image_size)


def build_on_meta(
    name: str, num_classes: int = 10, in_channels: int = 3, image_size: int | None = None
) -> nn.Module:
    """The same model on the meta device: its layers and shapes, without memory or weights.

    Raises InputError as `build_model` does, but knows nothing of weights.
    """
    with torch.device("meta"):
        return build_model(name, num_classes, in_channels=in_channels, image_size=image_size)


def model_facts(name: str) -> ModelFacts:
    """What the model called `name` expects of its images; builds nothing. InputError for an unknown name."""
    _check_name(name)
    if name in ZOO:
        network = ZOO[name]
        zeros, ones = (0.0,) * network.in_channels, (1.0,) * network.in_channels
        return ModelFacts(network.input_size, network.fixed_input, zeros, ones, "zoo")
    config = vision.timm.models.get_pretrained_cfg(name)
    if config is None:  # a model registered without any configuration: timm's own defaults
        config = vision.timm.models.PretrainedCfg()
    return ModelFacts(
        input_size=config.input_size[-1],
        fixed_input=config.fixed_input_size,
        mean=tuple(config.mean),
        std=tuple(config.std),
        family=vision.timm.models.model_entrypoint(name).__module__.rpartition(".")[2],
    )


_CONVOLUTIONAL = "test_efficientnet"
_TRANSFORMER = "test_vit"
# timm's test model for each family; a family not named here is convolutional and has none of its own.
_STAND_INS = {
    "beit": _TRANSFORMER,
    "byoanet": "test_byobnet",
    "byobnet": "test_byobnet",
    "cait": _TRANSFORMER,
    "coat": _TRANSFORMER,
    "convit": _TRANSFORMER,
    "convnext": "test_convnext",
    "crossvit": _TRANSFORMER,
    "davit": _TRANSFORMER,
    "deepseek_vit": _TRANSFORMER,
    "deit": _TRANSFORMER,
    "efficientformer": _TRANSFORMER,
    "eva": _TRANSFORMER,
    "gcvit": _TRANSFORMER,
    "gemma4_vit": _TRANSFORMER,
    "hiera": _TRANSFORMER,
    "hieradet_sam2": _TRANSFORMER,
    "inception_next": "test_convnext",
    "levit": _TRANSFORMER,
    "mambaout": "test_mambaout",
    "maxxvit": "test_maxvit",
    "mvitv2": _TRANSFORMER,
    "naflexvit": _TRANSFORMER,
    "nest": _TRANSFORMER,
    "nfnet": "test_nfnet",
    "pit": _TRANSFORMER,
    "pvt_v2": _TRANSFORMER,
    "qwen3_vit": _TRANSFORMER,
    "res2net": "test_resnet",
    "resnest": "test_resnet",
    "resnet": "test_resnet",
    "resnetv2": "test_resnet",
    "senet": "test_resnet",
    "sknet": "test_resnet",
    "swin_transformer": _TRANSFORMER,
    "swin_transformer_v2": _TRANSFORMER,
    "swin_transformer_v2_cr": _TRANSFORMER,
    "tiny_vit": _TRANSFORMER,
    "tnt": _TRANSFORMER,
    "tresnet": "test_resnet",
    "twins": _TRANSFORMER,
    "visformer": _TRANSFORMER,
    "vision_transformer": _TRANSFORMER,
    "vision_transformer_hybrid": _TRANSFORMER,
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": _TRANSFORMER,
    "vitamin": _TRANSFORMER,
    "volo": _TRANSFORMER,
    "xcit": _TRANSFORMER,
}


def rehearsal_model(name: str) -> str:
    """The name of a small model of the same family as `name`, on which a search can be rehearsed.

    The papers' networks are small enough to stand in for themselves, but for ``resnet18_bias``. InputError
    for an unknown name.
    """
    family = model_facts(name).family
    if family == "zoo":
        return "test_resnet" if name == "resnet18_bias" else name
    return _STAND_INS.get(family, _CONVOLUTIONAL)


# ---------------------------------------------------------------------------------------------------- checks


def _check_arguments(name: str, num_classes: int, in_channels: int, image_size: int | None) -> None:
    _check_name(name)
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if in_channels < 1:
        raise InputError(f"in_channels must be at least 1, got {in_channels}")
    if image_size is not None and image_size != model_facts(name).input_size:
        _check_size(name, in_channels, image_size)


def _check_name(name: str) -> None:
    if name in ZOO:
        return
    architecture, _, tag = name.partition(".")
    if not vision.timm.is_model(architecture):
        names = [*ZOO, *vision.timm.list_models()]
        hint = suggest(name, [*names, *vision.timm.list_models(pretrained=True)] if tag else names)
        if hint.startswith("known:"):  # more than a thousand names
            hint = f"known: {', '.join(ZOO)}, and the {len(names) - len(ZOO)} of timm.list_models()"
        raise InputError(f"there is no model {name!r}; {hint}")
    tags = [known.partition(".")[2] for known in vision.timm.models.get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        if not tags:
            raise InputError(f"{architecture!r} has no trained weights, so it has no tag {tag!r}")
        raise InputError(f"{architecture!r} has no trained weights tagged {tag!r}; {suggest(tag, tags)}")


@functools.lru_cache(maxsize=64)
def _check_size(name: str, in_channels: int, image_size: int) -> None:
    """Run the model on the meta device, where it costs neither memory nor arithmetic, at `image_size`."""
    facts = model_facts(name)
    if name in ZOO:
        if facts.fixed_input:
            raise InputError(
                f"data.image_size: {name} takes images of {facts.input_size} pixels only, got {image_size}"
            )
        return
    with torch.device("meta"), torch.no_grad():
        model = _create(name, 2, in_channels, image_size).eval()
        try:
            model(torch.empty(1, in_channels, image_size, image_size))
        except _REFUSALS as error:
            raise InputError(_unfit(name, image_size, error)) from error


def _unfit(name: str, image_size: int, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    own = model_facts(name).input_size
    return (
        f"data.image_size: {name} cannot take images of {image_size} pixels ({reason}); its own size is {own}"
    )


# ---------------------------------------------------------------------------------------------- timm's models


def _create(name: str, num_classes: int, in_channels: int, image_size: int | None, **more: Any) -> nn.Module:
    facts = model_facts(name)
    resized = image_size is not None and image_size != facts.input_size
    if resized and facts.fixed_input:
        more["img_size"] = image_size
    try:
        model: nn.Module = vision.timm.create_model(
            name, num_classes=num_classes, in_chans=in_channels, **more
        )
    except _REFUSALS as error:
        if more.get("pretrained"):
            raise  # the caller knows which weights did not fit
        if resized and facts.fixed_input:
            raise InputError(_unfit(name, image_size or 0, error)) from error
        raise InputError(
            f"{name} cannot be built with {in_channels} image channels and {num_classes} classes: {error}"
        ) from error
    return model


def _with_weights(
    name: str, num_classes: int, weights: str, in_channels: int, image_size: int | None
) -> nn.Module:
    """Built with as many classes as the weights have, so that timm demands every tensor; then a new head."""
    overlay = trained.timm_overlay(name, weights)
    classes = overlay["num_classes"]
    source = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        model: Any = _create(name, classes, in_channels, image_size, **source)
    except _REFUSALS as error:
        raise trained.misfit(trained.weight_file(weights), name, error) from error
    model.pretrained_cfg.pop("state_dict")  # else the model keeps a second copy of its weights
    if num_classes != classes:
        model.reset_classifier(num_classes)
    built: nn.Module = model
    return built


def _pretrained(name: str, num_classes: int, in_channels: int, image_size: int | None) -> nn.Module:
    source = {"pretrained": True, "pretrained_cfg_overlay": trained.hub_overlay(name)}
    try:
        return _create(name, num_classes, in_channels, image_size, **source)
    except OSError as error:  # the hub's errors are among them
        raise trained.fetch_error(name, "the network", str(error)) from error
    except _REFUSALS as error:
        raise trained.misfit(None, name, error) from error
