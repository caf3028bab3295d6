import re

import pytest

from tune_fusion.errors import InputError
from tune_fusion.switch import switch_index

LAYERS = ["stem", "blocks.0", "blocks.1", "head"]


@pytest.mark.parametrize(("switch", "index"), [(0, 0), (2, 2), ("stem", 0), ("blocks.1", 2), ("all", "all")])
def test_indices_names_and_all(switch, index):
    assert switch_index(LAYERS, switch) == index


@pytest.mark.parametrize("switch", [3, -1, "head", True, False, 1.0, None, [1]])
def test_what_leaves_no_layer_or_is_none(switch):
    with pytest.raises(InputError) as caught:
        switch_index(LAYERS, switch)
    assert str(caught.value) == (
        f"switch layer {switch!r} must lie in 0..2 (stem to blocks.1) or be 'all': the model has 4 layers, "
        "and the high optimizer needs one of them"
    )


@pytest.mark.parametrize(
    ("switch", "hint"),
    [
        ("block.1", "did you mean 'blocks.1'?"),
        # The last layer is a layer, but no switch layer.
        ("middle", "known: stem, blocks.0, blocks.1, all"),
    ],
)
def test_unknown_layers(switch, hint):
    with pytest.raises(InputError, match=re.escape(f"the model has no layer {switch!r}; {hint}") + "$"):
        switch_index(LAYERS, switch)


def test_a_single_layer_is_never_split():
    assert switch_index(["whole"], "all") == "all"
    for switch in (0, "whole", "other"):
        with pytest.raises(InputError, match="the model has a single layer and cannot be split; the only"):
            switch_index(["whole"], switch)


@pytest.mark.parametrize(("layers", "switch"), [(LAYERS, 9), (LAYERS, "other"), (["whole"], 0)])
def test_messages_start_with_the_place(layers, switch):
    with pytest.raises(InputError) as plain:
        switch_index(layers, switch)
    with pytest.raises(InputError) as placed:
        switch_index(layers, switch, place="space.yaml:3: switch_layer")
    assert str(placed.value) == f"space.yaml:3: switch_layer: {plain.value}"
