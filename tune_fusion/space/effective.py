"""When two configurations are the same in effect: equal keys train equally, whatever was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tune_fusion.errors import InputError, suggest
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice, Value
from tune_fusion.space.settings import TrainingSettings
from tune_fusion.space.vocabulary import OptimizerWords, Vocabulary


def resolved_settings(
    choice: OptimizerChoice, training: TrainingSettings, optimizers: Mapping[str, OptimizerWords]
) -> dict[str, Value]:
    """Every hyperparameter of an optimizer as a trial uses it.

    The defaults, then ``training.weight_decay`` where the optimizer has a weight decay and sets none of its
    own, then its own settings. Raises InputError for an optimizer that `optimizers` does not know.
    """
    if choice.name not in optimizers:
        raise InputError(f"unknown optimizer {choice.name!r}; {suggest(choice.name, optimizers)}")
    settings = {key: words.default for key, words in optimizers[choice.name].hyperparameters.items()}
    if training.weight_decay is not None and "weight_decay" in settings:
        settings["weight_decay"] = training.weight_decay
    return {**settings, **choice.settings}


def is_single(configuration: Configuration, vocabulary: Vocabulary) -> bool:
    """True where one optimizer with one setting trains every layer: at "all", or with two equal halves."""
    return len(_halves(configuration, vocabulary)) == 1


def effective_key(configuration: Configuration, vocabulary: Vocabulary) -> str:
    """A text that two configurations share exactly when they train alike.

    Defaults are filled in, 1 and 1.0 are the same, and what has no influence is left out: the switch layer
    of a single optimizer, the shared weight decay (it is in the optimizers' settings) and the details of a
    schedule that is not used.
    """
    halves = _halves(configuration, vocabulary)
    training = configuration.training.model_dump(exclude={"weight_decay"})
    if configuration.training.schedule != "step":
        del training["step_epochs"], training["step_gamma"]
    content = {
        "switch_layer": ALL if len(halves) == 1 else configuration.switch_layer,
        "optimizers": halves,
        "training": {key: _canonical(value) for key, value in training.items()},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _halves(configuration: Configuration, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The canonical settings of the low and high optimizer; one entry where they are the same."""
    choices = [configuration.low]
    if configuration.switch_layer != ALL and configuration.high is not None:
        choices.append(configuration.high)
    halves: list[dict[str, Any]] = []
    for choice in choices:
        settings = resolved_settings(choice, configuration.training, vocabulary.optimizers)
        half = {"optimizer": choice.name, "settings": {key: _canonical(v) for key, v in settings.items()}}
        if half not in halves:
            halves.append(half)
    return halves


def _canonical(value: Value) -> Any:
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Adding zero turns -0.0 into 0.0.
        return float(value) + 0.0
    return value
