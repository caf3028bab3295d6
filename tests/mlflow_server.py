"""A real MLflow server that can be stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from tune_fusion.tracking.uri import UI_PORT, ui_command


class Server:
    """What `ui_command` starts on a store: a real MLflow server, on a loopback port of its own."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = ui_command(f"sqlite:///{database}")
        self.command = command.replace(f"--port {UI_PORT}", f"--port {self.port}")
        assert self.command != command
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.process is not None:
            return
        light = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                f"exec {self.command}",
                shell=True,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **light},
                start_new_session=True,
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
            else:
                return
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads the group of its own workers
            self.process.wait()
            self.process = None
