"""Which epochs were trained, told by the processes that train them and not by what they report."""

import os
from pathlib import Path

# Python runs this at the start of every process that finds it: of drivers and of workers.
_WATCHER = """
import os, sys

def watch(event, arguments, log=os.environ.get("TF_TEST_LOG")):
    if event == "open" and log and "/checkpoints/" in str(arguments[0]) and arguments[2] & os.O_CREAT:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, os.fsencode(arguments[0]) + b"\\n")
        os.close(file)

sys.addaudithook(watch)
"""


class Watcher:
    """Writes down every checkpoint that processes with its `environment` begin, in a folder of its own."""

    def __init__(self, folder):
        self._log = Path(folder) / "trained"
        (folder / "watcher").mkdir(parents=True)
        (folder / "watcher" / "sitecustomize.py").write_text(_WATCHER)
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(folder / "watcher"), os.environ.get("PYTHONPATH", "")]),
            "TF_TEST_LOG": str(self._log),
        }

    def trained(self, name):
        """(trial, epoch) of every checkpoint of the search `name` that was begun: one a trained epoch."""
        written = self._log.read_text().splitlines() if self._log.exists() else []
        paths = [path for path in map(Path, written) if path.parts[-4] == name]
        return [(int(path.parent.name), int(path.name.split(".")[1].split("-")[1])) for path in paths]
