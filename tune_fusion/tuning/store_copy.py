"""Keeping a search's store up to date with its working copy while a driver runs, and being its only driver.

A thread looks every second at what has changed. Files first, then the journal as far as it had come before
them, then what was to be deleted: whatever the journal in the store tells of is there, and what it does not
tell yet is not gone. So a driver that dies takes at most the last seconds with it, which are still on its own
disk, and which another machine decides anew. A store that does not answer is tried again, and said to be away
once.

The claim is an object with the driver's name that changes every few seconds. One that does not change while
a new driver watches it is a dead driver's. Object stores have no locks: two drivers that claim at the same
moment see that only one claim stays. One that was asleep (a suspended machine) and was taken for dead looks
at its claim before it writes again, and ends where that is not its own any more.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tune_fusion.commands import say
from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.runs import RunFolder
from tune_fusion.storage import APART, JOURNAL, Store, journal_key, pull, store_of, unreachable
from tune_fusion.tuning.ownership import Holder, is_gone, ourselves

_CLAIM = ".claim"
_LOOK_SECONDS, _LONGEST_PAUSE = 1.0, 10.0
# How often a living claim changes, how long one is watched that may be a dead driver's, and after which time
# the last of two claims is surely the one that stays.
_BEAT_SECONDS, _WATCH_SECONDS, _SETTLED_SECONDS = 5.0, 20.0, 1.0
# Parts of a journal that are joined to one.
_MANY_PARTS = 100
# For how long a search that ends waits for a store that does not answer.
_LAST_SECONDS = 120.0


@dataclass(frozen=True)
class _Claim:
    """What a driver keeps writing into the store."""

    token: str
    """Of this driver, at random."""
    beat: int
    """How often it has written."""
    holder: Holder


_CLAIMS = TypeAdapter(_Claim)
_RUNNING: dict[Path, StoreCopy] = {}
"""The copies that this process keeps up to date, by the search's folder."""


def copy_of(folder: RunFolder) -> StoreCopy | None:
    """What keeps the store of a search, or of its confirmation, up to date; None for a mere folder."""
    return next((_RUNNING[path] for path in (folder.path, folder.path.parent) if path in _RUNNING), None)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Within, the store of a search that is ours has what its folder has; nothing happens to a mere folder.

    Raises InputError where another driver, on whichever machine, claims the search.
    """
    found = store_of(folder)
    if found is None or copy_of(RunFolder(folder)) is not None:
        yield
        return
    copy = StoreCopy(*found, folder)
    copy.claim()
    _RUNNING[folder] = copy
    copy.start()
    try:
        yield
    finally:
        del _RUNNING[folder]
        copy.close()


class StoreCopy:
    """The store's copy of one search."""

    def __init__(self, store: Store, key: str, folder: Path) -> None:
        self._store = store
        self._key = key
        self._folder = folder
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._seen: dict[Path, tuple[int, int]] = {}
        """Size and time of change of each file, as the store has it."""
        self._sent: dict[Path, int] = {}
        """Bytes of each journal that the store has."""
        self._parts: dict[Path, list[int]] = {}
        """Where the parts of each journal begin."""
        self._unwanted: list[str] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=do, daemon=True) for do in (self._copy, self._hold)]
        self._claiming = threading.Lock()
        self._renewed = time.time()
        """When the claim was renewed, by the clock that goes on while a machine sleeps."""
        self._lost = ""
        """Who has taken the search over."""
        self._told = False
        """True where it was said that the store is behind."""

    def claim(self) -> None:
        """Become the search's only driver; InputError where it has one."""
        try:
            self._watch()
            self._renew()
            try:
                time.sleep(_SETTLED_SECONDS)
                content = self._claimed()
                if not content:
                    self._renew()  # its last driver took this claim for its own, and deleted it
                elif not self._is_ours(content):
                    raise self._refusal(content)
                # Its last driver may have copied something since this one looked.
                pull(self._folder)
                self._know()
            except BaseException:
                self._release()
                raise
        except OSError as error:
            raise InputError(unreachable(self._store, error)) from error

    def _watch(self) -> None:
        """InputError where somebody's claim is kept; one that nobody can read may be a newer version's."""
        content = self._claimed()
        claim = _claim(content)
        if not content or (claim is not None and is_gone(claim.holder)):
            return
        until = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            if (newer := self._claimed()) not in (content, b""):
                raise self._refusal(newer)

    def _refusal(self, content: bytes) -> InputError:
        return InputError(f"{self._key} is being run by {_who(content)}; wait for it, or stop it there")

    def start(self) -> None:
        """Begin to copy."""
        for thread in self._threads:
            thread.start()

    def forget(self, folders: Sequence[Path], files: Sequence[Path]) -> None:
        """Delete the copies of these folders and files, once the journal in the store tells why."""
        with self._lock:
            self._unwanted += [f"{self._name(path)}/" for path in folders]
            self._unwanted += [self._name(path) for path in files]

    def keep_only(
        self, checkpoints: Path, folders: Sequence[Path], weights: Path, files: Sequence[Path]
    ) -> None:
        """Delete in the same way what else the store has of trials' checkpoints and weights."""
        try:
            there = {
                place: {place / name for name in self._store.entries(self._at(self._name(place)))}
                for place in (checkpoints, weights)
            }
        except OSError:
            return  # tidied next time
        kept = {path for path in there[checkpoints] if path.parent in folders} | set(files)
        self.forget([], sorted((there[checkpoints] | there[weights]) - kept))

    def check(self) -> None:
        """TuneFusionError where another driver has taken the search over."""
        if self._lost:
            raise TuneFusionError(
                f"{self._key} was taken over by {self._lost}: this driver did not answer for "
                f"{_WATCH_SECONDS:.0f} s or more"
            )

    def flush(self, patience: float = _LAST_SECONDS) -> list[str]:
        """Bring the store up to date now; what went wrong, in words."""
        until = time.monotonic() + patience
        while True:
            try:
                self._turn_once()
            except OSError as error:
                if time.monotonic() > until:
                    self._told = True
                    return [
                        f"{unreachable(self._store, error)}; what it lacks is in {self._folder} on this "
                        "machine and is copied by the next command there that goes on with the search"
                    ]
            else:
                return []
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Copy what is left, and give the search free."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._lost:
            return
        told = self._told
        for problem in self.flush(patience=0.0):
            if not told:
                say(problem, sys.stderr)
        self._release()

    def _release(self) -> None:
        """Delete the claim, if it is ours."""
        with suppress(OSError):
            if self._is_ours(self._claimed()):
                self._store.delete([self._at(_CLAIM)])

    def _hold(self) -> None:
        """Keep the claim."""
        while not self._lost and not self._ended.wait(_BEAT_SECONDS):
            with suppress(OSError):
                self._keep()

    def _keep(self) -> None:
        """Renew the claim; where it is not ours any more the search is another driver's, or was."""
        with self._claiming:
            content = self._claimed()
            if self._is_ours(content):
                self._renew()
            else:
                self._lost = _who(content)

    def _copy(self) -> None:
        pause, away = _LOOK_SECONDS, False
        while not self._ended.wait(pause):
            try:
                self._turn_once()
                if away:
                    say(f"--storage {self._store.shown} answers again", sys.stderr)
                pause, away = _LOOK_SECONDS, False
            except TuneFusionError:
                return
            except OSError as error:
                if not away:
                    say(f"{unreachable(self._store, error)}; tried again until it answers", sys.stderr)
                pause, away = min(2 * pause, _LONGEST_PAUSE), True

    def _turn_once(self) -> None:
        with self._turn:
            if abs(time.time() - self._renewed) > _WATCH_SECONDS / 2:
                # This machine was asleep, or the store away: somebody may have taken over meanwhile.
                self._keep()
            self.check()
            with self._lock:
                unwanted = list(self._unwanted)
            journals = {path: _whole(path) for path in self._journals()}
            self._copy_files()
            for path, size in journals.items():
                self._copy_journal(path, size)
            for key in unwanted:
                self._delete(key)
            with self._lock:
                del self._unwanted[: len(unwanted)]

    def _copy_files(self) -> None:
        """In the order in which they were written, for the store's clock is all that others see."""
        files = {}
        for path in self._files():
            with suppress(FileNotFoundError):  # deleted meanwhile
                files[path] = path.stat()
        for path, now in sorted(files.items(), key=lambda item: item[1].st_mtime_ns):
            if self._seen.get(path) != (now.st_size, now.st_mtime_ns):
                with suppress(FileNotFoundError):
                    self._store.put(self._at(self._name(path)), path.read_bytes())
                    self._seen[path] = (now.st_size, now.st_mtime_ns)
        for path in self._seen.keys() - files.keys():
            self._store.delete([self._at(self._name(path))])
            del self._seen[path]

    def _copy_journal(self, path: Path, size: int) -> None:
        sent = self._sent.get(path, 0)
        if size <= sent:
            return
        with path.open("rb") as file:
            file.seek(sent)
            content = file.read(size - sent)
        place = self._name(path.parent / JOURNAL).removesuffix(JOURNAL)
        parts = self._parts.setdefault(path, [])
        if len(parts) >= _MANY_PARTS:
            content, sent, superfluous = path.read_bytes()[:size], 0, parts[1:]
        else:
            superfluous = []
        self._store.put(self._at(f"{place}{journal_key(sent)}"), content)
        self._sent[path] = size
        self._parts[path] = [0] if superfluous else [*parts, sent]
        self._store.delete(self._at(f"{place}{journal_key(offset)}") for offset in superfluous)

    def _delete(self, key: str) -> None:
        if key.endswith("/"):
            names = self._store.entries(self._at(key.rstrip("/")))
            self._store.delete(self._at(f"{key}{name}") for name in names)
        else:
            self._store.delete([self._at(key)])

    def _know(self) -> None:
        """What the store has: the files that were brought from it, and the parts of journals."""
        entries = self._store.entries(self._key)
        for name, entry in entries.items():
            path = self._folder / name
            if f"/{JOURNAL}/" in f"/{name}":
                offset = int(path.stem)
                journal = path.parent.parent / f"{JOURNAL}.jsonl"
                if offset in (0, self._sent.get(journal, 0)):
                    self._sent[journal] = offset + entry.size
                self._parts.setdefault(journal, []).append(offset)
            elif path.is_file():
                self._seen[path] = (entry.size, entry.modified)

    def _journals(self) -> list[Path]:
        names = (f"{JOURNAL}.jsonl", f"confirmation/{JOURNAL}.jsonl")
        return [self._folder / name for name in names if (self._folder / name).is_file()]

    def _files(self) -> Iterator[Path]:
        """What the driver writes, and whole: no journals, and no files of trials."""
        for path in self._folder.rglob("*"):
            parts = path.relative_to(self._folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if hidden or not APART.isdisjoint(parts) or path.name in ("lock", f"{JOURNAL}.jsonl"):
                continue
            if path.is_file():
                yield path

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _at(self, name: str) -> str:
        return f"{self._key}/{name}"

    def _renew(self) -> None:
        self._beat += 1
        claim = _Claim(self._token, self._beat, ourselves())
        self._store.put(self._at(_CLAIM), _CLAIMS.dump_json(claim))
        self._renewed = time.time()

    def _claimed(self) -> bytes:
        return self._store.get(self._at(_CLAIM)) or b""

    def _is_ours(self, content: bytes) -> bool:
        claim = _claim(content)
        return claim is not None and claim.token == self._token


def _who(content: bytes) -> str:
    """Whose claim this is, in words."""
    claim = _claim(content)
    if claim is not None:
        return str(claim.holder)
    return "a driver whose claim this version does not understand" if content else "a driver that has ended"


def _claim(content: bytes) -> _Claim | None:
    """The claim; None where there is none, or not one of this version's."""
    try:
        return _CLAIMS.validate_json(content)
    except ValidationError:
        return None


def _whole(path: Path) -> int:
    """Bytes of the whole lines of a journal."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
