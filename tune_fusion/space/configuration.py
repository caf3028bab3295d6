"""One configuration: what a trial trains with, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tune_fusion.space.settings import TrainingSettings

Value = bool | int | float | str | tuple[float, ...] | None
"""A hyperparameter's value; pairs such as Adam's betas are tuples of floats."""

ALL: Literal["all"] = "all"
"""The switch layer that means: one optimizer for every layer."""


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer of the registry and the hyperparameters that differ from its defaults."""

    name: str
    settings: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """Layers 0..switch_layer are trained by `low`, the rest by `high`; at "all" every layer by `low`."""

    switch_layer: int | Literal["all"]
    low: OptimizerChoice
    high: OptimizerChoice | None
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON; `from_dict` reads them back."""
        return {
            "switch_layer": self.switch_layer,
            "low": _choice_to_dict(self.low),
            "high": _choice_to_dict(self.high) if self.high else None,
            "training": self.training.model_dump(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Configuration:
        """The configuration that `to_dict` wrote (lists become tuples again)."""
        high = values.get("high")
        return cls(
            switch_layer=values["switch_layer"],
            low=_choice_from_dict(values["low"]),
            high=_choice_from_dict(high) if high else None,
            training=TrainingSettings(**values.get("training", {})),
        )

    def flat(self) -> dict[str, Value]:
        """One level, keys as users read them: ``switch_layer``, ``low.optimizer``, ``training.epochs``."""
        row: dict[str, Value] = {"switch_layer": self.switch_layer}
        for half, choice in (("low", self.low), ("high", self.high)):
            if choice is not None:
                row[f"{half}.optimizer"] = choice.name
                row |= {f"{half}.{key}": value for key, value in choice.settings.items()}
        row |= {f"training.{key}": value for key, value in self.training.model_dump().items()}
        return row


def flat_name(parameter: str) -> str:
    """The key of `Configuration.flat` for a parameter: ``low.adam.lr`` is ``low.lr`` there."""
    parts = parameter.split(".")
    return ".".join(dict.fromkeys((parts[0], parts[-1])))


def _choice_to_dict(choice: OptimizerChoice) -> dict[str, Any]:
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in choice.settings.items()}
    return {"optimizer": choice.name, **settings}


def _choice_from_dict(values: Mapping[str, Any]) -> OptimizerChoice:
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    del settings["optimizer"]
    return OptimizerChoice(values["optimizer"], settings)
