"""Delivery: one thread that brings changes of runs to a store, in few calls, and outlives its failures.

The driver's thread only puts `Change` objects into a queue. The thread merges what belongs to the same run,
so that a short trial costs three calls of the store, and keeps what the store did not take until it does.
What it took is acknowledged, so that a later process can bring the rest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from tune_fusion.passwords import redact
from tune_fusion.tracking.changes import PARENT, Change, Delivered, Pending, run_key
from tune_fusion.tracking.store import MlflowStore, passes

HEAD_START = 10.0
"""Seconds that a search has to its first result before the store is opened, for which it takes seconds of
processor time: its workers start meanwhile, and need them."""
CHILD_PAUSE, PARENT_PAUSE = 2.0, 15.0
"""Seconds between two deliveries to the same unfinished run: calls cost processor time that trials need."""
FIRST_RETRY, LAST_RETRY, CLOSING_RETRY = 0.5, 20.0, 2.0
"""Seconds between attempts on a failing store: the first, the longest, and the longest while closing."""
PATIENCE = 30.0
"""Seconds for which `Delivery.close` goes on with a store that takes nothing, unless told otherwise."""
HURRY = 8.0
"""Seconds for which `Delivery.close` goes on while somebody waits for the end."""
LONGEST_CALL = 25.0
"""Seconds for which one call of a store may be silent; calls under way cannot be ended."""


class Delivery:
    """Brings changes to `store`. The first change must be the parent's, unless that was delivered before.

    The end of the parent run is delivered after everything else.

    Args:
        store: where to; used on the delivery's own thread.
        search: `SearchRecord.key`.
        delivered: what earlier processes have brought to the store, by run.
        acknowledge: told on the delivery's thread what the store holds of a run whenever that has changed.
        later: the command that brings what did not arrive, for problems.
        offline: whether `close` may give up at once on a store that has never answered.
    """

    def __init__(
        self,
        store: MlflowStore,
        search: str,
        delivered: Mapping[int, Delivered],
        *,
        acknowledge: Callable[[Delivered], None],
        later: str,
        offline: bool = False,
    ) -> None:
        self._store = store
        self._search = search
        self._acknowledge = acknowledge
        self._later = f"; it is kept, deliver it later with: {later}"
        self._offline = offline
        self._place = redact(store.uri)
        self._queue: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)
        self._delivered = dict(delivered)
        self._runs = {run: _known(known, search) for run, known in delivered.items()}
        self._waiting: dict[int, Pending] = {}
        self._problems: list[str] = []
        self._failure = ""
        self._failed_at = 0.0
        self._refused = False
        self._answered = False
        self._called_at: float | None = None
        self._pause = 0.0
        self._retry_at = 0.0
        self._progress = 0.0
        self._closing = False
        self._closed_at = 0.0
        self._hurry_until: float | None = None
        self._tried = threading.Event()

    def start(self) -> None:
        """Start the thread; importing MLflow and opening the store happen on it."""
        self._thread.start()

    def put(self, change: Change) -> None:
        """Hand over a change; returns at once."""
        self._queue.put(change)

    def close(self, hurried: Callable[[], bool] = lambda: False) -> list[str]:
        """Deliver what is left and end the thread.

        Gives up when the store has taken nothing for `PATIENCE` seconds; offline, after the first failure of
        a store that has never answered; and `HURRY` seconds after `hurried`, which is asked again and again,
        has said that somebody waits for the end. A call that is under way then gets a little longer. Returns
        what went wrong, one sentence a problem; empty where everything arrived.
        """
        asked = time.monotonic()
        self._queue.put(None)
        while self._thread.is_alive():
            now = time.monotonic()
            if self._hurry_until is None and hurried():
                self._hurry_until = now + HURRY
                self._queue.put(None)  # the thread may be waiting for its next attempt
            if self._hurry_until is None:
                left = max(self._progress, asked) + PATIENCE + LONGEST_CALL - now
            else:
                left = self._hurry_until + 1.0 - now
            if left <= 0:
                return [*self._problems, self._unended_call(asked)]
            self._thread.join(min(left, 0.2))
        return list(self._problems)

    def _unended_call(self, asked: float) -> str:
        """What to say of a call under way that `close`, which was called at `asked`, waits for no longer."""
        seconds = time.monotonic() - (self._called_at or asked)
        return (
            f"not everything has reached {self._place}: {self._store.doing} has taken {seconds:.0f} s so far"
            f"{self._later}"
        )

    def settle(self, seconds: float) -> None:
        """Wait until the store has answered once, or failed to, but no longer than so many seconds."""
        self._tried.wait(seconds)

    def run_id(self, run: int) -> str | None:
        """MLflow's id of a run, once the store has given one."""
        known = self._runs.get(run)
        return known.run_id if known else None

    # Everything below runs on the thread.

    def _work(self) -> None:
        self._await_results()
        with self._store:
            while not (self._closing and (not self._waiting or self._out_of_patience())):
                self._collect()
                self._deliver_due()
        if self._waiting:
            self._give_up()

    def _await_results(self) -> None:
        """Wait until there is more to deliver than beginnings, but not for long."""
        until = time.monotonic() + HEAD_START
        with suppress(queue.Empty):
            while True:
                change = self._queue.get(timeout=max(until - time.monotonic(), 0.0))
                self._take(change)
                if change is None or change.points or change.ended:
                    return

    def _collect(self) -> None:
        """Wait until there is something to do, then merge everything that was put so far."""
        with suppress(queue.Empty):
            self._take(self._queue.get(timeout=self._wait()))
            while True:
                self._take(self._queue.get_nowait())

    def _wait(self) -> float | None:
        """Seconds until the next attempt; None: until something is put."""
        if self._closing:
            at = min(self._retry_at, self._deadline())
        elif self._waiting:
            at = max(self._retry_at, min(run.due for run in self._waiting.values()))
        else:
            return None
        return max(at - time.monotonic(), 0.0)

    def _take(self, change: Change | None) -> None:
        if change is None:
            if not self._closing:
                self._closing = True
                self._closed_at = self._progress = time.monotonic()
            self._pause = self._retry_at = 0.0
        elif not self._refused:
            run = self._runs.get(change.run)
            if run is None:
                run = self._runs[change.run] = Pending(change.run, run_key(self._search, change.run))
                run.due = 0.0 if run.number == PARENT else time.monotonic() + CHILD_PAUSE
            run.merge(change)
            if change.ended or change.artifacts:
                run.due = 0.0
            self._waiting[change.run] = run

    def _deliver_due(self) -> None:
        parent = self._waiting.get(PARENT)
        last = self._closing or (parent is not None and parent.ended is not None)
        for run in list(self._waiting.values()):
            now = time.monotonic()
            if now < self._retry_at or (self._closing and self._out_of_patience()):
                return
            if run.due > now and not last:
                continue
            if run is parent and run.ended and len(self._waiting) > 1:
                continue  # a parent run that has ended says that everything else is there
            self._called_at = now
            try:
                self._store.deliver(run, None if run.number == PARENT else self._runs[PARENT])
            except Exception as error:  # noqa: BLE001 - no failure of a store may stop a search; close() reports it
                self._failed(run, error)
            else:
                self._arrived(run)
            self._called_at = None
            self._tried.set()

    def _arrived(self, run: Pending) -> None:
        del self._waiting[run.number]
        self._answered = True
        self._pause = self._retry_at = 0.0
        self._progress = time.monotonic()
        run.due = self._progress + (PARENT_PAUSE if run.number == PARENT else CHILD_PAUSE)
        news = run.delivered()
        if self._delivered.get(run.number) != news:
            # What cannot be noted is delivered again by a later process, and the store takes it once.
            with suppress(Exception):
                self._acknowledge(news)
                self._delivered[run.number] = news

    def _failed(self, run: Pending, error: Exception) -> None:
        self._failure, self._failed_at = _brief(error, self._store.uri), time.monotonic()
        del self._waiting[run.number]
        if passes(error):
            self._waiting[run.number] = run  # behind the others, so that one bad run cannot hold them up
            longest = CLOSING_RETRY if self._closing else LAST_RETRY
            self._pause = min(max(2 * self._pause, FIRST_RETRY), longest)
            self._retry_at = time.monotonic() + self._pause
        elif self._runs[PARENT].run_id is None:
            self._refused = True
            self._waiting.clear()
            self._problems.append(f"nothing was logged to {self._place}: {self._failure}{self._later}")
        else:
            self._problems.append(f"{self._place} refused a part of run {run.label!r}: {self._failure}")
            if run.drop():
                self._waiting[run.number] = run

    def _deadline(self) -> float:
        if self._hurry_until is not None:
            return self._hurry_until
        hopeless = self._offline and not self._answered and self._failed_at > self._closed_at
        return self._closed_at if hopeless else self._progress + PATIENCE

    def _out_of_patience(self) -> bool:
        return time.monotonic() >= self._deadline()

    def _give_up(self) -> None:
        """Report what the store never took."""
        names = [repr(run.label) for run in self._waiting.values()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        waited = f" within {time.monotonic() - self._closed_at:.0f} s"
        why = f": {self._failure}" if self._failure else waited
        self._problems.append(f"{self._place} did not take everything about {shown}{why}{self._later}")


def _known(known: Delivered, search: str) -> Pending:
    """A run as an earlier process has left it."""
    return Pending(
        known.run,
        run_key(search, known.run),
        run_id=known.run_id,
        earlier=True,
        status=known.status,
        epochs=known.epochs,
    )


def _brief(error: Exception, uri: str) -> str:
    """One line without the password of `uri`; of a long one the ends, as libraries put the cause last."""
    line = (redact(str(error), uri).strip().splitlines() or [""])[0]
    if len(line) > 300:
        line = f"{line[:120]} … {line[-160:]}"
    return f"{type(error).__name__}: {line}"
