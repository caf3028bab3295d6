"""A search that is complete already: nothing to run, perhaps something to deliver."""

from __future__ import annotations

from tune_fusion.reporting.results import read_json
from tune_fusion.runs import RunFolder
from tune_fusion.tuning.delivering import deliver_rest
from tune_fusion.tuning.opening import reopened
from tune_fusion.tuning.outcome import Outcome
from tune_fusion.tuning.preflight import Request, as_before, check_store, later, moved_store


def revisit(request: Request, trials: int | None) -> Outcome | None:
    """What the complete search that `request` resumes has found; None where that is not all there is to do.

    `trials` are those that the search is to have, if that was said: more are left to run, fewer to refuse.
    """
    if request.resume is None:
        return None
    with reopened(request.storage, request.resume) as past:
        record = past.chronicle.record
        changed = request.space is not None or any(
            not override.startswith("search.trials=") for override in request.overrides
        )
        if not past.complete or changed or trials not in (None, record.planned_trials):
            return None
        if not _reported(past.folder):
            return None  # its driver was killed in its last moment: the report is written again
        content = read_json(past.folder.result)
        if content is None:
            return None  # running what is left, which is nothing, writes it again
        request = as_before(request, past.session)
        moved = moved_store(request, past.session)
        past.folder.reserve.unlink(missing_ok=True)  # left by a driver that was killed in its last moment
        check_store(request)
        synced = deliver_rest(past, request.tracking_uri, later("sync", request, past.folder.name))
    print(f"{record.name} is complete already: --trials N extends it")
    return Outcome(record, content, 0, [*moved, *synced.problems])


def _reported(folder: RunFolder) -> bool:
    """True where the report, which is written last, is of the newest result."""
    try:
        return folder.report.stat().st_mtime >= folder.result.stat().st_mtime
    except OSError:
        return False
