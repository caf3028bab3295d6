"""Finds and loads space files: the user's own, the packaged ones, the checkout's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tune_fusion.errors import InputError, suggest
from tune_fusion.space.document import Document, read_text
from tune_fusion.space.reader import SpaceReader, describe_text
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary

_ENDINGS = (".yaml", ".yml")
_PACKAGE = Path(__file__).resolve().parent.parent


def space_folders() -> tuple[Path, ...]:
    """Where spaces are looked up by name: the packaged folder, then the checkout's, where they exist."""
    folders = (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces")
    return tuple(folder for folder in folders if folder.is_dir())


def list_spaces() -> list[tuple[str, str, Path]]:
    """Every space known by name: (name, one-line description, path), sorted by name.

    A space in a subfolder has its path there as name: ``papers/table2_vit``.
    """
    found: dict[str, Path] = {}
    for folder in space_folders():
        for path in folder.rglob("*.yaml"):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return [(name, describe_text(read_text(path)), path) for name, path in sorted(found.items())]


def resolve_space(name_or_path: str) -> Path:
    """The file of a space: a known name, else a path (anything with a slash or ending in .yaml or .yml).

    Raises InputError where there is none, with the nearest known name and the folders looked in.
    """
    known = {name: path for name, _, path in list_spaces()}
    if name_or_path in known:
        return known[name_or_path]
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith(_ENDINGS):
        try:
            path = Path(name_or_path).expanduser()
            there = path.exists()
        except (OSError, RuntimeError) as error:
            raise InputError(f"--space {name_or_path}: cannot be used as a path: {error}") from error
        if not there:
            raise InputError(
                f"--space {name_or_path}: no such file; for a shipped space give its name alone "
                f"({suggest(name_or_path, known)})"
            )
        return path
    where = " and ".join(str(folder) for folder in space_folders()) or "no folder of spaces"
    raise InputError(
        f"--space {name_or_path}: unknown space; {suggest(name_or_path, known)} "
        f"(looked in {where}; give a path to use a file of your own)"
    )


def read_document(name_or_path: str, overrides: Sequence[str] = ()) -> Document:
    """A space file with its overrides, not validated; raises InputError where there is no such document."""
    path = resolve_space(name_or_path)
    return _document(read_text(path), str(path), overrides)


def load_space(path: str | Path, vocabulary: Vocabulary, overrides: Sequence[str] = ()) -> SearchSpace:
    """Read and validate a space file; `overrides` are ``KEY=VALUE`` assignments with YAML values.

    Raises InputError: one message that lists every mistake found (at most 10), each with its place and rule.
    """
    return parse_space(read_text(Path(path)), str(path), vocabulary, overrides)


def parse_space(text: str, source: str, vocabulary: Vocabulary, overrides: Sequence[str] = ()) -> SearchSpace:
    """The space that `text` holds; `source` is the path that names it in messages. See `load_space`."""
    return SpaceReader(_document(text, source, overrides), vocabulary).read(source)


def _document(text: str, source: str, overrides: Sequence[str]) -> Document:
    document = Document.parse(text, Path(source).name)
    document.override(overrides)
    return document
