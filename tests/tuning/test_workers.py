"""A real Ray Tune whose workers are killed, crash, hang and run out of memory."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

# Trials run one after the other, each told what to do by `do`: first in `setup`, `reset_config` or `step`.
SCRIPT = """
import ctypes, json, os, signal, sys, tempfile, time
from pathlib import Path
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from tune_fusion.tuning import own_ray
from tune_fusion.tuning.cluster import connection
from tune_fusion.tuning.workers import death_reason, end_worker, has_worker, losses_survived

FOLDER = Path(sys.argv[1])
# Torch, which no trial here needs: every lost worker's successor would import it for seconds, or on a busy
# machine for a minute.
own_ray._PRELOADED = ()


def do(place, trial):
    where, _, what = trial["do"].partition(" ")
    if where != place:
        return
    if what in ("stop", "hold the GIL"):
        (FOLDER / str(trial["number"])).touch()
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "hold the GIL":
        ctypes.PyDLL(None).sleep(300)
    elif what == "raise":
        raise ValueError("first line\\nsecond line")
    elif what == "exit":
        sys.exit(3)
    elif what == "eat":
        Path(os.environ["TABLE"]).touch()
        food = []
        while len(food) < 100:
            food.append(bytearray(os.urandom(1) * 100 * 2**20))
            time.sleep(0.1)
    else:
        os.kill(os.getpid(), signal.Signals[what])
        time.sleep(300)


class Trainable(tune.Trainable):
    def setup(self, config):
        self.trial = config
        do("setup", config)

    def reset_config(self, config):
        self.trial = config
        do("reset", config)
        return True

    def step(self):
        do("step", self.trial)
        return {"pid": os.getpid()}


def say(trial, **event):
    print(json.dumps({"do": trial.config["do"], **event}), flush=True)


class Scheduler(FIFOScheduler):
    def on_trial_result(self, tune_controller, trial, result):
        say(trial, pid=result["pid"])
        return self.STOP

    def on_trial_error(self, tune_controller, trial):
        say(trial, reason=death_reason(trial))

    def choose_trial_to_run(self, tune_controller):
        for trial in tune_controller.get_live_trials():
            marker = FOLDER / str(trial.config["number"])
            if marker.exists():
                marker.unlink()
                assert has_worker(tune_controller, trial)
                end_worker(tune_controller, trial)
            elif trial.status == "PENDING" and trial not in tune_controller._trial_to_actor:
                assert not has_worker(tune_controller, trial)
                end_worker(tune_controller, trial)
        return super().choose_trial_to_run(tune_controller)


def main():
    trials = [{"number": i, "do": what} for i, what in enumerate(sys.argv[2:])]
    with connection("local", "lenet5") as connect, losses_survived():
        connect()
        tune.Tuner(
            tune.with_resources(Trainable, {"cpu": 1}),
            param_space=tune.grid_search(trials),
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1, scheduler=Scheduler()),
            run_config=tune.RunConfig(
                storage_path=tempfile.mkdtemp(dir=FOLDER),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        ).fit()
    print('"end"')


main()
"""
KILLED = (
    "the worker process was killed (SIGKILL; by the system, where its memory was full) or crashed in native "
    "code"
)
ENDED = "the worker was ended by the search"


@pytest.fixture(scope="module")
def tuned():
    """Runs trials that do as they are told; returns what the scheduler heard, in order."""
    folders = []

    def run(*doings, **environment):
        # Ray's sockets lie in this folder and their paths must be short.
        folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
        folders.append(folder)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, folder, *doings],
            env={**os.environ, "RAY_TMPDIR": folder, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events.pop() == "end"
        return events

    yield run
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def lost(tuned):
    """What was heard of workers that were lost in every way, by what they did."""
    doings = ["step SIGKILL", "step SIGSEGV", "step SIGTERM", "step exit", "setup raise", "step raise"]
    return {event["do"]: event for event in tuned(*doings)}


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("step SIGKILL", KILLED),
        ("step SIGSEGV", KILLED),
        ("step SIGTERM", "the worker process was ended by SIGTERM"),
        ("step exit", "the worker process ended itself with exit code 3"),
        ("setup raise", "the worker could not start: ValueError: first line"),
        ("step raise", "the worker failed: ValueError: first line"),
    ],
)
def test_why_a_worker_was_lost_is_said_in_a_sentence(lost, do, reason):
    assert lost[do] == {"do": do, "reason": reason}


def test_a_hung_worker_is_ended_and_the_next_trial_gets_a_new_one(tuned):
    doings = [
        "setup stop",
        "nothing",
        "nothing",
        "reset stop",
        "nothing",
        "step stop",
        "nothing",
        "step hold the GIL",
        "nothing",
    ]
    events = tuned(*doings)
    assert [event["do"] for event in events] == doings
    assert {event["reason"] for event in events if event["do"] != "nothing"} == {ENDED}
    first, same, *others = (event["pid"] for event in events if event["do"] == "nothing")
    # A worker that is well is kept; one that hung is never met again.
    assert first == same
    assert len({first, *others}) == 4


def test_a_search_survives_that_its_workers_run_out_of_memory(tuned, tmp_path):
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    # Room for Ray itself and for what other tests may start meanwhile, but not for the trial's meal.
    threshold = (get_used_memory() + 5 * 2**30) / get_system_memory()
    events = tuned(
        "step eat",
        RAY_memory_usage_threshold=str(threshold),
        RAY_memory_monitor_refresh_ms="50",
        TABLE=str(tmp_path / "table"),
    )
    assert (tmp_path / "table").exists()
    assert [event["do"] for event in events] == ["step eat"]
    assert events[0]["reason"].startswith(
        "out of memory: Ray ended the worker because the memory of its node"
    )
