"""The worker processes of Ray Tune's trials: ended when they hang, and asked why they died.

Reaches into Ray Tune's insides, as of Ray 2.60: none of this can be had from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.experiment import Trial

OUT_OF_MEMORY = (
    "out of memory: Ray ended the worker because the memory of its node was nearly full; run fewer "
    "trials at once (--concurrent) or lower training.batch_size"
)
"""What `death_reason` says where Ray's memory monitor has ended the worker."""
# What Ray's errors say, and what that means; the first that fits.
_REASONS = (
    ("low on memory", OUT_OF_MEMORY),
    ("killed by `ray.kill`", "the worker was ended by the search"),
    ("creation task", "the worker could not start: {cause}"),
    (r"\n  File ", "the worker failed: {cause}"),
    (
        r"temporarily unavailable|node (has )?(died|was terminated|is dead)",
        "the worker's node died or cannot be reached",
    ),
    ("receives a SIGTERM", "the worker process was ended by SIGTERM"),
    (r"exits with an exit code (?P<code>-?\d+)", "the worker process ended itself with exit code {code}"),
    (
        "worker process has died",
        "the worker process was killed (SIGKILL; by the system, where its memory was full) or crashed in "
        "native code",
    ),
)


def has_worker(tune_controller: Any, trial: Trial) -> bool:
    """True while a process starts for `trial`, takes it over or trains it; False while it waits for one.

    Ray calls a trial running only when its worker's `setup` or `reset_config` is behind it.
    """
    return _handle(tune_controller, trial) is not None


def end_worker(tune_controller: Any, trial: Trial) -> None:
    """Kill the process that trains `trial`, on whichever node, also one that is stopped or holds its GIL.

    Ray reports the trial to ``scheduler.on_trial_error`` in one of its next turns. A process that does not
    answer its node is killed by it within 5 seconds; the trial's CPUs and GPUs are free only then. Does
    nothing for a trial without a process.
    """
    handle = _handle(tune_controller, trial)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def _handle(tune_controller: Any, trial: Trial) -> Any:
    tracked = tune_controller._trial_to_actor.get(trial)
    # Not `trial.temporary_state.ray_actor`: that is unknown until the worker's `setup` has come to an end.
    live = tune_controller._actor_manager._live_actors_to_ray_actors_resources.get(tracked)
    return None if live is None else live[0]


@contextmanager
def losses_survived() -> Iterator[None]:
    """Within, a trial fails whose worker Ray's memory monitor killed, or whose result went with its node.

    Ray Tune knows `RayActorError` alone as a worker's end; at every other one it gives up the whole search.
    """
    original = RayActorManager._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception))
        original(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original


def death_reason(trial: Trial) -> str:
    """Why the worker of `trial` was lost, in one sentence; for `on_trial_error`.

    Holds nothing that differs from one death to the next of the same kind, such as a pid.
    """
    return _explain(_newest_error(trial))


def _newest_error(trial: Trial) -> str:
    """The text of the trial's last error, which Ray has just written; its pickle is never opened."""
    if not trial.error_file:
        return ""
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return re.split(r"^Failure # \d+ \(occurred at .*\)\n", text, flags=re.MULTILINE)[-1].strip()


def _explain(error: str) -> str:
    for pattern, sentence in _REASONS:
        match = re.search(pattern, error)
        if match:
            return sentence.format(cause=_cause(error), **match.groupdict())
    return f"the worker was lost: {error.splitlines()[0]}" if error else "the worker was lost"


def _cause(error: str) -> str:
    """The first line of the exception at the end of a traceback; its further lines may be anything."""
    lines = error.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("  ")), default=-1)
    # Our own errors say everything without their type.
    return re.sub(r"^tune_fusion\.errors\.\w+: ", "", lines[min(last + 1, len(lines) - 1)].strip())
