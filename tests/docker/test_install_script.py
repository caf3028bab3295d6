"""docker/install.sh, which the image runs, in the Python that runs the tests and in a clean one."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

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


def test_another_build_of_torch_than_the_wanted_one_is_refused():
    """Without an index pip takes what is installed."""
    import torch

    wanted, built = ("cpu", "cuda") if torch.version.cuda else ("cuda", "cpu")
    done = install("torch", DEVICE=wanted, PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert f"DEVICE={wanted}, but pip chose the {built} build {torch.__version__}" in done.stderr


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
    bare = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(cwd), "RAY_USAGE_STATS_ENABLED": "0"}
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


@pytest.fixture
def clean_debian(tmp_path):
    """The root of a Debian 12 with the required packages alone, from the mirror that this machine uses."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and Debian's package debootstrap")
    targets = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    known = dict(line.split() for line in said(targets, tmp_path).splitlines())
    root = tmp_path / "root"
    mirror = [known["bookworm"]] if "bookworm" in known else []
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", root, *mirror], check=True, capture_output=True
    )
    yield root
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(root) in line]
    shutil.rmtree(root)


@pytest.mark.slow
def test_the_first_step_makes_the_user_the_folders_and_a_compiler(clean_debian):
    """In a clean root: Debian's packages cannot be tried in a virtual environment."""
    (clean_debian / "source").mkdir()
    (clean_debian / "source" / "docker").mkdir()
    shutil.copy2(DOCKER / "install.sh", clean_debian / "source" / "docker")
    shutil.copy2(ROOT / "tune_fusion" / "optim" / "hn_adam.c", clean_debian / "source")
    said(["chroot", clean_debian, "/source/docker/install.sh", "system"], clean_debian)
    inside = ["chroot", "--userspec=1000:1000", clean_debian]
    assert said([*inside, "id", "--user", "--name"], clean_debian) == "tune\n"
    for folder in ("/runs", "/data", "/cache", "/mlartifacts", "/home/tune"):
        said([*inside, "touch", f"{folder}/written"], clean_debian)
    said([*inside, "cc", "-shared", "-fPIC", "-o", "/cache/a.so", "/source/hn_adam.c", "-lm"], clean_debian)
    assert said([*inside, "wget", "--version"], clean_debian).startswith("GNU Wget")
    assert list((clean_debian / "var" / "lib" / "apt" / "lists").iterdir()) == []
