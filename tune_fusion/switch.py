"""The switch layer of a model, given as an index, by name or as ``all``: one rule for everyone who asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tune_fusion.errors import InputError, suggest


def switch_index(layers: Sequence[str], switch: object, *, place: str = "") -> int | Literal["all"]:
    """The switch layer as an index, or ``"all"``.

    Args:
        layers: the names of the model's layers in forward order.
        switch: index, layer name or ``"all"``. Layers 0..switch are low-level, so the last layer cannot be
            one: nothing would be left for the high optimizer.
        place: where `switch` was said, which messages then start with.

    Raises InputError if there is no such layer, or nothing above it.
    """
    if switch == "all":
        return "all"
    start = f"{place}: " if place else ""
    last = len(layers) - 2
    if last < 0:
        raise InputError(
            f"{start}the model has a single layer and cannot be split; the only switch layer is 'all'"
        )
    if isinstance(switch, str) and switch not in layers:
        known = suggest(switch, [*layers[:-1], "all"])
        raise InputError(f"{start}the model has no layer {switch!r}; {known}")
    index = layers.index(switch) if isinstance(switch, str) else switch
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= last:
        raise InputError(
            f"{start}switch layer {switch!r:.80} must lie in 0..{last} ({layers[0]} to {layers[last]}) or be "
            f"'all': the model has {len(layers)} layers, and the high optimizer needs one of them"
        )
    return index
