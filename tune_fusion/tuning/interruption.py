"""Ctrl-C and SIGTERM: the first one ends a command in order, the second one at once."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from tune_fusion.commands import INTERRUPTED, Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# `timeout` and other wrappers send a signal to the process and to its group: so soon it is the same request.
_SAME_REQUEST_SECONDS = 0.05
_SHOW_CURSOR = b"\x1b[?25h\r\n"


class Interruption:
    """Turns the first signal into `Interrupted`, and the second one into the process's end.

    It is raised at once until `defer` is called, and takes the place of whatever error it causes; from then
    on only where `check` is called, so that nothing half-done is torn apart. While a module is imported
    before that, the first signal ends the process, too, with a line of `command`. To be entered on the main
    thread.
    """

    def __init__(self, command: str) -> None:
        self._last_words = f"{command}: {INTERRUPTED}\n".encode()
        self._deferred = False
        self._signum: int | None = None
        self._signalled_at: float | None = None
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._writer = -1
        self._watcher: threading.Thread | None = None

    @property
    def signalled(self) -> bool:
        """True when a signal has come."""
        return self._signum is not None

    @property
    def signalled_at(self) -> float | None:
        """When the first signal was taken, by `time.monotonic`; None where none has come."""
        return self._signalled_at

    @property
    def exit_code(self) -> int:
        """What the command ends with: 130 after Ctrl-C, 143 after SIGTERM, 0 without a signal."""
        return 0 if self._signum is None else 128 + self._signum

    def __enter__(self) -> Interruption:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(
            target=_end_at_second_signal, args=(reader,), name="second-signal", daemon=True
        )
        self._watcher.start()
        self.install()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._writer)
        assert self._watcher is not None
        self._watcher.join()
        if isinstance(error, Exception) and self._signum is not None and not self._deferred:
            raise Interrupted(self._signum) from error

    def install(self) -> None:
        """Take the signals; to be called again after Ray has started, which takes SIGTERM for itself."""
        for signum in _SIGNALS:
            signal.signal(signum, self._handle)

    def defer(self) -> None:
        """From now on `Interrupted` is raised by `check` alone; raises it if a signal has come before."""
        self._deferred = True
        self.check()

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is None:
            self._signum, self._signalled_at = signum, time.monotonic()
            if not self._deferred:
                if _is_importing(frame):
                    # Libraries swallow an exception at that time, or abort the process.
                    _end(self.exit_code, self._last_words)
                self.check()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    return frame is not None


def _end(code: int, last_words: bytes = b"") -> NoReturn:
    """End the process at once; a terminal gets the cursor back that a live table hides."""
    with suppress(OSError):
        if os.isatty(sys.stdout.fileno()):
            os.write(sys.stdout.fileno(), _SHOW_CURSOR)
        os.write(sys.stderr.fileno(), last_words)
    os._exit(code)


def _end_at_second_signal(reader: int) -> None:
    """Reads the numbers of signals as they come, until the other end is closed; the second is the last.

    On a thread, because Python calls a handler only between two steps of the main thread, which may wait for
    seconds in Ray's or torch's C++ code; two signals in that time would be one.
    """
    if _next_signal(reader) is not None:
        time.sleep(_SAME_REQUEST_SECONDS)
        # Not by the clock: foreign code may keep this thread from reading what came at the same time.
        while select.select([reader], [], [], 0)[0] and os.read(reader, 1):
            pass
        signum = _next_signal(reader)
        if signum is not None:
            _end(128 + signum)
    os.close(reader)


def _next_signal(reader: int) -> int | None:
    """Waits for the next signal that is ours; None: the other end is closed."""
    while number := os.read(reader, 1):
        if number[0] in _SIGNALS:
            return number[0]
    return None
