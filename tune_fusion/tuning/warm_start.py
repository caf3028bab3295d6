"""Starting a search with the results of an earlier one, of which nothing is run again.

Its ended trials become `Inherited` events, written with the first line of the new journal: from then on the
new search needs the earlier one no more.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from tune_fusion.errors import InputError
from tune_fusion.events import Event
from tune_fusion.passwords import redact
from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.runs import RunFolder, read_past, run_folder
from tune_fusion.space.domain import shown, written
from tune_fusion.space.loading import parse_space
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.storage import fetch, pull, push
from tune_fusion.storage import shown as shown_storage
from tune_fusion.tracking.earlier import UnreadableError, read_search
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.preflight import Request

_TEACHING = (TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED)
_NAMED = 5


@dataclass(frozen=True)
class Conditions:
    """What the results of a search were measured with."""

    space: str
    """The space file as run."""
    metric: str
    data: str
    """The data's fingerprint."""


@dataclass(frozen=True)
class Earlier:
    """An earlier search, of which another one is to know the results."""

    name: str
    conditions: tuple[Conditions, ...]
    """Of each of its sessions."""
    trials: tuple[TrialRecord, ...]
    """Those that have ended and teach something: failures may be the machine's."""
    folder: RunFolder | None
    """Where its weights are; None where a tracking store tells of it."""


def find_earlier(request: Request, experiment: str) -> Earlier:
    """The search that `request.warm_start` names: a folder beside the new one's, else a run in the store.

    It may still be running. Raises InputError where there is none, or nothing can be learnt from it.
    """
    assert request.warm_start is not None
    name = request.warm_start
    folder = run_folder(request.storage, name, "--warm-start")
    pull(folder.path)
    found = _of_folder(folder) if folder.journal.is_file() else _of_store(request, name, experiment)
    if not found.trials:
        raise InputError(f"--warm-start {name}: has no trial that has ended with a result")
    return found


def check_alike(earlier: Earlier, space: SearchSpace, fingerprint: str, vocabulary: Vocabulary) -> None:
    """InputError, with the difference, where results of `earlier` mean something else in `space`.

    Model, data, training and metric must be the same; what may be searched, and how, may differ.
    """
    now = [*_settings(space), f"data fingerprint: {fingerprint[:16]}"]
    for conditions in dict.fromkeys(earlier.conditions):
        past = parse_space(conditions.space, f"{earlier.name}/space.yaml", vocabulary)
        before = [*_settings(past), f"data fingerprint: {conditions.data[:16]}"]
        if before != now:
            diff = difflib.unified_diff(before, now, earlier.name, "this search", lineterm="", n=0)
            raise InputError(
                f"--warm-start {earlier.name}: its results are of another model, data, training or metric:\n"
                + "\n".join(f"  {line}" for line in diff if not line.startswith("@@"))
                + "\nset these as they were, or start without it"
            )


def inherit(engine: Engine, earlier: Earlier) -> list[Event]:
    """Let a new engine know the results of `earlier`; the events that say so, yet to be written.

    Raises InputError, naming them, where the space does not contain a configuration; the engine is of no
    use then.
    """
    events: list[Event] = []
    engine.write = events.append
    refused: list[str] = []
    for trial in earlier.trials:
        try:
            engine.inherit(trial, earlier.name)
        except ValueError as error:
            refused.append(f"  trial {trial.number}: {error}")
    if refused:
        some = refused[:_NAMED] + ([f"  and {len(refused) - _NAMED} more"] if len(refused) > _NAMED else [])
        raise InputError(
            f"--warm-start {earlier.name}: this space does not contain {len(refused)} of its "
            f"{len(earlier.trials)} trials:\n"
            + "\n".join(some)
            + "\nwiden it to hold them, or start without it"
        )
    return events


def copy_weights(engine: Engine, earlier: Earlier, folder: RunFolder) -> None:
    """Copy what weights `earlier` has of inherited trials into the `folder` of the new search.

    The best trial may be one of them. What cannot be copied is done without.
    """
    if earlier.folder is None:
        return
    places = {_first_run(trial, earlier.name): trial.number for trial in earlier.trials}
    for trial in engine.record.inherited:
        weights = earlier.folder.weights(places[_first_run(trial, earlier.name)])
        with suppress(OSError):
            fetch(weights)
        if weights.exists():
            target = folder.weights(trial.number)
            with suppress(OSError):
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(weights, target)
                push([target])


def _of_folder(folder: RunFolder) -> Earlier:
    past = read_past(folder)
    return Earlier(
        name=folder.name,
        conditions=tuple(
            Conditions(session.space.text, session.metric, session.data)
            for session in past.chronicle.sessions
        ),
        trials=tuple(trial for trial in past.chronicle.record.known if _teaches(trial)),
        folder=folder,
    )


def _of_store(request: Request, name: str, experiment: str) -> Earlier:
    uri = request.tracking_uri
    try:
        logged = read_search(uri, experiment, name)
    except UnreadableError as error:
        raise InputError(f"--warm-start {name}: {redact(uri)}: {error}") from error
    if logged is None:
        raise InputError(
            f"--warm-start {name}: there is neither a search in {shown_storage(request.storage)} "
            f"(--storage) nor, in {redact(uri)} (--tracking-uri), a run of this id, or of this name in "
            f"experiment {experiment!r}"
        )
    return Earlier(
        name=logged.name,
        conditions=(Conditions(logged.space, logged.metric, logged.data),),
        trials=tuple(trial for trial in logged.trials if _teaches(trial)),
        folder=None,
    )


def _first_run(trial: TrialRecord, search: str) -> tuple[str, int]:
    """Which search ran a trial that `search` knows, and its number there."""
    return (search, trial.number) if trial.source_trial is None else (trial.source, trial.source_trial)


def _teaches(trial: TrialRecord) -> bool:
    return trial.state in _TEACHING or trial.infeasible


def _settings(space: SearchSpace) -> Iterator[str]:
    """What decides what a configuration reaches, a line each."""
    yield f"search.metric: {space.search.metric}"
    for section, settings in (("model", space.model), ("data", space.data)):
        # Where the images lie says nothing; what they are says the fingerprint.
        for key, value in settings.model_dump(exclude={"root"}).items():
            yield f"{section}.{key}: {shown(value)}"
    for key, domain in sorted(space.training.items()):
        yield f"training.{key}: {shown(written(domain))}"
