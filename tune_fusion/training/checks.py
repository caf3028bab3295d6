"""A space file held against its model and its data, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from tune_fusion.data import datasets
from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.data.datasets import DataFacts, describe_data
from tune_fusion.errors import InputError
from tune_fusion.models.build import build_on_meta, rehearsal_model
from tune_fusion.models.layers import Layer, layer_map
from tune_fusion.models.weights import check_weights
from tune_fusion.optim import registry
from tune_fusion.optim.hn_adam_backends import load_ahead
from tune_fusion.space.loading import load_space, resolve_space
from tune_fusion.space.rehearsal import rehearse
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.training.workbench import Workbench

_KEY = re.compile(r"((?:model|data|space|training|search|resources)\.\w+)\b(?:: )?")
_HN_ADAM = {"hn_adam", "hn_adam_root"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Checked:
    """A space that fits its model and its data."""

    space: SearchSpace
    vocabulary: Vocabulary
    layers: tuple[Layer, ...]
    """On the meta device: names and shapes, no weights."""
    data: DataFacts

    @property
    def layer_names(self) -> list[str]:
        """The model's layers in forward order."""
        return [layer.name for layer in self.layers]


def check_space(name_or_path: str, overrides: tuple[str, ...] = (), *, stand_in: bool = False) -> Checked:
    """Load and validate a space file, and hold it against its model's layers and what is known of its data.

    `stand_in` replaces model and data by the small ones of a rehearsal. Raises InputError with the place in
    the file, the rule and the value.
    """
    vocabulary = Vocabulary(optimizers=registry.OPTIMIZERS, data_sets=DATA_SETS)
    space = load_space(resolve_space(name_or_path), vocabulary, overrides)
    if stand_in:
        small = _located(space, "model.name", lambda: rehearsal_model(space.model.name))
        space = rehearse(space, small, len(layer_map(build_on_meta(small))))
    data = _located(space, "data.name", lambda: describe_data(space.data))
    layers = _located(space, "model.name", lambda: _layers(space, data))
    return Checked(space.with_switch([layer.name for layer in layers]), vocabulary, layers, data)


def check_provided(checked: Checked) -> None:
    """Raise InputError where the data or the trained weights are neither on this machine nor in reach."""
    space, model = checked.space, checked.space.model
    _located(space, "data.name", lambda: datasets.check_provided(space.data))
    _located(
        space,
        _weights_key(space),
        lambda: check_weights(model.name, pretrained=model.pretrained, weights=model.weights),
    )


def prove(checked: Checked, device: torch.device) -> Workbench:
    """A workbench whose images have all been read and whose model has been built, weights included.

    Downloads what has to be downloaded. Raises InputError for what cannot be read or fetched. The workers do
    the same again on their own nodes.
    """
    check_provided(checked)
    space = checked.space
    # A driver whose trials have GPUs has none itself: its workers compile for theirs.
    trains = device.type == "cuda" or space.resources.gpu == 0
    if trains and _HN_ADAM & {*space.low, *space.high, *space.controls}:
        load_ahead(device)
    bench = Workbench(space.model, space.data, space.search.seed, device)
    _located(space, "data.name", lambda: bench.data)
    _located(space, _weights_key(space), lambda: bench.model)
    return bench


def _weights_key(space: SearchSpace) -> str:
    return "model.weights" if space.model.weights else "model.pretrained"


def _layers(space: SearchSpace, data: DataFacts) -> tuple[Layer, ...]:
    model = build_on_meta(
        space.model.name,
        num_classes=len(data.classes),
        in_channels=data.channels,
        image_size=space.data.image_size,
    )
    return layer_map(model)


def _located(space: SearchSpace, path: str, check: Callable[[], _T]) -> _T:
    """Run `check`; an InputError of a module that does not know the file is given the place in it.

    The place is that of the key the message itself starts with, else of `path`.
    """
    try:
        return check()
    except InputError as error:
        message = str(error)
        if named := _KEY.match(message):
            path, message = named[1], message.removeprefix(f"{named[1]}: ")
        raise InputError(f"{space.place(path)}: {message}") from error
