"""``python -m tune_fusion.cache``: what the image cache of this machine holds, and how to empty it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tune_fusion import commands

if TYPE_CHECKING:
    from tune_fusion.data.entries import Entry

_COMMAND = "tune_fusion.cache"
_SHOWN = 12
"""Characters of an entry's name that are shown; fewer serve where they are of one entry alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 listed or removed, 1 not everything removed, 2 bad input."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="List the image cache of this machine: decoded, unpacked and resized images, which all "
        "trials share, in $TUNE_FUSION_CACHE (default: ~/.cache/tune_fusion). It keeps within "
        "$TUNE_FUSION_CACHE_GB gigabytes (default: half of what its disk would have free without it) by "
        "removing what was not used for the longest time.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--clear",
        nargs="*",
        metavar="ENTRY",
        help="remove these entries, or without names all entries; those in use by a running process stay",
    )
    return _run(parser.parse(arguments))


def _run(options: argparse.Namespace) -> int:
    from tune_fusion.data.entries import list_entries

    entries = list_entries()
    if options.clear is None:
        _show(entries)
        return 0
    named = dict.fromkeys(_named(entries, name) for name in options.clear)
    return _clear(list(named) or entries)


def _show(entries: Sequence[Entry]) -> None:
    from tune_fusion.data.entries import BOUND_VARIABLE, bound, cache_folder, in_use, size_words

    now, limit = time.time(), size_words(bound())
    lines = [f"{'entry':<{_SHOWN}} {'images':>10} {'size':>11}  {'built':<13} {'last used':<13} images of"]
    for entry in reversed(entries):
        used = "in use" if in_use(entry.path) else _ago(now - entry.used)
        lines.append(
            f"{entry.path.name[:_SHOWN]:<{_SHOWN}} {entry.images:>10,} {size_words(entry.size):>11}  "
            f"{_ago(now - entry.built):<13} {used:<13} {entry.source or '(damaged)'}"
        )
    total = sum(entry.size for entry in entries)
    count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
    lines = [str(cache_folder()), *(lines if entries else [])]
    lines.append(f"{count}, {size_words(total)} of at most {limit} (set ${BOUND_VARIABLE} to change it)")
    commands.say("\n".join(lines))


def _clear(entries: Sequence[Entry]) -> int:
    from tune_fusion.data.entries import remove, remove_debris, size_words
    from tune_fusion.errors import TuneFusionError

    remove_debris()
    kept = [entry for entry in entries if not remove(entry.path)]
    freed = sum(entry.size for entry in entries) - sum(entry.size for entry in kept)
    commands.say(f"removed {len(entries) - len(kept)} of {len(entries)} entries, {size_words(freed)}")
    if kept:
        names = ", ".join(entry.path.name[:_SHOWN] for entry in kept)
        raise TuneFusionError(
            f"not removed, because a running process uses them or their files are not yours: {names}"
        )
    return 0


def _named(entries: Sequence[Entry], name: str) -> Entry:
    """The one entry whose name begins with `name`; InputError where there is none, or several."""
    from tune_fusion.errors import InputError, suggest

    found = [entry for entry in entries if name and entry.path.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"--clear {name}: begins the names of {len(found)} entries: give more of it")
    hint = suggest(name, [entry.path.name[:_SHOWN] for entry in entries]) if entries else "the cache is empty"
    raise InputError(f"--clear {name}: no such entry; {hint}")


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


if __name__ == "__main__":
    commands.run(_COMMAND, main)
