"""One session of trials on the cluster, from the first that it starts to the files that it leaves.

What a search and a confirmation have in common; each says by itself what is run and what becomes of it.
"""

from __future__ import annotations

import importlib
import os
import shlex
import socket
import sys
import threading
import time
import traceback
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from tune_fusion.commands import Interrupted
from tune_fusion.errors import TuneFusionError
from tune_fusion.events import Session, Status
from tune_fusion.passwords import redact
from tune_fusion.records import SearchListener, SearchRecord, TrialRecord
from tune_fusion.reporting.live import PlainProgress, progress
from tune_fusion.runs import Past, RunFolder
from tune_fusion.space.domain import Constant
from tune_fusion.storage import Place, fetch
from tune_fusion.tracking.mlflow_logger import BestModel, MlflowLogger, ui_command
from tune_fusion.tracking.uri import absolute
from tune_fusion.training.checks import Checked
from tune_fusion.training.saved_model import layers_json
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning import cluster, facts
from tune_fusion.tuning.bridge import Trouble, run_trials
from tune_fusion.tuning.delivering import acknowledgement, delivered, figure_files, result_files, tags
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.interruption import Interruption
from tune_fusion.tuning.kept_files import FileKeeper
from tune_fusion.tuning.members import Members, Proof
from tune_fusion.tuning.opening import Opened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.preflight import Request, later
from tune_fusion.tuning.resume import SpaceSource
from tune_fusion.tuning.room import check_room, no_room, with_files
from tune_fusion.tuning.store_copy import StoreCopy, copy_of
from tune_fusion.tuning.trainable import TrialPlan

# Seconds that running epochs are given to end once the session is interrupted.
_DRAIN_SECONDS = 2.5
# What draws takes long to import.
_REPORT = "tune_fusion.reporting.page"
_NAMED = 5


@dataclass(frozen=True)
class Ending:
    """How the trials of a session ended."""

    status: Status
    exit_code: int
    problems: tuple[str, ...] = ()
    full_disk: bool = False


class Running(ABC):
    """One session of a search or a confirmation."""

    command: Literal["search", "confirm"]
    """The command that goes on with it."""

    def __init__(
        self,
        request: Request,
        checked: Checked,
        bench: Workbench,
        folder: RunFolder,
        engine: Engine,
        interruption: Interruption,
        members: Members,
        nodes: list[cluster.Node],
    ) -> None:
        self.engine = engine
        self._request = request
        self._checked = checked
        self._bench = bench
        self._folder = folder
        self._interruption = interruption
        self._members = members
        self._nodes = nodes
        self._trouble = Trouble()
        self._drain_until = 0.0
        self._report_at_hand = False
        self._copy: StoreCopy | None = None

    @abstractmethod
    def _begin(self) -> None:
        """Called right before the first trial."""

    def _trials_ended(self) -> None:
        """Called right after the last trial has ended."""
        return

    def _useless(self) -> bool:
        """True where nothing that was run has a usable result."""
        return self._record.best() is None

    def _winner(self, record: SearchRecord) -> TrialRecord | None:
        """The best trial of all."""
        return record.best()

    def _interrupted_late(self) -> str:
        """What a signal that came when all trials had ended has cost, in words."""
        return f"interrupted when the {self.command} was complete: nothing of it is missing"

    @abstractmethod
    def _wanted(self, record: SearchRecord) -> set[int]:
        """The ended trials of `record` whose weights stay on the disk."""

    @abstractmethod
    def _model(self) -> BestModel | None:
        """Write the model that the completed session is remembered for."""

    @abstractmethod
    def _result(self, ending: Ending, facts: dict[str, Any]) -> dict[str, Any]:
        """What the session's result says; `facts` are what is known of every session."""

    @abstractmethod
    def _write(self, content: dict[str, Any]) -> None:
        """Write the session's result files."""

    @abstractmethod
    def _report(self, content: dict[str, Any]) -> None:
        """Write the report page of the completed session."""

    def _conclude(self, content: dict[str, Any], run_id: str | None) -> list[str]:
        """What is left once the tracking store has everything; `run_id` is the session's run there.

        Returns what went wrong, one sentence a problem.
        """
        return []

    @property
    def _name(self) -> str:
        """The search's name."""
        return self._folder.name

    @property
    def _parent_run(self) -> str | None:
        """The MLflow run that the session's own is nested in."""
        return None

    @property
    def _reported_in(self) -> RunFolder:
        """Where the report lies."""
        return self._folder

    @property
    def _record(self) -> SearchRecord:
        return self.engine.record

    def run(self, ours: Opened, resumption: Session | None) -> Outcome:
        """Run what is left; `resumption` is the newest event of one that was started before."""
        if resumption is not None:
            self.engine.replay(resumption)
        self.engine.write = ours.journal.append
        if resumption is None:
            self.write_inputs()
        self._copy = copy_of(self._folder)
        files = FileKeeper(self._record, self._folder, self._wanted)
        files.tidy()
        logger = self._logger(ours)
        logger.start()
        with self._watched([files, logger]):
            ending = self._fit()
            if ending.full_disk:
                # No worker may take the room that is made for the last words.
                cluster.disconnect()
                ours.free_reserve()
            if ending.status == "completed":
                logger.settle()
            ending, content, best = self._finish(ending, ours, logger)
        problems = list(ending.problems)
        if ending.status == "completed":
            problems += self._reported(content)
        logger.search_ended(
            ending.status,
            artifacts=result_files(self._folder, self._reported_in),
            figures=figure_files(self._reported_in),
            best=best,
        )
        problems += logger.close(hurried=lambda: self._interruption.signalled)
        if ending.status == "completed" and not self._interruption.signalled:
            problems += self._conclude(content, logger.run_id)
        code = ending.exit_code
        if self._interruption.signalled and ending.status == "completed":
            code = self._interruption.exit_code
            problems.append(self._interrupted_late())
        if self._copy is not None:
            problems += self._copy.flush()
        return Outcome(self._record, content, code, problems)

    def write_inputs(self) -> None:
        """Write the space as run and the layer map into the search's folder."""
        self._folder.logs.mkdir(exist_ok=True)
        self._folder.space.write_text(self._checked.space.to_yaml(), encoding="utf-8")
        self._folder.layers.write_text(layers_json(self._checked.layers), encoding="utf-8")

    def _plan(self) -> TrialPlan:
        """What all trials share."""
        space = self._checked.space
        return TrialPlan(
            model=space.model,
            data=space.data,
            seed=space.search.seed,
            fingerprints=self._fingerprints(),
            threads=space.resources.cpu,
            gpu=space.resources.gpu,
            metric=space.search.metric,
            direction=space.direction,
            run_folder=Place.of(self._folder.path),
            proof=self._proof(),
            test=self.command == "confirm",
        )

    def _proof(self) -> Proof:
        """What nodes that join have to confirm: the journal, which its store has from now on as well."""
        if self._copy is not None:
            for problem in self._copy.flush():
                raise TuneFusionError(problem)
        return self._members.watch(self._folder.journal)

    def _fingerprints(self) -> dict[int, str]:
        """Of the images, by the seed of their split."""
        return {self._bench.seed: self._bench.data.fingerprint}

    def _facts(self, ending: Ending, ours: Opened, url: str | None) -> dict[str, Any]:
        data, uri = self._bench.data, self._request.tracking_uri
        session = self.engine.chronicle.sessions[-1]
        command = shlex.join([sys.executable, "-m", f"tune_fusion.{self.command}", *sys.argv[1:]])
        return {
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
            "command": redact(command),
            "resume_command": None if ending.status == "completed" else self._resume(),
            "problems": ending.problems,
        }

    def _logger(self, ours: Opened) -> MlflowLogger:
        chronicle, uri = self.engine.chronicle, self._request.tracking_uri
        return MlflowLogger(
            uri,
            self._record,
            tags=tags(chronicle.sessions[-1]),
            files=[self._folder.space, self._folder.layers],
            parent_run=self._parent_run,
            winner=self._winner,
            delivered=delivered(chronicle, uri),
            acknowledge=acknowledgement(ours.journal),
            later=later("sync", self._request, self._name),
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

    def _fit(self) -> Ending:
        """Run the trials, and say how that ended."""
        record = self._record
        try:
            self._begin()
            self._note_skipped_images()
            run_trials(
                self.engine,
                self._check,
                self._plan(),
                self._checked.space.resources,
                self._members.excluded,
                self._trouble,
            )
            self._check()
            self._trials_ended()
        except Interrupted as stop:
            return Ending("interrupted", stop.exit_code)
        except OSError as error:
            return self._full_disk(error)
        except TuneFusionError as error:
            return self._failure(str(error))
        except Exception as error:  # noqa: BLE001  (whatever Ray raises, what was found must be written)
            with suppress(OSError):
                (self._folder.logs / "driver.txt").write_text(traceback.format_exc(), encoding="utf-8")
            return self._failure(f"Ray Tune stopped: {type(error).__name__}: {error}")
        if self._useless():
            reasons = "; ".join(sorted({f"{trial.state}: {trial.reason}" for trial in record.trials}))
            return self._failure(f"no trial ended with a usable result; {reasons}")
        return Ending("completed", 0)

    def _model_if_possible(self) -> BestModel | None:
        """The model; None where it cannot be written for another reason than a full disk."""
        try:
            for number in self._wanted(self._record):
                fetch(self._folder.weights(number))
            return self._model()
        except OSError:
            raise
        except Exception:  # noqa: BLE001  (what was found must be written all the same)
            (self._folder.logs / "model.txt").write_text(traceback.format_exc(), encoding="utf-8")
            self.engine.note(f"the model was not written: see {self._folder.logs / 'model.txt'}")
            return None

    def _reported(self, content: dict[str, Any]) -> list[str]:
        """Write the report; what went wrong with it, in words: nothing that was found depends on it."""
        try:
            self._report(content)
        except Exception as error:  # noqa: BLE001  (a picture that cannot be drawn must not end a search)
            with suppress(OSError):
                (self._folder.logs / "report.txt").write_text(traceback.format_exc(), encoding="utf-8")
            again = later("report", self._request, self._name)
            return [f"the report was not written: {type(error).__name__}: {error}; try again: {again}"]
        return []

    def _check(self) -> None:
        """Raise what must end the search now; called at every turn of Ray's loop."""
        engine = self.engine
        if not self._report_at_hand and engine.next_arm() is None:
            # The last trials run, and some slots are free: what takes a second at the end is done now.
            self._report_at_hand = True
            threading.Thread(target=importlib.import_module, args=(_REPORT,), daemon=True).start()
        while self._members.news:
            engine.note(self._members.news.pop(0))
        if self._copy is not None:
            self._copy.check()
        if engine.broken:
            raise TuneFusionError(f"the first trials all failed alike: {engine.broken}")
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

    def _failure(self, problem: str) -> Ending:
        return Ending("failed", TuneFusionError.exit_code, (f"{problem} (details: {self._folder.logs})",))

    def _full_disk(self, error: OSError) -> Ending:
        needed = no_room(
            error, self._folder.path, self._bench, with_files(self._checked.space, self.engine.slots())
        )
        problem = f"{needed}; every finished epoch is kept: make room, then go on with: {self._resume()}"
        return Ending("failed", TuneFusionError.exit_code, (problem,), full_disk=True)

    def _resume(self) -> str:
        request = self._request
        return " ".join([later(self.command, request, self._name), *map(shlex.quote, request.words)])

    def _finish(
        self, ending: Ending, ours: Opened, logger: MlflowLogger
    ) -> tuple[Ending, dict[str, Any], BestModel | None]:
        """Leave the session: its journal, result and best model; on a full disk, what of that can be had."""
        best = None
        try:
            if ending.status == "completed":
                best = self._model_if_possible()
            else:
                self.engine.close(ending.status, "; ".join(ending.problems))
            content = self._result(ending, self._facts(ending, ours, logger.url))
            self._write(content)
            if ending.status == "completed":
                # A driver that dies behind the last line has no successor that would tidy.
                ours.free_reserve()
                self.engine.close(ending.status)
        except OSError as error:
            ours.free_reserve()
            if not ending.full_disk:
                ending = self._full_disk(error)
            content = self._result(ending, self._facts(ending, ours, logger.url))
            with suppress(OSError):
                if self.engine.chronicle.status is None:
                    self.engine.close(ending.status, "; ".join(ending.problems))
                self._write(content)
        return ending, content, best


def session_of(
    request: Request,
    past: Past | None,
    source: SpaceSource,
    checked: Checked,
    fingerprint: str,
    name: str,
    started: float,
) -> Session:
    """The event of this driver's taking up the search `name`, which `past` knows if it was started before."""
    space = checked.space
    before = None if past is None else past.session
    return Session(
        search=name,
        key=uuid.uuid4().hex if before is None else before.key,
        started=started,
        host=socket.gethostname(),
        pid=os.getpid(),
        space=source.recorded(space.name if before is None else before.space.name, space.to_yaml()),
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


def nodes_of(
    connect: Callable[[], None],
    request: Request,
    checked: Checked,
    bench: Workbench,
    folder: RunFolder,
    members: Members,
    interruption: Interruption,
) -> list[cluster.Node]:
    """The nodes of the cluster that `connect` gives; signals are deferred from here on.

    Raises InputError where the trials do not fit on it, or their files not on the disk, or its nodes do not
    share the folder.
    """
    interruption.defer()
    connect()
    interruption.install()
    interruption.check()
    resources = checked.space.resources
    waited = cluster.wait_for_room(resources, request.concurrent or 1, request.wait or 0, interruption.check)
    nodes = cluster.nodes()
    cluster.check_resources(resources, nodes, waited)
    members.admit(nodes, folder.path, interruption.check)
    slots = cluster.slots(resources, nodes)
    check_room(folder.path, bench, with_files(checked.space, min(slots, request.concurrent or slots)))
    return nodes
