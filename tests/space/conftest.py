from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tune_fusion.errors import InputError
from tune_fusion.space.loading import parse_space
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary


@dataclass(frozen=True)
class Words:
    default: Any
    rule: str
    check: Callable[[object], bool]


@dataclass(frozen=True)
class Optimizer:
    hyperparameters: Mapping[str, Words]
    search: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def number(default: float, rule: str, inside: Callable[[float], bool]) -> Words:
    def check(value: object) -> bool:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and math.isfinite(value) and inside(value)

    return Words(default, rule, check)


def is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(0 <= item < 1 for item in value)


LR = number(1e-3, "0 < lr", lambda x: x > 0)
DECAY = number(0.0, "0 <= weight_decay", lambda x: x >= 0)
BETAS = Words((0.9, 0.999), "two numbers in [0, 1)", is_pair)
RATES = {"lr": {"log": [1e-4, 1e-2]}}

OPTIMIZERS = {
    "adam": Optimizer({"lr": LR, "betas": BETAS, "weight_decay": DECAY}, RATES),
    "sgd": Optimizer(
        {
            "lr": number(1e-2, "0 < lr", lambda x: x > 0),
            "momentum": number(0.0, "0 <= momentum < 1", lambda x: 0 <= x < 1),
            "nesterov": Words(False, "true or false", lambda value: isinstance(value, bool)),
            "weight_decay": DECAY,
        },
        {"lr": {"log": [1e-3, 1e-1]}, "momentum": {"choice": [0.0, 0.9]}},
    ),
    "hn_adam": Optimizer(
        {"lr": LR, "betas": BETAS, "lambda0": number(2.5, "2 <= lambda0 <= 4", lambda x: 2 <= x <= 4)},
        {**RATES, "lambda0": {"float": [2, 4]}},
    ),
    "plain": Optimizer({"lr": LR}),
}

FILE = """\
# A space to test with
model: {name: lenet5}
data: {name: digits}
training: {epochs: 4, batch_size: 64}

space:
  switch_layer: {int: [0, 6]}
  low: [adam, sgd]
  high: [sgd, adam]
  controls: [adam, hn_adam]
  optimizers:
    sgd: {lr: {log: [1e-3, 1e-1]}, momentum: {choice: [0.0, 0.9]}}
    adam: {lr: {log: [1e-5, 1e-2]}}
search: {trials: 8}
"""


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(OPTIMIZERS, ("digits", "mnist", "cifar10"))


@pytest.fixture(scope="session")
def parse(vocabulary: Vocabulary) -> Callable[..., SearchSpace]:
    """Reads FILE, or another text, under the overrides given."""

    def read(*overrides: str, text: str = FILE) -> SearchSpace:
        return parse_space(text, "folder/test.yaml", vocabulary, overrides)

    return read


@pytest.fixture(scope="session")
def refuse(parse: Callable[..., SearchSpace]) -> Callable[..., str]:
    """The message with which a text or overrides are refused."""

    def message(*overrides: str, text: str = FILE) -> str:
        with pytest.raises(InputError) as caught:
            parse(*overrides, text=text)
        return str(caught.value)

    return message


@pytest.fixture(scope="session")
def file() -> str:
    return FILE
