"""What becomes of images that cannot be decoded: an error, or splits without them (``data.on_corrupt``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tune_fusion.data.folder import listing
from tune_fusion.data.splits import Rows
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

_NAMED = 5


def skippable(
    settings: DataSettings, root: Path, files: Sequence[str], unreadable: Mapping[str, str]
) -> dict[int, str]:
    """Positions in `files` of the unreadable ones, ascending, each with its path and the reason.

    Args:
        settings: its `on_corrupt` decides.
        root: what the paths in `files` are relative to.
        files: all images that train or validate.
        unreadable: those of them that cannot be decoded, each with the reason.

    Raises:
        InputError: some are unreadable, and `on_corrupt` is ``fail`` or they are more than half of all.
    """
    found = {
        row: f"{root / name}: {unreadable[name]}" for row, name in enumerate(files) if name in unreadable
    }
    if found and settings.on_corrupt == "fail":
        raise InputError(
            f"{len(found)} of the images cannot be read; repair or remove them, or set data.on_corrupt=skip "
            f"to do without them:{_lines(found.values())}"
        )
    if 2 * len(found) > len(files):
        raise InputError(
            f"data.on_corrupt=skip: {len(found):,} of the {len(files):,} images cannot be read, more than "
            f"half; see that the folder is complete and holds images:{_lines(found.values())}"
        )
    return found


def without(skipped: Mapping[int, str], rows: Rows, part: str, labels: Rows, classes: Sequence[str]) -> Rows:
    """`rows` without the skipped ones, in their order.

    Args:
        skipped: what `skippable` returned.
        rows: positions of the images of one part.
        part: the part's name for the message, such as ``training``.
        labels: int64, of all images.
        classes: names by label.

    Raises:
        InputError: a class has no image left.
    """
    left = rows[~np.isin(rows, list(skipped))]
    lost = np.setdiff1d(labels[rows], labels[left])
    if len(lost):
        files = [text for row, text in skipped.items() if row in rows and labels[row] in lost]
        raise InputError(
            f"data.on_corrupt=skip leaves no {part} image of class "
            f"{listing(classes[label] for label in lost)}: repair or replace its images:{_lines(files)}"
        )
    return left


def _lines(problems: Iterable[str]) -> str:
    """The first few, each on a line of its own, and how many more there are."""
    listed = list(problems)
    more = [f"and {len(listed) - _NAMED} more"] if len(listed) > _NAMED else []
    return "".join(f"\n  {line}" for line in [*listed[:_NAMED], *more])
