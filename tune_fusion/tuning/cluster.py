"""The Ray cluster a search runs on: started here or joined, measured, and left as it was found."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.commands import say
from tune_fusion.errors import InputError, TuneFusionError, suggest
from tune_fusion.space.settings import ResourceSettings
from tune_fusion.tuning.own_ray import our_own_ray, trials_on_prestarted_workers

# Settings of Ray that must stand in the environment before it is imported.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    # Workers stay in the process group of the Ray that started them: see `own_ray`.
    "RAY_process_group_cleanup_enabled": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # The engine alone says how many trials run at once; with Ray's one pending trial workers start in turn.
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_CONNECT_SECONDS = 3.0
# The resource by which Ray tells the kind of a node's accelerator; each such node has 1 of it.
_KIND = "accelerator_type:"
_LITTLE = 0.001
# How often a cluster is looked at that is to grow.
_GROWN_SECONDS = 0.5


@dataclass(frozen=True)
class Node:
    """What one node of the cluster can give, in CPUs and GPUs."""

    host: str
    cpu: float
    gpu: float
    id: str = ""
    """Ray's; empty for a node that is only imagined."""
    address: str = ""
    """Tells nodes of the same host name apart."""
    accelerators: tuple[str, ...] = ()
    """The kinds it has, as Ray names them."""

    @property
    def name(self) -> str:
        """It for people: ``worker-3 (10.0.0.7)``."""
        return f"{self.host} ({self.address})"


@contextmanager
def connection(address: str | None, model: str, *, early: bool = False) -> Iterator[Callable[[], None]]:
    """What connects Ray to `address` (or $RAY_ADDRESS, as in a submitted job), else to a Ray of our own.

    A Ray of our own starts at once where it is wanted `early`: most of that is waiting for other processes,
    and much can be done meanwhile; its workers make ready for trials of `model`. It is gone afterwards; a
    cluster that was joined goes on.

    Called, it raises InputError when the address does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    target = _target(address)
    # Linux ends Ray's processes with the thread that started them, so that one outlives the connection.
    with ThreadPoolExecutor(1, thread_name_prefix="ray") as thread, ExitStack() as stack:
        started = thread.submit(_connect, target, model, stack) if early and target == "local" else None

        def connect() -> None:
            if started is None:
                _connect(target, model, stack)
            else:
                started.result()
            if target == "local":
                stack.enter_context(trials_on_prestarted_workers())
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

        try:
            yield connect
        finally:
            if started is not None:
                wait([started])


def _connect(target: str, model: str, stack: ExitStack) -> None:
    """Connect Ray until the stack is left."""
    check_address(target)
    import ray

    options = stack.enter_context(our_own_ray(model)) if target == "local" else {}
    try:
        with _unobtrusive():
            ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR, **options)
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise _unconnected(target, error) from error
        raise InputError(
            f"the folder for Ray's sockets has too long a path ({error}); set $RAY_TMPDIR to a short "
            "one, such as /tmp/ray"
        ) from error
    except Exception as error:  # where its processes do not answer in time Ray raises just that
        raise _unconnected(target, error) from error
    stack.callback(disconnect)


def _unconnected(target: str, error: Exception) -> TuneFusionError:
    """What is told where Ray gives up with `error`."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if target == "local":
        logs = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
        return TuneFusionError(
            f"Ray did not start on this machine: {said}; where the machine is busy it may start when you try "
            f"again; what Ray says of it lies in {logs}"
        )
    return InputError(
        f"--address {target}: cannot join this Ray cluster: {said}; "
        "start one with 'ray start --head', set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN for one that asks "
        "for a token, or leave --address out to run on this machine alone"
    )


def disconnect() -> None:
    """Leave Ray before the block of `connection` ends; every worker of ours ends with that."""
    import ray

    ray.shutdown()


def _target(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def check_machine(address: str | None, resources: ResourceSettings, gpus: int) -> None:
    """`check_resources` for a Ray of our own on this machine with `gpus` GPUs, without waiting for its start.

    A cluster to be joined answers for itself once it is connected.
    """
    if _target(address) == "local":
        # Which accelerator it has Ray finds out when it starts.
        check_resources(
            resources.anywhere, [Node(socket.gethostname(), float(os.cpu_count() or 1), float(gpus))]
        )


@contextmanager
def _unobtrusive() -> Iterator[None]:
    """Connects Ray without its handlers of SIGTERM and without its messages on our standard output.

    It tells there of every worker that died, amid the live table; the engine tells of it, too. One of the
    handlers would write a stack to standard error. Ray has no settings for this that could be made here.
    """
    from ray._private import ray_constants, utils, worker

    handler, messages = utils.set_sigterm_handler, worker.listen_error_messages
    failures = ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    utils.set_sigterm_handler = worker.listen_error_messages = lambda *_: None
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    try:
        yield
    finally:
        utils.set_sigterm_handler, worker.listen_error_messages = handler, messages
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = failures


def check_address(address: str | None) -> None:
    """Refuse at once, with an InputError, what Ray would try for a long while; see `connection`."""
    target = _target(address)
    if target in ("local", "auto"):
        return
    if "://" in target:
        raise InputError(
            f"--address {target}: a Ray client or dashboard address cannot run a search; give HOST:PORT of "
            "the cluster's head, or submit the search with 'ray job submit --address http://HEAD:8265 -- ...'"
        )
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise InputError(f"--address {target}: expected HOST:PORT, 'auto' or 'local', got {target!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address {target}: no Ray cluster answers there ({error.strerror or error}); start one with "
            "'ray start --head', or leave --address out to run on this machine alone"
        ) from error


def nodes() -> list[Node]:
    """The living nodes of the connected cluster."""
    import ray

    return [
        Node(
            n["NodeManagerHostname"],
            n["Resources"].get("CPU", 0.0),
            n["Resources"].get("GPU", 0.0),
            n["NodeID"],
            n["NodeManagerAddress"],
            tuple(sorted(key[len(_KIND) :] for key in n["Resources"] if key.startswith(_KIND))),
        )
        for n in ray.nodes()
        if n["Alive"]
    ]


def own_node() -> str:
    """The id of the node that this process is connected by."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def anywhere_but(nodes: Sequence[str]) -> dict[str, str]:
    """Ray's label selector of every node but these, given by their ids."""
    return {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else {}


def slots(resources: ResourceSettings, cluster: list[Node]) -> int:
    """How many trials with `resources` fit on the cluster at once.

    A fraction of a GPU never spans two GPUs; a trial never spans two nodes.
    """
    return sum(_fit(resources, node) for node in cluster)


def _fit(resources: ResourceSettings, node: Node) -> int:
    if resources.accelerator is not None and resources.accelerator not in node.accelerators:
        return 0
    by_cpu = int(node.cpu // resources.cpu)
    if resources.gpu == 0:
        return by_cpu
    if resources.gpu < 1:
        # Rounded before the division: 1 // 0.1 is 9 in floating point.
        return min(by_cpu, int(node.gpu) * int(round(1 / resources.gpu, 6)))
    return min(by_cpu, int(node.gpu // resources.gpu))


def wait_for_room(
    resources: ResourceSettings, trials: int, seconds: float, check: Callable[[], None]
) -> float:
    """Ask the connected cluster to grow until so many trials with `resources` fit, for at most `seconds`.

    Says on standard error that it waits, and returns the seconds it did. `check` is called all the while, and
    may raise to end it. What the cluster has been asked for is withdrawn at the end: running trials keep
    their nodes, and those that nobody uses may go.
    """
    _check_whole(resources)
    if seconds <= 0 or slots(resources, nodes()) >= trials:
        return 0.0
    from ray.autoscaler.sdk import request_resources

    say(
        f"waiting up to {seconds:g} s for room for {trials} trial{'s' * (trials > 1)} of {_asked(resources)} "
        f"each; the cluster has {_has(nodes())}",
        sys.stderr,
    )
    started = time.monotonic()
    request_resources(bundles=[bundle(resources)] * trials)
    try:
        while (waited := time.monotonic() - started) < seconds and slots(resources, nodes()) < trials:
            check()
            time.sleep(_GROWN_SECONDS)
    finally:
        request_resources(bundles=[])
    return waited


def bundle(resources: ResourceSettings) -> dict[str, float]:
    """What one trial occupies, in Ray's words."""
    return {"CPU": resources.cpu, "GPU": resources.gpu, **kind(resources)}


def kind(resources: ResourceSettings) -> dict[str, float]:
    """The resource that keeps a trial on nodes with its accelerator; empty where any will do."""
    return {} if resources.accelerator is None else {f"{_KIND}{resources.accelerator}": _LITTLE}


def check_resources(resources: ResourceSettings, cluster: list[Node], waited: float = 0.0) -> None:
    """Raise InputError when no node can run even one trial: Ray itself would wait for ever.

    `waited` are the seconds that were spent on waiting for such a node.
    """
    _check_whole(resources)
    if slots(resources, cluster) > 0:
        return
    since = f" after {waited:.0f} s of waiting (--wait-for-resources)" if waited else ""
    known = sorted({name for node in cluster for name in node.accelerators})
    if resources.accelerator is not None and resources.accelerator not in known:
        there = suggest(resources.accelerator, known) if known else "no node has any that Ray knows"
        raise InputError(
            f"resources.accelerator: no node has {resources.accelerator!r}{since}; {there} (the cluster: "
            f"{_has(cluster)})"
        )
    most = max((node.gpu for node in cluster), default=0.0)
    hint = " (--gpus 0 trains on the CPU)" if resources.gpu > most else ""
    raise InputError(
        f"resources: one trial asks for {_asked(resources)}, and no node has them{since}: {_has(cluster)}; "
        f"lower --cpus or --gpus{hint}"
    )


def _check_whole(resources: ResourceSettings) -> None:
    if resources.gpu > 1 and resources.gpu != int(resources.gpu):
        raise InputError(
            f"--gpus {resources.gpu:g}: above 1 a trial takes whole GPUs; give 1, 2, ... or a fraction"
        )


def _asked(resources: ResourceSettings) -> str:
    """What one trial asks for, in words."""
    where = "" if resources.accelerator is None else f" on a node with {resources.accelerator}"
    return f"{resources.cpu} CPUs and {resources.gpu:g} GPUs{where}"


def _has(cluster: Sequence[Node]) -> str:
    """What each node has, in words."""
    return "; ".join(
        ", ".join([f"{node.host}: {node.cpu:g} CPUs", f"{node.gpu:g} GPUs", *node.accelerators])
        for node in cluster
    )
