"""Who may do what: the client through the published ports alone, and nobody on Ray without its token.

Between the client and the others stands a packet filter that lets through what compose.yaml publishes, and
nothing else: the scan shows that it holds, and all the other tests that these ports suffice. The token is
what is left where somebody is within the network: that is tried from there.
"""

import json

import pytest
from stack import WORKERS, Job, commands, places

pytestmark = pytest.mark.cluster

REACHED = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        continue
    print(address)
"""
# What each port says to a client without a token, in HTTP and in gRPC.
ASKED = """
import http.client, json, sys
import grpc
methods = sys.argv[1].split()
for address in sys.argv[2:]:
    said = []
    for path in ("/", "/metrics", "/logs", "/api/jobs/", "/nodes?view=summary"):
        connection = http.client.HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            said.append([path, answer.status, answer.read().decode(errors="replace")])
        except (OSError, http.client.HTTPException):
            said = None
            break
    if said is None:
        said = []
        with grpc.insecure_channel(address) as channel:
            for method in methods:
                try:
                    channel.unary_unary("/ray.rpc." + method)(b"", timeout=5)
                    said.append([method, "OK", ""])
                except grpc.RpcError as error:
                    said.append([method, error.code().name, ""])
    print(json.dumps([address, said]))
"""
# One of each of Ray's services.
METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "RayletDriver/ClusterInfo",
    "LogService/ListLogs",
)
WRONG = {
    "disabled": {},
    "missing": {"RAY_AUTH_MODE": "token"},
    "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "not-this-one"},
}


def listening(stack, *names):
    """HOST:PORT of everything on which these hosts answer others."""
    hosts = [stack.host(name) for name in names]
    return [
        f"{address}:{port}"
        for host in hosts
        for address in host.networks.values()
        for port in sorted(host.listening())
    ]


def test_only_the_published_ports_answer(stack):
    ports = listening(stack, "postgres", "mlflow", "head", *WORKERS)
    published = {f"{stack.host(name).address}:{target}" for name, target, _ in stack.published()}
    assert published < set(ports)
    assert len(ports) > 20
    for place, reached in [("client", published), ("mlflow", set(ports))]:
        done = stack.call(place, "python", "-c", REACHED, *ports)
        assert set(done.stdout.split()) == reached, place


def test_the_database_is_reached_by_mlflow_alone(stack):
    database = listening(stack, "postgres")
    assert database
    for place in ("client", "head", *WORKERS):
        assert stack.call(place, "python", "-c", REACHED, *database).stdout == "", place


def test_the_dashboard_and_the_jobs_ask_for_the_token(stack):
    job = json.dumps({"entrypoint": "touch /runs/owned"}).encode()
    kind = {"Content-Type": "application/json"}
    for path, data in [
        ("/nodes?view=summary", None),
        ("/logs", None),
        ("/api/jobs/", None),
        ("/api/jobs/", job),
    ]:
        url = f"http://127.0.0.1:8265{path}"
        assert stack.ask(url, data=data, headers=kind)[0] == 401, path
        assert stack.ask(url, data=data, headers={**kind, "Authorization": "Bearer not-this-one"})[0] == 403
    assert stack.ask("http://127.0.0.1:8265/api/jobs/", token=True)[0] == 200
    assert not (stack.runs / "owned").exists()


@pytest.mark.parametrize("token", WRONG)
def test_a_job_is_not_taken_without_the_token(stack, token):
    words = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "touch", "/runs/owned"]
    done = stack.call("client", *words, **WRONG[token])
    assert done.returncode == 1
    assert "AuthenticationError" in done.stdout
    assert "submitted successfully" not in done.stdout
    assert not (stack.runs / "owned").exists()


@pytest.mark.parametrize("token", ["disabled", "missing"])
def test_a_search_within_the_network_is_told_of_the_token(stack, token):
    words = ["python", "-m", "tune_fusion.search", "--space", "digits", "--name", "intruder", *places()]
    login = {"MLFLOW_TRACKING_USERNAME": "admin"}
    login["MLFLOW_TRACKING_PASSWORD"] = stack.secrets["MLFLOW_ADMIN_PASSWORD"]
    there = ["env", f"--chdir={stack.checkout}", *words, "--address", "head:6379"]
    done = stack.call(WORKERS[0], *there, **login, **WRONG[token])
    assert done.returncode == 2
    last = done.stdout.splitlines()[-1]
    assert last.startswith("tune_fusion.search: --address head:6379: cannot join this Ray cluster: ")
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in last
    assert "Traceback" not in done.stdout
    assert not stack.folder("intruder").exists()


@pytest.fixture
def busy(stack):
    """The stack, with a process on it that does somebody's work."""
    submit = commands("ray job submit")[0].partition("--working-dir")[0]
    job = Job(stack.type(f"{submit} -- sleep 600"))
    job.until(lambda: "Running entrypoint" in job.text)
    yield stack
    stack.type(commands("ray job stop")[0].replace("JOB", job.id)).communicate()
    job.end()


def test_every_port_of_ray_asks_for_the_token(busy):
    """But for measurements for Prometheus and the dashboard's empty page, which hold no secret."""
    stack = busy
    ports = listening(stack, "head", *WORKERS)
    done = stack.call("mlflow", "python", "-c", ASKED, " ".join(METHODS), *ports)
    answers = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(answers) == set(ports)
    refused = set()
    for address, said in answers.items():
        for what, code, content in said:
            refused |= {what} if code == "UNAUTHENTICATED" else set()
            assert code in (401, "UNAUTHENTICATED", "UNIMPLEMENTED") or (
                code == 200
                and (content.startswith("# HELP") or (what == "/" and "<!doctype html>" in content))
            ), (address, what, code, content[:200])
            assert not [name for name, secret in stack.secrets.items() if secret in content]
    assert refused == set(METHODS)


def test_mlflow_asks_for_the_password_and_for_its_own_name(stack):
    url = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1"
    assert stack.ask(url)[0] == 401
    assert stack.ask(url, headers=stack.login())[0] == 200
    assert stack.ask(url, headers={**stack.login(), "Host": "elsewhere.example"})[0] == 403
