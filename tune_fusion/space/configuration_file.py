"""Reading one configuration from a JSON file, as ``python -m tune_fusion.train --config`` takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_fusion.errors import InputError, suggest
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.domain import Constant
from tune_fusion.space.rules import violations
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.settings import TrainingSettings
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.switch import switch_index

_KEYS = ("switch_layer", "low", "high", "training")


def read_configuration(
    path: Path, space: SearchSpace, vocabulary: Vocabulary, layer_names: Sequence[str]
) -> Configuration:
    """The configuration in `path`; see `read_values`.

    What the file's ``training`` leaves out comes from the space, where it must be a plain value. Raises
    InputError naming the file, the key, the rule and the value.
    """
    values = read_values(path)
    switch = switch_index(layer_names, values.get("switch_layer", ALL), place=f"{path}: switch_layer")
    low = _choice(path, "low", values.get("low"), vocabulary)
    high = _choice(path, "high", values.get("high"), vocabulary) if switch != ALL else None
    if switch == ALL and values.get("high"):
        raise InputError(
            f"{path}: high: switch_layer 'all' leaves no layer for a high optimizer; remove 'high'"
        )
    return Configuration(switch, low, high, _training(path, values.get("training") or {}, space))


def read_values(path: Path) -> dict[str, Any]:
    """What a configuration in `path` says, by known keys; a ``result.json`` stands for its best one.

    Raises InputError for a file that holds neither.
    """
    values = _read(path)
    if "best" in values:
        values = _best_of_result(path, values["best"])
    for key in values:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key {key!r}; {suggest(key, _KEYS)}")
    return values


def _best_of_result(path: Path, best: Any) -> dict[str, Any]:
    if best is None:
        raise InputError(f"{path}: this search found no best configuration; give one of your own")
    configuration = best.get("configuration") if isinstance(best, dict) else None
    if not isinstance(configuration, dict):
        raise InputError(f"{path}: best: not what a search writes: {best!r:.80}")
    return configuration


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: a configuration is an object with the keys {', '.join(_KEYS)}, got {values!r:.80}"
        )
    return values


def _choice(path: Path, half: str, values: Any, vocabulary: Vocabulary) -> OptimizerChoice:
    if not isinstance(values, Mapping) or not isinstance(values.get("optimizer"), str):
        raise InputError(
            f'{path}: {half}: needs an object such as {{"optimizer": "adam", "lr": 0.001}}, got {values!r}'
        )
    name = values["optimizer"]
    if name not in vocabulary.optimizers:
        raise InputError(
            f"{path}: {half}.optimizer: unknown optimizer {name!r}; {suggest(name, vocabulary.optimizers)}"
        )
    known = vocabulary.optimizers[name].hyperparameters
    settings = {}
    for key, value in values.items():
        if key == "optimizer":
            continue
        if key not in known:
            raise InputError(
                f"{path}: {half}.{key}: {name} has no hyperparameter {key!r}; {suggest(key, known)}"
            )
        plain = tuple(value) if isinstance(value, list) else value
        if not known[key].check(plain):
            raise InputError(f"{path}: {half}.{key}: needs {known[key].rule}, got {value!r}")
        settings[key] = plain
    return OptimizerChoice(name, settings)


def _training(path: Path, values: Any, space: SearchSpace) -> TrainingSettings:
    if not isinstance(values, Mapping):
        raise InputError(f'{path}: training: needs an object such as {{"epochs": 10}}, got {values!r:.80}')
    for key in values:
        if key not in TrainingSettings.model_fields:
            raise InputError(
                f"{path}: training.{key}: unknown key; {suggest(key, TrainingSettings.model_fields)}"
            )
    settled = dict(values)
    for key, domain in space.training.items():
        if isinstance(domain, Constant) and key not in values:
            settled[key] = domain.value
        elif key not in values:
            raise InputError(
                f"{path}: training.{key}: the space searches it, so the configuration must give it"
            )
    for key, message in violations(TrainingSettings, settled):
        raise InputError(f"{path}: training.{key}: {message}")
    return TrainingSettings.model_validate(settled)
