import dataclasses

import pytest

from tune_fusion.space.domain import Choice, Constant, IntRange
from tune_fusion.space.rehearsal import rehearse


def test_a_rehearsal_is_small_and_keeps_the_question(parse):
    space = parse(
        "model.pretrained=true",
        "data={name: cifar10, root: x, augment: flip, validation: 10000}",
        "training.precision=bfloat16",
        "training.epochs={int: [10, 30]}",
        "training.compile=true",
        "resources={cpu: 8, gpu: 1, pack: auto}",
        "asha={grace_epochs: 5, reduction_factor: 4}",
        "search.metric=val_loss",
    )
    small = rehearse(space, "test_vit", 5)
    assert small.model.name == "test_vit"
    assert not small.model.pretrained
    assert (small.data.name, small.data.image_size, small.data.root) == ("digits", None, None)
    assert small.training["epochs"] == Constant(2)
    assert small.training["precision"] == Constant("float32")
    assert small.training["compile"] == Constant(False)
    assert (small.resources.cpu, small.resources.gpu, small.resources.pack) == (1, 0.0, "auto")
    assert (small.asha.grace_epochs, small.asha.reduction_factor) == (1, 4)
    assert small.search.trials == 6
    for kept in ("low", "high", "controls", "optimizers", "name", "direction"):
        assert getattr(small, kept) == getattr(space, kept)
    assert space.search.metric == small.search.metric == "val_loss"
    assert small.place("resources.cpu") == space.place("resources.cpu")


@pytest.mark.parametrize(
    ("written", "layers", "mapped"),
    [
        ("{int: [0, 6]}", 5, IntRange(0, 3)),
        ("[1, 5]", 5, IntRange(0, 3)),
        ("[blocks.3, blocks.5]", 5, IntRange(0, 3)),
        ("blocks.3", 5, IntRange(0, 3)),
        ("[blocks.3, all]", 4, Choice((0, 1, 2, "all"))),
        ("2", 5, Constant(2)),
        ("6", 5, Constant(3)),
        ("{int: [0, 6]}", 2, Constant(0)),
    ],
)
def test_switch_layers_are_mapped_onto_the_stand_in(parse, written, layers, mapped):
    small = rehearse(parse(f"space.switch_layer={written}"), "test_vit", layers)
    assert small.switch_layer == mapped
    assert small.with_switch([f"layer{index}" for index in range(layers)]) == small


def test_a_space_without_a_switch_stays_one(parse):
    assert rehearse(parse("space.switch_layer=all", "space.high=null"), "test_vit", 5).single


@pytest.mark.parametrize(
    "overrides", [(), ("space.switch_layer=[0, all]",), ("space.switch_layer=all", "space.high=null")]
)
def test_its_text_says_what_it_is(parse, overrides):
    small = rehearse(parse(*overrides), "test_vit", 5)
    read = dataclasses.replace(parse(text=small.to_yaml()), places=small.places)
    assert read == small
