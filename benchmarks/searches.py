"""Real searches for benchmarks: started as commands, timed from outside, read from what they leave."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


def command(folder, words, **environment):
    """Run a Python command in `folder`; its seconds. What it prints goes to ``log.txt`` there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | environment,
            check=False,
        )
        seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}\n{(folder / 'log.txt').read_text()[-3000:]}")
    return seconds


@dataclass(frozen=True)
class Epoch:
    """An epoch as the journal tells of it; times in seconds since 1970."""

    trial: int
    started: float
    """Counted back from `ended`, so later than in truth by what the checkpoint took."""
    ended: float
    """When the driver had decided upon it."""

    @property
    def work(self):
        """Seconds of training and evaluation."""
        return self.ended - self.started


class Search:
    """A search of ours that has just been run in `folder`, by the command or by a `script` in its place."""

    def __init__(self, folder, *words, script=None, **environment):
        self.started = time.time()
        program = ["-m", "tune_fusion.search"] if script is None else [script]
        self.seconds = command(folder, [*program, *words, "--name", "search"], **environment)
        self.folder = Path(folder) / "runs" / "search"
        self.result = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        lines = (self.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        self.events = [json.loads(line) for line in lines]

    def times(self, kind):
        """When events of a kind happened."""
        return [event["at"] for event in self.events if event["event"] == kind]

    @property
    def workers(self):
        """The epochs of each worker process, in order."""
        epochs = defaultdict(list)
        for event in self.events:
            if event["event"] == "epoch":
                metrics = event["metrics"]
                seconds = metrics["train_seconds"] + metrics.get("eval_seconds", 0.0)
                epochs[event["node"]].append(Epoch(event["trial"], event["at"] - seconds, event["at"]))
        return list(epochs.values())

    @property
    def trials(self):
        """Trials that were run."""
        return len({epoch.trial for epochs in self.workers for epoch in epochs})

    @property
    def epochs(self):
        """Epochs that were trained."""
        return sum(len(epochs) for epochs in self.workers)

    @property
    def work_seconds(self):
        """Training and evaluation of all epochs together."""
        return sum(epoch.work for epochs in self.workers for epoch in epochs)

    def gaps(self, *, between_trials):
        """Seconds from an epoch's end to the start of the worker's next, of another trial or of the same."""
        return [
            after.started - before.ended
            for epochs in self.workers
            for before, after in itertools.pairwise(epochs)
            if (before.trial != after.trial) == between_trials
        ]
