"""Searches and confirmations with real training in this very process: the product's parts, without Ray."""

from pathlib import Path

from made_spaces import VOCABULARY
from simulated import session_of

from tune_fusion.events import Chronicle
from tune_fusion.reporting.answer import answer
from tune_fusion.storage import Place
from tune_fusion.training.workbench import Workbench, pick_device
from tune_fusion.tuning.arms import SearchArm, make_arms
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.engine import Engine
from tune_fusion.tuning.finalists import as_finalist, confirmed, finalists, fresh_seeds, listed_runs
from tune_fusion.tuning.listed import ListedStudy
from tune_fusion.tuning.members import Proof
from tune_fusion.tuning.trainable import FusionTrial, TrialPlan


def make_bench(space, seed):
    """The workbench of a space's model and data."""
    return Workbench(space.model, space.data, seed, pick_device(0))


def search(space, folder, *, test=False):
    """Run the search of `space`, one trial after the other; its record. Files of the trials go to `folder`.

    With `test`, which no real search has, every trial that ends is measured on the test images.
    """
    session = session_of(space, search="made")
    return _run(space, make_arms(space), session, [space.search.seed], folder, test=test)


def confirm(space, record, folder, *, top, seeds):
    """Confirm a search as `tune_fusion.confirm` does; its answer."""
    fresh = fresh_seeds(space.search.seed, seeds)
    numbers = [trial.number for trial in finalists(record, top)]
    runs = listed_runs(record, numbers, fresh)
    planned = len(numbers) * len(fresh)
    arms = [
        SearchArm(
            name,
            ListedStudy(some),
            Asha(space.asha, 1, space.direction, enabled=False),
            len(some) / planned,
        )
        for name, some in runs.items()
    ]
    session = session_of(space, planned_trials=planned, finalists=numbers, seeds=fresh)
    done = _run(space, arms, session, fresh, folder, test=True)
    return answer(
        record.name,
        record.metric,
        record.direction,
        [as_finalist(record, trial, mine) for trial, mine in confirmed(record, done, numbers)],
        make_bench(space, space.search.seed).count_heldout(),
        fusions=record.fusions,
    )


def _run(space, arms, session, seeds, folder, *, test):
    """Run all trials of an engine, each in turn to where the engine ends it."""
    names = [layer.name for layer in make_bench(space, seeds[0]).layers]
    engine = Engine(space, VOCABULARY, arms, Chronicle.begin(session), names, lambda: 1)
    plan, worker = _plan(space, seeds, folder, test=test), None
    engine.begin()
    while (trial := engine.suggest()) is not None:
        config = {"number": trial.number, "configuration": trial.configuration, "seed": trial.seed}
        if worker is None:
            worker = FusionTrial.__new__(FusionTrial)
            worker.setup(config, plan)
        else:
            worker.reset_config(config)
        while all(
            engine.report(trial.number, epoch["metrics"], diverged=epoch["diverged"])
            for epoch in _step(worker, known=len(trial.epochs))
        ):
            pass
    assert engine.finished
    engine.close("completed")
    return engine.record


def _step(trial, known):
    """The new epochs; none where the step has only taken up the checkpoint of a trial that had paused."""
    result = trial.step()
    assert result["failure"] is None, result["failure"]
    return [epoch for epoch in result["epochs"] if epoch["epoch"] > known]


def _plan(space, seeds, folder, *, test):
    return TrialPlan(
        model=space.model,
        data=space.data,
        seed=space.search.seed,
        fingerprints={seed: make_bench(space, seed).data.fingerprint for seed in seeds},
        threads=1,
        gpu=0.0,
        metric=space.search.metric,
        direction=space.direction,
        run_folder=Place.of(folder),
        proof=Proof(Path(__file__), Path(__file__).read_bytes()),
        test=test,
    )
