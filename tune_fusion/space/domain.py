"""The values a key of a space file may take: one constant, a range, or a list of choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from tune_fusion.errors import suggest
from tune_fusion.space.configuration import Value


@dataclass(frozen=True)
class Constant:
    """A plain value: never drawn."""

    value: Value


@dataclass(frozen=True)
class FloatRange:
    """``{float: [low, high]}``, or ``{log: [low, high]}``: even on a logarithmic scale; ends included."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class IntRange:
    """``{int: [low, high]}``; both ends included."""

    low: int
    high: int


@dataclass(frozen=True)
class Choice:
    """``{choice: [...]}``: one of these values, no order implied; never empty, no value twice."""

    values: tuple[Value, ...]


Domain = Constant | FloatRange | IntRange | Choice

_KINDS = ("log", "float", "int", "choice")


class DomainError(ValueError):
    """A domain that breaks the grammar; the message states the rule and the value, not the place."""


def parse_domain(written: object) -> Domain:
    """The domain that a plain YAML value stands for.

    Raises DomainError.
    """
    if not isinstance(written, Mapping):
        return Constant(as_value(written))
    if len(written) != 1:
        raise DomainError(f"a range is one of {{{'|'.join(_KINDS)}: [...]}}, got {shown(written)}")
    kind, content = next(iter(written.items()))
    if kind not in _KINDS:
        raise DomainError(f"unknown kind of range {kind!r}; {suggest(str(kind), _KINDS)}")
    if kind == "choice":
        return parse_choice(content)
    return _parse_range(kind, content)


def parse_choice(content: object) -> Choice:
    """The choice among the values of a list.

    Raises DomainError when it is no list, is empty or holds a value twice.
    """
    if not isinstance(content, list | tuple) or not content:
        raise DomainError(f"a choice needs a list of at least one value, got {shown(content)}")
    values: list[Value] = []
    for item in content:
        value = as_value(item)
        if any(same_value(value, other) for other in values):
            raise DomainError(f"the choices must differ, {shown(value)} stands twice in {shown(content)}")
        values.append(value)
    return Choice(tuple(values))


def _parse_range(kind: str, content: object) -> FloatRange | IntRange:
    rule = {
        "log": "log range needs 0 < low < high",
        "float": "float range needs low < high",
        "int": "int range needs whole numbers low < high",
    }[kind]
    wrong = DomainError(f"{rule}, got {shown(content)}")
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise wrong
    low, high = content
    if isinstance(low, bool) or isinstance(high, bool):
        raise wrong
    if kind == "int":
        if not (isinstance(low, int) and isinstance(high, int) and low < high):
            raise wrong
        return IntRange(low, high)
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        raise wrong
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "log" and low <= 0):
        raise wrong
    return FloatRange(float(low), float(high), log=kind == "log")


def as_value(written: object) -> Value:
    """A plain YAML value as a configuration holds it: lists of numbers become tuples of floats.

    Raises DomainError for anything that is neither a scalar nor a list of numbers, and for NaN and infinity.
    """
    if isinstance(written, float) and not math.isfinite(written):
        raise DomainError(f"numbers must be finite, got {shown(written)}")
    if written is None or isinstance(written, bool | int | float | str):
        return written
    if isinstance(written, list | tuple) and written:
        numbers = [item for item in written if isinstance(item, int | float) and not isinstance(item, bool)]
        if len(numbers) == len(written) and all(math.isfinite(item) for item in numbers):
            return tuple(float(item) for item in numbers)
    raise DomainError(f"needs a plain value, a list of numbers or a range, got {shown(written)}")


def same_value(one: Value, other: Value) -> bool:
    """Equal, where True is not 1 but 1 is 1.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def extremes(domain: Domain) -> tuple[Value, ...]:
    """The values at which a rule is checked: both ends of a range, every choice, or the constant."""
    match domain:
        case Constant(value):
            return (value,)
        case Choice(values):
            return values
        case FloatRange(low, high) | IntRange(low, high):
            return (low, high)


def largest(domain: Domain) -> float:
    """The largest number that a domain of numbers can take."""
    return max(value for value in extremes(domain) if isinstance(value, int | float))


def part_of(domain: FloatRange | IntRange, value: float) -> float:
    """Where a value of a range lies: 0 at its low end, 1 at its high one; 0 where there is but one value."""
    if isinstance(domain, FloatRange) and domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return (value - domain.low) / (domain.high - domain.low) if domain.high > domain.low else 0.0


def value_at(domain: FloatRange, part: float) -> float:
    """The value that lies there; see `part_of`."""
    if domain.log:
        return float(domain.low * (domain.high / domain.low) ** part)
    return domain.low + (domain.high - domain.low) * part


def nearest(domain: Domain, wanted: Value) -> Value:
    """The value of `domain` closest to `wanted`.

    Where closeness means nothing (text, or null wanted from a range of numbers), the first choice or the
    middle of the range.
    """
    match domain:
        case Constant(value):
            return value
        case Choice(values):
            return min(values, key=lambda value: _distance(value, wanted))
        case IntRange(low, high):
            return min(max(round(wanted), low), high) if _is_number(wanted) else (low + high) // 2
        case FloatRange(low, high, log):
            if _is_number(wanted):
                return min(max(float(wanted), low), high)
            return math.sqrt(low) * math.sqrt(high) if log else low / 2 + high / 2


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distance(one: Value, other: Value) -> float:
    if same_value(one, other):
        return 0.0
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return math.dist(one, other)
    if _is_number(one) and _is_number(other):
        return abs(one - other)
    return math.inf


def written(domain: Domain) -> object:
    """The domain in the file's grammar, as plain values; `parse_domain` reads it back."""
    match domain:
        case Constant(value):
            return _listed(value)
        case Choice(values):
            return {"choice": [_listed(value) for value in values]}
        case IntRange(low, high):
            return {"int": [low, high]}
        case FloatRange(low, high, log):
            return {"log" if log else "float": [low, high]}


def _listed(value: Value) -> object:
    return list(value) if isinstance(value, tuple) else value


def shown(value: object, limit: int = 100) -> str:
    """A value as a person would write it in YAML, on one line, cut at `limit` characters."""
    text = _flow(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ("-.inf" if value < 0 else ".inf")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
