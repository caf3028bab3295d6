"""What a search must have left behind, whatever happened to it: read from its files, not by its code."""

import json
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path

DECISIONS = ("suggested", "epoch", "promoted", "given up", "failed", "exhausted", "noted")
"""The events that are the search itself; the others tell of processes and of deliveries."""
_STATUS = {"completed": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}


def lines(folder):
    """The lines of the journal in a search's folder, parsed."""
    text = (Path(folder) / "journal.jsonl").read_text()
    assert text.endswith("\n")
    parsed = [json.loads(line) for line in text.splitlines()]
    assert [line["n"] for line in parsed] == list(range(1, len(parsed) + 1))
    return parsed


def lines_so_far(folder):
    """The whole lines of a journal that may be written at this moment; none where it has not begun."""
    path = Path(folder) / "journal.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def decided(folder):
    """How many decisions the journal holds so far; cheap enough to be asked again and again."""
    path = Path(folder) / "journal.jsonl"
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    return sum(whole.count(b',"event":"%s",' % kind.encode()) for kind in DECISIONS)


def decisions(folder):
    """Every decision in order, without what may differ from one run to the next: times and processes."""
    return [_lasting(line) for line in lines(folder) if line["event"] in DECISIONS]


def _lasting(line):
    lasting = {key: value for key, value in line.items() if key not in ("n", "at", "crc", "node")}
    if "metrics" in lasting:
        lasting["metrics"] = steady(lasting["metrics"])
    return lasting


def steady(metrics):
    """The metrics that do not depend on the clock."""
    return {
        key: value
        for key, value in metrics.items()
        if not key.endswith("seconds") and key != "images_per_second"
    }


def epochs(folder):
    """(trial, epoch) of every epoch in the journal that did not diverge, in order."""
    return [
        (line["trial"], line["epoch"])
        for line in lines(folder)
        if line["event"] == "epoch" and not line["diverged"]
    ]


def files(folder):
    """Content by path, of every file in a folder."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def check_same(folder, model):
    """Two searches decided the same in the same order, and left the same behind."""
    assert decisions(folder) == decisions(model)
    one, other = files(folder), files(model)
    # Tracebacks may tell of what went wrong on the way.
    assert {path for path in one if not path.startswith("logs/trial-")} == other.keys()
    for path in one:
        if path.startswith(("weights/", "model/")) or path in ("layers.json", "space.yaml"):
            assert one[path] == other[path], path
    result, expected = (json.loads(content["result.json"]) for content in (one, other))
    assert result["status"] == "completed"
    for key in ("best", "best_fusion", "best_control", "untuned_fusion", "untuned_control"):
        for trial in (result[key], expected[key]):
            trial["metrics"] = steady(trial["metrics"])
        assert result[key] == expected[key]
    for key in ("trials", "planned_trials", "counts", "duplicates", "notes", "epochs"):
        assert result[key] == expected[key]


def check_order(folder, trials, at_once, *, halving=True):
    """Every trial once, its epochs in order and none after its end, never more than `at_once` trials open.

    And every rung decision is the one that the lines before it demand; none is made without `halving`.
    """
    started = {}
    reached = Counter()
    ended = set()
    rungs = defaultdict(list)
    for line in lines(folder):
        if line["event"] == "suggested" and line["trial"] is not None:
            assert line["trial"] == len(started)
            assert line["key"] not in {trial["key"] for trial in started.values()}
            started[line["trial"]] = line
            assert len(started) - len(ended) <= at_once
        elif line["event"] == "suggested":
            assert line["key"] == started[line["duplicate_of"]]["key"]
        elif line["event"] == "epoch":
            trial = started[line["trial"]]
            assert line["trial"] not in ended
            reached[line["trial"]] += 1
            assert line["epoch"] == reached[line["trial"]]
            rung = _rung(trial, line, rungs) if halving else None
            assert line["rung"] == rung
            assert line["ends"] == _end(trial, line, rung)
            if line["ends"]:
                ended.add(line["trial"])
    assert sorted(started) == sorted(ended) == list(range(trials))


def _rung(trial, line, rungs, first=1, factor=3):
    """What asynchronous halving says: the best third of the arm's trials that came so far go on."""
    epoch, last = line["epoch"], trial["configuration"]["training"]["epochs"]
    if line["diverged"] or epoch >= last or epoch not in [first * factor**power for power in range(9)]:
        return None
    value = line["metrics"]["val_accuracy"]
    seen = rungs[trial["arm"], epoch]
    seen.append(value)
    kept = max(1, len(seen) // factor)
    cutoff = sorted(seen, reverse=True)[kept - 1]
    return {"seen": len(seen), "kept": kept, "cutoff": cutoff, "goes_on": value >= cutoff}


def _end(trial, line, rung):
    if line["diverged"]:
        return "diverged"
    if line["epoch"] == trial["configuration"]["training"]["epochs"]:
        return "completed"
    return "stopped" if rung and not rung["goes_on"] and trial["origin"] != "default" else None


def check_mlflow(store, folder):
    """The SQLite file `store` holds the completed search in `folder`: each run once, each point once."""
    with sqlite3.connect(store) as database:

        def rows(sql, key):
            return database.execute(sql, (key,)).fetchall()

        check_store(rows, folder)


def check_store(rows, folder):
    """The same of any store: `rows` asks it in SQL with one ``?``."""
    journal = lines(folder)
    key = journal[0]["key"]
    ends = {line["trial"]: line["ends"] for line in journal if line["event"] == "epoch" and line["ends"]}
    ends |= {line["trial"]: "stopped" for line in journal if line["event"] == "given up"}
    ends |= {line["trial"]: "failed" for line in journal if line["event"] == "failed"}
    ends |= {line["trial"]: "failed" for line in journal if line["event"] == "lost" and line["ends"]}
    points = {
        (line["trial"], line["epoch"]): line["metrics"]["val_accuracy"]
        for line in journal
        if line["event"] == "epoch" and "val_accuracy" in line["metrics"]
    }

    def ours(sql):
        return rows(sql, f"{key}%")

    runs = "runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'tune_fusion.key' and k.value like ? "
    trial = "join tags t on t.run_uuid = r.run_uuid and t.key = 'trial' "
    found = ours(f"select k.value, r.status from {runs} where r.lifecycle_stage = 'active'")
    expected = {f"{key}-{number:04d}": _STATUS[end] for number, end in ends.items()}
    assert sorted(found) == sorted({key: "FINISHED", **expected}.items())
    doubled = f"select k.value, m.key, m.step from {runs} join metrics m on m.run_uuid = r.run_uuid"
    assert ours(f"{doubled} group by k.value, r.run_uuid, m.key, m.step having count(*) > 1") == []
    values = f"select t.value, m.step, m.value from {runs} {trial} join metrics m"
    stored = ours(f"{values} on m.run_uuid = r.run_uuid where m.key = 'val_accuracy'")
    assert {(int(number), step): value for number, step, value in stored} == points
    states = f"select t.value, s.value from {runs} {trial} join tags s on s.run_uuid = r.run_uuid"
    assert {int(n): state for n, state in ours(f"{states} and s.key = 'state'")} == ends
    best = json.loads((Path(folder) / "result.json").read_text())["best"]
    marked = ours(f"{states} and s.key = 'best' and s.value = 'true'")
    assert marked == [(str(best["trial"]), "true")]
