"""A search space: the typed, validated content of a space file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import ALL, Value
from tune_fusion.space.document import Document, Places
from tune_fusion.space.domain import Choice, Constant, Domain, IntRange, extremes, largest, shown
from tune_fusion.space.settings import (
    METRICS,
    AshaSettings,
    DataSettings,
    ModelSettings,
    ResourceSettings,
    SearchSettings,
)
from tune_fusion.switch import switch_index


@dataclass(frozen=True)
class SearchSpace:
    """What a search may try, and how: plain data that pickles.

    `low`, `high` and `controls` name optimizers; `high` is empty where one optimizer trains every layer.
    """

    name: str
    """The file's name without its ending."""
    source: str
    """The path the space was read from."""
    description: str
    """The file's first comment line."""
    model: ModelSettings
    data: DataSettings
    search: SearchSettings
    asha: AshaSettings
    resources: ResourceSettings
    training: Mapping[str, Domain]
    """A domain for every field of TrainingSettings."""
    switch_layer: Domain
    """Layer indices and "all"; as read from a file also layer names, until `with_switch` resolves them."""
    low: tuple[str, ...]
    high: tuple[str, ...]
    controls: tuple[str, ...]
    optimizers: Mapping[str, Mapping[str, Domain]]
    """The domains of every optimizer that a list names: the file's, else the registry's ranges."""
    defaults: Mapping[str, Mapping[str, Value]]
    """For the same optimizers: the value of each hyperparameter where nothing is said."""
    text: str = dataclasses.field(repr=False)
    """The file as run: overrides applied, comments kept."""
    places: Places = dataclasses.field(repr=False)

    @property
    def direction(self) -> Literal["max", "min"]:
        """Whether the search's metric is to grow or to shrink."""
        return METRICS[self.search.metric]

    @property
    def rung_metric(self) -> str:
        """What rungs compare trials by."""
        return self.search.metric if self.asha.compare == "metric" else self.asha.compare

    @property
    def rung_direction(self) -> Literal["max", "min"]:
        """Whether that is to grow or to shrink."""
        return METRICS[self.rung_metric]

    @property
    def single(self) -> bool:
        """True where one optimizer trains every layer: no switch layer and no high optimizer."""
        return self.switch_layer == Constant(ALL)

    @property
    def max_epochs(self) -> int:
        """Epochs of a trial that is never stopped; the most that any may have."""
        return int(largest(self.training["epochs"]))

    def place(self, path: str) -> str:
        """Where `path` was said: ``effnet.yaml:12: space.low``, or ``--set space.low``."""
        return self.places.place(path)

    def to_yaml(self) -> str:
        """The file as run, with everything set from outside in it; `load_space` reads it back."""
        return self.text

    def with_resources(self, cpu: int, gpu: float) -> SearchSpace:
        """The same space for trials that occupy so many CPUs and GPUs each, in the file as run, too."""
        chosen = {"cpu": cpu, "gpu": gpu}
        document = Document.parse(self.text, self.places.label)
        document.assign({f"resources.{key}": value for key, value in chosen.items()})
        resources = self.resources.model_copy(update=chosen)
        return dataclasses.replace(self, resources=resources, text=document.text)

    def with_switch(self, layers: Sequence[str]) -> SearchSpace:
        """The same space for a model whose layers have these names, in forward order: names become indices.

        Raises InputError, with its place, for a layer that the model does not have or that leaves no layer to
        the high optimizer (indices run from 0 to ``len(layers) - 2``), and for one layer given twice.
        """
        if self.single:
            return self
        place = self.place("space.switch_layer")
        domain = self.switch_layer
        if isinstance(domain, IntRange):
            for end in (domain.low, domain.high):
                switch_index(layers, end, place=place)
            return self
        indices = [switch_index(layers, value, place=place) for value in extremes(domain)]
        for position, index in enumerate(indices):
            if index in indices[:position]:
                raise InputError(f"{place}: layer {index} is given twice in {shown(extremes(domain))}")
        resolved = Constant(indices[0]) if isinstance(domain, Constant) else Choice(tuple(indices))
        return dataclasses.replace(self, switch_layer=resolved)
