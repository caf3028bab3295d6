"""Runs one search, or the rest of one, from its request to its files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from tune_fusion.events import Chronicle
from tune_fusion.records import SearchRecord
from tune_fusion.reporting.results import read_answer, result, write_results
from tune_fusion.runs import Past
from tune_fusion.storage import store_of
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.training.checks import Checked, check_space, prove
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning import cluster
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.best_model import write_model
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.interruption import Interruption
from tune_fusion.tuning.kept_files import best_trials
from tune_fusion.tuning.members import Members
from tune_fusion.tuning.opening import opened, reopened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.packing import pack, prepare, reasons, with_resources
from tune_fusion.tuning.preflight import (
    Request,
    as_before,
    check_confirmable,
    check_name,
    check_store,
    later,
    moved_store,
)
from tune_fusion.tuning.resume import SpaceSource, check_same_search, replay, resumed_source
from tune_fusion.tuning.running import Ending, Running, nodes_of, session_of
from tune_fusion.tuning.warm_start import Earlier, check_alike, copy_weights, find_earlier, inherit


def run_search(
    request: Request,
    started: float,
    interruption: Interruption,
    ready: Callable[[list[str], str], None],
    connect: Callable[[], None] | None = None,
) -> Outcome:
    """Check the request, run the search on Ray, write and log what it found.

    `started` is when the command was typed, in seconds since 1970; `ready` is called once, right before the
    first trial, with what has changed since the search was started and how its trials were packed, in words:
    empty where nothing was, or long ago. `connect` is a `cluster.connection` that was begun before, if any.
    Raises InputError before anything is written; once trials run, whatever happens becomes an `Outcome`.
    """
    with ExitStack() as stack:
        past = stack.enter_context(reopened(request.storage, request.resume)) if request.resume else None
        moved: list[str] = []
        if past is not None:
            request = as_before(request, past.session)
            moved = moved_store(request, past.session)
        source = _source(request, past)
        checked = check_space(source.name_or_path, source.overrides, stand_in=source.rehearse)
        folder = check_name(request, checked.space.name) if past is None else past.folder
        checked = prepare(checked) if past is None else checked
        check_store(request)
        cluster.check_machine(request.address, checked.space.resources, torch.cuda.device_count())
        bench = prove(checked, pick_device(0))
        check_confirmable(request, bench)
        packing = ""
        if past is None and checked.space.resources.pack == "auto":
            checked, source, packing = _packed(request, checked, source)
        session = session_of(request, past, source, checked, bench.data.fingerprint, folder.name, started)
        changes: list[str] = []
        if past is not None:
            option = f"--resume {request.resume}"
            changes = check_same_search(past, session, option=option, force=request.force)
        members = Members(checked.space.resources, request.concurrent, checked.space.data)
        engine = Engine(
            space=checked.space,
            vocabulary=checked.vocabulary,
            arms=make_arms(checked.space),
            chronicle=Chronicle.begin(session if past is None else past.chronicle.sessions[0]),
            layer_names=checked.layer_names,
            slots=members.slots,
        )
        earlier = _earlier(request, checked, bench)
        inherited = [] if earlier is None else inherit(engine, earlier)
        if connect is None:
            connect = stack.enter_context(cluster.connection(request.address, checked.space.model.name))
        nodes = nodes_of(connect, request, checked, bench, folder, members, interruption)
        search = _SearchRun(request, checked, bench, folder, engine, interruption, members, nodes)
        search.packing = packing
        if past is not None:
            replay(search.engine, past, strict=not request.force)
            # Before the journal names it: otherwise a death in between would look like a change of the file.
            search.write_inputs()
        ours = stack.enter_context(opened(folder, session, past, inherited))
        if earlier is not None:
            copy_weights(engine, earlier, folder)
        ready([*changes, *moved], packing)
        return search.run(ours, None if past is None else session)


def _source(request: Request, past: Past | None) -> SpaceSource:
    if past is not None:
        return resumed_source(past, request.space, request.overrides)
    assert request.space is not None
    return SpaceSource(request.space, request.overrides, request.rehearse)


def _packed(request: Request, checked: Checked, source: SpaceSource) -> tuple[Checked, SpaceSource, str]:
    """The space and its source with what a trial is to occupy, and why, in words."""
    packing = pack(checked, request.concurrent)
    source = replace(source, overrides=(*source.overrides, *packing.overrides))
    return with_resources(checked, packing.cpu, packing.gpu), source, reasons(packing)


def _earlier(request: Request, checked: Checked, bench: Workbench) -> Earlier | None:
    """The search that a new one is to start with the results of."""
    if request.warm_start is None:
        return None
    earlier = find_earlier(request, checked.space.name)
    check_alike(earlier, checked.space, bench.data.fingerprint, checked.vocabulary)
    return earlier


class _SearchRun(Running):
    """One session of a search."""

    command = "search"
    packing: str = ""
    """How the trials of a new search were packed, in words."""

    def _begin(self) -> None:
        if self.packing:
            self.engine.note(self.packing)
        self.engine.begin()

    def _wanted(self, record: SearchRecord) -> set[int]:
        return best_trials(record)

    def _model(self) -> BestModel | None:
        return write_model(self._folder, self._bench, self._record, self._record.best())

    def _write(self, content: dict[str, Any]) -> None:
        write_results(self._folder, self._record, content)

    def _report(self, content: dict[str, Any]) -> None:
        # Matplotlib and what else draws takes seconds to import: at the end, where nobody waits for a trial.
        from tune_fusion.reporting.page import write_report

        write_report(self._folder, self.engine.chronicle, read_answer(self._folder), content)

    def _result(self, ending: Ending, facts: dict[str, Any]) -> dict[str, Any]:
        confirm = later("confirm", self._request, self._name) if ending.status == "completed" else None
        return result(
            self._record, ending.status, facts | {"confirm_command": confirm, "paths": self._paths(ending)}
        )

    def _paths(self, ending: Ending) -> dict[str, str]:
        folder, best = self._folder, self._record.best()
        named = {
            name: getattr(folder, name) for name in ("result", "trials", "space", "layers", "logs", "journal")
        }
        # Written behind the result, and where trials are missing only on demand.
        if ending.status == "completed" or folder.report.exists():
            named = {"report": folder.report} | named
        if best is not None and folder.weights(best.number).exists():
            named["weights"] = folder.weights(best.number)
        paths = {name: str(path) for name, path in named.items()}
        found = store_of(folder.path)
        return paths if found is None else {"storage": found[0].at(found[1]), **paths}
