"""What a search needs besides a sound space: a free folder and a tracking store that answers.

Nothing here imports torch, Ray or MLflow, which takes seconds: what was mistyped is refused before.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tune_fusion.commands import DEFAULT_STORAGE, DEFAULT_TRACKING
from tune_fusion.errors import InputError
from tune_fusion.events import Session
from tune_fusion.folders import CACHE_VARIABLE, new_folder
from tune_fusion.passwords import redact
from tune_fusion.runs import RunFolder, run_folder
from tune_fusion.storage import pull, shown, store_of
from tune_fusion.tracking.mlflow_logger import check_tracking
from tune_fusion.tracking.registration import check_name as check_registered_name
from tune_fusion.tracking.uri import absolute
from tune_fusion.tuning import cluster
from tune_fusion.tuning.ownership import owner

if TYPE_CHECKING:
    from tune_fusion.training.workbench import Workbench


@dataclass(frozen=True)
class Request:
    """A search as the command line asks for it."""

    space: str | None = None
    """None only where `resume` names a search."""
    overrides: tuple[str, ...] = ()
    name: str | None = None
    storage: Path = DEFAULT_STORAGE
    tracking_uri: str = DEFAULT_TRACKING
    tracking_given: bool = True
    """False where `tracking_uri` is only the default: a search that goes on keeps its own store."""
    offline: bool = False
    """Start although the tracking store does not answer."""
    address: str | None = None
    concurrent: int | None = None
    wait: int | None = None
    """Seconds that a cluster is given to have room for `concurrent` trials, or for one."""
    rehearse: bool = False
    warm_start: str | None = None
    """The name of an earlier search, or the id or name of its MLflow run, to start with the results of."""
    resume: str | None = None
    """The name of the search to take up again."""
    force: bool = False
    """Take it up although something has changed."""
    confirm: bool = False
    """It will be confirmed: its data need test images."""
    register: str | None = None
    """The name to register the confirmed winner's MLflow model by."""
    words: tuple[str, ...] = ()
    """What else was typed, to be typed again by whoever goes on with it."""


def check_words(request: Request) -> None:
    """InputError for addresses and names that are none, as far as that shows without asking a server.

    A cluster is asked, as nothing could go on without it.
    """
    if request.tracking_given:
        check_tracking(request.tracking_uri, offline=True)
    if request.register is not None:
        check_registered_name(request.register)
    cluster.check_address(request.address)


def check_name(request: Request, space: str) -> RunFolder:
    """The folder that a new search of `space` will make; InputError where it cannot be made."""
    name = request.name
    if name is None:
        name = f"{space}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = run_folder(request.storage, name, "--name")
    pull(folder.path)
    holder = owner(folder.path) if folder.path.is_dir() else None
    place = f"--name {name}" if holder is None else f"--name {name} (being run by {holder})"
    here = f"--storage {shown(request.storage)}"
    if store_of(folder.path) is not None:
        here = f"the working copy of {here}, below ${CACHE_VARIABLE}"
    new_folder(folder.path, here, place)
    return folder


def as_before(request: Request, session: Session) -> Request:
    """The request with what it leaves open as in an earlier session: the store, and how many trials at once.

    Raises InputError where the store's address is not known in full.
    """
    uri = request.tracking_uri
    if not request.tracking_given:
        uri = session.tracking
        if "***" in uri:
            raise InputError(
                f"--tracking-uri is needed: the search is logged to {uri}, and passwords are not kept"
            )
    concurrent = session.concurrent if request.concurrent is None else request.concurrent
    return replace(request, tracking_uri=uri, concurrent=concurrent)


def moved_store(request: Request, session: Session) -> list[str]:
    """One sentence where the search goes on in another tracking store than before."""
    now = redact(absolute(request.tracking_uri))
    if now == session.tracking:
        return []
    return [f"{session.search} was logged to {session.tracking} so far; all of it goes to {now} as well"]


def check_confirmable(request: Request, bench: Workbench) -> None:
    """InputError where the request's confirmation could not be had, before the search is paid for."""
    if request.confirm:
        bench.count_heldout()


def check_store(request: Request) -> None:
    """InputError for a store that cannot be logged to; an offline search does without its answer."""
    check_tracking(request.tracking_uri, offline=request.offline)


def later(command: str, request: Request, name: str) -> str:
    """The command line that goes on with the search `name`: ``search --resume``, ``confirm``, ``sync``."""
    words = [
        sys.executable,
        "-m",
        f"tune_fusion.{command}",
        *(["--resume"] if command == "search" else []),
        name,
    ]
    if request.storage != DEFAULT_STORAGE:
        words += ["--storage", shown(request.storage)]
    if request.tracking_uri != DEFAULT_TRACKING and command != "report":
        words += ["--tracking-uri", redact(request.tracking_uri)]
    if command in ("search", "confirm") and request.address is not None:
        words += ["--address", request.address]
    if command in ("search", "confirm") and request.concurrent is not None:
        words += ["--concurrent", str(request.concurrent)]
    return shlex.join(words)
