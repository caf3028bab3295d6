"""The journal of a search: an append-only file of numbered, checksummed lines, one event each.

A line is a JSON object that ends in ``"crc"``, the CRC-32 of what stands before it, and begins with ``"n"``,
its number from 1. So a line that was cut, changed, lost or doubled is known for what it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tune_fusion.errors import InputError
from tune_fusion.events import Event

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
_MARK = b',"crc":"'


@dataclass(frozen=True)
class Lines:
    """What a journal holds."""

    events: list[Event]
    size: int
    """Bytes of the whole lines; what follows them is a line that was being written when its writer died."""


def read_journal(path: Path) -> Lines:
    """The events of a journal in order. A last line without its end is left out.

    Raises InputError for any other damage, naming the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    size = content.rfind(b"\n") + 1
    events = []
    for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
        try:
            events.append(_parse(line, number))
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: {error}; nothing was changed. The lines before it are sound: restore the "
                f"file from a copy, or lose what came after them: head -n {number - 1} {path.name} > sound, "
                f"then rename sound to {path.name}"
            ) from error
    return Lines(events, size)


def _parse(line: bytes, number: int) -> Event:
    body, mark, ending = line.rpartition(_MARK)
    if not mark or ending != b'%08x"}' % zlib.crc32(body):
        raise ValueError("the line is damaged: its checksum does not fit")
    content = json.loads(body + b"}")
    found = content.pop("n", None)
    if found != number:
        raise ValueError(f"line {found} stands where line {number} belongs")
    try:
        return _EVENTS.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"an event that this version does not know: {place}: {first['msg']}") from error


class Journal:
    """Appends events to a journal; each is on the disk when `append` returns.

    Threads may append at the same time. After a write that failed, the file is as it was before it.

    Args:
        path: the file; must not exist yet where `lines` is None.
        lines: what `read_journal` found in it; a half-written last line is cut off. None: a new journal.
    """

    def __init__(self, path: Path, lines: Lines | None = None) -> None:
        self._count = len(lines.events) if lines else 0
        self._size = lines.size if lines else 0
        new = os.O_CREAT | os.O_EXCL if lines is None else 0
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC | new, 0o644)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, 0, os.SEEK_END)
        self._lock = threading.Lock()
        self.seconds = 0.0
        """Spent in `append`, in all."""

    def append(self, event: Event) -> None:
        """Write one event.

        Raises OSError where that is impossible, such as on a full disk.
        """
        started = time.perf_counter()
        with self._lock:
            content = {"n": self._count + 1, **event.model_dump(mode="json")}
            body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()[:-1]
            line = body + _MARK + b'%08x"}\n' % zlib.crc32(body)
            try:
                _write_all(self._file, line)
                os.fdatasync(self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._size)
                    os.lseek(self._file, self._size, os.SEEK_SET)
                raise
            self._count += 1
            self._size += len(line)
            self.seconds += time.perf_counter() - started

    def close(self) -> None:
        """Close the file: `append` raises OSError from now on."""
        with self._lock:
            # The system gives the number of a closed file to the next one that is opened.
            file, self._file = self._file, -1
            os.close(file)


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
