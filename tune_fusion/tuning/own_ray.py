"""A Ray of our own: on this machine alone, quick to start, gone when we are.

Reaches into Ray's insides, as of Ray 2.60: none of this can be had by settings. Everything is put back
afterwards, and a cluster that is joined is left as it is.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tune_fusion.models.names import ZOO_NAMES

# Trials pass nothing through Ray's object store but their configuration.
_OBJECT_STORE_BYTES = 200 * 2**20
# How long a node is waited for before Ray itself waits, and how often it is looked for.
_REGISTRATION_SECONDS, _LOOK_SECONDS = 20.0, 0.02
# What every worker imports while the driver is still busy, so that its first trial does not wait for it: what
# it runs, and torch's compiler, which all optimizers of torch import with their first step.
_PRELOADED = ("tune_fusion.tuning.trainable", "torch._dynamo")
_PRELOADED_FOR_TIMM = "tune_fusion.tuning.timm_ahead"


@contextmanager
def our_own_ray(model: str) -> Iterator[dict[str, Any]]:
    """The options of ``ray.init`` for a Ray that only this machine reaches and that ends when we do.

    Its workers make ready for trials of `model`.
    """
    from ray._private import ray_constants, services
    from ray._private.node import Node

    def nothing(_: Any) -> None:
        return

    with _guardian() as group, ExitStack() as changes:
        # Ray's switch for "one machine only", read from the environment when Ray is imported, as it has been
        # by now. Its servers then listen on 127.0.0.1 instead of all interfaces; `_node_ip_address` does not
        # do that, as `ray.init` replaces a loopback address there.
        changes.enter_context(_changed(ray_constants, ENABLE_RAY_CLUSTER=False))
        if group is not None:
            start = functools.partial(services.ConsolePopen, process_group=group)
            changes.enter_context(_changed(services, ConsolePopen=start))
        # Autoscaler, log monitor, dashboard: 1.5 s of processor time, and `ray.init` waits for the last one.
        changes.enter_context(
            _changed(Node, start_monitor=nothing, start_log_monitor=nothing, start_api_server=_no_dashboard)
        )
        changes.enter_context(_changed(services, get_node=functools.partial(_registered, services.get_node)))
        preloaded = [*_PRELOADED, *([] if model in ZOO_NAMES else [_PRELOADED_FOR_TIMM])]
        yield {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_system_config": {"preload_python_modules": preloaded},
        }


@contextmanager
def trials_on_prestarted_workers() -> Iterator[None]:
    """Within, Tune's trials run in the workers that Ray has started beforehand.

    An environment of their own, even one without effect as theirs is, keeps them from these: they would idle
    to the end, while others are started for the trials.
    """
    from ray.tune.execution import class_cache

    with _changed(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set()):
        yield


@contextmanager
def _changed(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within, `owner` has other attributes."""
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _no_dashboard(node: Any, **_: Any) -> None:
    node._webui_url = ""


def _registered(get_node: Callable[[str, str], Any], gcs_address: str, node_id: str) -> Any:
    """`get_node`, which looks once a second, called when the node is there."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

    client, given_up = GcsClient(address=gcs_address), time.monotonic() + _REGISTRATION_SECONDS
    while time.monotonic() < given_up:
        if any(known.hex() == node_id for known in client.get_all_node_info()):
            break
        time.sleep(_LOOK_SECONDS)
    return get_node(gcs_address, node_id)


@contextmanager
def _guardian() -> Iterator[int | None]:
    """A process group for Ray that is killed when this block is left or when we die, however that happens.

    Left to themselves, workers that start or train while the rest of Ray dies stay for half a minute, and
    stopped ones for ever. Being no part of our group, Ray also gets none of the signals sent to it (a
    terminal's Ctrl-C, ``timeout``, a service manager), so that the search can end in order.

    None on other systems than Linux: there Ray needs its processes in our group, and looks after them itself.
    """
    if sys.platform != "linux":
        yield None
        return
    # It reads until we close our end of the pipe or die; `kill 0` is its whole group.
    guardian = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' HUP INT TERM; read _; kill -9 0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        process_group=0,
    )
    assert guardian.stdin is not None
    try:
        yield guardian.pid
    finally:
        guardian.stdin.close()
        guardian.wait()
