"""Ctrl-C and SIGTERM: the first one ends a search in order, the second one at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The person or the system asked the search to stop. `exit_code` is 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Turns the first signal into `Interrupted`, and the second one into the process's end.

    It is raised at once until `defer` is called; from then on only where `check` is called, so that nothing
    half-done is torn apart.
    """

    def __init__(self) -> None:
        self._deferred = False
        self._signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def install(self) -> None:
        """Take the signals; to be called again after Ray has started, which takes SIGTERM for itself."""
        for signum in _SIGNALS:
            signal.signal(signum, self._handle)

    def defer(self) -> None:
        """From now on `Interrupted` is raised by `check` alone."""
        self._deferred = True

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if not self._deferred:
            self.check()
