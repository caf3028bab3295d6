"""The files of docker/, read and rendered for the tests."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = [DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"]
SECRETS = {
    "RAY_AUTH_TOKEN": "token-of-ray",
    "POSTGRES_PASSWORD": "word-of-postgres",
    "MLFLOW_ADMIN_PASSWORD": "word-of-the-admin",
    "MLFLOW_SECRET_KEY": "key-of-the-forms",
}
"""What compose must be given, with values that stand nowhere else."""


def run(tool, *arguments, **environment):
    """Run a linter of the extra ``dev`` with a bare environment; returns what it said and its exit code."""
    beside = Path(sys.executable).parent / tool
    words = [str(beside) if beside.exists() else shutil.which(tool) or tool, *map(str, arguments)]
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        words, env={**bare, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def compose(*arguments, files=COMPOSE[:1], **environment):
    """Run docker-compose on `files` with these variables alone: neither docker/.env nor ours."""
    named = [word for file in files for word in ("--file", file)]
    return run("docker-compose", "--env-file", os.devnull, *named, *arguments, **environment)


def rendered(*files, **changes):
    """The stack as compose understands it, without defaults left open."""
    done = compose("config", "--format", "json", files=files or COMPOSE[:1], **{**SECRETS, **changes})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
"""The Dockerfile's, as pairs of name and rest."""


def given(instruction):
    """What the Dockerfile gives to each instruction of this name."""
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def image_environment():
    """The variables that the image sets."""
    return dict(pair.split("=", 1) for rest in given("ENV") for pair in rest.split())


def documents(path):
    """The YAML documents of a file."""
    return list(YAML(typ="safe", pure=True).load_all(path))


def pinned(name):
    """The version that constraints.txt pins."""
    (version,) = re.findall(rf"(?m)^{re.escape(name)}==(.+)$", (ROOT / "constraints.txt").read_text())
    return version


def parse_command(line):
    """Parse a command line of Ray or MLflow with that command's own parser; returns its options' values.

    Raises click's UsageError for an option that does not exist or a value that it refuses.
    """
    program, *words = shlex.split(line) if isinstance(line, str) else line
    if program == "ray":
        from ray.scripts.scripts import cli
    else:
        from mlflow.cli import cli
    command = cli.commands[words[0]]
    return command.make_context(words[0], list(words[1:])).params
