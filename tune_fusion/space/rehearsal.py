"""A search space made small: the whole path of a search in a minute, before paying for the real one."""

from __future__ import annotations

import dataclasses
from typing import Any

from tune_fusion.space.configuration import ALL
from tune_fusion.space.document import Document
from tune_fusion.space.domain import Choice, Constant, Domain, IntRange, extremes, written
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.settings import DataSettings, ModelSettings, ResourceSettings

_TRIALS = 6
_TRAINING: dict[str, Any] = {"epochs": 2, "precision": "float32", "compile": False}
_GRACE_EPOCHS = 1


def rehearse(space: SearchSpace, model_name: str, n_layers: int) -> SearchSpace:
    """The same space for a stand-in model on a few digits: 6 trials of 2 epochs on one CPU, in float32.

    Optimizers, ranges, sampler and scheduler stay as they are, and so does how trials are packed. Switch
    layers are mapped onto the stand-in's `n_layers` layers (at least 2): one index becomes that index, or the
    last possible one; anything else the whole range.
    """
    model = ModelSettings(name=model_name)
    data = DataSettings(name="digits", validation=0.2, limit=400)
    resources = ResourceSettings(cpu=1, gpu=0.0, pack=space.resources.pack)
    switch = space.switch_layer if space.single else _mapped_switch(space.switch_layer, last=n_layers - 2)
    document = Document.parse(space.text, space.places.label)
    document.assign(
        {
            "model": model.model_dump(exclude_defaults=True),
            "data": data.model_dump(exclude_defaults=True),
            **{f"training.{key}": value for key, value in _TRAINING.items()},
            "space.switch_layer": written(switch),
            "search.trials": _TRIALS,
            "asha.grace_epochs": _GRACE_EPOCHS,
            "resources": resources.model_dump(),
        }
    )
    return dataclasses.replace(
        space,
        model=model,
        data=data,
        resources=resources,
        training={**space.training, **{key: Constant(value) for key, value in _TRAINING.items()}},
        search=space.search.model_copy(update={"trials": _TRIALS}),
        asha=space.asha.model_copy(update={"grace_epochs": _GRACE_EPOCHS}),
        switch_layer=switch,
        text=document.text,
    )


def _mapped_switch(domain: Domain, last: int) -> Domain:
    if isinstance(domain, Constant) and isinstance(domain.value, int):
        return Constant(min(domain.value, last))
    if ALL in extremes(domain):
        return Choice((*range(last + 1), ALL))
    return IntRange(0, last) if last > 0 else Constant(0)
