"""docker/compose.yaml on hosts of this machine: its services, commands, settings, networks and ports.

What stands in for a container is a host (`hosts`), for its image the Python that runs the tests, and for
postgres's image Debian's PostgreSQL. The reader of the README is a host too, `client`: on its loopback it
finds what compose publishes, and the others answer it on no other port.
"""

import base64
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg2
from deployment import ROOT, image_environment, rendered
from hosts import Ground
from running import ASHA, wait_until
from watching import Watcher

WORKERS = ("worker-1", "worker-2")
TRIALS = 16
SEARCH = ["--space", "digits", "--trials", TRIALS, "--epochs", 3, "--set", "data.limit=300", *ASHA]
# Epochs of a few tenths of a second.
SEARCH += ["--set", "training.batch_size=8", "--concurrent", 1]
"""What a short search is told, but for its places."""
PATIENCE = 240
"""Seconds after which a search on a busy machine is taken to hang."""
_OBJECT_STORE = ("--object-store-memory", str(100 * 2**20))
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_BARE = {
    "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}
# Where compose's restart policy would do it.
_RESTARTED = 'while :; do "$@"; sleep 1; done'
_INITIALISE = """
"$1/initdb" --pgdata /pgdata --username postgres --auth-local trust --auth-host scram-sha-256
echo "listen_addresses = '*'
unix_socket_directories = '/tmp'
fsync = off" >> /pgdata/postgresql.conf
echo 'host all all all scram-sha-256' >> /pgdata/pg_hba.conf
echo "create role mlflow login superuser password '$2'
create database mlflow owner mlflow" | "$1/postgres" --single -D /pgdata postgres
"""
# What must never be uploaded, in the checkout that jobs are submitted from.
PRIVATE = ("runs/old/journal.jsonl", "data/photos/cat/1.jpg", "mlflow.db", "mlartifacts/1/model.bin")


def missing():
    """What of the stack cannot be had here; empty where everything can."""
    absent = [] if _POSTGRES else ["postgresql"]
    absent += [name for name in ("wget", "openssl") if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


class Stack:
    """The services, each on its host, and the client."""

    def __init__(self):
        self.ground = Ground()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self):
        self.runs = self._volume("runs")
        self.checkout = self.ground.folder / "checkout"
        self._copy_checkout()
        lines = (self.checkout / "docker" / ".env").read_text().splitlines()
        self.secrets = dict(line.split("=", 1) for line in lines)
        self._compose = rendered(WORKER_CPUS="1", **self.secrets)
        self.watcher = Watcher(self.ground.folder / "watched")
        for number, network in enumerate(self._compose["networks"]):
            self.ground.bridge(network, f"10.77.{number}")
        for name in ("postgres", "mlflow", "head", *WORKERS):
            service = self._service(name)
            volumes = {volume["target"]: self._volume(volume["source"]) for volume in service["volumes"]}
            if name == "postgres":
                # Its image's own folder is no place that everybody has.
                volumes = {"/pgdata": self._volume("postgres")}
                shutil.chown(volumes["/pgdata"], "postgres", "postgres")
            self.ground.host(name, list(service["networks"]), volumes)
        self.client = self.ground.host("client", ["cluster"], {})
        self._publish()
        self._prepare_postgres()
        for name in ("postgres", "mlflow", "head", *WORKERS):
            self.start(name)
            self.wait_healthy(name)
        self.wait_for_workers()

    def close(self):
        self.ground.close()

    def host(self, name):
        return self.ground.hosts[name]

    def published(self):
        """(host, its port, port on the client's loopback) of all that compose publishes."""
        return [
            (name, port["target"], int(port["published"]))
            for name, service in self._compose["services"].items()
            for port in service.get("ports", [])
        ]

    # Services

    def start(self, name):
        """Start a service as compose does, ours anew whenever they end."""
        service, environment = self._service(name), {**_BARE, "PGHOST": "/tmp"}
        if name == "postgres":
            words = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            words += [_POSTGRES[-1] / "postgres", "-D", "/pgdata"]
        else:
            words = ["sh", "-c", _RESTARTED, "sh", *service["command"]]
            environment |= {**image_environment(), **service["environment"], **self._settings(name)}
            if "ray" in words:
                words += _OBJECT_STORE
        with (self.ground.folder / name / "log").open("ab") as log:
            self.host(name).start(
                words, environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self, name):
        """SIGKILL to everything of a Ray node; the others have noticed when this returns."""
        self.host(name).kill()
        wait_until(lambda: name not in self._alive())

    def stop_postgres(self):
        """As its container is stopped: connections are cut, everything is written."""
        min(self.host("postgres").processes(), key=lambda process: process.create_time()).send_signal(
            signal.SIGINT
        )
        wait_until(lambda: not self.host("postgres").processes())

    def wait_healthy(self, name):
        """Wait until the service's health check passes, where it has one."""
        check = self._service(name).get("healthcheck")
        if check is not None:
            words = check["test"][1:]
            wait_until(lambda: self.call(name, *words, PGHOST="/tmp").returncode == 0, PATIENCE)

    def wait_for_workers(self):
        """Wait until all workers are in the cluster."""
        wait_until(lambda: self._alive() == {"head", *WORKERS}, PATIENCE)

    def _alive(self):
        try:
            answer = json.loads(self.ask("http://127.0.0.1:8265/nodes?view=summary", token=True)[1])
        except (OSError, ValueError):
            return set()
        nodes = answer["data"]["summary"]
        return {node["hostname"] for node in nodes if node["raylet"].get("state") == "ALIVE"}

    def call(self, name, *words, **environment):
        """Run a command on a host with these variables beside the bare ones, to its end."""
        process = self.host(name).start(
            words, {**_BARE, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        out, _ = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(words, process.returncode, out)

    def rows(self, sql, *parameters):
        """Ask MLflow's database; parameters stand as ``?``."""
        with (
            psycopg2.connect(
                host=self.host("postgres").temporary, user="mlflow", dbname="mlflow"
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql.replace("%", "%%").replace("?", "%s"), parameters)
            return cursor.fetchall()

    # The client

    def ask(self, url, *, token=False, data=None, headers=()):
        """(status, content) of a request from the client."""
        given = dict(headers) | (
            {"Authorization": f"Bearer {self.secrets['RAY_AUTH_TOKEN']}"} if token else {}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with self.client.inside():
            try:
                with opener.open(urllib.request.Request(url, data, given), timeout=30) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as refusal:
                return refusal.code, refusal.read()

    def login(self):
        """The header that MLflow asks for."""
        words = f"admin:{self.secrets['MLFLOW_ADMIN_PASSWORD']}"
        return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}

    def type(self, line):
        """Start what a reader of the README types in his checkout, the token's line before it."""
        (export,) = [
            command for command in readme() if command.endswith("docker/.env)") and "export" in command
        ]
        return self.client.start(
            ["bash", "-c", f"{export}\nexec {line}"],
            _BARE,
            self.checkout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, *options):
        """Submit a search as the README does, with these options in the place of its own."""
        line, search, _ = commands("ray job submit")[0].partition("tune_fusion.search ")
        return Job(self.type(line + search + shlex.join(map(str, options))))

    def resume(self, name):
        """Submit what the README says for a search that goes on."""
        return Job(self.type(commands("ray job submit")[1].replace(" first ", f" {name} ")))

    def folder(self, name):
        """The folder of a search."""
        return self.runs / name

    def _service(self, name):
        return self._compose["services"]["worker" if name in WORKERS else name]

    def _settings(self, name):
        if name != "mlflow":
            return {**self.watcher.environment, "OMP_NUM_THREADS": "1"}
        # Not under /etc, which is everybody's.
        (config,) = self._compose["configs"].values()
        (self.host(name).temporary / "basic_auth.ini").write_text(config["content"])
        return {"MLFLOW_AUTH_CONFIG_PATH": "/tmp/basic_auth.ini"}

    def _volume(self, name):
        folder = self.ground.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _copy_checkout(self):
        """The checkout as a reader has it: with data, runs, and the secrets that the README makes."""
        unwanted = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "results")
        top = {path.name for path in ROOT.iterdir()} & {"data", "runs", "mlruns", "mlflow.db", "mlartifacts"}

        def left(folder, names):
            return unwanted(folder, names) | (top if Path(folder) == ROOT else set())

        shutil.copytree(ROOT, self.checkout, ignore=left)
        for name in PRIVATE:
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (self.checkout / name).write_bytes(b"private " * 2**18)
        (self.checkout / "docker" / ".env").unlink(missing_ok=True)
        (secrets,) = commands("(umask")
        subprocess.run(["bash", "-c", secrets], cwd=self.checkout, check=True)

    def _publish(self):
        """On the client's loopback what compose publishes there, and nothing else of the others."""
        forwarded = "".join(
            f"ip daddr 127.0.0.1 tcp dport {port} dnat to {self.host(name).address}:{target}\n"
            for name, target, port in self.published()
        )
        self.client.filter(
            f"table ip published {{\nchain output {{\ntype nat hook output priority -100\n{forwarded}}}\n"
            "chain postrouting {\ntype nat hook postrouting priority 100\nip saddr 127.0.0.1 masquerade\n}\n}"
        )
        assert self.call("client", "sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1").returncode == 0
        for name in ("mlflow", "head", *WORKERS):
            ours = f"ip saddr {self.client.address}"
            ports = [str(target) for host, target, _ in self.published() if host == name]
            open_ = f"{ours} tcp dport {{ {', '.join(ports)} }} accept\n" if ports else ""
            self.host(name).filter(
                "table inet published {\nchain input {\ntype filter hook input priority 0\n"
                f"{ours} ct state established accept\n{open_}{ours} meta l4proto tcp reject with tcp reset\n"
                f"{ours} drop\n}}\n}}"
            )

    def _prepare_postgres(self):
        """What postgres's image does when its volume is empty."""
        words = ["sh", "-ec", _INITIALISE, "sh", _POSTGRES[-1], self.secrets["POSTGRES_PASSWORD"]]
        done = self.call("postgres", "runuser", "-u", "postgres", "--", *words)
        assert done.returncode == 0, done.stdout


class Job:
    """A submitted job, with what ``ray job submit`` says while it runs."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self):
        return "".join(self.lines)

    @property
    def id(self):
        """Ray's name of the job, as soon as it has one."""
        wait_until(lambda: re.search(r"Job '(\w+)' submitted successfully", self.text), process=None)
        return re.search(r"Job '(\w+)' submitted successfully", self.text)[1]

    def until(self, condition):
        """Wait until `condition()` holds while the job runs."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def end(self):
        """Wait for the end; returns the exit code of ``ray job submit``."""
        self.process.wait(timeout=PATIENCE)
        self._reader.join(timeout=30)
        return self.process.returncode

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line))


def readme():
    """The commands of the README's section on clusters, one a line."""
    section = (ROOT / "README.md").read_text().partition("\n## On a cluster\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [
        re.sub(r"\\\n\s*", "", command).strip()
        for block in blocks
        for command in re.split(r"(?m)^\$ ", block)
        if command.strip()
    ]


def commands(start):
    """Those of the README's commands that begin with these words."""
    return [command for command in readme() if command.startswith(start)]


def places():
    """Where the README's search keeps its results, as options."""
    words = commands("ray job submit")[0].split()
    return words[words.index("--storage") :]
