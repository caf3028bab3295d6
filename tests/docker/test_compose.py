"""The stack of docker/compose.yaml, read by Docker's own compose: no container engine is needed for that."""

import configparser
import importlib.util
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
from deployment import COMPOSE, DOCKER, ROOT, SECRETS, compose, documents, parse_command, rendered, run


@pytest.fixture(scope="module")
def stack():
    return rendered()


@pytest.fixture(scope="module")
def services(stack):
    return stack["services"]


@pytest.mark.parametrize("file", COMPOSE, ids=lambda path: path.name)
def test_the_files_follow_the_compose_specification(file, tmp_path):
    checked = ["--builtin-schema", "vendor.compose-spec"]
    done = run("check-jsonschema", *checked, file)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / file.name
    broken.write_text(file.read_text().replace("services:", "servces:"))
    assert run("check-jsonschema", *checked, broken).returncode == 1


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("secret", SECRETS)
def test_it_does_not_start_without_each_secret(secret, value):
    given = {name: text for name, text in SECRETS.items() if name != secret}
    done = compose("config", "--quiet", **given, **({} if value is None else {secret: value}))
    assert done.returncode != 0
    assert f"required variable {secret} is missing a value: set it in docker/.env" in done.stderr


def test_it_does_not_start_from_the_example_as_it_stands():
    done = run(
        "docker-compose", "--env-file", DOCKER / ".env.example", "--file", COMPOSE[0], "config", "--quiet"
    )
    assert done.returncode != 0
    assert {name for name in SECRETS if f"required variable {name} " in done.stderr} == set(SECRETS)


def test_every_variable_is_documented():
    used = {name for file in COMPOSE for name in re.findall(r"\$\{(\w+)", file.read_text())}
    lines = (DOCKER / ".env.example").read_text().splitlines()
    documented = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert used == set(documented)
    assert {name for name in SECRETS if documented[name]} == set()
    defaults = dict(re.findall(r"\$\{(\w+):-(\w*)\}", "".join(file.read_text() for file in COMPOSE)))
    assert defaults == {name: text for name, text in documented.items() if name not in SECRETS}


def test_git_and_the_image_leave_the_secrets_out():
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert "!docker/.env" not in (DOCKER / "Dockerfile.dockerignore").read_text()


def test_secrets_stand_in_environments_alone(stack):
    """A command line is seen by every process of the machine, a build argument by everyone with the image."""
    used = deepcopy({name: part for name, part in stack.items() if not name.startswith("x-")})
    for service in used["services"].values():
        for name, value in service.pop("environment", {}).items():
            assert (value in SECRETS.values()) == bool(re.search("PASSWORD|TOKEN|SECRET", name)), name
    left = json.dumps(used)
    assert [name for name, value in SECRETS.items() if value in left] == []


def test_only_the_pages_of_ray_and_mlflow_are_published_and_on_loopback_only(services):
    published = {
        (name, port["host_ip"], port["published"], port["target"])
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    assert published == {("head", "127.0.0.1", "8265", 8265), ("mlflow", "127.0.0.1", "5000", 5000)}
    assert not any("network_mode" in service for service in services.values())


def test_the_database_is_reached_by_mlflow_alone(stack, services):
    reaching = {name for name, service in services.items() if "store" in service["networks"]}
    assert reaching == {"postgres", "mlflow"}
    assert set(services["postgres"]["networks"]) == {"store"}
    assert stack["networks"]["store"]["internal"] is True


def test_what_runs_code_of_ours_has_no_privileges(services):
    for name in ("head", "worker", "mlflow"):
        assert services[name]["cap_drop"] == ["ALL"], name
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "user", "pid", "ipc", "devices", "cap_add"}, name
        assert all(volume["type"] == "volume" for volume in service["volumes"]), name


def test_each_waits_until_what_it_needs_is_healthy(services):
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert {name: list(on) for name, on in needs.items()} == {
        "postgres": [],
        "mlflow": ["postgres"],
        "head": ["mlflow"],
        "worker": ["head"],
    }
    for on in needs.values():
        for name, condition in on.items():
            assert condition["condition"] == "service_healthy"
            assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_workers_can_be_scaled(services):
    """Nothing of a worker is its alone: no name, no port, no address."""
    assert not services["worker"].keys() & {"container_name", "hostname", "ports"}
    assert {volume["source"] for volume in services["worker"]["volumes"]} == {"runs", "cache", "data"}
    assert services["worker"]["volumes"] == services["head"]["volumes"]


def test_ray_starts_with_options_that_it_has(services):
    head, worker = (parse_command(services[name]["command"]) for name in ("head", "worker"))
    assert (head["head"], head["block"], head["num_cpus"], head["num_gpus"]) == (True, True, 0, 0)
    assert (worker["head"], worker["block"], worker["num_cpus"]) == (False, True, 2)
    assert worker["address"] == f"head:{head['port']}"
    assert head["dashboard_port"] == services["head"]["ports"][0]["target"]
    four = rendered(WORKER_CPUS="4")["services"]["worker"]
    assert (parse_command(four["command"])["num_cpus"], four["cpus"]) == (4, 4)


def test_mlflow_starts_with_options_that_it_has(services):
    options = parse_command(services["mlflow"]["command"])
    assert options["app_name"] == "basic-auth"
    assert options["serve_artifacts"]
    assert options["artifacts_destination"] == services["mlflow"]["volumes"][0]["target"]
    assert options["allowed_hosts"].split(",") == ["mlflow:5000", "localhost:5000", "127.0.0.1:5000"]
    assert not options["disable_security_middleware"]


def test_mlflow_knows_the_settings_of_its_authentication(stack):
    """And none is a password: the admin's comes from the environment, or the server does not start."""
    ours, known = configparser.ConfigParser(), configparser.ConfigParser()
    ours.read_string(stack["configs"]["basic_auth"]["content"])
    package = Path(importlib.util.find_spec("mlflow").origin).parent
    known.read(package / "server" / "auth" / "basic_auth.ini")
    assert set(ours["mlflow"]) == set(known["mlflow"]) - {"grant_default_workspace_access"}
    assert "admin_password" not in ours["mlflow"]


def test_gpus_are_added_by_a_file_of_their_own():
    plain, with_gpus = rendered(), rendered(*COMPOSE)
    (device,) = with_gpus["services"]["worker"]["deploy"]["resources"]["reservations"].pop("devices")
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert with_gpus["services"].keys() == plain["services"].keys()
    assert with_gpus["services"]["head"] == plain["services"]["head"]


def test_every_service_of_ours_runs_the_one_image(services):
    ours = [service for name, service in services.items() if name != "postgres"]
    assert {service["image"] for service in ours} == {"tune_fusion"}
    for service in ours:
        assert service["build"]["args"] == {"DEVICE": "cuda", "TORCH_INDEX": ""}
        assert Path(service["build"]["context"], service["build"]["dockerfile"]) == DOCKER / "Dockerfile"


def test_the_file_says_how_it_is_started():
    (line,) = re.findall(r"#   docker (compose -f .*)", COMPOSE[0].read_text())
    words = line.split()
    assert [ROOT / words[2]] == COMPOSE[:1]
    assert f"{words[-2]} worker=2" == "--scale worker=2"
    assert words[-1].partition("=")[0] in documents(COMPOSE[0])[0]["services"]
