"""Hosts on this machine: Linux namespaces with addresses of their own, joined by bridges.

Nothing of them has a name outside: they end with the process that holds them, which ends with ours, however
that happens, and with them end their processes, links and mounts.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "nft", "nsenter", "unshare", "chroot")
_CLONE_NEWNET = 0x40000000
# Holds everything until its input ends, which it does with whoever has the other end.
_GROUND = """
trap '' HUP INT TERM
unshare --mount --net --pid --fork --mount-proc sh -c "ip link set lo up; echo up; read _"
rm -rf --one-file-system "$1"
"""
# Becomes a host's first process, in a root of its own: everything that is here, but /tmp, the names of the
# hosts, and the folders given as SOURCE:TARGET. Ignoring SIGCHLD, it buries every orphan.
_HOST = """
set -e
name=$1 root=$2 hosts=$3 resolver=$4
shift 4
hostname "$name"
mount -t tmpfs -o mode=755 none "$root"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$root"
  elif [ "$entry" = /tmp ] || [ "$entry" = /proc ]; then mkdir "$root$entry"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
mount -t proc proc "$root/proc"
for pair in "$@"; do
  mkdir -p "$root${pair#*:}"
  mount --rbind "${pair%%:*}" "$root${pair#*:}"
done
mount --bind "$hosts" "$root/etc/hosts"
mount --bind "$resolver" "$root/etc/resolv.conf"
echo up
exec env --ignore-signal=CHLD chroot "$root" sleep infinity
"""

# What hosts are made of, and what their packet filters know.
_TRIAL = """
set -e
ip link add b0 type bridge
ip link add v0 type veth peer name v1
nft --file - <<END
table ip t {
  chain output { type nat hook output priority -100
    ip daddr 127.0.0.1 tcp dport 1 dnat to 10.0.0.1:2
  }
  chain postrouting { type nat hook postrouting priority 100
    masquerade
  }
  chain input { type filter hook input priority 0
    ct state established accept
    meta l4proto tcp reject with tcp reset
  }
}
END
"""


def missing():
    """Why there can be no hosts here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces are made by root on Linux alone"
    absent = [name for name in TOOLS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "sh", "-c", _TRIAL],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Ground:
    """What the hosts stand on: the bridges between them, and one folder that goes with them."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tf-", dir="/var/tmp"))
        self.hosts = {}
        self._bridges = {}
        self._names = self.folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        # Nobody answers there, and that is known at once.
        self._resolver = self.folder / "resolv.conf"
        self._resolver.write_text("nameserver 127.0.0.1\n")
        self._holder = _started(["sh", "-c", _GROUND, "sh", self.folder], stdin=subprocess.PIPE)
        self._pid = _innermost(self._holder)

    def bridge(self, name, subnet):
        """A network `name` whose hosts have the addresses SUBNET.2, SUBNET.3, ..."""
        self._bridges[name] = subnet
        self.ip("link", "add", name, "type", "bridge")
        self.ip("link", "set", name, "up")

    def host(self, name, networks, folders):
        """A host on these networks, the first of which is the way to everywhere.

        `folders` are seen by its processes at the paths that are their keys.
        """
        made = Host(self, name, networks, folders)
        self.hosts[name] = made
        return made

    def address(self, name, network):
        """The next address of a network, known to all hosts under `name` from now on."""
        taken = sum(network in host.networks for host in self.hosts.values())
        address = f"{self._bridges[network]}.{taken + 2}"
        with self._names.open("a") as names:
            names.write(f"{address} {name}\n")
        return address

    def ip(self, *words):
        """`ip` among the bridges."""
        _check(["nsenter", "--target", self._pid, "--net", "ip", *words])

    def launch_host(self, name, folders):
        """A host's first process, and its number."""
        root = self.folder / name / "root"
        root.mkdir(parents=True)
        into = ["nsenter", "--target", self._pid, "--mount", "--pid"]
        apart = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork"]
        pairs = [f"{source}:{target}" for target, source in folders.items()]
        process = _started(
            [*into, *apart, "sh", "-c", _HOST, "sh", name, root, self._names, self._resolver, *pairs]
        )
        pid = _innermost(process)
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)  # it is about to get its root
        return process, pid

    def close(self):
        """End all hosts, and wait until nothing of them is left."""
        self._holder.stdin.close()
        self._holder.wait(timeout=60)


class Host:
    """One host: a network, a name, processes and a /tmp of its own."""

    def __init__(self, ground, name, networks, folders):
        self.name = name
        self.networks = {network: ground.address(name, network) for network in networks}
        self.temporary = ground.folder / name / "tmp"
        self.temporary.mkdir(parents=True)
        self.temporary.chmod(0o1777)
        # A checkout or Python under /tmp is still there.
        kept = {str(path): path for path in (ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")}
        self._ground = ground
        self._holder, self.pid = ground.launch_host(name, {"/tmp": self.temporary, **kept, **folders})
        for number, (network, address) in enumerate(self.networks.items()):
            ground.ip(
                *("link", "add", self._link(network), "type", "veth"),
                *("peer", "name", f"eth{number}", "netns", self.pid),
            )
            ground.ip("link", "set", self._link(network), "master", network, "up")
            self._ip("address", "add", f"{address}/24", "dev", f"eth{number}")
            self._ip("link", "set", f"eth{number}", "up")
        self._ip("link", "set", "lo", "up")
        # It leads nowhere. Programs find their own address by asking for the way out.
        self._ip("route", "add", "default", "via", f"{self.address.rpartition('.')[0]}.1")

    @property
    def address(self):
        """Where the others reach it."""
        return next(iter(self.networks.values()))

    def start(self, words, environment, folder="/tmp", **streams):
        """Start a command here with this environment alone."""
        variables = [f"{key}={value}" for key, value in environment.items()]
        into = ["nsenter", "--target", self.pid, "--mount", "--net", "--uts", "--pid", "--root"]
        command = [*into, "env", "--ignore-environment", f"--chdir={folder}", *variables, *words]
        return subprocess.Popen([str(word) for word in command], start_new_session=True, **streams)

    def processes(self):
        """Every process of this host, beside the first."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if process.pid != self.pid and Path(f"/proc/{process.pid}/ns/pid").readlink() == own:
                    found.append(process)
        return found

    def kill(self):
        """SIGKILL to every process at once, as when the power goes; the host itself stays."""
        _check(["nsenter", "--target", self.pid, "--pid", "--mount", "--root", "sh", "-c", "kill -9 -1 || :"])
        deadline = time.monotonic() + 20
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.05)

    def unplug(self, network):
        """Pull its cable out of the network's bridge."""
        self._ground.ip("link", "set", self._link(network), "down")

    def plug(self, network):
        """Put it in again."""
        self._ground.ip("link", "set", self._link(network), "up")

    def filter(self, rules):
        """Load nftables' rules."""
        _check(["nsenter", "--target", self.pid, "--net", "nft", "--file", "-"], input=rules)

    def listening(self):
        """TCP ports on which something here answers other hosts."""
        ports = set()
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                address, port = local.split(":")
                if state == "0A" and address not in ("0100007F", "0" * 24 + "01000000"):
                    ports.add(int(port, 16))
        return ports

    @contextlib.contextmanager
    def inside(self):
        """Within, this thread's connections and children are on this host's network, and nowhere else."""
        with _network("/proc/thread-self/ns/net") as ours, _network(f"/proc/{self.pid}/ns/net") as its:
            _enter(its)
            try:
                yield
            finally:
                _enter(ours)

    def _link(self, network):
        return f"{network[:3]}-{self.name}"[:15]

    def _ip(self, *words):
        _check(["nsenter", "--target", self.pid, "--net", "ip", *words])


@contextlib.contextmanager
def _network(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor):
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns on {threading.current_thread().name}")


def _started(words, **streams):
    """Start what says that it is up."""
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, text=True, start_new_session=True, **streams
    )
    assert process.stdout.readline() == "up\n", f"{words} did not start"
    return process


def _innermost(process):
    """The last of the processes of which each started the next."""
    return psutil.Process(process.pid).children(recursive=True)[-1].pid


def _check(words, **options):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
