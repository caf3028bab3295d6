"""What the settings models demand, in words: pydantic's verdicts as one-line messages."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from tune_fusion.errors import suggest
from tune_fusion.space.domain import shown
from tune_fusion.space.settings import Section

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list of numbers",
}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def violations(model: type[Section], values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The values of known keys that `model` refuses or misses, as (key, message without the place)."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for key in dict.fromkeys(str(entry["loc"][0]) for entry in error.errors()):
            missing = f"is missing; it needs {rule(model, key)}"
            yield key, violation(model, key, values[key]) if key in values else missing


def violation(model: type[Section], key: str, value: object, inside: str = "") -> str:
    """The message for a `value` that `key` of `model` refuses; `inside` says what it was part of."""
    message = f"needs {rule(model, key)}, got {shown(value)}{inside}"
    # The rule names every word already: only a near one adds anything.
    hint = suggest(value, _words(model, key)) if isinstance(value, str) else ""
    return f"{message}; {hint}" if hint.startswith("did you mean") else message


def accepts(model: type[Section], key: str, value: object) -> bool:
    """True when `value` may stand at `key` of a model whose every field has a default."""
    try:
        model.model_validate({key: list(value) if isinstance(value, tuple) else value})
    except ValidationError:
        return False
    return True


def rule(model: type[Section], key: str) -> str:
    """The values that `key` of `model` takes: ``"a number > 0 and < 1 or a whole number >= 1"``."""
    return " or ".join(_alternative(schema) for schema in _alternatives(model, key))


def _alternative(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    bounds = " and ".join(
        f"{sign} {_plain(schema[name])}" for name, sign in _BOUNDS.items() if name in schema
    )
    return f"{_TYPES[schema['type']]} {bounds}".rstrip()


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _words(model: type[Section], key: str) -> list[str]:
    return [word for schema in _alternatives(model, key) for word in schema.get("enum", [])]


def _alternatives(model: type[Section], key: str) -> list[dict[str, Any]]:
    schema: dict[str, Any] = _schema(model)["properties"][key]
    return list(schema.get("anyOf", [schema]))


@functools.cache
def _schema(model: type[Section]) -> dict[str, Any]:
    return model.model_json_schema()
