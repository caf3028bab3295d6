"""What a hyperparameter may be: its default, its rule in words, and the check of a value. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = bool | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True)
class Hyperparameter:
    """A setting of an optimizer.

    Attributes:
        default: its value unless one is given.
        rule: which values it takes, for people: ``"0 < lr"``.
        check: whether a value, of any type, follows the rule; numbers are finite and no booleans.
    """

    default: Value
    rule: str
    check: Callable[[object], bool]


def number(default: float, rule: str, holds: Callable[[float], bool]) -> Hyperparameter:
    """A finite number for which ``holds``; the rule says the same in words."""

    def check(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        # Not math.isfinite, which whole numbers beyond the floats' range overflow.
        return abs(value) <= sys.float_info.max and holds(value)

    return Hyperparameter(default, rule, check)


def positive(name: str, default: float) -> Hyperparameter:
    """A number above zero."""
    return number(default, f"0 < {name}", lambda x: x > 0)


def not_negative(name: str, default: float, what: str = "") -> Hyperparameter:
    """A number from zero; ``what`` says what it does, where that needs saying."""
    return number(default, f"0 <= {name}" + what, lambda x: x >= 0)


def decay_rate(name: str, default: float) -> Hyperparameter:
    """A number in [0, 1)."""
    return number(default, f"0 <= {name} < 1", lambda x: 0 <= x < 1)


def flag(default: bool, what: str = "") -> Hyperparameter:
    """True or False."""
    return Hyperparameter(default, "one of True, False" + what, lambda value: isinstance(value, bool))


def betas(first: float, second: float) -> Hyperparameter:
    """Two decay rates, of the gradient's and of its square's running mean."""
    rates = decay_rate("beta", first)

    def check(value: object) -> bool:
        return isinstance(value, (tuple, list)) and len(value) == 2 and all(rates.check(x) for x in value)

    return Hyperparameter((first, second), "two numbers in [0, 1)", check)
