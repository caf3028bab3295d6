"""The errors a user may see: each carries one complete message and the exit code of the command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TuneFusionError(Exception):
    """Something failed while running; the message says what, where and what to do. Exit code 1."""

    exit_code = 1


class InputError(TuneFusionError, ValueError):
    """What the user gave cannot be used: file, option, data or machine. Exit code 2, nothing written."""

    exit_code = 2


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: its nearest known word, else all known ones.

    Returns ``"did you mean 'adam'?"`` or ``"known: adam, sgd"``.
    """
    choices = list(known)
    close = difflib.get_close_matches(word.lower(), [c.lower() for c in choices], n=1, cutoff=0.6)
    if close:
        original = next(c for c in choices if c.lower() == close[0])
        return f"did you mean {original!r}?"
    return "known: " + ", ".join(choices)
