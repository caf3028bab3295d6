"""``python -m tune_fusion.confirm NAME``: does the best fusion beat the best single optimizer, how surely?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from tune_fusion import commands

_COMMAND = "tune_fusion.confirm"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    started = time.time()
    parser = commands.Parser(
        prog=_COMMAND,
        description="Train a search's best fusions, best single optimizers and untuned defaults again with "
        "fresh seeds, measure them on the test images, and say what that proves. The same command goes on "
        "with a confirmation that was interrupted; a larger --seeds or --top extends one.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the search's name")
    commands.add_confirmation(parser)
    commands.add_places(parser)
    commands.add_cluster(parser)
    parser.add_argument(
        "--force", action="store_true", help="go on although the code has changed since it was begun"
    )
    parser.add_argument(
        "--offline", action="store_true", help="start although the MLflow store does not answer"
    )
    return _confirm(parser.parse(arguments), started)


def _confirm(options: argparse.Namespace, started: float) -> int:
    from tune_fusion.tuning.interruption import Interruption

    with Interruption(_COMMAND) as interruption:
        from tune_fusion.runs import find_run
        from tune_fusion.tuning.preflight import Request, check_words

        request = Request(
            name=options.name,
            **commands.places(options),
            offline=options.offline,
            address=options.address,
            concurrent=options.concurrent,
            wait=options.wait_for_resources,
            force=options.force,
            confirm=True,
            register=options.register,
            # Finalists and seeds stand in its journal.
            words=commands.typed(options, "wait_for_resources", "retrain", "register"),
        )
        # What is mistaken in itself is refused before anything takes long.
        find_run(options.storage, options.name, "NAME")
        check_words(request)
        from tune_fusion.reporting.live import Waiting
        from tune_fusion.reporting.summary import confirmation_summary

        with Waiting("reading the search and the data, starting Ray") as waiting:
            from tune_fusion.tuning.confirming import Order, run_confirmation

            def ready(changes: list[str]) -> None:
                waiting.stop()
                commands.tell_changes(_COMMAND, changes)

            order = Order(options.top, options.seeds, options.retrain)
            outcome = run_confirmation(request, order, started, interruption, ready)
        commands.say(confirmation_summary(outcome.result))
        commands.tell_problems(_COMMAND, outcome.problems)
        return interruption.exit_code if interruption.signalled else outcome.exit_code


if __name__ == "__main__":
    commands.run(_COMMAND, main)
