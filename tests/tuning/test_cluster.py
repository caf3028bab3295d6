import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.space.settings import ResourceSettings
from tune_fusion.tuning.cluster import Node, bundle, check_resources, connection, slots

STEADY = settings(derandomize=True, deadline=None, max_examples=80)


def node(cpu, gpu=0.0, host="one"):
    return Node(host, float(cpu), float(gpu))


@pytest.mark.parametrize(
    ("cpu", "gpu", "cluster", "fit"),
    [
        (1, 0, [node(4)], 4),
        (3, 0, [node(8)], 2),
        (5, 0, [node(4)], 0),
        (1, 0, [node(0, 8)], 0),
        (1, 0.5, [node(16, 1)], 2),
        (1, 0.1, [node(16, 1)], 10),
        (1, 0.2, [node(16, 1)], 5),
        (1, 0.3, [node(16, 1)], 3),
        (1, 1 / 3, [node(16, 1)], 3),
        (1, 0.6, [node(16, 2)], 2),
        (1, 0.3, [node(16, 2)], 6),
        (4, 0.1, [node(16, 1)], 4),
        (1, 0.5, [node(16)], 0),
        (1, 1, [node(16, 4)], 4),
        (8, 1, [node(16, 4)], 2),
        (1, 2, [node(16, 5)], 2),
        (1, 4, [node(16, 3)], 0),
        (1, 4, [node(16, 2), node(16, 2, "two")], 0),
        (3, 0, [node(4), node(4, 0, "two"), node(2, 0, "three")], 2),
        (2, 0.25, [node(64), node(5, 1, "two"), node(64, 2, "three")], 10),
        (1, 0, [], 0),
    ],
)
def test_how_many_trials_fit(cpu, gpu, cluster, fit):
    assert slots(ResourceSettings(cpu=cpu, gpu=float(gpu)), cluster) == fit


@STEADY
@given(
    cpu=st.integers(1, 8),
    gpu=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0, 2.0, 3.0]),
    cluster=st.lists(st.builds(node, st.integers(0, 32), st.integers(0, 8)), max_size=4),
)
def test_what_fits_is_what_can_be_packed_one_by_one(cpu, gpu, cluster):
    packed = 0
    for each in cluster:
        # Each GPU in thousandths, so that no rounding decides.
        free_cpu, free_gpus = int(each.cpu), [1000] * int(each.gpu)
        while free_cpu >= cpu:
            if gpu >= 1:
                if len(free_gpus) < gpu:
                    break
                free_gpus = free_gpus[int(gpu) :]
            elif gpu > 0:
                place = next((i for i, free in enumerate(free_gpus) if free >= round(1000 * gpu)), None)
                if place is None:
                    break
                free_gpus[place] -= round(1000 * gpu)
            free_cpu -= cpu
            packed += 1
    assert slots(ResourceSettings(cpu=cpu, gpu=gpu), cluster) == packed


def test_resources_that_some_node_has_pass():
    check_resources(ResourceSettings(cpu=4, gpu=2.0), [node(2), node(8, 2, "two")])


@pytest.mark.parametrize(
    ("cpu", "gpu", "message"),
    [
        (
            64,
            0,
            "resources: one trial asks for 64 CPUs and 0 GPUs, and no node has them: one: 8 CPUs, 0 GPUs; "
            "two: 2 CPUs, 1 GPUs; lower --cpus or --gpus",
        ),
        (
            1,
            2,
            "resources: one trial asks for 1 CPUs and 2 GPUs, and no node has them: one: 8 CPUs, 0 GPUs; "
            "two: 2 CPUs, 1 GPUs; lower --cpus or --gpus (--gpus 0 trains on the CPU)",
        ),
        # Each node alone has too little of one of them.
        (
            4,
            0.5,
            "resources: one trial asks for 4 CPUs and 0.5 GPUs, and no node has them: one: 8 CPUs, 0 GPUs; "
            "two: 2 CPUs, 1 GPUs; lower --cpus or --gpus",
        ),
    ],
)
def test_resources_that_no_node_has_show_the_cluster(cpu, gpu, message):
    with pytest.raises(InputError) as refused:
        check_resources(ResourceSettings(cpu=cpu, gpu=float(gpu)), [node(8), node(2, 1, "two")])
    assert str(refused.value) == message


def with_kinds(cpu, gpu, *kinds, host="one"):
    return Node(host, float(cpu), float(gpu), accelerators=kinds)


def test_trials_that_want_an_accelerator_fit_on_nodes_that_have_it():
    wanted = ResourceSettings(cpu=1, gpu=0.5, accelerator="H100")
    nodes = [with_kinds(8, 2, "H100"), with_kinds(8, 4, "A100", host="two"), node(8, 1, "three")]
    assert slots(wanted, nodes) == 4
    assert slots(wanted.anywhere, nodes) == 4 + 8 + 2
    check_resources(wanted, nodes)
    assert bundle(wanted) == {"CPU": 1, "GPU": 0.5, "accelerator_type:H100": 0.001}
    assert bundle(wanted.anywhere) == {"CPU": 1, "GPU": 0.5}


@pytest.mark.parametrize(
    ("kind", "nodes", "message"),
    [
        (
            "H1000",
            [with_kinds(8, 2, "H100"), with_kinds(8, 4, "T4", host="two")],
            "resources.accelerator: no node has 'H1000'; did you mean 'H100'? (the cluster: one: 8 CPUs, 2 "
            "GPUs, H100; two: 8 CPUs, 4 GPUs, T4)",
        ),
        (
            "V2",
            [with_kinds(8, 2, "H100"), with_kinds(8, 4, "T4", host="two")],
            "resources.accelerator: no node has 'V2'; known: H100, T4 (the cluster: one: 8 CPUs, 2 GPUs, "
            "H100; two: 8 CPUs, 4 GPUs, T4)",
        ),
        (
            "H100",
            [node(8)],
            "resources.accelerator: no node has 'H100'; no node has any that Ray knows (the cluster: one: 8 "
            "CPUs, 0 GPUs)",
        ),
        # The node that has it is too small, and the others do not count.
        (
            "T4",
            [with_kinds(2, 1, "T4"), with_kinds(8, 8, "H100", host="two")],
            "resources: one trial asks for 4 CPUs and 1 GPUs on a node with T4, and no node has them: one: 2 "
            "CPUs, 1 GPUs, T4; two: 8 CPUs, 8 GPUs, H100; lower --cpus or --gpus",
        ),
    ],
)
def test_an_accelerator_that_no_node_has_shows_those_that_there_are(kind, nodes, message):
    with pytest.raises(InputError) as refused:
        check_resources(ResourceSettings(cpu=4, gpu=1.0, accelerator=kind), nodes)
    assert str(refused.value) == message


def test_how_long_was_waited_is_said():
    with pytest.raises(
        InputError, match=r"no node has them after 12 s of waiting \(--wait-for-resources\): "
    ):
        check_resources(ResourceSettings(cpu=64), [node(8)], 12.3)


def test_more_than_one_gpu_must_be_whole():
    with pytest.raises(InputError, match=r"--gpus 1\.5: above 1 a trial takes whole GPUs"):
        check_resources(ResourceSettings(cpu=1, gpu=1.5), [node(8, 8)])


@pytest.fixture
def ray_unused(monkeypatch):
    """Fails the test where Ray itself is asked to start or to join."""
    ray = pytest.importorskip("ray")

    def refuse(*args, **kwargs):
        raise AssertionError("the address should have been refused before Ray was asked")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def connect_to(address):
    with connection(address, "lenet5") as connect:
        connect()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost", "expected HOST:PORT, 'auto' or 'local', got 'localhost'"),
        ("localhost:", "expected HOST:PORT"),
        (":6379", "expected HOST:PORT"),
        ("localhost:http", "expected HOST:PORT"),
        ("localhost:65536", "expected HOST:PORT"),
        ("localhost:-1", "expected HOST:PORT"),
        ("ray://localhost:10001", "Ray client or dashboard address cannot run a search; give HOST:PORT"),
        ("http://localhost:8265", "submit the search with 'ray job submit --address http://HEAD:8265"),
    ],
)
def test_addresses_that_cannot_be_one(ray_unused, address, message):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        connect_to(address)
    assert str(refused.value).startswith(f"--address {address}: ")


def test_an_address_where_nothing_listens(ray_unused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            InputError, match=rf"--address {address}: no Ray cluster answers there \(.*refused\)"
        ):
            connect_to(address)


def test_the_address_of_a_submitted_job_is_taken_from_the_environment(ray_unused, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match="--address nonsense: expected HOST:PORT"):
        connect_to(None)
    with pytest.raises(InputError, match="--address other: expected HOST:PORT"):
        connect_to("other")


def no_token(text):
    import ray

    return ray.exceptions.AuthenticationError(text)


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, ValueError, no_token])
def test_what_ray_refuses_is_told_in_one_line(ray_unused, monkeypatch, error):
    import ray

    def fail(*args, **kwargs):
        raise error("no session\nwith a second line")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InputError) as refused:
        connect_to("auto")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(
        "--address auto: cannot join this Ray cluster: no session; start one"
    )


@pytest.mark.parametrize("early", [False, True])
def test_a_ray_of_our_own_that_does_not_start_in_time_is_told_of(ray_unused, monkeypatch, early):
    """Ray raises a bare Exception then."""
    import ray

    def fail(*args, **kwargs):
        raise Exception("The current node timed out during startup.\nMore lines")

    def connected():
        with connection(None, "lenet5", early=early) as connect:
            connect()

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/elsewhere")
    with pytest.raises(TuneFusionError) as failure:
        connected()
    assert failure.value.exit_code == 1
    assert str(failure.value) == (
        "Ray did not start on this machine: The current node timed out during startup; where the machine is "
        "busy it may start when you try again; what Ray says of it lies in "
        "/tmp/elsewhere/ray/session_latest/logs"
    )


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("address", "own"), [(None, True), ("local", True), ("auto", False)])
def test_ray_is_shut_down_whatever_happens_inside(ray_unused, monkeypatch, address, own, early):
    import ray

    calls = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))

    def fail_once_connected():
        with connection(address, "lenet5", early=early) as connect:
            connect()
            raise KeyError

    with pytest.raises(KeyError):
        fail_once_connected()
    options, last = calls
    assert last == "shutdown"
    assert options["address"] == ("local" if own else "auto")
    # Only a Ray of our own may be told how large it is; a joined one refuses that.
    assert ("object_store_memory" in options) == own


def test_settings_of_the_user_win_over_ours(ray_unused, monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    with pytest.raises(InputError):
        connect_to("nonsense")
    assert os.environ["RAY_DEDUP_LOGS"] == "1"
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"


# Connects, lets two workers do what the commands on standard input say, and tells of the pids.
DRIVER = """
import json, os, sys, time
import ray
from tune_fusion.tuning.cluster import connection, disconnect

@ray.remote(num_cpus=0)
class Worker:
    def pid(self):
        return os.getpid()
    def work(self):
        time.sleep(300)

def say(**words):
    print(json.dumps(words), flush=True)

with connection(sys.argv[1], "lenet5", early=True) as connect:
    connect()
    workers = [Worker.remote() for _ in range(2)]
    pids = ray.get([worker.pid.remote() for worker in workers])
    tasks = [worker.work.remote() for worker in workers]
    say(workers=pids, address=ray.get_runtime_context().gcs_address)
    for command in sys.stdin:
        if command == "disconnect\\n":
            disconnect()
            say()
        if command == "lose\\n":
            try:
                ray.get(tasks)
            except ray.exceptions.ActorDiedError:
                say(lost=True)
        if command == "leave\\n":
            break
say(left=True)
"""


@pytest.fixture(scope="module")
def environment():
    # Ray's sockets lie in this folder and their paths must be short.
    folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    yield kept | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def start(environment):
    """Starts a program in a session of its own; what still runs is ended with the tests."""
    started = []

    def run(program, *arguments, **settings):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def driver(start):
    """Starts `DRIVER`; returns the process and what it said first."""

    def run(address="local", **settings):
        process = start(DRIVER, address, **settings)
        return process, heard(process)

    return run


@pytest.fixture(scope="module")
def undisturbed(driver):
    """A driver that tests only look at."""
    return driver()[0]


def heard(process):
    return json.loads(process.stdout.readline())


def tell(process, command):
    process.stdin.write(command + "\n")
    process.stdin.flush()


def family(process):
    """The processes below this one."""
    return psutil.Process(process.pid).children(recursive=True)


def lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def survivors(processes, patience=20):
    """Those that are still there after a while (seconds) in which all should have gone."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(lives, processes)):
        time.sleep(0.1)
    return [process for process in processes if lives(process)]


def names(processes):
    return {process.name() for process in processes}


def test_everything_of_our_own_ray_listens_on_loopback_only(undisturbed):
    listening = {}
    for each in [psutil.Process(undisturbed.pid), *family(undisturbed)]:
        for its in each.net_connections(kind="inet"):
            if its.status == psutil.CONN_LISTEN or its.type == socket.SOCK_DGRAM:
                listening.setdefault(each.name(), []).append(ipaddress.ip_address(its.laddr.ip))
    assert {"gcs_server", "raylet"} <= listening.keys()
    assert len(listening) >= 4  # the driver and the workers, too
    for name, addresses in listening.items():
        for address in addresses:
            plain = getattr(address, "ipv4_mapped", None) or address
            assert plain.is_loopback, f"{name} listens on {address}"


def test_ray_gets_no_signal_that_is_sent_to_our_group(undisturbed):
    assert {"gcs_server", "raylet"} <= names(family(undisturbed))
    assert os.getpgid(undisturbed.pid) not in {os.getpgid(each.pid) for each in family(undisturbed)}


def test_nothing_of_our_own_ray_outlives_a_killed_driver(driver):
    process, said = driver()
    processes = family(process)
    assert {"gcs_server", "raylet"} <= names(processes)
    assert set(said["workers"]) <= {each.pid for each in processes}
    # Nothing in a stopped worker can notice that the driver has died.
    os.kill(said["workers"][0], signal.SIGSTOP)
    process.kill()
    assert survivors(processes) == []


def test_nor_one_that_is_killed_while_ray_starts(start):
    process = start(DRIVER, "local")
    while "raylet" not in names(family(process)):
        time.sleep(0.02)
        assert process.poll() is None
    processes = family(process)
    process.kill()
    assert survivors(processes) == []


def test_nor_the_block_in_which_it_was_connected(driver):
    process, said = driver()
    processes = family(process)
    os.kill(said["workers"][0], signal.SIGSTOP)
    tell(process, "leave")
    assert heard(process) == {"left": True}
    # At once, for the shell's prompt must not come back before they are gone; dying takes moments.
    assert survivors(processes, patience=1) == []
    assert process.wait() == 0


def test_to_disconnect_ends_the_workers_and_leaves_the_block_as_it_is(driver):
    process, said = driver()
    workers = [psutil.Process(pid) for pid in said["workers"]]
    tell(process, "disconnect")
    assert heard(process) == {}
    assert survivors(workers) == []
    tell(process, "leave")
    assert heard(process) == {"left": True}
    assert process.wait() == 0


def test_a_worker_that_dies_is_no_news_for_our_output(driver):
    process, said = driver()
    os.kill(said["workers"][0], signal.SIGKILL)
    tell(process, "lose")
    assert heard(process) == {"lost": True}
    out, errors = process.communicate("leave\n")
    assert [json.loads(line) for line in out.splitlines()] == [{"left": True}]
    assert errors == ""


def test_a_killed_driver_leaves_the_cluster_that_it_joined(driver):
    host, at_host = driver()
    cluster = [each for each in family(host) if each.pid not in at_host["workers"]]
    # Ray would look for a loopback address on the outer interface, where this cluster does not listen.
    guest, at_guest = driver(at_host["address"], RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    workers = [psutil.Process(pid) for pid in at_guest["workers"]]
    assert {"gcs_server", "raylet"}.isdisjoint(names(family(guest)))
    guest.kill()
    assert survivors(workers) == []
    assert {each.name() for each in cluster if lives(each)} >= {"gcs_server", "raylet"}
    tell(host, "leave")
    assert heard(host) == {"left": True}
