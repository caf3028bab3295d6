"""Runs one search from its request to its files."""

from __future__ import annotations

import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tune_fusion.errors import TuneFusionError
from tune_fusion.records import SearchRecord
from tune_fusion.reporting.live import PlainProgress, progress
from tune_fusion.reporting.results import result, write_result, write_trials
from tune_fusion.space.domain import Constant
from tune_fusion.tracking.mlflow_logger import MlflowLogger, redact, ui_command
from tune_fusion.training.checks import Checked, check_space, prove
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning import cluster
from tune_fusion.tuning.best_model import best_model
from tune_fusion.tuning.bridge import run_trials
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.facts import git_commit, hardware, versions
from tune_fusion.tuning.interruption import Interrupted, Interruption
from tune_fusion.tuning.preflight import Request, check_request
from tune_fusion.tuning.trainable import TrialPlan
from tune_fusion.tuning.weights import WeightKeeper

Status = Literal["completed", "interrupted", "failed"]
# Seconds the tracking store is given to take the last records when a person waits for the prompt.
_LAST_WORDS_SECONDS = 6.0


@dataclass(frozen=True)
class Outcome:
    """What a search ended with."""

    record: SearchRecord
    result: dict[str, Any]
    exit_code: int
    problems: list[str]
    """What went wrong on the way and did not end the search, in words."""


@dataclass(frozen=True)
class _Ending:
    status: Status
    exit_code: int
    problems: tuple[str, ...] = ()


class _BrokenError(Exception):
    """The engine says that going on is useless."""


def run_search(request: Request, started: float, ready: Callable[[], None]) -> Outcome:
    """Check the request, run the search on Ray, write and log what it found.

    `started` is when the command was typed, in seconds since 1970; `ready` is called once, right before the
    first trial. Raises InputError before anything is written; once trials run, whatever happens becomes an
    `Outcome`.
    """
    with Interruption() as interruption:
        checked = check_space(request.space, request.overrides, stand_in=request.rehearse)
        folder = check_request(request, checked)
        space = checked.space
        cluster.check_machine(request.address, space.resources, torch.cuda.device_count())
        bench = prove(checked, pick_device(0))
        interruption.defer()
        with cluster.connected(request.address):
            interruption.install()
            interruption.check()
            nodes = cluster.nodes()
            cluster.check_resources(space.resources, nodes)
            ready()
            return _Search(request, checked, folder, bench, started).run(interruption, nodes)


class _Search:
    def __init__(
        self,
        request: Request,
        checked: Checked,
        folder: Path,
        bench: Workbench,
        started: float,
    ) -> None:
        space = checked.space
        self._request = request
        self._checked = checked
        self._folder = folder
        self._versions = versions()
        self._commit = git_commit()
        self._bench = bench
        self._record = SearchRecord(
            name=folder.name,
            space=space.name,
            metric=space.search.metric,
            direction=space.direction,
            planned_trials=space.search.trials,
            fusions=not space.single,
            searched_training=tuple(
                key for key, domain in space.training.items() if not isinstance(domain, Constant)
            ),
            started=started,
        )
        self._plan = TrialPlan(
            model=space.model,
            data=space.data,
            seed=space.search.seed,
            threads=space.resources.cpu,
            gpu=space.resources.gpu,
            metric=space.search.metric,
            direction=space.direction,
            run_folder=folder,
        )
        self._paths = {
            "result": folder / "result.json",
            "trials": folder / "trials.csv",
            "space": folder / "space.yaml",
            "layers": folder / "layers.json",
            "logs": folder / "logs",
        }

    def run(self, interruption: Interruption, nodes: list[cluster.Node]) -> Outcome:
        self._write_inputs()
        files = [self._paths["space"], self._paths["layers"]]
        logger = MlflowLogger(self._request.tracking_uri, self._record, tags=self._tags(), files=files)
        logger.start()
        ending = _Ending("failed", TuneFusionError.exit_code)
        artifacts: list[Path] = []
        best = None
        try:
            ending = self._fit(interruption, logger)
            content = self._write_results(ending, nodes, logger.url)
            artifacts = [self._paths["result"], self._paths["trials"]]
            if ending.status == "completed":
                best = best_model(self._plan, self._bench, self._record.best())
        finally:
            logger.search_ended(ending.status, artifacts=artifacts, best=best)
            undelivered = logger.close(_LAST_WORDS_SECONDS if ending.status == "interrupted" else None)
        return Outcome(self._record, content, ending.exit_code, [*ending.problems, *undelivered])

    def _write_inputs(self) -> None:
        self._paths["logs"].mkdir(parents=True)
        self._paths["space"].write_text(self._checked.space.to_yaml(), encoding="utf-8")
        layers = [
            {
                "index": layer.index,
                "name": layer.name,
                "parameters": layer.count,
                "tensors": list(layer.parameters),
            }
            for layer in self._checked.layers
        ]
        self._paths["layers"].write_text(json.dumps(layers, indent=2) + "\n", encoding="utf-8")

    def _tags(self) -> dict[str, str]:
        tags = {f"version.{name}": version for name, version in self._versions.items()}
        return tags | {"git_commit": self._commit, "data_fingerprint": self._bench.data.fingerprint}

    def _fit(self, interruption: Interruption, logger: MlflowLogger) -> _Ending:
        """Run the trials, and say how that ended."""
        record = self._record
        log_path = self._paths["logs"] / "search.txt"
        with progress(record) as view, log_path.open("w", encoding="utf-8") as log:
            engine = Engine(
                space=self._checked.space,
                vocabulary=self._checked.vocabulary,
                record=record,
                layer_names=self._checked.layer_names,
                slots=self._slots(),
                listeners=[
                    WeightKeeper(record, self._plan.weights_path),
                    logger,
                    PlainProgress(record, log),
                    view,
                ],
            )

            def check() -> None:
                interruption.check()
                if engine.broken:
                    raise _BrokenError

            try:
                run_trials(engine, check, self._plan, self._checked.space.resources)
                check()
            except Interrupted as stop:
                engine.interrupt()
                return _Ending("interrupted", stop.exit_code)
            except _BrokenError:
                engine.interrupt()
                return self._failure(f"the first trials all failed alike: {engine.broken}")
            except Exception as error:  # noqa: BLE001  (whatever Ray raises, what was found must be written)
                engine.interrupt()
                (self._paths["logs"] / "driver.txt").write_text(traceback.format_exc(), encoding="utf-8")
                return self._failure(f"Ray Tune stopped: {type(error).__name__}: {error}")
        if record.best() is None:
            reasons = "; ".join(sorted({f"{trial.state}: {trial.reason}" for trial in record.trials}))
            return self._failure(f"no trial ended with a usable result; {reasons}")
        return _Ending("completed", 0)

    def _failure(self, problem: str) -> _Ending:
        return _Ending("failed", TuneFusionError.exit_code, (f"{problem} (details: {self._paths['logs']})",))

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

    def _write_results(self, ending: _Ending, nodes: list[cluster.Node], url: str | None) -> dict[str, Any]:
        """Write ``trials.csv`` and ``result.json``; returns the content of the latter."""
        record = self._record
        write_trials(record, self._paths["trials"])
        facts: Mapping[str, Any] = {
            "wall_seconds": time.time() - record.started,
            "seed": self._plan.seed,
            "data": {
                "name": self._plan.data.name,
                "fingerprint": self._bench.data.fingerprint,
                "train_images": len(self._bench.data.train),
                "validation_images": len(self._bench.data.validation),
            },
            "versions": self._versions,
            "git_commit": self._commit,
            "hardware": hardware(nodes),
            "mlflow": {
                "tracking_uri": redact(self._request.tracking_uri),
                "ui_command": ui_command(self._request.tracking_uri),
                "url": url,
            },
            "command": redact(shlex.join([sys.executable, "-m", "tune_fusion.search", *sys.argv[1:]])),
            "problems": ending.problems,
            "paths": {name: str(path) for name, path in self._paths.items()} | self._weights(),
        }
        content = result(record, ending.status, facts)
        write_result(content, self._paths["result"])
        return content

    def _weights(self) -> dict[str, str]:
        best = self._record.best()
        path = self._plan.weights_path(best.number) if best is not None else None
        return {"weights": str(path)} if path is not None and path.exists() else {}
