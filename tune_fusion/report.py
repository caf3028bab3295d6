"""``python -m tune_fusion.report NAME``: what a search has found, as a page, or beside the papers' tables."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tune_fusion import commands
from tune_fusion.storage import push

_COMMAND = "tune_fusion.report"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 written or printed, 2 bad input."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="Write the report of a search: one page that opens offline, and its figures as PNG "
        "files. Works at any time, also while the search runs.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the search's name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--compare", nargs="+", metavar="NAME", help="write compare.html: these searches side by side"
    )
    kind.add_argument(
        "--paper", metavar="TABLE", help="print the search beside a table of the papers, such as table2"
    )
    commands.add_output(parser)
    options = parser.parse(arguments)
    names = list(dict.fromkeys([*([options.name] if options.name else []), *(options.compare or [])]))
    if not names:
        parser.error("needs the NAME of a search")
    if options.compare and len(names) < 2:
        parser.error("argument --compare: needs two searches or more")
    return _compare(options.storage, names) if options.compare else _report(options)


def _report(options: argparse.Namespace) -> int:
    from tune_fusion.runs import find_run, read_past

    past = read_past(find_run(options.storage, options.name, "NAME"))
    # Not before there is something to report: it takes seconds to import.
    from tune_fusion.reporting.page import write_report
    from tune_fusion.reporting.papers import paper_report
    from tune_fusion.reporting.results import read_answer, read_json

    answer = read_answer(past.folder)
    if options.paper:
        text = past.session.space.text
        commands.say(paper_report(past.chronicle.record, answer, options.paper, text))
        return 0
    with _writing(past.folder.path):
        paths = write_report(past.folder, past.chronicle, answer, read_json(past.folder.result))
        push(paths, patience=0.0)
    commands.say(f"{answer.sentence}\n" if answer else "not confirmed yet: no verdict\n")
    commands.say(f"report     {paths[0]}\nfigures    {past.folder.figures} ({len(paths) - 1} PNG files)")
    return 0


def _compare(storage: Path, names: Sequence[str]) -> int:
    from tune_fusion.runs import find_run, read_past

    pasts = [read_past(find_run(storage, name, "--compare")) for name in names]
    from tune_fusion.reporting.compare import Compared, warnings, write_comparison
    from tune_fusion.reporting.results import read_answer

    searches = [Compared(past.chronicle, read_answer(past.folder)) for past in pasts]
    folder = pasts[0].folder.path.parent
    with _writing(folder):
        paths = write_comparison(folder, searches)
        push(paths, patience=0.0)
    for warning in warnings(searches):
        commands.say(f"careful: {warning}")
    commands.say(f"comparison {paths[0]}")
    return 0


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within, a file that cannot be written ends the command with one message."""
    from tune_fusion.errors import TuneFusionError

    try:
        yield
    except OSError as error:
        raise TuneFusionError(f"{folder}: the report cannot be written: {error}") from error


if __name__ == "__main__":
    commands.run(_COMMAND, main)
