"""Ctrl-C and SIGTERM: the first one ends a search in order, the second one at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """The person or the system asked the search to stop. Carries the exit code: 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Turns the first signal into `Interrupted`, raised where `check` is called or, before that, at once.

    Inside ``deferred`` mode the search's own loop calls `check`, so that no half-done decision is torn apart.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if not self.deferred:
            self.check()
