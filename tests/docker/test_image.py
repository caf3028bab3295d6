"""The Dockerfile as far as it can be judged without building it; test_install_script runs what it runs."""

import re
import sys

import pytest
from deployment import DOCKER, INSTRUCTIONS, ROOT, given, image_environment, run


def test_hadolint_has_nothing_to_say(tmp_path):
    done = run("hadolint", "--no-color", DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM python:latest\nRUN cd /tmp\n")
    done = run("hadolint", "--no-color", worse)
    assert set(re.findall(r"DL\d+", done.stdout)) >= {"DL3007", "DL3003"}


SCRIPTS = [DOCKER / "install.sh", ROOT / ".ci" / "run", ROOT / "tests" / "cluster" / "install.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shellcheck_has_nothing_to_say(script):
    done = run("shellcheck", script)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_the_python_that_is_tested():
    (base,) = given("FROM")
    (make,) = re.findall(r"PYTHON \?= python(\S+)", (ROOT / "Makefile").read_text())
    assert base == f"python:{make}-slim-bookworm"
    assert make == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_every_step_of_the_script_is_a_layer_in_its_order():
    steps = re.findall(r"(?m)^#   install\.sh (\w+)", (DOCKER / "install.sh").read_text())
    assert given("RUN") == [f"docker/install.sh {step}" for step in steps]


def test_only_what_is_copied_may_enter():
    """Neither data nor runs nor secrets are in the context of the build."""
    copied = {source for rest in given("COPY") for source in rest.split()[:-1]}
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
    assert given("ADD") == []


def test_no_secret_is_in_the_image_and_ray_asks_for_a_token():
    settings = image_environment()
    assert settings["RAY_AUTH_MODE"] == "token"
    names = [*settings, *(rest.split("=")[0] for rest in given("ARG"))]
    assert [name for name in names if re.search("PASSWORD|SECRET|KEY|AUTH_TOKEN", name)] == []
    assert given("ARG") == ["DEVICE=cuda", "TORCH_INDEX="]


def test_it_runs_as_a_user_that_the_script_makes():
    """By number, so that Kubernetes can see that it is not root."""
    (user,) = given("USER")
    assert user == "1000:1000"
    assert "useradd --create-home --uid 1000 " in (DOCKER / "install.sh").read_text()
    after = [name for name, _ in INSTRUCTIONS[INSTRUCTIONS.index(["USER", user]) :]]
    assert "RUN" not in after


def test_its_health_is_asked_of_the_node():
    (check,) = given("HEALTHCHECK")
    assert "/api/local_raylet_healthz" in check
