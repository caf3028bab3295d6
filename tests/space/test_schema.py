import pytest

from tune_fusion.errors import InputError
from tune_fusion.space.domain import Choice, Constant, IntRange

LAYERS = ["stem", "blocks.0", "blocks.1", "head"]


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("{int: [0, 2]}", IntRange(0, 2)),
        ("1", Constant(1)),
        ("blocks.1", Constant(2)),
        ("[stem, 2]", Choice((0, 2))),
        ("[2, stem, all]", Choice((2, 0, "all"))),
        ("{choice: [blocks.0, all]}", Choice((1, "all"))),
        ("[blocks.0]", Constant(1)),
    ],
)
def test_layers_become_indices(parse, written, resolved):
    assert parse(f"space.switch_layer={written}").with_switch(LAYERS).switch_layer == resolved


@pytest.mark.parametrize(
    ("written", "layers", "message"),
    [
        (
            "{int: [0, 3]}",
            LAYERS,
            "switch layer 3 must lie in 0..2 (stem to blocks.1) or be 'all': the model has 4 layers, and",
        ),
        ("7", LAYERS, "switch layer 7 must lie in 0..2"),
        ("head", LAYERS, "switch layer 'head' must lie in 0..2"),
        ("blocks.2", LAYERS, "the model has no layer 'blocks.2'; did you mean 'blocks.1'?"),
        ("[0, stem]", LAYERS, "layer 0 is given twice in [0, 'stem']"),
        ("0", ["all_of_it"], "the model has a single layer and cannot be split"),
    ],
)
def test_impossible_switch_layers_are_named_with_their_place(parse, written, layers, message):
    space = parse(f"space.switch_layer={written}")
    with pytest.raises(InputError) as caught:
        space.with_switch(layers)
    assert str(caught.value).startswith(f"--set space.switch_layer: {message}")


def test_switch_layers_of_the_file_are_named_with_its_line(parse):
    with pytest.raises(InputError, match=r"^test\.yaml:7: space\.switch_layer: switch layer 6 must lie"):
        parse().with_switch(LAYERS)


@pytest.mark.parametrize(
    ("overrides", "path", "place"),
    [
        ([], "model.name", "test.yaml:2: model.name"),
        ([], "data.root", "test.yaml:3: data.root"),
        ([], "asha.grace_epochs", "test.yaml: asha.grace_epochs"),
        ([], "space.high[1]", "test.yaml:9: space.high[1]"),
        (["model.name=vgg"], "model.name", "--set model.name"),
        (["model={name: vgg}"], "model.name", "--set model: model.name"),
        (["data.root=x"], "data.name", "test.yaml:3: data.name"),
        (["asha.grace_epochs=2"], "asha", "--set asha.grace_epochs"),
        (["space.low=[sgd, adam]"], "space.low[1]", "--set space.low: space.low[1]"),
    ],
)
def test_places(parse, overrides, path, place):
    assert parse(*overrides).place(path) == place


def test_loss_is_minimised(parse):
    assert parse("search.metric=val_loss").direction == "min"
