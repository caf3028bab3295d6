"""Searches in a store behind a URI (``s3://``, ``gs://``, ``abfs://``): what is kept where, and when.

A search always lies in a folder. With ``--storage URI`` that folder is this machine's *working copy* of
``URI/NAME``, below the cache, and everything that reads or writes it stays as it is. The store holds the
truth as soon as it has it; a machine that has no working copy, or an old one, brings it up to date first
(`pull`).

- The journal is a row of objects ``journal/OFFSET.jsonl``, each written whole: what was appended to the file
  from that byte on. Objects cannot be appended to. One that covers others, because many small ones were
  joined, makes them superfluous: whoever reads passes over what it has read already.
- Result files are copied when they have changed, before those lines of the journal that were written after
  them. Both are a matter of seconds: see `tune_fusion.tuning.store_copy`.
- Checkpoints and weights go from the worker straight to the store, before the driver hears of the epoch, and
  are brought to whatever machine goes on with the trial. They are deleted there after the journal tells why.

Which folder is the working copy of which store is known to the process that was told the URI
(`working_copy`), and to its workers, who are told as well; no password is written to disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.folders import cache_root
from tune_fusion.passwords import redact

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds for which a process that cannot go on without a store tries again where that does not answer."""
JOURNAL = "journal"
"""Where the parts of a journal are: beside ``journal.jsonl``, which a working copy has in their place."""
APART = frozenset({"checkpoints", "weights"})
"""Folders whose files come and go with trials, on whichever machine those are trained."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_GOOGLE_SECONDS = 5
# How often a journal is looked at anew whose driver joins its parts meanwhile.
_LISTINGS = 5


@dataclass(frozen=True)
class Entry:
    """An object, as its store lists it."""

    size: int
    modified: int
    """Nanoseconds since 1970, by the store's clock."""


@dataclass(frozen=True)
class Store:
    """The objects below a URI, by keys such as ``first/result.json``.

    All of its methods raise OSError where the store does not answer, or refuses; with `patience` they try
    again for so many seconds. Each object is written whole or not at all.
    """

    uri: str

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return redact(self.uri)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(_bounded(self.uri))
        return system, path.rstrip("/")

    def at(self, *names: str) -> str:
        """The URI of something in the store, without password; for people."""
        head, mark, query = self.shown.partition("?")
        return "/".join([head.rstrip("/"), *names]) + mark + query

    def put(self, key: str, content: bytes, patience: float = 0.0) -> None:
        """Write an object, in the place of what was there."""

        def write() -> None:
            system, path = self._place
            with system.open_output_stream(f"{path}/{key}") as stream:
                stream.write(content)

        self._patiently(write, patience)

    def get(self, key: str, patience: float = 0.0) -> bytes | None:
        """The content of an object; None where there is none."""

        def read() -> bytes | None:
            system, path = self._place
            try:
                with system.open_input_stream(f"{path}/{key}") as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
            return content

        return self._patiently(read, patience)

    def delete(self, keys: Iterable[str], patience: float = 0.0) -> None:
        """Remove objects, as far as they are there."""

        def remove(key: str) -> None:
            system, path = self._place
            try:
                system.delete_file(f"{path}/{key}")
            except FileNotFoundError:
                return

        for key in keys:
            self._patiently(lambda key=key: remove(key), patience)  # type: ignore[misc]

    def entries(self, prefix: str, patience: float = 0.0) -> dict[str, Entry]:
        """The objects below ``prefix/``, by what follows it, in the order of their names."""

        def look() -> dict[str, Entry]:
            found = self._list(prefix, deep=True)
            start = len(self._place[1]) + len(prefix) + 2
            return {
                info.path[start:]: Entry(info.size, info.mtime_ns or 0)
                for info in sorted(found, key=lambda info: info.path)
                if info.is_file
            }

        return self._patiently(look, patience)

    def names(self) -> list[str]:
        """The names of the searches in the store, sorted."""
        return sorted(
            info.base_name
            for info in self._list("", deep=False)
            if not info.is_file and self._list(f"{info.base_name}/{JOURNAL}", deep=False)
        )

    def _list(self, prefix: str, *, deep: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        system, path = self._place
        place = f"{path}/{prefix}".rstrip("/")
        found: list[Any] = system.get_file_info(FileSelector(place, recursive=deep, allow_not_found=True))
        return found

    def _patiently(self, do: Callable[[], T], patience: float) -> T:
        until, pause = time.monotonic() + patience, _FIRST_PAUSE
        while True:
            try:
                return do()
            except OSError:
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _bounded(uri: str) -> str:
    """Without a limit Google's client tries again for a quarter of an hour, silent and deaf to signals."""
    address = urlsplit(uri)
    if address.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parse_qs(address.query):
        return uri
    return f"{uri}{'&' if address.query else '?'}retry_limit_seconds={_GOOGLE_SECONDS}"


_STORES: dict[Path, Store] = {}
"""The stores that this process was told of, by the folders of their working copies."""


def working_copy(uri: str) -> Path:
    """The folder for the working copies of the searches below `uri`, which this process now knows as such.

    Raises InputError where `uri` is of no known kind.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        path = FileSystem.from_uri(uri)[1]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(
            f"{redact(uri)} is no address of a store: {redact(str(error), uri).splitlines()[0]}; known are "
            "s3://BUCKET/PATH, gs://BUCKET/PATH and the others of pyarrow's file systems"
        ) from error
    if not path.strip("/"):
        raise InputError(f"{redact(uri)} names no bucket")
    if not {"", ".", ".."}.isdisjoint(path.strip("/").split("/")):
        raise InputError(f"{redact(uri)}: the path in a store has no empty part, no '.' and no '..'")
    # Without the password, which may be another one tomorrow.
    name = hashlib.sha256(redact(uri).encode()).hexdigest()[:16]
    folder = (cache_root() / "stores" / name).resolve()
    _STORES[folder] = Store(uri)
    return folder


def store_of(path: Path) -> tuple[Store, str] | None:
    """The store, and the key in it, that `path` is the working copy of; None where it is that of none."""
    for folder in (path, *path.parents):
        if folder in _STORES:
            return _STORES[folder], path.relative_to(folder).as_posix()
    return None


def typed(path: Path) -> str:
    """What was given as ``--storage`` for this folder, with its password."""
    return _STORES[path].uri if path in _STORES else str(path)


def shown(path: Path) -> str:
    """What people are told for this folder: its path, or the URI that it is the working copy of."""
    return redact(typed(path))


@dataclass(frozen=True)
class Place:
    """A folder that several machines know: one path for all, or the working copy that each has of its own."""

    folder: Path
    """As the machine sees it that made this."""
    store: Store | None
    key: str

    @classmethod
    def of(cls, folder: Path) -> Place:
        """The place of a folder of this machine."""
        found = store_of(folder)
        return cls(folder, None, "") if found is None else cls(folder, *found)

    def here(self) -> Path:
        """The folder, on the machine that calls."""
        return self.folder if self.store is None else working_copy(self.store.uri) / self.key


def push(paths: Iterable[Path], patience: float = PATIENCE) -> None:
    """Copy files of a working copy to its store; nothing happens to others.

    Raises TuneFusionError where the store does not take them.
    """
    for path in paths:
        found = store_of(path)
        if found is None:
            continue
        store, key = found
        try:
            store.put(key, path.read_bytes(), patience)
        except OSError as error:
            raise TuneFusionError(unreachable(store, error)) from error


def push_folder(folder: Path, changed: Path) -> None:
    """Make the store's copy of a folder hold the files of the working copy, where one has just `changed`."""
    found = store_of(folder)
    if found is None:
        return
    store, key = found
    there = store.entries(key, PATIENCE)
    here = {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
    push(path for name, path in here.items() if name not in there or path == changed)
    store.delete((f"{key}/{name}" for name in there.keys() - here.keys()), PATIENCE)


def fetch(path: Path) -> None:
    """Bring a file of a working copy from its store, where that has it and the working copy has not."""
    found = store_of(path)
    if found is None or path.exists():
        return
    store, key = found
    content = store.get(key, PATIENCE)
    if content is not None:
        _write(path, content)


def fetch_folder(folder: Path) -> None:
    """Bring all files of a folder of a working copy from its store, in the place of what has their names."""
    found = store_of(folder)
    if found is None:
        return
    store, key = found
    for name in store.entries(key, PATIENCE):
        content = store.get(f"{key}/{name}", PATIENCE)
        if content is not None:
            _write(folder / name, content)


def pull(folder: Path) -> None:
    """Bring the working copy of a search up to what its store holds; nothing happens to other folders.

    Checkpoints and weights stay away until they are needed. A journal that the store has only a beginning of
    is left as it is: this machine has written the rest, and will copy it. Raises InputError where the store
    does not answer, or a part of the journal is missing.
    """
    found = store_of(folder)
    if found is None:
        return
    store, key = found
    try:
        entries = store.entries(key)
        if not any(name.startswith(f"{JOURNAL}/") for name in entries):
            return  # no search
        for name, entry in entries.items():
            parts = name.split("/")
            if JOURNAL in parts[:-1] or not APART.isdisjoint(parts) or parts[-1].startswith("."):
                continue
            _pull_file(store, f"{key}/{name}", folder / name, entry)
        for place in ("", "confirmation/"):
            content = _journal(store, key, place, entries)
            if content:
                _pull_journal(folder / place / f"{JOURNAL}.jsonl", content)
    except OSError as error:
        raise InputError(unreachable(store, error)) from error


def _pull_file(store: Store, key: str, path: Path, entry: Entry) -> None:
    # A newer one was written here after the store had last been reached, and goes there with the next driver.
    if path.exists() and path.stat().st_mtime_ns >= entry.modified:
        return
    content = store.get(key)
    if content is not None:
        _write(path, content)
        os.utime(path, ns=(entry.modified, entry.modified))


def journal_key(offset: int) -> str:
    """The name of the part of a journal that begins at this byte."""
    return f"{JOURNAL}/{offset:015d}.jsonl"


def _journal(store: Store, key: str, place: str, entries: Iterable[str]) -> bytes:
    """The journal whose parts lie in `place`, by a listing; its driver may be joining them meanwhile."""
    for _ in range(_LISTINGS):
        names = [name for name in entries if name.startswith(f"{place}{JOURNAL}/")]
        try:
            return _joined(store, key, names)
        except FileNotFoundError:
            entries = store.entries(key)
    raise OSError(f"{key}: its journal changes faster than it can be read")


def _joined(store: Store, key: str, names: list[str]) -> bytes:
    """The journal whose parts have these names, in order; FileNotFoundError where one has gone since."""
    content = b""
    for name in names:
        offset = int(name.rpartition("/")[2].removesuffix(".jsonl"))
        if offset < len(content):
            continue  # joined with those before it
        if offset > len(content):
            raise InputError(
                f"{store.at(key, name)}: begins at byte {offset:,}, and the parts before it end at "
                f"{len(content):,}: a part of the journal is missing; bring it back, or delete this one and "
                "lose what it tells"
            )
        part = store.get(f"{key}/{name}")
        if part is None:
            raise FileNotFoundError(name)
        content += part
    return content


def _pull_journal(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes().startswith(content):
        return
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


_REMEDIES = {
    "create the bucket": r"NO_SUCH_BUCKET|bucket does not exist|ContainerNotFound",
    "check the credentials": r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED",
    "check its address, and whether it runs": r"(?i)NETWORK_CONNECTION|could not connect|resolve host",
}
"""What to do, by what the file systems' messages have in common."""


def unreachable(store: Store, error: OSError) -> str:
    """What to say where the store does not do what it was asked for."""
    first = redact(str(error), store.uri).splitlines()[0] if str(error) else type(error).__name__
    remedies = [do for do, pattern in _REMEDIES.items() if re.search(pattern, first)]
    return "; ".join([f"--storage {store.shown}: {first}", *remedies])
