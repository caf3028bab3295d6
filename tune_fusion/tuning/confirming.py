"""Confirms what a search found: trains its finalists with fresh seeds, and measures them on test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from tune_fusion.data.datasets import load_data
from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.events import Chronicle, Session
from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.reporting.answer import Answer, answer
from tune_fusion.reporting.results import read_json, write_json, write_trials
from tune_fusion.runs import Past, RunFolder, read_past
from tune_fusion.space.sampling import Arm
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.tracking.registration import log_model
from tune_fusion.training.checks import Checked, check_space, prove
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning import cluster
from tune_fusion.tuning.arms import SearchArm
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.best_model import write_model, write_retrained
from tune_fusion.tuning.delivering import own_run
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.finalists import (
    as_finalist,
    best_run,
    confirmed,
    finalists,
    fresh_seeds,
    listed_runs,
    mean_best_epoch,
)
from tune_fusion.tuning.interruption import Interruption
from tune_fusion.tuning.listed import ListedRun, ListedStudy
from tune_fusion.tuning.members import Members
from tune_fusion.tuning.opening import opened, reopened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.preflight import Request, as_before, check_confirmable, check_store, moved_store
from tune_fusion.tuning.resume import SpaceSource, check_same_search, replay
from tune_fusion.tuning.retraining import retrain
from tune_fusion.tuning.running import Ending, Running, nodes_of, session_of

TOP, SEEDS = 3, 5
"""Finalists of each kind, and fresh seeds, where nothing is said."""


@dataclass(frozen=True)
class Order:
    """A confirmation as the command line asks for it; None: as before, else `TOP` and `SEEDS`."""

    top: int | None = None
    """How many of the best fusions, and of the best single optimizers, are confirmed."""
    seeds: int | None = None
    retrain: bool = False
    """Train the winner once more, on training and validation images."""


def run_confirmation(
    request: Request,
    order: Order,
    started: float,
    interruption: Interruption,
    ready: Callable[[list[str]], None],
) -> Outcome:
    """Confirm the search that ``request.name`` names, or do what is left of its confirmation.

    The arguments are those of `tune_fusion.tuning.driver.run_search`. Raises InputError before anything is
    written where there is nothing to compare, or the data have no test images, unreadable ones, or are not
    those that the search, or the confirmation so far, was run on.
    """
    with ExitStack() as stack:
        assert request.name is not None
        search = stack.enter_context(reopened(request.storage, request.name, "NAME"))
        folder = search.folder.confirmation
        past = read_past(folder) if folder.journal.is_file() else None
        request = as_before(request, (past or search).session)
        source = _source(search)
        checked = check_space(source.name_or_path, source.overrides)
        trials, seeds = _what(search, past, order, checked.space.search.seed)
        runs = listed_runs(
            search.chronicle.record, trials, seeds, None if past is None else past.chronicle.record
        )
        planned = sum(map(len, runs.values()))
        if past is not None and past.complete and planned == past.session.planned_trials:
            finished = None if order.retrain or request.register else _finished(search, past)
            if finished is not None:
                return finished
        check_store(request)
        cluster.check_machine(request.address, checked.space.resources, torch.cuda.device_count())
        bench = prove(checked, pick_device(0))
        check_confirmable(request, bench)
        _check_data(search, past, bench)
        title = f"{search.folder.name} confirmation"
        session = session_of(request, past, source, checked, bench.data.fingerprint, title, started)
        session = session.model_copy(
            update={
                "finalists": trials,
                "seeds": seeds,
                "planned_trials": planned,
                "test": bench.heldout.fingerprint,
            }
        )
        changes: list[str] = []
        if past is not None:
            option = f"NAME {request.name}"
            changes = moved_store(request, past.session)
            changes += check_same_search(past, session, option=option, force=request.force)
        connect = stack.enter_context(cluster.connection(request.address, checked.space.model.name))
        members = Members(checked.space.resources, request.concurrent, checked.space.data)
        nodes = nodes_of(connect, request, checked, bench, search.folder, members, interruption)
        engine = _engine(members.slots, checked, runs, session, past)
        run = _Confirmation(request, checked, bench, folder, engine, interruption, members, nodes)
        run.search, run.order, run.past = search, order, past
        run.fingerprints = {seed: _fingerprint(bench, seed) for seed in seeds}
        if past is not None:
            replay(engine, past, strict=not request.force)
            run.write_inputs()
        ours = stack.enter_context(opened(folder, session, past))
        ready(changes)
        return run.run(ours, None if past is None else session)


class _Confirmation(Running):
    """One session of a confirmation."""

    command = "confirm"
    search: Past
    order: Order
    past: Past | None
    """What an earlier session has left."""
    fingerprints: dict[int, str]
    """Of the training and validation images, by the seed of their split."""

    @property
    def _name(self) -> str:
        return self.search.folder.name

    @property
    def _parent_run(self) -> str | None:
        return own_run(self.search.chronicle, self._request.tracking_uri)

    @property
    def _reported_in(self) -> RunFolder:
        return self.search.folder

    @property
    def _session(self) -> Session:
        return self.engine.chronicle.sessions[-1]

    def _fingerprints(self) -> dict[int, str]:
        return self.fingerprints

    def _begin(self) -> None:
        search, record = self.search.chronicle, self.search.chronicle.record
        if search.status != "completed":
            ended = f"{len(record.ended)} of {record.planned_trials} trials"
            self.engine.note(f"the search was not complete when it was confirmed: {ended} had ended")
        past = self.past
        if past is not None and past.folder.answer.exists():
            before = past.session
            if (before.finalists, before.seeds) != (self._session.finalists, self._session.seeds):
                self.engine.note(
                    f"extended when a result was known, from {len(before.finalists)} finalists x "
                    f"{len(before.seeds)} seeds: whoever goes on until they like a result finds one too often"
                )

    def _wanted(self, record: SearchRecord) -> set[int]:
        runs = (best_run(record, runs) for _, runs in self._confirmed(record))
        return {run.number for run in runs if run is not None}

    def _trials_ended(self) -> None:
        """Train the winner once more, if that is wanted."""
        runs = self._winner_runs()
        best = best_run(self._record, runs)
        if best is not None and self.order.retrain:
            bench, resources = self._bench_of(best), self._checked.space.resources
            epochs = mean_best_epoch(self._record, runs)
            excluded = self._members.excluded()
            retrain(
                bench, best.configuration, epochs, resources, excluded, self._retrained, self._interruption
            )

    def _model(self) -> BestModel | None:
        """The winner's model: of its best run, or trained once more on all but the test images."""
        runs = self._winner_runs()
        best = best_run(self._record, runs)
        if best is None:
            return None
        if self.order.retrain:
            epochs = mean_best_epoch(self._record, runs)
            return write_retrained(self._folder, self._bench_of(best), best, epochs, self._retrained)
        return write_model(self._folder, self._bench_of(best), self._record, best)

    @property
    def _retrained(self) -> Path:
        return self._folder.path / "retrained.safetensors"

    def _bench_of(self, run: TrialRecord) -> Workbench:
        """The workbench that the run was trained on, as far as the driver has it."""
        return dataclasses.replace(self._bench, seed=cast(int, run.seed))

    def _winner_runs(self) -> list[TrialRecord]:
        """The runs of the finalist with the best mean validation value, of the two that are compared."""
        found = self._answer()
        sign = 1.0 if found.direction == "max" else -1.0
        sides = [one for one in map(found.finalist, (found.fusion, found.control)) if one is not None]
        if not sides:
            return []
        winner = max(sides, key=lambda finalist: sign * (finalist.mean(found.metric) or 0.0))
        return next(runs for trial, runs in self._confirmed(self._record) if trial.number == winner.trial)

    def _winner(self, record: SearchRecord) -> TrialRecord | None:
        return best_run(record, self._winner_runs())

    def _useless(self) -> bool:
        answer = self._answer()
        return answer.fusion is None and answer.control is None

    def _interrupted_late(self) -> str:
        return f"interrupted before its model was in MLflow; go on with: {self._resume()}"

    def _result(self, ending: Ending, facts: dict[str, Any]) -> dict[str, Any]:
        record, folder = self._record, self._folder
        winner = self._winner(record)
        named = ["answer", "trials", "logs", "journal", *(["model"] if folder.model.is_dir() else [])]
        return {
            "status": ending.status,
            "name": record.name,
            "search": self._name,
            "space": record.space,
            "seeds": self._session.seeds,
            "answer": self._answer().to_dict(),
            "counts": record.counts(),
            "notes": record.notes,
            "epochs": sum(len(trial.epochs) for trial in record.trials),
            "training_seconds": sum(trial.total("train_seconds") for trial in record.trials),
            "winner": None if winner is None else winner.number,
            "searched_trials": len(self.search.chronicle.record.trials),
            **facts,
            "paths": {name: str(getattr(folder, name)) for name in named},
        }

    def _write(self, content: dict[str, Any]) -> None:
        write_trials(self._record, self._folder.trials)
        write_json(self._folder.answer, content)

    def _report(self, content: dict[str, Any]) -> None:
        # As for a search: not before it is needed.
        from tune_fusion.reporting.page import write_report

        search = self.search
        write_report(search.folder, search.chronicle, self._answer(), read_json(search.folder.result))

    def _conclude(self, content: dict[str, Any], run_id: str | None) -> list[str]:
        """Log the winner's model to MLflow, and register it."""
        if run_id is None or not self._folder.model.is_dir():
            return []
        example = self._bench.data.validation.take(torch.arange(2)).permute(0, 2, 3, 1).numpy()
        uri = self._request.tracking_uri
        try:
            logged = log_model(
                uri, run_id, self._folder.model, example=example, register=self._request.register
            )
        except TuneFusionError as error:
            return [str(error)]
        content["mlflow"]["model"] = logged.uri
        content["concluded"] = True
        write_json(self._folder.answer, content)
        return []

    def _confirmed(self, record: SearchRecord) -> list[tuple[TrialRecord, list[TrialRecord]]]:
        return confirmed(self.search.chronicle.record, record, self._session.finalists)

    def _answer(self) -> Answer:
        searched = self.search.chronicle.record
        runs = self._confirmed(self._record)
        return answer(
            self._name,
            searched.metric,
            searched.direction,
            [as_finalist(searched, trial, mine) for trial, mine in runs],
            len(self._bench.heldout.split),
            fusions=searched.fusions,
            complete=all(
                {run.seed for run in mine if run.ended is not None} >= {*self._session.seeds}
                for _, mine in runs
            ),
        )


def _what(
    search: Past, past: Past | None, order: Order, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The finalists, by number, and the seeds; never fewer than an earlier session has begun."""
    record = search.chronicle.record
    known = () if past is None else past.session.finalists
    chosen = list(known)
    if past is None or order.top is not None:
        chosen += [t.number for t in finalists(record, order.top or TOP) if t.number not in known]
    kinds = listed_runs(record, chosen, [0])
    missing = [kind for kind, runs in kinds.items() if not runs]
    if missing:
        names = {"fusion": "fusion" if record.fusions else "trial of the searched arm"}
        names["control"] = "single optimizer" if record.fusions else "control"
        raise InputError(
            f"NAME {search.folder.name}: no {' and no '.join(names[kind] for kind in missing)} has ended "
            "with a usable result: there is nothing to compare"
        )
    before = 0 if past is None else len(past.session.seeds)
    return tuple(chosen), fresh_seeds(seed, max(order.seeds or before or SEEDS, before))


def _source(search: Past) -> SpaceSource:
    """The space exactly as the search ran it."""
    recorded, as_run = search.session.space, search.folder.space
    if not as_run.exists():
        as_run.write_text(recorded.text, encoding="utf-8")
    if as_run.read_text(encoding="utf-8") != recorded.text:
        raise InputError(
            f"{as_run}: is not the space that the search was run with: put it back, or delete it to have it "
            "written again"
        )
    return SpaceSource(str(as_run), (), rehearse=False, as_run=recorded)


def _check_data(search: Past, past: Past | None, bench: Workbench) -> None:
    """InputError where images are not those of before; reads the test images, but measures nothing."""
    name = f"NAME {search.folder.name}"
    if bench.data.fingerprint != search.session.data:
        raise InputError(
            f"{name}: data fingerprint {search.session.data[:16]} -> {bench.data.fingerprint[:16]}: other "
            "images, classes or split than the search was run on; put them back, or search again"
        )
    now = bench.heldout.fingerprint
    if past is not None and past.session.test not in ("", now):
        raise InputError(
            f"{name}: test images' fingerprint {past.session.test[:16]} -> {now[:16]}: other ones than the "
            f"confirmation so far was measured on; put them back, or delete {past.folder.path}"
        )


def _fingerprint(bench: Workbench, seed: int) -> str:
    return load_data(bench.data_settings, seed=seed, image_size=bench.image_size).fingerprint


def _engine(
    slots: Callable[[], int],
    checked: Checked,
    runs: Mapping[Arm, list[ListedRun]],
    session: Session,
    past: Past | None,
) -> Engine:
    space = checked.space
    arms = [
        SearchArm(
            name,
            ListedStudy(some),
            Asha(space.asha, 1, space.direction, enabled=False),
            len(some) / session.planned_trials,
        )
        for name, some in runs.items()
        if some
    ]
    return Engine(
        space=space,
        vocabulary=checked.vocabulary,
        arms=arms,
        chronicle=Chronicle.begin(session if past is None else past.chronicle.sessions[0]),
        layer_names=checked.layer_names,
        slots=slots,
    )


def _finished(search: Past, past: Past) -> Outcome | None:
    """What a complete confirmation has found; None where something of it is left to be done."""
    content = read_json(past.folder.answer)
    try:
        Answer.from_dict((content or {})["answer"])
    except (KeyError, TypeError, ValueError):
        return None
    if content is None or not content.get("concluded"):
        return None
    print(f"{past.chronicle.record.name} is complete already: --seeds N or --top K extends it")
    more = len(search.chronicle.record.trials) - content["searched_trials"]
    problems = [f"the search has {more} more trials since: --top K looks at them, too"] if more else []
    return Outcome(past.chronicle.record, content, 0, problems)
