"""The nodes of a cluster that trials may run on: those that see what the driver sees, as they come and go.

A node that was there before the first trial and lacks the search's folder, or the data's, refuses the search.
One that joins later is asked without anybody waiting for it: trials run there once it has answered well, and
one that has not is asked again from time to time.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_fusion.data.catalogue import folder_path
from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.space.settings import DataSettings, ResourceSettings
from tune_fusion.storage import Store, journal_key, shown, store_of, unreachable
from tune_fusion.tuning import cluster

# A cluster may grow or shrink; asking it takes a few milliseconds, so not before every start.
_LOOK_SECONDS = 5.0
# How long a node may take to start a process and to answer, before the first trial.
_ANSWER_SECONDS, _WAIT_SECONDS = 120.0, 0.2
# How long a network's file system may hide what another machine has just written.
_APPEAR_SECONDS, _AGAIN_SECONDS = 5.0, 0.5
# A node that lacked something is asked again after so long.
_REFUSED_SECONDS = 60.0
_CONTENT_BYTES = 256


@dataclass(frozen=True)
class Proof:
    """What only a machine that shares the search's folder can confirm."""

    path: Path
    """A file in the folder, or beside it."""
    content: bytes
    """What that file begins with, and no other."""
    store: Store | None = None
    """Where the file lies, in place of the folder, for machines that share nothing else."""
    key: str = ""

    def lacking(self) -> str:
        """Why this machine cannot confirm it, in words; empty where it can."""
        if self.store is not None:
            return self._lacking_store(self.store)
        start = f"does not share the folder {self.path.parent}"
        try:
            return "" if self._read() else f"{start}: other files lie there"
        except FileNotFoundError:
            return f"{start}: what the driver wrote there is not there"
        except OSError as error:
            return f"{start}: {error.strerror or error}"

    def _lacking_store(self, store: Store) -> str:
        try:
            content = store.get(self.key, patience=_APPEAR_SECONDS)
        except OSError as error:
            return f"does not reach the store: {unreachable(store, error)}"
        good = content is not None and content.startswith(self.content)
        return "" if good else f"reaches another store than the driver: {store.shown}"

    def writable(self) -> str:
        """Why this machine cannot write beside it, in words; empty where it can."""
        place = self.path.parent if self.store is None else self.store.shown
        try:
            if self.store is None:
                # Permissions alone say nothing of read-only and special file systems.
                with tempfile.TemporaryFile(dir=self.path.parent):
                    pass
            else:
                key = f"{self.key}.{secrets.token_hex(8)}"
                self.store.put(key, b"")
                self.store.delete([key])
        except OSError as error:
            return f"cannot write to {place}: {error.strerror or error}"
        return ""

    def _read(self) -> bool:
        """True where the file is the one that was meant."""
        until = time.monotonic() + _APPEAR_SECONDS
        while True:
            try:
                with self.path.open("rb") as file:
                    return file.read(len(self.content)) == self.content
            except FileNotFoundError:
                if time.monotonic() > until:
                    raise
            time.sleep(_AGAIN_SECONDS)


def check_here(proof: Proof) -> None:
    """TuneFusionError, naming this machine, where it does not share the search's folder."""
    lacking = proof.lacking()
    if lacking:
        raise TuneFusionError(f"{socket.gethostname()} {lacking}")


class Members:
    """The nodes that trials may run on; `slots` and `excluded` look at the cluster again every few seconds.

    The node that the driver runs on has nothing to prove: it is the one that the others are compared with.

    Args:
        resources: what one trial occupies.
        most: the most trials at once; None: as many as fit.
        data: the images that every node must have.
    """

    def __init__(self, resources: ResourceSettings, most: int | None, data: DataSettings) -> None:
        self.news: list[str] = []
        """What people should know of nodes that joined, oldest first; whoever tells it empties it."""
        self._resources = resources
        self._most = most
        self._data = data.name
        self._proof: Proof | None = None
        self._proven: set[str] = set()
        self._asked: dict[str, Any] = {}
        """The answers of nodes that have not answered yet, by id."""
        self._refused: dict[str, float] = {}
        """When nodes answered badly, by id: what they lacked may come."""
        self._strangers: list[str] = []
        """Living nodes that are not proven, by id."""
        self._looked = 0.0
        self._fit = 0

    def admit(self, nodes: Sequence[cluster.Node], folder: Path, check: Callable[[], None]) -> None:
        """Have every node that trials fit on prove that it shares `folder`, which need not exist yet.

        `check` is called again and again, and may raise to end the waiting. Raises InputError, naming them,
        where nodes do not.
        """
        self._proven.add(cluster.own_node())
        others = [node for node in self._open(nodes) if node.id not in self._proven]
        if not others:
            return
        with _made_proof(folder) as proof:
            answers = {node.id: self._ask(node, proof) for node in others}
            _wait(list(answers.values()), check)
            found = [(node, _answer(answers[node.id])) for node in others]
        lacking = [f"{node.name} {words}" for node, words in found if words]
        if lacking:
            raise InputError(
                f"--storage {shown(folder.parent)}: not every node of the cluster has what the driver on "
                f"{socket.gethostname()} has: {'; '.join(lacking)}; give --storage a folder that all nodes "
                "share, at the same path (checkpoints go from node to node through it), and have the data on "
                "each of them"
            )
        self._proven |= {node.id for node in others}

    def watch(self, journal: Path) -> Proof:
        """From now on nodes that join prove themselves by the search's own journal, as the proof says."""
        with journal.open("rb") as file:
            content = file.read(_CONTENT_BYTES)
        found = store_of(journal.parent)
        if found is None:
            self._proof = Proof(journal, content)
        else:
            self._proof = Proof(journal, content, found[0], f"{found[1]}/{journal_key(0)}")
        return self._proof

    def slots(self) -> int:
        """How many trials may run at once, now: as many as fit, or fewer where that was said."""
        if time.monotonic() - self._looked > _LOOK_SECONDS or not self._fit:
            self._look()
        return self._fit if self._most is None else min(self._fit, self._most)

    def excluded(self) -> list[str]:
        """The ids of the living nodes on which no trial is to start."""
        self._look()
        return self._strangers

    def _look(self) -> None:
        nodes = cluster.nodes()
        self._looked = time.monotonic()
        open_nodes = self._open(nodes)
        if self._proof is not None:
            for node in open_nodes:
                self._see(node, self._proof)
        self._strangers = [node.id for node in open_nodes if node.id not in self._proven]
        self._fit = cluster.slots(self._resources, [node for node in nodes if node.id in self._proven])

    def _see(self, node: cluster.Node, proof: Proof) -> None:
        """Ask a node that is new, and take what one has answered."""
        if node.id in self._proven:
            return
        answer = self._asked.get(node.id)
        if answer is None:
            refused = self._refused.get(node.id)
            if refused is None or time.monotonic() - refused > _REFUSED_SECONDS:
                self._asked[node.id] = self._ask(node, proof)
            return
        if not _answered(answer):
            return
        words = _answer(answer)
        del self._asked[node.id]
        if words:
            if node.id not in self._refused:
                self.news.append(f"no trial runs on {node.name}, which joined the cluster: it {words}")
            self._refused[node.id] = time.monotonic()
            return
        if node.id in self._refused:
            self.news.append(f"trials run on {node.name}: it has now what it lacked")
        self._proven.add(node.id)

    def _ask(self, node: cluster.Node, proof: Proof) -> Any:
        """A task on `node` that tells what it lacks."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(num_cpus=0, max_retries=0)(_lacking)
        strategy = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        return task.options(scheduling_strategy=strategy).remote(proof, self._data)

    def _open(self, nodes: Sequence[cluster.Node]) -> list[cluster.Node]:
        """Those that a trial fits on."""
        return [node for node in nodes if cluster.slots(self._resources, [node])]


@contextmanager
def _made_proof(folder: Path) -> Iterator[Proof]:
    """A file in `folder`, or in the nearest folder above it that exists, for as long as the body takes."""
    found = store_of(folder)
    if found is not None:
        content, key = secrets.token_hex(16).encode(), f".proof-{secrets.token_hex(8)}"
        store = found[0]
        try:
            store.put(key, content)
        except OSError as error:
            raise InputError(unreachable(store, error)) from error
        try:
            yield Proof(folder / key, content, store, key)
        finally:
            with suppress(OSError):
                store.delete([key])
        return
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    content = secrets.token_hex(16).encode()
    try:
        descriptor, name = tempfile.mkstemp(prefix=".tune_fusion-", dir=place)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {error.strerror or error}") from error
    try:
        # Readable for whoever the processes of the other nodes belong to.
        Path(name).chmod(0o644)
        yield Proof(Path(name), content)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _lacking(proof: Proof, data: str) -> str:
    """What the machine that runs this lacks, of the search's folder and of the folder that `data` names."""
    images = folder_path(data)
    if images is not None and not _has_files(images):
        return f"lacks the data folder {images}"
    return proof.lacking() or proof.writable()


def _has_files(folder: Path) -> bool:
    """False where the folder is not there, or is only the empty place for a disk that is not mounted."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _answered(answer: Any) -> bool:
    import ray

    return bool(ray.wait([answer], timeout=0)[0])


def _wait(answers: list[Any], check: Callable[[], None]) -> None:
    import ray

    until = time.monotonic() + _ANSWER_SECONDS
    while len(ray.wait(answers, num_returns=len(answers), timeout=_WAIT_SECONDS)[0]) < len(answers):
        check()
        if time.monotonic() > until:
            return


def _answer(answer: Any) -> str:
    """What a node said that it lacks, or why it said nothing."""
    import ray

    try:
        words: str = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {_ANSWER_SECONDS:.0f} s"
    except ray.exceptions.RayError as error:
        return f"cannot run a task of this search: {str(error).strip().splitlines()[-1]}"
    return words
