"""What Ray Tune tells of trials, as the engine hears it; whole searches are in tests/test_search.py."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from simulated import make_engine

from tune_fusion.records import TrialState
from tune_fusion.tuning.bridge import EngineScheduler, Trouble
from tune_fusion.tuning.failures import Failure

LOW_MEMORY = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The worker died. Task was killed due to the node running low on memory.
"""


@pytest.fixture(params=["auto", "fixed"])
def pack(request):
    return request.param


@pytest.fixture
def engine(pack):
    """An engine that has handed out two trials."""
    engine = make_engine(slots=2, resources__pack=pack)
    assert (engine.suggest().number, engine.suggest().number) == (0, 1)
    return engine


@pytest.fixture
def scheduler(engine):
    return EngineScheduler(engine, Trouble(), lambda: None, list)


def ray_trial(number, error_file=None):
    return SimpleNamespace(config={"number": number}, error_file=error_file)


def test_a_trial_without_memory_is_stopped_and_tried_again_where_trials_are_packed(engine, scheduler, pack):
    failed = {"failure": Failure("out_of_memory", "out of memory"), "epochs": [], "checkpoint_seconds": 0.0}
    assert scheduler.on_trial_result(None, ray_trial(0), failed) == TrialScheduler.STOP
    trial = engine.record.trials[0]
    if pack == "fixed":
        assert (trial.state, trial.infeasible, engine.most) == (TrialState.FAILED, True, None)
        return
    assert (trial.state, engine.most) == (TrialState.RUNNING, 1)
    assert engine.suggest() is None
    engine.fail(1, "RuntimeError: no")
    assert engine.suggest() is trial


def test_a_worker_that_ray_ended_for_its_memory_makes_room_where_trials_are_packed(
    engine, scheduler, pack, tmp_path
):
    (tmp_path / "error.txt").write_text(LOW_MEMORY)
    scheduler.on_trial_error(None, ray_trial(1, tmp_path / "error.txt"))
    assert (engine.most, engine.record.trials[1].losses) == ((1, 0) if pack == "auto" else (None, 1))


def test_any_other_lost_worker_is_a_loss(engine, scheduler):
    scheduler.on_trial_error(None, ray_trial(1))
    assert (engine.most, engine.record.trials[1].losses) == (None, 1)
