"""Ray Tune's searcher and scheduler, both handing every decision to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import ProgressReporter
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_fusion.space.settings import ResourceSettings
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.trainable import FusionTrial, TrialPlan

_METRICS = "metrics/"


class _Unpickled:
    """Ray pickles searcher and scheduler into its own snapshot of a search, which nobody reads back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EngineSearcher(_Unpickled, Searcher):  # type: ignore[misc]  # Ray ships no types
    """Asks the engine for trials. Ray's snapshots of it are empty: the engine is not Ray's to keep."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while every slot is taken."""
        trial = self._engine.suggest()
        if trial is not None:
            return {"number": trial.number, "configuration": trial.configuration}
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

    def __init__(self, engine: Engine, check: Callable[[], None]) -> None:
        super().__init__()
        self._engine = engine
        self._check = check

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue, as the engine decides."""
        number = trial.config["number"]
        self._engine.record.trials[number].node = result["node"]
        if result["error"]:
            self._engine.fail(number, result["error"])
            goes_on = False
        else:
            metrics = {
                key.removeprefix(_METRICS): value for key, value in result.items() if key.startswith(_METRICS)
            }
            goes_on = self._engine.report(number, metrics, diverged=result["diverged"])
        decision: str = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """The worker is gone: errors of the training itself come as results."""
        self._engine.fail(trial.config["number"], "the worker process died: killed, out of memory or crashed")

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """Called once a turn of Ray's loop: the place to notice that the search must end."""
        self._check()
        return super().choose_trial_to_run(tune_controller, **kwargs)


def run_trials(
    engine: Engine, check: Callable[[], None], plan: TrialPlan, resources: ResourceSettings
) -> None:
    """Run the engine's trials on the connected Ray cluster until it has no more, or `check` raises."""
    trainable = tune.with_resources(
        tune.with_parameters(FusionTrial, plan=plan), {"cpu": resources.cpu, "gpu": resources.gpu}
    )
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=EngineSearcher(engine),
            scheduler=EngineScheduler(engine, check),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(plan.run_folder),
            verbose=0,
            progress_reporter=_SilentReporter(),
            failure_config=tune.FailureConfig(max_failures=0),
            # Off, because Ray would otherwise ask each trial for a checkpoint of its own.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    ).fit()


class _SilentReporter(ProgressReporter):  # type: ignore[misc]  # Ray ships no types
    """Prints nothing: the live table is ours."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: dict[str, Any]) -> None:
        """Says nothing."""
