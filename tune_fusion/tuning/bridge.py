"""Ray Tune's searcher and scheduler, both handing every decision to the engine."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory, ProgressReporter
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_fusion.space.settings import ResourceSettings
from tune_fusion.tuning.cluster import anywhere_but, bundle
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.failures import Failure
from tune_fusion.tuning.hangs import HangWatch
from tune_fusion.tuning.trainable import FusionTrial, TrialPlan
from tune_fusion.tuning.workers import (
    OUT_OF_MEMORY,
    death_reason,
    end_worker,
    has_worker,
    losses_survived,
)

# How often hung trials are looked for, in seconds.
_LOOK_SECONDS = 1.0


class _Unpickled:
    """Ray pickles searcher and scheduler into its own snapshot of a search, which nobody reads back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EngineSearcher(_Unpickled, Searcher):  # type: ignore[misc]  # Ray ships no types
    """Asks the engine for trials. Ray's snapshots of it are empty: the engine is not Ray's to keep."""

    def __init__(self, engine: Engine, trouble: Trouble, check: Callable[[], None]) -> None:
        super().__init__()
        self._engine = engine
        self._trouble = trouble
        self._check = check

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while every slot is taken."""
        # While nothing runs and more is to come, Ray asks here for ten minutes and calls nothing else.
        self._trouble.check()
        self._check()
        with self._trouble.noted():
            trial = self._engine.suggest()
            if trial is not None:
                return {
                    "number": trial.number,
                    "configuration": trial.configuration,
                    "seed": trial.seed,
                }
        return Searcher.FINISHED if self._engine.finished else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: the scheduler has told the engine."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keeps nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Keeps nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Has kept nothing."""


class EngineScheduler(_Unpickled, FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Reports results to the engine and does as it says; `check` may raise to end the search at once."""

    def __init__(
        self,
        engine: Engine,
        trouble: Trouble,
        check: Callable[[], None],
        excluded: Callable[[], Sequence[str]],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._trouble = trouble
        self._check = check
        self._excluded = excluded
        self._watch = HangWatch(engine.space.search.trial_timeout)
        self._looked = 0.0
        self._hung: dict[int, str] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep a trial that has not started from the nodes on which none is to run."""
        excluded = self._excluded()
        if excluded:
            bundles, selector = trial.placement_group_factory.bundles, anywhere_but(excluded)
            trial.update_resources(PlacementGroupFactory(bundles, bundle_label_selector=[selector]))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue, as the engine decides."""
        number = trial.config["number"]
        self._trouble.checkpoint_seconds += result["checkpoint_seconds"]
        self._watch.progressed(number, time.monotonic())
        goes_on = False
        with self._trouble.noted():
            goes_on = self._take(number, result)
        if not goes_on:
            self._watch.left(number)
        decision: str = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
        return decision

    def _take(self, number: int, result: dict[str, Any]) -> bool:
        failure: Failure | None = result["failure"]
        if failure is not None:
            if failure.kind == "disk_full":
                # No fault of the trial: it goes on when the search is resumed.
                raise OSError(errno.ENOSPC, failure.message)
            self._engine.fail(number, failure.message, infeasible=failure.kind == "out_of_memory")
            return False
        known = len(self._engine.record.trials[number].epochs)
        # A worker that took up a checkpoint reports all of its epochs once more.
        for epoch in result["epochs"][max(0, known - result["epochs"][0]["epoch"] + 1) :]:
            if not self._engine.report(
                number, epoch["metrics"], diverged=epoch["diverged"], node=result["node"]
            ):
                return False
        if self._engine.draining:
            self._engine.set_aside(number)
            return False
        return True

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """The worker is gone: errors of the training itself come as results."""
        number = trial.config["number"]
        self._watch.left(number)
        reason = self._hung.pop(number, None) or death_reason(trial)
        with self._trouble.noted():
            self._engine.lose(number, reason, out_of_memory=reason == OUT_OF_MEMORY)

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """Called once a turn of Ray's loop: the place to notice that the search must end."""
        self._trouble.check()
        self._check()
        self._end_hung_workers(tune_controller)
        return super().choose_trial_to_run(tune_controller, **kwargs)

    def _end_hung_workers(self, tune_controller: Any) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        running = {
            trial.config["number"]: trial
            for trial in tune_controller.get_live_trials()
            if has_worker(tune_controller, trial)
        }
        for number in running:
            self._watch.runs(number, now)
        for number in self._watch.overdue(now):
            self._watch.left(number)
            if number in running:
                self._hung[number] = (
                    f"no epoch ended within {self._watch.timeout:.0f} s (search.trial_timeout)"
                )
                end_worker(tune_controller, running[number])


class Trouble:
    """Carries what ends a search out of Ray's callbacks, which would wrap it in errors of their own."""

    def __init__(self) -> None:
        self._error: OSError | None = None
        self.checkpoint_seconds = 0.0
        """What all workers together have spent on writing checkpoints."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep an OSError of the body (a disk that is full) for `check`."""
        try:
            yield
        except OSError as error:
            self._error = self._error or error

    def check(self) -> None:
        """Raise what was noted."""
        if self._error is not None:
            raise self._error


def run_trials(
    engine: Engine,
    check: Callable[[], None],
    plan: TrialPlan,
    resources: ResourceSettings,
    excluded: Callable[[], Sequence[str]],
    trouble: Trouble,
) -> None:
    """Run the engine's trials on the connected Ray cluster until it has no more, or `check` raises.

    On none of the nodes whose ids `excluded` gives when a trial is about to start.

    Raises OSError where the journal or a worker could not write any more.
    """
    trainable = tune.with_resources(
        tune.with_parameters(FusionTrial, plan=plan), PlacementGroupFactory([bundle(resources)])
    )
    with (
        tempfile.TemporaryDirectory(prefix="tune_fusion-", ignore_cleanup_errors=True) as scratch,
        losses_survived(),
    ):
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=EngineSearcher(engine, trouble, check),
                scheduler=EngineScheduler(engine, trouble, check, excluded),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="ray",
                # Ray's own snapshot of the search, which nobody reads: the journal is the truth.
                storage_path=scratch,
                verbose=0,
                progress_reporter=_SilentReporter(),
                # A trial whose worker was lost is handed out again by the engine.
                failure_config=tune.FailureConfig(max_failures=0),
                # Off, because Ray would otherwise ask each trial for a checkpoint of its own.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        ).fit()
    trouble.check()


class _SilentReporter(ProgressReporter):  # type: ignore[misc]  # Ray ships no types
    """Prints nothing: the live table is ours."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: dict[str, Any]) -> None:
        """Says nothing."""
