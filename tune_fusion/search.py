"""``python -m tune_fusion.search``: search a space for the best layer-wise optimizer fusion.

Torch, Ray and MLflow are imported when a search needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from tune_fusion import commands
from tune_fusion.errors import InputError

if TYPE_CHECKING:
    from tune_fusion.tuning.interruption import Interruption
    from tune_fusion.tuning.outcome import Outcome
    from tune_fusion.tuning.preflight import Request

_COMMAND = "tune_fusion.search"
_CONFIRMATION = ("top", "seeds", "retrain", "register")
"""The options of `commands.add_confirmation`."""
_WAIT = "wait_for_resources"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    started = time.time()
    options = _parser().parse(arguments)
    if options.list:
        return _list()
    _check_options(options)
    if options.dry_run:
        return _dry_run(options)
    return _search(options, started)


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog=_COMMAND,
        description="Search for the best layer-wise optimizer fusion, on this machine or a Ray cluster.",
        allow_abbrev=False,
    )
    commands.add_space(parser)
    parser.add_argument("--name", help="name of the search and its folder (default: space and time)")
    parser.add_argument("--resume", metavar="NAME", help="go on with the search of this name")
    parser.add_argument(
        "--warm-start",
        metavar="NAME",
        help="start with the results of this earlier search (or MLflow run) of the same model and data",
    )
    parser.add_argument(
        "--force", action="store_true", help="resume although space, code or data have changed"
    )
    parser.add_argument(
        "--offline", action="store_true", help="start although the MLflow store does not answer"
    )
    commands.add_places(parser)
    commands.add_cluster(parser)
    parser.add_argument(
        "--confirm", action="store_true", help="then confirm it: python -m tune_fusion.confirm"
    )
    commands.add_confirmation(parser)
    parser.add_argument(
        "--rehearse", action="store_true", help="the whole path with a small model, digits, few trials"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be searched and start nothing"
    )
    parser.add_argument("--list", action="store_true", help="show optimizers, search spaces and data sets")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if not options.confirm:
        for name in _CONFIRMATION:
            if getattr(options, name):
                raise InputError(f"--{name} goes with --confirm only")
    if options.resume is None:
        commands.check_space_given(options)
        if options.force:
            raise InputError("--force goes with --resume only")
        if options.warm_start and options.dry_run:
            raise InputError("--warm-start does not go with --dry-run: the plan is the same without it")
        return
    for name in ("name", "rehearse", "dry_run", "warm_start"):
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with --resume")


def _list() -> int:
    from tune_fusion.listing import listing

    commands.say(listing())
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    from tune_fusion.space.loading import read_document

    overrides = commands.overrides(options)
    read_document(options.space, overrides)  # what is no space file is refused before torch is imported
    from tune_fusion.training.checks import check_space
    from tune_fusion.tuning.dry_run import describe_plan

    checked = check_space(options.space, overrides, stand_in=options.rehearse)
    commands.say(describe_plan(checked))
    return 0


def _search(options: argparse.Namespace, started: float) -> int:
    from tune_fusion.tuning.interruption import Interruption

    with Interruption(_COMMAND) as interruption:
        request = _request(options)
        from tune_fusion.reporting.summary import summary

        outcome = _outcome(options, request, started, interruption)
        commands.say(summary(outcome.record, outcome.result))
        commands.tell_problems(_COMMAND, outcome.problems)
        code = interruption.exit_code if interruption.signalled else outcome.exit_code
    if options.confirm and code == 0:
        names = ("storage", "tracking_uri", "address", "concurrent", _WAIT, "offline", *_CONFIRMATION)
        commands.become("tune_fusion.confirm", [outcome.record.name, *commands.typed(options, *names)])
    return code


def _request(options: argparse.Namespace) -> Request:
    """What is asked for; what of it is mistaken in itself is refused before anything takes long."""
    from tune_fusion.runs import find_run
    from tune_fusion.tuning.preflight import Request, check_name, check_words

    request = Request(
        space=options.space,
        overrides=commands.overrides(options),
        name=options.name,
        **commands.places(options),
        offline=options.offline,
        address=options.address,
        concurrent=options.concurrent,
        wait=options.wait_for_resources,
        rehearse=options.rehearse,
        warm_start=options.warm_start,
        resume=options.resume,
        force=options.force,
        confirm=options.confirm,
        register=options.register,
        words=commands.typed(options, _WAIT, "confirm", *_CONFIRMATION),
    )
    if options.resume is None:
        check_name(request, "space")  # whose own name is not read yet
    else:
        find_run(options.storage, options.resume, "--resume")
    check_words(request)
    return request


def _outcome(
    options: argparse.Namespace, request: Request, started: float, interruption: Interruption
) -> Outcome:
    from tune_fusion.reporting.live import Waiting

    with (
        Waiting("checking the space, reading the data, starting Ray") as waiting,
        _early_connection(options) as connect,
    ):
        from tune_fusion.tuning.finished import revisit

        finished = revisit(request, options.trials)
        if finished is not None:
            return finished
        from tune_fusion.tuning.driver import run_search

        def ready(changes: list[str], packing: str) -> None:
            waiting.stop()
            if packing:
                commands.say(f"{_COMMAND}: {packing}", sys.stderr)
            commands.tell_changes(_COMMAND, changes)

        return run_search(request, started, interruption, ready, connect)


def _early_connection(options: argparse.Namespace) -> AbstractContextManager[Callable[[], None] | None]:
    """A Ray that starts before the request is checked; none where it may be of no use, or a nuisance.

    Refuses what is no space file at all.
    """
    from tune_fusion.space.loading import read_document
    from tune_fusion.tuning.cluster import connection

    if options.resume is not None:
        return nullcontext()  # there may be nothing left to run
    document = read_document(options.space, commands.overrides(options))
    if document.value("resources.pack") == "auto":
        return nullcontext()  # workers that start beside it would disturb the probe
    return connection(options.address, document.value("model.name"), early=True)


if __name__ == "__main__":
    commands.run(_COMMAND, main)
