import os
import shutil
import subprocess
from pathlib import Path

import pytest

import tune_fusion
from tune_fusion.tuning import facts
from tune_fusion.tuning.cluster import Node


def test_the_versions_that_decide_a_result():
    versions = facts.versions()
    assert versions["tune_fusion"] == tune_fusion.__version__
    assert {"python", "ray", "torch", "timm", "optuna", "mlflow", "pytorch-optimizer"} <= versions.keys()
    assert all(version[0].isdigit() for version in versions.values())


def test_the_hardware_names_every_node():
    found = facts.hardware([Node("a", 4.0, 1.0), Node("b", 2.0, 0.0)])
    assert found["nodes"] == [{"host": "a", "cpu": 4.0, "gpu": 1.0}, {"host": "b", "cpu": 2.0, "gpu": 0.0}]
    assert found["driver_cpus"] == os.cpu_count()
    assert found["platform"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout whose file `facts.py` claims to be the module."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    module = tmp_path / "facts.py"
    module.write_text("first\n")
    monkeypatch.setattr(facts, "__file__", str(module))

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return module, git


def test_no_commit_outside_a_checkout(checkout):
    assert facts.git_commit() == ""


def test_the_commit_and_whether_files_differ_from_it(checkout):
    module, git = checkout
    git("init", "--quiet")
    git("add", "facts.py")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert facts.git_commit() == commit
    (module.parent / "untracked.txt").write_text("")
    assert facts.git_commit() == commit
    module.write_text("second\n")
    assert facts.git_commit() == f"{commit}+changes"


def test_a_copy_inside_another_projects_checkout_has_no_commit(checkout):
    module, git = checkout
    git("init", "--quiet")
    (module.parent / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "--quiet", "--message", "theirs")
    assert facts.git_commit() == ""


def test_no_commit_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(os.sep) / "nowhere"))
    assert facts.git_commit() == ""
