"""Draws configurations from a search space: by a sampler, the untuned defaults, or all of a grid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice, Value, flat_name
from tune_fusion.space.domain import (
    Choice,
    Constant,
    Domain,
    FloatRange,
    IntRange,
    extremes,
    nearest,
    same_value,
    shown,
)
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.settings import TrainingSettings

Arm = Literal["fusion", "control"]
"""``fusion`` draws what the space says; ``control`` one optimizer of `controls` for every layer."""

Scalar = bool | int | float | str | None
"""What a sampler handles. Pairs such as Adam's betas pass through it as text: ``"[0.9, 0.99]"``."""


class Suggester(Protocol):
    """Chooses values by name; Optuna's `Trial` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of the choices."""


def draw(space: SearchSpace, arm: Arm, trial: Suggester) -> Configuration:
    """One configuration of an arm.

    `trial` is asked for what is open only, under names that depend on nothing but the space:
    ``switch_layer``, ``low.optimizer``, ``low.adam.lr``, ``high.sgd.momentum``, ``training.batch_size``.
    Constants and lists of one optimizer are not asked for.
    """
    high: OptimizerChoice | None = None
    switch: int | Literal["all"] = ALL
    if arm == "control":
        low = _draw_optimizer(space, "low", space.controls, trial)
    else:
        switch = _as_switch(_draw_value("switch_layer", space.switch_layer, trial))
        low = _draw_optimizer(space, "low", space.low, trial)
        if switch != ALL:
            high = _draw_optimizer(space, "high", space.high, trial)
    training = {key: _draw_value(f"training.{key}", domain, trial) for key, domain in space.training.items()}
    return Configuration(switch, low, high, TrainingSettings.model_validate(training))


def default_parameters(space: SearchSpace, arm: Arm) -> list[dict[str, Scalar]]:
    """The arm's untuned defaults, as the answers that make `draw` give them.

    Every hyperparameter is at its default, or as near to it as its domain allows. The control arm has one
    for each control, and so has a space with one optimizer for every layer for each of its `low`; a fusion
    has one: the middle switch layer, the first low and the first high optimizer (the next one where that
    makes them differ).
    """
    if arm == "control":
        pairs = [(name, name) for name in space.controls]
    elif space.single:
        pairs = [(name, name) for name in space.low]
    else:
        pairs = [_first_pair(space)]
    answers = []
    for low, high in pairs:
        trial = Answering(_default_chooser(space, low, high))
        draw(space, arm, trial)
        answers.append(trial.answers)
    return answers


def parameters_of(space: SearchSpace, arm: Arm, configuration: Configuration) -> dict[str, Scalar]:
    """The answers that make `draw` give `configuration`.

    Raises ValueError where the arm does not contain it: which value, and what is allowed.
    """
    wanted = configuration.flat()

    def choose(name: str, domain: Domain) -> Value:
        key = flat_name(name)
        value = _to_scalar(wanted[key]) if key in wanted else None
        match domain:
            case Choice(values):
                same = [choice for choice in values if same_value(choice, value)]
                if not same:
                    raise ValueError(f"{name}: {shown(value)} is not among {shown(list(values))}")
                return same[0]
            case FloatRange(low, high) | IntRange(low, high):
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise ValueError(f"{name}: {shown(value)} is not in [{low}, {high}]")
                return value
            case Constant():
                raise AssertionError("constants are not asked for")

    trial = Answering(choose)
    drawn = draw(space, arm, trial).flat()
    for key in [*wanted, *drawn]:
        if key not in drawn or key not in wanted or not same_value(wanted[key], drawn[key]):
            raise ValueError(f"{key}: {shown(wanted.get(key))} would be {shown(drawn.get(key))}")
    return trial.answers


def grid_parameters(space: SearchSpace, arm: Arm) -> Iterator[dict[str, Scalar]]:
    """The answers for every configuration of an arm, in a fixed order, the last question varying fastest.

    Questions that an earlier answer rules out are not asked, so no configuration comes twice. Raises
    ValueError at a continuous range, of which there is no grid.
    """
    path: list[int] = []
    while True:
        sizes: list[int] = []

        def choose(_: str, domain: Domain, path: list[int] = path, sizes: list[int] = sizes) -> Value:
            options = _options(domain)
            position = len(sizes)
            sizes.append(len(options))
            if position == len(path):
                path.append(0)
            return options[path[position]]

        trial = Answering(choose)
        draw(space, arm, trial)
        yield trial.answers
        while path and path[-1] == sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return
        path[-1] += 1


def describe(configuration: Configuration, layers: Sequence[str] = ()) -> str:
    """One short line: ``switch 3 (blocks.3) low adam lr 1.2e-03 | high sgd lr 3.0e-02 momentum 0.9``."""
    low = _describe_choice(configuration.low)
    switch = configuration.switch_layer
    if switch == ALL or configuration.high is None:
        return f"all layers {low}"
    name = f" ({layers[switch]})" if layers else ""
    return f"switch {switch}{name} low {low} | high {_describe_choice(configuration.high)}"


def _describe_choice(choice: OptimizerChoice) -> str:
    return " ".join([choice.name, *(f"{key} {_brief(key, value)}" for key, value in choice.settings.items())])


def _brief(key: str, value: Value) -> str:
    if not isinstance(value, float):
        return shown(value)
    return f"{value:.1e}" if key.endswith("lr") or 0 < abs(value) < 1e-2 else f"{value:.4g}"


def _draw_optimizer(
    space: SearchSpace, half: str, names: tuple[str, ...], trial: Suggester
) -> OptimizerChoice:
    allowed: Domain = Constant(names[0]) if len(names) == 1 else Choice(names)
    name = str(_draw_value(f"{half}.optimizer", allowed, trial))
    domains = space.optimizers[name]
    settings = {key: _draw_value(f"{half}.{name}.{key}", domain, trial) for key, domain in domains.items()}
    return OptimizerChoice(name, settings)


def _draw_value(name: str, domain: Domain, trial: Suggester) -> Value:
    match domain:
        case Constant(value):
            return value
        case FloatRange(low, high, log):
            return trial.suggest_float(name, low, high, log=log)
        case IntRange(low, high):
            return trial.suggest_int(name, low, high)
        case Choice(values):
            choices = [_to_scalar(value) for value in values]
            chosen = trial.suggest_categorical(name, choices)
            return next(v for v, choice in zip(values, choices, strict=True) if same_value(choice, chosen))


def _to_scalar(value: Value) -> Scalar:
    return json.dumps(value) if isinstance(value, tuple) else value


def _as_switch(value: Value) -> int | Literal["all"]:
    if isinstance(value, int):
        return value
    if value == ALL:
        return ALL
    raise ValueError(f"switch layer {value!r} is a name: resolve it first with SearchSpace.with_switch")


class Answering:
    """A suggester that asks `choose` (name, domain) for each value and remembers what it answered."""

    def __init__(self, choose: Callable[[str, Domain], Any]) -> None:
        self._choose = choose
        self.answers: dict[str, Scalar] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The number that is answered."""
        return float(self._answer(name, FloatRange(low, high, log)))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """The whole number that is answered."""
        return int(self._answer(name, IntRange(low, high)))

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The choice that is answered."""
        answer: Scalar = self._answer(name, Choice(tuple(choices)))
        return answer

    def _answer(self, name: str, domain: Domain) -> Any:
        self.answers[name] = self._choose(name, domain)
        return self.answers[name]


def _options(domain: Domain) -> tuple[Value, ...]:
    match domain:
        case FloatRange(low, high, _):
            raise ValueError(f"a grid needs finite choices, got the continuous range [{low}, {high}]")
        case IntRange(low, high):
            return tuple(range(low, high + 1))
        case _:
            return extremes(domain)


def _first_pair(space: SearchSpace) -> tuple[str, str]:
    pairs = [(space.low[0], high) for high in space.high] + [(low, space.high[0]) for low in space.low]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def _default_chooser(space: SearchSpace, low: str, high: str) -> Callable[[str, Domain], Value]:
    """Answers every question of `draw` with the default, or what is nearest to it."""
    training = TrainingSettings().model_dump()
    wanted: dict[str, Value] = {"low.optimizer": low, "high.optimizer": high}
    wanted |= {f"training.{key}": value for key, value in training.items()}
    for half, name in (("low", low), ("high", high)):
        wanted |= {f"{half}.{name}.{key}": value for key, value in space.defaults[name].items()}

    def choose(name: str, domain: Domain) -> Value:
        if name == "switch_layer":
            return _middle(domain)
        scalar = _to_scalar(wanted[name])
        return _nearest_pair(domain, wanted[name]) if isinstance(scalar, str) else nearest(domain, scalar)

    return choose


def _middle(domain: Domain) -> Value:
    if isinstance(domain, IntRange):
        return (domain.low + domain.high) // 2
    layers = sorted(value for value in extremes(domain) if isinstance(value, int))
    # Names are not resolved yet where there is no index: `draw` will say so.
    return layers[(len(layers) - 1) // 2] if layers else nearest(domain, None)


def _nearest_pair(domain: Domain, wanted: Value) -> Value:
    """`nearest` for text: pairs come as text and are compared as numbers."""
    if not isinstance(wanted, tuple):
        return nearest(domain, wanted)
    return min(extremes(domain), key=lambda text: math.dist(json.loads(str(text)), wanted))
