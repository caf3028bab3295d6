"""The text of a space file: reading it safely, finding lines in it, and setting keys from outside."""

from __future__ import annotations

import dataclasses
import datetime
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
)

from tune_fusion.errors import InputError
from tune_fusion.space.domain import shown

_LARGEST_FILE = 1_000_000
_DEEPEST = 20
_MOST_PROBLEMS = 10


def read_text(path: Path) -> str:
    """The text of a space file.

    Raises InputError for anything that is not a readable UTF-8 file of at most 1 MB.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: is not a file; give the YAML file of a search space")
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise InputError(
                f"{path}: is not a space file: {size:,} bytes, at most {_LARGEST_FILE:,} are read"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Places:
    """Where each key was written: in the file, or on the command line."""

    label: str
    """The file's name as messages show it."""
    lines: Mapping[str, int]
    """Dotted path (list items as ``space.low[1]``) to line number, counted from 1."""
    overrides: tuple[str, ...] = ()
    """Keys given by ``--set``, in order."""

    def place(self, path: str) -> str:
        """Where `path` was written: ``effnet.yaml:12: space.low``, or ``--set space.low``."""
        for key in reversed(self.overrides):
            if path == key or (path not in self.lines and key.startswith(f"{path}.")):
                return f"--set {key}"
            if path.startswith((f"{key}.", f"{key}[")):
                return f"--set {key}: {path}"
        line = self.line(path)
        return f"{self.label}:{line}: {path}" if line else f"{self.label}: {path}"

    def line(self, path: str) -> int:
        """The line of `path`, or of the nearest section around it; 0 where the file has neither."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0)

    def touched(self, *paths: str) -> bool:
        """True when ``--set`` gave one of these paths, or something around or inside it."""
        return any(
            key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.")
            for key in self.overrides
            for path in paths
        )


@dataclass
class Document:
    """A space file as a tree of ruamel's containers, which keep comments and order."""

    text: str
    tree: CommentedMap
    places: Places

    @classmethod
    def parse(cls, text: str, label: str) -> Document:
        """The document that `text` holds; `label` names it in messages.

        Raises InputError where it is not YAML, not a mapping, or uses anchors, aliases, tags or merge keys.
        """
        tree = _load(text, f"{label}:")
        if not isinstance(tree, CommentedMap):
            raise InputError(f"{label}: a space file has sections (model:, data:, space:), got {shown(tree)}")
        return cls(text, tree, Places(label, dict(_lines(tree, ""))))

    def override(self, assignments: Sequence[str]) -> None:
        """Apply ``KEY=VALUE`` assignments in order, values read as YAML.

        Raises InputError for an assignment without a key or with an unreadable value.
        """
        keys = []
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            key = key.strip()
            if not equals or not all(key.split(".")):
                raise InputError(f"--set {assignment}: needs KEY=VALUE, such as search.trials=20")
            self._set(key, _load(value, f"--set {key}: the value"))
            keys.append(key)
        if keys:
            self.places = dataclasses.replace(self.places, overrides=(*self.places.overrides, *keys))
            self._rewrite()

    def assign(self, values: Mapping[str, object]) -> None:
        """Put plain values at dotted paths, without counting them as given by ``--set``."""
        for key, value in values.items():
            self._set(key, value)
        self._rewrite()

    def remove(self, section: str, keys: Iterable[str]) -> None:
        """Take `keys` out of a section that exists."""
        node: Any = self.tree
        for name in section.split("."):
            node = node[name]
        for key in keys:
            del node[key]
        self._rewrite()

    def plain(self) -> dict[Any, Any]:
        """The tree as ordinary dicts, lists and scalars."""
        return {key: plain(value) for key, value in self.tree.items()}

    def value(self, path: str) -> Any:
        """The plain value at a dotted path; None where there is none."""
        node: Any = self.tree
        for key in path.split("."):
            node = node.get(key) if isinstance(node, CommentedMap) else None
        return plain(node)

    def _set(self, key: str, value: object) -> None:
        *sections, leaf = key.split(".")
        node: Any = self.tree
        for depth, section in enumerate(sections, start=1):
            if node.get(section) is None:
                node[section] = CommentedMap()
            node = node[section]
            if not isinstance(node, CommentedMap):
                around = ".".join(sections[:depth])
                raise InputError(f"--set {key}: {around} is {shown(plain(node))}, not a section")
        node[leaf] = value

    def _rewrite(self) -> None:
        stream = io.StringIO()
        _yaml().dump(self.tree, stream)
        self.text = stream.getvalue()


class Problems:
    """Mistakes noted while a document is read, to be reported together."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._found: dict[str, int] = {}

    def note(self, path: str, message: str) -> None:
        """A mistake at `path`; the same mistake counts once."""
        self._found[f"{self._places.place(path)}: {message}"] = self._places.line(path)

    def report(self) -> None:
        """Raise one InputError with every noted mistake, one a line in the file's order, at most 10."""
        if not self._found:
            return
        messages = sorted(self._found, key=self._found.__getitem__)
        rest = len(messages) - _MOST_PROBLEMS
        more = [f"... and {rest} more"] if rest > 0 else []
        raise InputError("\n".join(messages[:_MOST_PROBLEMS] + more))


def plain(node: object) -> Any:
    """YAML nodes as ordinary dicts, lists and scalars."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(item) for item in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, datetime.date):
        # A value such as 2024-01-31: kept as the text that was written, for the message that refuses it.
        return str(node)
    return next((kind(node) for kind in (int, float, str) if isinstance(node, kind)), node)


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 110
    return yaml


def _load(text: str, where: str) -> object:
    """The round-trip tree of `text`; `where` starts the message of an InputError."""
    try:
        for event in _events(text):
            _refuse_machinery(event)
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}: " if mark and where.endswith(":") else " "
        problem = error.problem or "not understood"
        start = error.context_mark
        if mark and start and start.line < mark.line:
            problem += f" ({error.context} that starts in line {start.line + 1})"
        raise InputError(f"{where}{line}cannot be read: {problem}") from None
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where} cannot be read: {reason}") from None


def _events(text: str) -> Iterator[Event]:
    depth = 0
    for event in _yaml().parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise _refusal(f"nested more than {_DEEPEST} deep", event)
        yield event


def _refuse_machinery(event: Event) -> None:
    """Space files hold plain values: nothing that refers elsewhere or that could make an object."""
    refused = None
    if isinstance(event, NodeEvent) and event.anchor is not None:
        refused = "anchors and aliases (& and *)"
    elif isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
        refused = f"tags ({event.tag})"
    elif isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None:
        refused = "merge keys (<<)"
    if refused:
        raise _refusal(f"a space file has no {refused}", event)


def _refusal(problem: str, event: Event) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _lines(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            inner = f"{path}.{key}" if path else str(key)
            yield inner, node.lc.key(key)[0] + 1
            yield from _lines(value, inner)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield f"{path}[{index}]", node.lc.item(index)[0] + 1
            yield from _lines(value, f"{path}[{index}]")
