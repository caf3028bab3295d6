"""A search that is complete already: nothing to run, perhaps something to deliver."""

from __future__ import annotations

import json

from tune_fusion.errors import InputError
from tune_fusion.tuning.delivering import deliver_rest
from tune_fusion.tuning.opening import reopened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.preflight import Request, check_store, later


def revisit(request: Request, trials: int | None) -> Outcome | None:
    """What the complete search that `request` resumes has found; None where that is not all there is to do.

    `trials` are those that the search is to have, if that was said: more are left to run, fewer to refuse.
    """
    if request.resume is None:
        return None
    with reopened(request.output, request.resume) as past:
        record = past.chronicle.record
        if not past.complete or trials not in (None, record.planned_trials):
            return None
        try:
            content = json.loads(past.folder.result.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{past.folder.result}: cannot be read ({error}); the search itself is complete in "
                f"{past.folder.journal}"
            ) from error
        past.folder.reserve.unlink(missing_ok=True)  # left by a driver that was killed in its last moment
        check_store(request)
        synced = deliver_rest(past, request.tracking_uri, later("sync", request, past.folder.name))
    print(f"{record.name} is complete already: --trials N extends it")
    return Outcome(record, content, 0, synced.problems)
