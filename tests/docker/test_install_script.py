"""docker/install.sh, which the image runs, in the Python that runs the tests and in a clean one."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv

import pytest
from deployment import DOCKER, ROOT

import tune_fusion

OUTSIDE = r"(pip|setuptools|triton|(nvidia|cuda)-.*|tune[-_]fusion)"
"""What constraints.txt does not pin: venv's own, torch's CUDA libraries, which torch pins, and ourselves."""


def install(step, root=ROOT, **environment):
    return subprocess.run(
        ["sh", str(root / "docker" / "install.sh"), *step.split()],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.mark.parametrize("step", ["", "everything", "-h"])
def test_an_unknown_step_is_answered_with_the_steps(step):
    done = install(step)
    assert done.returncode == 2
    assert done.stderr == "usage: install.sh system | torch | dependencies | package\n"


def test_an_unknown_device_is_refused_before_anything_is_installed():
    done = install("torch", DEVICE="tpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "DEVICE must be cuda or cpu, got tpu" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_build_of_torch_must_be_the_wanted_one(device):
    """Without an index pip takes what is installed, or fails."""
    import torch

    done = install("torch", DEVICE=device, PIP_NO_INDEX="1")
    built = "cuda" if torch.version.cuda else "cpu"
    if device == built:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert f"DEVICE={device}, but pip chose the {built} build {torch.__version__}" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A clean virtual environment after the image's steps, from what the image may hold alone."""
    folder = tmp_path_factory.mktemp("image")
    rules = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(ROOT / name, folder / "source" / name)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    import torch

    device = "cuda" if torch.version.cuda else "cpu"
    for step in ("torch", "dependencies", "package"):
        done = install(step, folder / "source", PYTHON=str(python), DEVICE=device)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / "source")
    return python


def said(words, cwd):
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        words, cwd=cwd, env=bare, capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.slow
def test_everything_installed_is_pinned(installed, tmp_path):
    listed = json.loads(said([installed, "-m", "pip", "list", "--format", "json"], tmp_path))
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    plain = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    loose = {
        entry["name"]: entry["version"]
        for entry in listed
        if plain.get(re.sub(r"[-_.]+", "-", entry["name"]).lower()) != entry["version"].split("+")[0]
        and not re.fullmatch(OUTSIDE, entry["name"])
    }
    assert loose == {}


@pytest.mark.slow
def test_the_installed_commands_work_without_the_checkout(installed, tmp_path):
    """What the containers start is there: searches with their spaces, Ray's jobs, MLflow's login."""
    version = said([installed, "-c", "import tune_fusion; print(tune_fusion.__version__)"], tmp_path)
    assert version.strip() == tune_fusion.__version__
    listed = said([installed, "-m", "tune_fusion.search", "--list"], tmp_path)
    assert "papers/table2_effnet" in listed
    plan = said([installed, "-m", "tune_fusion.search", "--space", "digits", "--dry-run"], tmp_path)
    assert plan.startswith("digits: lenet5 on digits")
    scripts = installed.parent
    assert "--working-dir" in said([scripts / "ray", "job", "submit", "--help"], tmp_path)
    assert "basic-auth" in said([scripts / "mlflow", "server", "--help"], tmp_path)
    said([installed, "-c", "import flask_wtf, psycopg2"], tmp_path)
