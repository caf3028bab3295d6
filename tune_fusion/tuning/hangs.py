"""Which trials hang: those that have not finished an epoch for too long."""

from __future__ import annotations

_LEAST_SECONDS = 600.0
_LONGEST_EPOCHS = 10.0


class HangWatch:
    """Knows since when each running trial is without a new epoch; told by whoever runs the trials.

    Args:
        timeout: seconds a trial may take for an epoch, everything included; None: ten times the longest
            epoch so far, and at least ten minutes.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._longest = 0.0
        self._since: dict[int, float] = {}

    @property
    def timeout(self) -> float:
        """Seconds a trial may take for an epoch, as things stand."""
        return self._timeout or max(_LEAST_SECONDS, _LONGEST_EPOCHS * self._longest)

    def runs(self, trial: int, now: float) -> None:
        """A worker trains the trial, perhaps for long."""
        self._since.setdefault(trial, now)

    def progressed(self, trial: int, now: float) -> None:
        """The trial has finished an epoch."""
        self._longest = max(self._longest, now - self._since.get(trial, now))
        self._since[trial] = now

    def left(self, trial: int) -> None:
        """No worker trains the trial any more."""
        self._since.pop(trial, None)

    def overdue(self, now: float) -> list[int]:
        """The trials that hang."""
        return [trial for trial, since in self._since.items() if now - since > self.timeout]
