"""The words a space file may use, handed in by the caller so that this package stays a leaf."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


class HyperparameterWords(Protocol):
    """What a space needs to know of one hyperparameter."""

    @property
    def default(self) -> bool | int | float | str | tuple[float, ...] | None:
        """The value where nothing else is said."""

    @property
    def rule(self) -> str:
        """The values allowed, for people: ``"2 <= lambda0 <= 4"``."""

    @property
    def check(self) -> Callable[[object], bool]:
        """True for a value that satisfies the rule, its type included."""


class OptimizerWords(Protocol):
    """What a space needs to know of one optimizer; the optimizer registry's records satisfy it."""

    @property
    def hyperparameters(self) -> Mapping[str, HyperparameterWords]:
        """Everything that may be set or searched, by name."""

    @property
    def search(self) -> Mapping[str, Mapping[str, object]]:
        """The ranges searched where a file gives none, in the file's own grammar."""


@dataclass(frozen=True)
class Vocabulary:
    """The optimizers and data sets that exist."""

    optimizers: Mapping[str, OptimizerWords]
    data_sets: Collection[str]
    """Names of data sets; ``folder:PATH`` is understood besides them."""
