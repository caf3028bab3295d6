"""What the commands share: their argument parser and how an error leaves them."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO
from urllib.parse import unquote, urlsplit

from tune_fusion.errors import InputError, TuneFusionError, suggest
from tune_fusion.passwords import redact
from tune_fusion.storage import typed as typed_storage
from tune_fusion.storage import working_copy

DEFAULT_STORAGE = Path("runs")
DEFAULT_TRACKING = "sqlite:///mlflow.db"
INTERRUPTED = "interrupted before anything was written"
_LOST_SLASH = re.compile(r"(?:s3|gs|gcs|abfss?|hdfs|file):")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest option, and exits 2."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        self.exit(2, f"{self.prog}: error: {redact(message)}\n")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The parsed arguments; an unknown option is answered with the nearest one."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].split("=", 1)[0]
            known = [
                name for action in self._actions for name in action.option_strings if name.startswith("--")
            ]
            hint = f"; {suggest(word, known)}" if word.startswith("-") else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return options


def add_space(parser: argparse.ArgumentParser) -> None:
    """The options that say what is searched: a space file, and what is set on top of it (`overrides`)."""
    parser.add_argument("--space", metavar="NAME|FILE", help="a shipped search space (--list) or a YAML file")
    parser.add_argument("--trials", type=natural, metavar="N", help="trials in all (search.trials)")
    parser.add_argument("--epochs", type=natural, metavar="N", help="epochs a trial (training.epochs)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the space file, value as YAML",
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of search and training (search.seed)")
    parser.add_argument("--cpus", type=natural, metavar="N", help="CPUs a trial (resources.cpu)")
    parser.add_argument(
        "--gpus",
        type=fraction_of_gpus,
        metavar="F",
        help="GPUs a trial, may be a fraction (resources.gpu)",
    )
    parser.add_argument(
        "--pack",
        choices=("auto", "fixed"),
        help="auto: choose CPUs, or the fraction of a GPU, a trial by measuring its step (resources.pack)",
    )
    parser.add_argument(
        "--control-share",
        type=share,
        metavar="F",
        help="part of the training epochs that goes to the single optimizers (search.control_share)",
    )


def overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """What the options of `add_space` say, as ``KEY=VALUE`` assignments on top of the space file."""
    named = {
        "search.trials": options.trials,
        "training.epochs": options.epochs,
        "search.control_share": options.control_share,
        "search.seed": options.seed,
        "resources.cpu": options.cpus,
        "resources.gpu": options.gpus,
        "resources.pack": options.pack,
    }
    return (*options.set, *(f"{key}={value}" for key, value in named.items() if value is not None))


def check_space_given(options: argparse.Namespace) -> None:
    """Refuse options of `add_space` that name no space."""
    if options.space is None:
        raise InputError(
            "--space NAME or FILE is needed; python -m tune_fusion.search --list shows what there is"
        )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that says where searches are kept; all commands share it."""
    parser.add_argument(
        "--storage",
        type=storage_folder,
        default=DEFAULT_STORAGE,
        metavar="DIR|URI",
        help="where searches are kept: a folder, which all nodes of a cluster share, or a store: "
        "s3://BUCKET/PATH, gs://BUCKET/PATH (default: %(default)s)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where a search's files and its log are."""
    add_output(parser)
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help=f"MLflow store (default: {DEFAULT_TRACKING}, or that of the search which goes on)",
    )


def places(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_places` say, as the fields of a `Request`."""
    return {
        "storage": options.storage,
        "tracking_uri": options.tracking_uri or DEFAULT_TRACKING,
        "tracking_given": options.tracking_uri is not None,
    }


def typed(options: argparse.Namespace, *names: str) -> tuple[str, ...]:
    """The words that say these options again, in this order; nothing of those that were not given."""
    words: list[str] = []
    for name in names:
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, typed_storage(value) if isinstance(value, Path) else str(value)]
    return tuple(words)


def add_concurrent(parser: argparse.ArgumentParser) -> None:
    """The option that says how many trials run at once."""
    parser.add_argument(
        "--concurrent", type=natural, metavar="N", help="trials at once (default: as many as fit)"
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The options that say where trials run, and how many at once."""
    add_concurrent(parser)
    parser.add_argument("--address", metavar="ADDR", help="HOST:PORT of a running Ray cluster, or 'auto'")
    parser.add_argument(
        "--wait-for-resources",
        type=natural,
        metavar="SECONDS",
        help="give a cluster that grows so long to have room for --concurrent trials (default: for one)",
    )


def add_confirmation(parser: argparse.ArgumentParser) -> None:
    """The options that say what is confirmed."""
    parser.add_argument(
        "--top",
        type=natural,
        metavar="K",
        help="best fusions, and best single optimizers (default: 3 of each)",
    )
    parser.add_argument(
        "--seeds", type=natural, metavar="N", help="fresh seeds for each of them (default: 5)"
    )
    parser.add_argument(
        "--retrain", action="store_true", help="train the winner once more, on the validation images as well"
    )
    parser.add_argument("--register", metavar="MODEL", help="register the winner's MLflow model by this name")


def storage_folder(text: str) -> Path:
    """An argument that must name a folder, or a store: then it is the folder of the working copies."""
    if not text.strip():
        raise argparse.ArgumentTypeError("needs the path of a folder, got an empty text")
    if "://" not in text:
        if _LOST_SLASH.match(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a store (s3://BUCKET/PATH) nor clearly a folder (./{text})"
            )
        return Path(text)
    address = urlsplit(text)
    if address.scheme == "file" and address.netloc in ("", "localhost") and address.path:
        return Path(unquote(address.path))
    try:
        return working_copy(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def natural(text: str) -> int:
    """An argument that must be a whole number from 1."""
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number from 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """An argument that must be a whole number from 0 to 2**32 - 1."""
    if not _is_whole(text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"needs a whole number from 0 to {2**32 - 1}, got {text!r}")
    return int(text)


def share(text: str) -> str:
    """An argument that must be a number from 0 to below 1, as YAML reads it."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to below 1, got {text!r}")
    return repr(value)


def fraction_of_gpus(text: str) -> float:
    """An argument that must be a number of GPUs from 0, possibly a fraction of one."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a number from 0, got {text!r}")
    return value


def say(text: str, out: TextIO | None = None) -> None:
    """Print `text` on `out`, or standard output; silent from when its reader is gone.

    ``| head`` has read enough, and the Ctrl-C that interrupts a search also ends the ``tee`` behind it.
    """
    stream = out or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is still buffered would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell_changes(command: str, changes: Sequence[str]) -> None:
    """Say what has changed since the work that goes on was begun; nothing where nothing has."""
    if changes:
        say("\n".join([f"{command}: goes on with what has changed:", *changes]), sys.stderr)


def tell_problems(command: str, problems: Sequence[str]) -> None:
    """Say what went wrong without ending the work."""
    for problem in problems:
        say(f"{command}: {problem}", sys.stderr)


def become(command: str, arguments: list[str]) -> NoReturn:
    """Go on as another command of this package, in this very process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", command, *arguments])


class Interrupted(KeyboardInterrupt):
    """The person or the system asked the command to stop. `exit_code` is 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def run(command: str, body: Callable[[], int]) -> NoReturn:
    """Exit with what `body` returns; an error a user can act on becomes one message on standard error.

    So does Ctrl-C, and SIGTERM: exit codes 130 and 143.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = body()
    except TuneFusionError as error:
        say(f"{command}: {redact(str(error))}", sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        say(f"{command}: {INTERRUPTED}", sys.stderr)
        code = getattr(interrupt, "exit_code", 130)
    # What is left is Python's own end: a signal has nothing to interrupt any more.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    # It would otherwise look through all objects of torch, Ray and MLflow for garbage, for seconds.
    atexit.register(gc.freeze)
    sys.stdout.flush()
    sys.exit(code)
