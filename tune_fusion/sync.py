"""``python -m tune_fusion.sync NAME``: bring to MLflow what its server did not take while a search ran."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tune_fusion import commands

_COMMAND = "tune_fusion.sync"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 everything is delivered, 1 not everything, 2 bad input."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="Deliver to MLflow what a search that has ended, or died, could not deliver itself.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the search's name")
    commands.add_places(parser)
    return _sync(parser.parse(arguments))


def _sync(options: argparse.Namespace) -> int:
    from tune_fusion.errors import TuneFusionError
    from tune_fusion.runs import read_past
    from tune_fusion.tracking.mlflow_logger import check_tracking
    from tune_fusion.tuning.opening import reopened
    from tune_fusion.tuning.preflight import Request, as_before, later

    request = Request(name=options.name, **commands.places(options))
    with reopened(request.storage, options.name, "NAME") as past:
        request = as_before(request, past.session)
        check_tracking(request.tracking_uri)
        # Not before there is something to deliver: it takes a second to import.
        from tune_fusion.tuning.delivering import deliver_rest

        again = later("sync", request, options.name)
        done = [deliver_rest(past, request.tracking_uri, again)]
        if past.folder.confirmation.journal.is_file():
            confirmation = read_past(past.folder.confirmation)
            done.append(deliver_rest(confirmation, request.tracking_uri, again, done[0].run_id))
    problems = [problem for synced in done for problem in synced.problems]
    if problems:
        raise TuneFusionError("\n".join(problems))
    epochs, runs = sum(synced.epochs for synced in done), sum(synced.runs for synced in done)
    if runs:
        print(f"{options.name}: delivered {epochs} epochs; {runs} runs are up to date now")
    else:
        print(f"{options.name}: MLflow holds everything already")
    return 0


if __name__ == "__main__":
    commands.run(_COMMAND, main)
