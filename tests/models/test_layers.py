import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tune_fusion.errors import InputError
from tune_fusion.models.build import build_on_meta
from tune_fusion.models.layers import layer_map, resolve_switch
from tune_fusion.vision import torchvision


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in layer_map(model)]


def modules_of(model: nn.Module, index: int) -> set[str]:
    """The first two words of the parameters' names in one layer."""
    return {".".join(name.split(".")[:2]) for name in layer_map(model)[index].parameters}


def test_efficientnet_v2_has_the_papers_blocks_0_to_7():
    model = build_on_meta("tf_efficientnetv2_s")
    assert names(model) == ["stem", *(f"blocks.{n}" for n in range(6)), "head"]
    assert modules_of(model, 0) == {"conv_stem.weight", "bn1.weight", "bn1.bias"}
    assert modules_of(model, 6) == {"blocks.5"}
    # "Block 7 integrates the extracted features using a 1x1 convolution and progresses to classification"
    block_7 = {"conv_head.weight", "bn2.weight", "bn2.bias", "classifier.weight", "classifier.bias"}
    assert modules_of(model, 7) == block_7


def test_vit_has_the_papers_encoders_0_to_11_by_index_and_by_name():
    layers = layer_map(build_on_meta("vit_base_patch16_224"))
    assert [layer.name for layer in layers] == [*(f"blocks.{n}" for n in range(12)), "head"]
    for number in range(12):
        own = [name for name in layers[number].parameters if name.startswith("blocks.")]
        assert own
        assert all(name.startswith(f"blocks.{number}.") for name in own)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < set(layers[0].parameters)
    assert list(layers[12].parameters) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert resolve_switch(layers, 10) == resolve_switch(layers, "blocks.10") == 10


def test_a_layer_counts_its_elements():
    model = build_on_meta("test_resnet")
    assert sum(layer.count for layer in layer_map(model)) == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_and_layers_are_left_out():
    model = build_on_meta("test_resnet")
    before = names(model)
    for name, parameter in model.named_parameters():
        if name.startswith(("conv1", "bn1", "layer2")):
            parameter.requires_grad = False
    layers = layer_map(model)
    assert [layer.name for layer in layers] == [name for name in before if name not in ("stem", "layer2")]
    assert [layer.index for layer in layers] == list(range(len(before) - 2))


def test_a_vit_with_frozen_stem_keeps_its_encoders_apart():
    model = build_on_meta("test_vit")
    count = len(layer_map(model))
    for name, parameter in model.named_parameters():
        if not name.startswith(("blocks", "norm", "head")):
            parameter.requires_grad = False
    assert len(layer_map(model)) == count


def test_nothing_trainable_is_refused():
    with pytest.raises(InputError, match="Linear has no trainable parameter"):
        layer_map(nn.Linear(2, 2).requires_grad_(False))


def test_a_single_module_is_a_single_layer():
    (layer,) = layer_map(nn.Linear(2, 3))
    assert (layer.index, set(layer.parameters), layer.count) == (0, {"weight", "bias"}, 9)


def test_norms_count_with_the_layer_before_them():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert [list(layer.parameters) for layer in layer_map(model)] == [
        ["0.weight", "0.bias", "1.weight", "1.bias"],
        ["4.weight", "4.bias"],
    ]


def test_containers_are_opened_once_and_named_by_their_members():
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(block(), block())
            self.top = nn.Linear(64, 10)

    assert names(Net()) == ["body.0", "body.1", "top"]


def test_a_child_that_holds_nearly_everything_is_opened():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.inner = torchvision.models.resnet18()

    assert names(Wrapped()) == [
        "stem",
        *(f"inner.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
        "inner.fc",
    ]


def test_tied_parameters_belong_to_their_first_module_only():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.third = self.first

    layers = layer_map(Tied())
    assert [list(layer.parameters) for layer in layers] == [["first.weight", "first.bias"], ["second.bias"]]


def test_torchvision_models_are_numbered_as_in_the_papers_too():
    with torch.device("meta"):
        efficientnet = torchvision.models.efficientnet_v2_s()
        vit = torchvision.models.vit_b_16()
    assert names(efficientnet) == [*(f"features.{n}" for n in range(8)), "classifier"]
    assert names(vit) == [*(f"encoder.layers.encoder_layer_{n}" for n in range(12)), "heads"]
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} < set(layer_map(vit)[0].parameters)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """A random module: leaves are linear layers and norms, branches containers or modules with parameters."""
    kind = draw(st.sampled_from(["linear", "norm", "sequential", "list", "module"] if depth else ["linear"]))
    if kind == "linear":
        return nn.Linear(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    if kind == "norm":
        return nn.LayerNorm(draw(st.integers(1, 9)))
    children = draw(st.lists(trees(depth=depth - 1), min_size=1, max_size=4))
    if kind == "sequential":
        return nn.Sequential(*children)
    if kind == "list":
        return nn.ModuleList(children)
    module = nn.Module()
    module.own = nn.Parameter(torch.zeros(draw(st.integers(1, 9))))
    for number, child in enumerate(children):
        module.add_module(f"child{number}", child)
    return module


@given(trees())
def test_any_module_tree_is_partitioned_in_order_with_unique_names(model):
    layers = layer_map(model)
    listed = [name for layer in layers for name in layer.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert all(layer.parameters for layer in layers)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert len({layer.name for layer in layers}) == len(layers)
    by_name = dict(model.named_parameters())
    assert all(by_name[name] is p for layer in layers for name, p in layer.parameters.items())
    # Registration order, but that a module's own parameters come with its first layer.
    order = {name: position for position, name in enumerate(by_name)}
    last = [max(order[name] for name in layer.parameters) for layer in layers]
    assert last == sorted(last)


@pytest.mark.parametrize(("switch", "expected"), [(0, 0), (4, 4), ("stem", 0), ("layer4", 4), ("all", "all")])
def test_switches_resolve(switch, expected):
    assert resolve_switch(layer_map(build_on_meta("test_resnet")), switch) == expected


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        (
            5,
            r"^switch_layer: switch layer 5 must lie in 0\.\.4 \(stem to layer4\) or be 'all': the model has",
        ),
        (
            "middle",
            r"^switch_layer: the model has no layer 'middle'; known: stem, layer1, layer2, layer3, .*, all$",
        ),
    ],
)
def test_impossible_switches_are_refused(switch, message):
    with pytest.raises(InputError, match=message):
        resolve_switch(layer_map(build_on_meta("test_resnet")), switch)


def test_a_model_of_one_layer_has_no_switch():
    layers = layer_map(nn.Linear(2, 2))
    assert resolve_switch(layers, "all") == "all"
    with pytest.raises(InputError, match="single layer and cannot be split; the only switch layer is 'all'"):
        resolve_switch(layers, 0)
