"""``python -m tune_fusion.predict MODEL IMAGE...``: classify images with a model that a search has left."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tune_fusion import commands
from tune_fusion.errors import InputError
from tune_fusion.runs import find_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tune_fusion.training.saved_model import SavedModel

_COMMAND = "tune_fusion.predict"
_CONFIG = "config.json"
_MODELS = ("confirmation/model", "model")
"""Where the models of a search lie in its folder, the one to prefer first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 some images cannot be read, 2 bad input."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="Classify images: one line each, with its path, its most likely classes and their "
        "probabilities.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=_model_argument,
        help="folder of a model, or of a search (also as URI/NAME): its confirmed model, else its best one",
    )
    parser.add_argument(
        "images", metavar="IMAGE", type=Path, nargs="+", help="image file, or a folder of such, at any depth"
    )
    parser.add_argument("--top", type=commands.natural, default=1, metavar="K", help="classes an image")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--batch-size", type=commands.natural, default=128, metavar="N", help="default: %(default)s"
    )
    return _predict(parser.parse(arguments))


def _model_argument(text: str) -> Path:
    """An argument that must name a folder, or a search in a store: then it is brought from there."""
    if "://" not in text or text.startswith("file:"):
        return commands.storage_folder(text)
    head, mark, query = text.partition("?")
    place, _, name = head.rstrip("/").rpartition("/")
    if place.endswith(("/", ":")):
        raise argparse.ArgumentTypeError(f"{text!r} names no search: one in a store is URI/NAME")
    try:
        return find_run(commands.storage_folder(f"{place}{mark}{query}"), name, "NAME").path
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _predict(options: argparse.Namespace) -> int:
    folder = _model_folder(options.model)
    paths = list(_files(options.images))
    from tune_fusion.training.saved_model import load_model

    model = load_model(folder)
    unreadable = 0
    for start in range(0, len(paths), options.batch_size):
        images: list[NDArray[np.uint8]] = []
        read: list[Path] = []
        for path in paths[start : start + options.batch_size]:
            try:
                images.append(model.read(path))
                read.append(path)
            except InputError as error:
                unreadable += 1
                commands.say(f"{_COMMAND}: {error}", sys.stderr)
        _print(model, read, images, top=options.top, as_json=options.json)
    if unreadable:
        commands.say(f"{_COMMAND}: {unreadable} of {len(paths)} images cannot be read", sys.stderr)
    return 1 if unreadable else 0


def _print(
    model: SavedModel, paths: list[Path], images: list[NDArray[np.uint8]], *, top: int, as_json: bool
) -> None:
    import numpy as np

    if not paths:
        return
    for path, row in zip(paths, model.classify(np.stack(images), len(images)), strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        likely = [(model.classes[label], float(row[label])) for label in order]
        if as_json:
            classes = [{"class": name, "probability": value} for name, value in likely]
            commands.say(json.dumps({"path": str(path), "top": classes}, ensure_ascii=False))
        else:
            commands.say("  ".join([str(path), *(f"{name} {value:.4f}" for name, value in likely)]))


def _model_folder(folder: Path) -> Path:
    """The folder itself, or that of the model in it where it is a search's."""
    if (folder / _CONFIG).is_file():
        return folder
    found = next((folder / inner for inner in _MODELS if (folder / inner / _CONFIG).is_file()), None)
    if found is not None:
        return found
    if not folder.is_dir():
        raise InputError(f"MODEL {folder}: there is no such folder; give runs/NAME, or runs/NAME/model")
    raise InputError(
        f"MODEL {folder}: it is neither a model's folder, with {_CONFIG}, nor that of a search which has "
        f"completed, with {' or '.join(_MODELS)}"
    )


def _files(arguments: Sequence[Path]) -> Iterator[Path]:
    """The files as given, and the images in the folders; each once."""
    seen: set[Path] = set()
    for path in arguments:
        if not path.exists():
            raise InputError(f"IMAGE {path}: there is no such file or folder")
        found = _images_below(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"IMAGE {path}: there is no image in this folder")
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file


def _images_below(folder: Path) -> list[Path]:
    from tune_fusion.data.folder import images_below

    try:
        return sorted(folder / inner for inner in images_below(folder))
    except OSError as error:
        raise InputError(f"IMAGE {error.filename or folder}: cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    commands.run(_COMMAND, main)
