"""Runs one search, or the rest of one, from its request to its files."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from tune_fusion.errors import TuneFusionError
from tune_fusion.events import Chronicle, Session, Status
from tune_fusion.records import SearchListener, SearchRecord
from tune_fusion.reporting.live import PlainProgress, progress
from tune_fusion.reporting.results import result, write_results
from tune_fusion.runs import Past, RunFolder
from tune_fusion.space.domain import Constant
from tune_fusion.tracking.mlflow_logger import BestModel, MlflowLogger, redact, ui_command
from tune_fusion.tracking.uri import absolute
from tune_fusion.training.checks import Checked, check_space, prove
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning import cluster, facts
from tune_fusion.tuning.best_model import write_best_model
from tune_fusion.tuning.bridge import Trouble, run_trials
from tune_fusion.tuning.delivering import acknowledgement, delivered, tags
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.interruption import Interrupted, Interruption
from tune_fusion.tuning.kept_files import FileKeeper
from tune_fusion.tuning.opening import Opened, opened, reopened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.preflight import Request, as_before, check_name, check_store, later, moved_store
from tune_fusion.tuning.resume import SpaceSource, check_same_search, replay, resumed_source
from tune_fusion.tuning.room import check_room, no_room
from tune_fusion.tuning.trainable import TrialPlan

# Seconds that running epochs are given to end once the search is interrupted.
_DRAIN_SECONDS = 2.5
_NAMED = 5


@dataclass(frozen=True)
class _Ending:
    status: Status
    exit_code: int
    problems: tuple[str, ...] = ()
    full_disk: bool = False


class _BrokenError(Exception):
    """The engine says that going on is useless."""


def run_search(
    request: Request, started: float, interruption: Interruption, ready: Callable[[list[str]], None]
) -> Outcome:
    """Check the request, run the search on Ray, write and log what it found.

    `started` is when the command was typed, in seconds since 1970; `ready` is called once, right before the
    first trial, with what has changed since the search was started, in words. Raises InputError before
    anything is written; once trials run, whatever happens becomes an `Outcome`.
    """
    with ExitStack() as stack:
        past = stack.enter_context(reopened(request.output, request.resume)) if request.resume else None
        moved: list[str] = []
        if past is not None:
            request = as_before(request, past.session)
            moved = moved_store(request, past.session)
        source = _source(request, past)
        checked = check_space(source.name_or_path, source.overrides, stand_in=source.rehearse)
        folder = check_name(request, checked) if past is None else past.folder
        check_store(request)
        cluster.check_machine(request.address, checked.space.resources, torch.cuda.device_count())
        bench = prove(checked, pick_device(0))
        session = _session(request, past, source, checked, bench.data.fingerprint, folder, started)
        changes = [] if past is None else check_same_search(past, session, force=request.force)
        interruption.defer()
        stack.enter_context(cluster.connected(request.address))
        interruption.install()
        interruption.check()
        nodes = cluster.nodes()
        cluster.check_resources(checked.space.resources, nodes)
        slots = cluster.slots(checked.space.resources, nodes)
        check_room(folder.path, bench, min(slots, request.concurrent or slots))
        chronicle = Chronicle.begin(session if past is None else past.chronicle.sessions[0])
        search = _Search(request, checked, bench, folder, chronicle, interruption, nodes)
        if past is not None:
            replay(search.engine, past, strict=not request.force)
            # Before the journal names it: otherwise a death in between would look like a change of the file.
            search.write_inputs()
        ours = stack.enter_context(opened(folder, session, past))
        ready([*changes, *moved])
        return search.run(ours, None if past is None else session)


def _source(request: Request, past: Past | None) -> SpaceSource:
    if past is not None:
        return resumed_source(past, request.space, request.overrides)
    assert request.space is not None
    return SpaceSource(request.space, request.overrides, request.rehearse)


def _session(
    request: Request,
    past: Past | None,
    source: SpaceSource,
    checked: Checked,
    fingerprint: str,
    folder: RunFolder,
    started: float,
) -> Session:
    space = checked.space
    before = None if past is None else past.session
    name = space.name if before is None else before.space.name
    return Session(
        search=folder.name,
        key=uuid.uuid4().hex if before is None else before.key,
        started=started,
        host=socket.gethostname(),
        pid=os.getpid(),
        space=source.recorded(name, space.to_yaml()),
        metric=space.search.metric,
        direction=space.direction,
        planned_trials=space.search.trials,
        fusions=not space.single,
        searched_training=tuple(
            key for key, domain in space.training.items() if not isinstance(domain, Constant)
        ),
        code=facts.code(),
        commit=facts.git_commit(),
        data=fingerprint,
        tracking=redact(absolute(request.tracking_uri)),
        concurrent=request.concurrent,
    )


class _Search:
    """One session of a search, from the first trial it starts to the files it leaves."""

    def __init__(
        self,
        request: Request,
        checked: Checked,
        bench: Workbench,
        folder: RunFolder,
        chronicle: Chronicle,
        interruption: Interruption,
        nodes: list[cluster.Node],
    ) -> None:
        self._request = request
        self._checked = checked
        self._bench = bench
        self._folder = folder
        self._interruption = interruption
        self._nodes = nodes
        self._trouble = Trouble()
        self._drain_until = 0.0
        self.engine = Engine(
            space=checked.space,
            vocabulary=checked.vocabulary,
            chronicle=chronicle,
            layer_names=checked.layer_names,
            slots=self._slots(),
        )

    @property
    def _record(self) -> SearchRecord:
        return self.engine.record

    def run(self, ours: Opened, resumption: Session | None) -> Outcome:
        """Run what is left of the search; `resumption` is its newest event where it was started before."""
        if resumption is not None:
            self.engine.replay(resumption)
        self.engine.write = ours.journal.append
        if resumption is None:
            self.write_inputs()
        files = FileKeeper(self._record, self._folder)
        files.tidy()
        logger = self._logger(ours)
        logger.start()
        with self._watched([files, logger]):
            ending = self._fit()
            if ending.full_disk:
                # No worker may take the room that is made for the last words.
                cluster.disconnect()
                ours.free_reserve()
            ending, content, best = self._finish(ending, ours, logger)
        artifacts = [path for path in (self._folder.result, self._folder.trials) if path.exists()]
        logger.search_ended(ending.status, artifacts=artifacts, best=best)
        undelivered = logger.close(hurried=lambda: self._interruption.signalled)
        code, problems = ending.exit_code, [*ending.problems, *undelivered]
        if self._interruption.signalled and ending.status == "completed":
            code = self._interruption.exit_code
            problems.append("interrupted when the search was complete: nothing of it is missing")
        return Outcome(self._record, content, code, problems)

    def write_inputs(self) -> None:
        """Write the space as run and the layer map into the search's folder."""
        self._folder.logs.mkdir(exist_ok=True)
        self._folder.space.write_text(self._checked.space.to_yaml(), encoding="utf-8")
        layers = [
            {
                "index": layer.index,
                "name": layer.name,
                "parameters": layer.count,
                "tensors": list(layer.parameters),
            }
            for layer in self._checked.layers
        ]
        self._folder.layers.write_text(json.dumps(layers, indent=2) + "\n", encoding="utf-8")

    def _logger(self, ours: Opened) -> MlflowLogger:
        chronicle, uri = self.engine.chronicle, self._request.tracking_uri
        return MlflowLogger(
            uri,
            self._record,
            tags=tags(chronicle.sessions[-1]),
            files=[self._folder.space, self._folder.layers],
            delivered=delivered(chronicle, uri),
            acknowledge=acknowledgement(ours.journal),
            later=later("sync", self._request, self._folder.name),
            offline=self._request.offline,
        )

    @contextmanager
    def _watched(self, listeners: Sequence[SearchListener]) -> Iterator[None]:
        """Within, the listeners, the search's log and standard output tell what happens to trials."""
        with (
            progress(self._record) as view,
            (self._folder.logs / "search.txt").open("a", encoding="utf-8") as log,
        ):
            self.engine.listeners = [*listeners, PlainProgress(self._record, log), view]
            yield

    def _fit(self) -> _Ending:
        """Run the trials, and say how that ended."""
        engine, record = self.engine, self._record
        try:
            engine.begin()
            self._note_skipped_images()
            run_trials(engine, self._check, self._plan(), self._checked.space.resources, self._trouble)
            self._check()
        except Interrupted as stop:
            return _Ending("interrupted", stop.exit_code)
        except _BrokenError:
            return self._failure(f"the first trials all failed alike: {engine.broken}")
        except OSError as error:
            return self._full_disk(error)
        except Exception as error:  # noqa: BLE001  (whatever Ray raises, what was found must be written)
            with suppress(OSError):
                (self._folder.logs / "driver.txt").write_text(traceback.format_exc(), encoding="utf-8")
            return self._failure(f"Ray Tune stopped: {type(error).__name__}: {error}")
        if record.best() is None:
            reasons = "; ".join(sorted({f"{trial.state}: {trial.reason}" for trial in record.trials}))
            return self._failure(f"no trial ended with a usable result; {reasons}")
        return _Ending("completed", 0)

    def _check(self) -> None:
        """Raise what must end the search now; called at every turn of Ray's loop."""
        engine = self.engine
        if engine.broken:
            raise _BrokenError
        if self._interruption.signalled and not engine.finished:
            now = time.monotonic()
            if not engine.draining:
                engine.draining, self._drain_until = True, now + _DRAIN_SECONDS
            if not engine.running or now > self._drain_until:
                self._interruption.check()

    def _note_skipped_images(self) -> None:
        skipped = self._bench.data.skipped
        if skipped:
            shown = ", ".join(skipped[:_NAMED]) + (" ..." if len(skipped) > _NAMED else "")
            self.engine.note(f"{len(skipped)} images cannot be read and were left out: {shown}")

    def _failure(self, problem: str) -> _Ending:
        return _Ending("failed", TuneFusionError.exit_code, (f"{problem} (details: {self._folder.logs})",))

    def _full_disk(self, error: OSError) -> _Ending:
        needed = no_room(error, self._folder.path, self._bench, self.engine.slots())
        problem = f"{needed}; every finished epoch is kept: make room, then go on with: {self._resume()}"
        return _Ending("failed", TuneFusionError.exit_code, (problem,), full_disk=True)

    def _resume(self) -> str:
        return later("search", self._request, self._folder.name)

    def _finish(
        self, ending: _Ending, ours: Opened, logger: MlflowLogger
    ) -> tuple[_Ending, dict[str, Any], BestModel | None]:
        """Leave the search: its journal, result and best model; on a full disk, what of that can be had."""
        best = None
        try:
            if ending.status == "completed":
                best = write_best_model(self._folder, self._bench, self._record.best())
            else:
                self.engine.close(ending.status, "; ".join(ending.problems))
            content = self._content(ending, ours, logger.url)
            write_results(self._folder, self._record, content)
            if ending.status == "completed":
                # A driver that dies behind the last line has no successor that would tidy.
                ours.free_reserve()
                self.engine.close(ending.status)
        except OSError as error:
            ours.free_reserve()
            if not ending.full_disk:
                ending = self._full_disk(error)
            content = self._content(ending, ours, logger.url)
            with suppress(OSError):
                if self.engine.chronicle.status is None:
                    self.engine.close(ending.status, "; ".join(ending.problems))
                write_results(self._folder, self._record, content)
        return ending, content, best

    def _plan(self) -> TrialPlan:
        space = self._checked.space
        return TrialPlan(
            model=space.model,
            data=space.data,
            fingerprint=self._bench.data.fingerprint,
            seed=space.search.seed,
            threads=space.resources.cpu,
            gpu=space.resources.gpu,
            metric=space.search.metric,
            direction=space.direction,
            run_folder=self._folder.path,
        )

    def _slots(self) -> Callable[[], int]:
        resources, most = self._checked.space.resources, self._request.concurrent
        asked, known = 0.0, 0

        def slots() -> int:
            # A cluster may grow or shrink; asking it takes a few milliseconds, so not before every start.
            nonlocal asked, known
            if time.monotonic() - asked > 5 or not known:
                asked, known = time.monotonic(), cluster.slots(resources, cluster.nodes())
            return known if most is None else min(known, most)

        return slots

    def _content(self, ending: _Ending, ours: Opened, url: str | None) -> dict[str, Any]:
        """The content of ``result.json``."""
        data, uri = self._bench.data, self._request.tracking_uri
        session = self.engine.chronicle.sessions[-1]
        return result(
            self._record,
            ending.status,
            {
                "wall_seconds": self._record.elapsed(time.time()),
                "sessions": len(self.engine.chronicle.sessions),
                "seed": self._checked.space.search.seed,
                "data": {
                    "name": data.name,
                    "fingerprint": data.fingerprint,
                    "train_images": len(data.train),
                    "validation_images": len(data.validation),
                    "skipped_images": len(data.skipped),
                },
                "versions": session.code,
                "git_commit": session.commit,
                "hardware": facts.hardware(self._nodes),
                "recovery": {
                    "journal_seconds": ours.journal.seconds,
                    "checkpoint_seconds": self._trouble.checkpoint_seconds,
                },
                "mlflow": {"tracking_uri": redact(uri), "ui_command": ui_command(uri), "url": url},
                "command": redact(shlex.join([sys.executable, "-m", "tune_fusion.search", *sys.argv[1:]])),
                "resume_command": None if ending.status == "completed" else self._resume(),
                "problems": ending.problems,
                "paths": self._paths(),
            },
        )

    def _paths(self) -> dict[str, str]:
        folder, best = self._folder, self._record.best()
        named = {
            name: getattr(folder, name) for name in ("result", "trials", "space", "layers", "logs", "journal")
        }
        if best is not None and folder.weights(best.number).exists():
            named["weights"] = folder.weights(best.number)
        return {name: str(path) for name, path in named.items()}
