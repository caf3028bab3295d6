"""What stands where once it is installed, and what importing it costs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tune_fusion
from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "ray", "mlflow", "optuna", "pandas", "sklearn")
REPORT = f"import sys, json; print('IMPORTED', json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def python(code, cwd, **environment):
    """Run `code`; returns (standard output without the report, the heavy packages that are then imported)."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"],
        cwd=cwd,
        env={**os.environ, "TUNE_FUSION_CACHE": str(Path(cwd) / ".cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out, _, imported = done.stdout.rpartition("IMPORTED ")
    return out, json.loads(imported)


def command(module, *arguments):
    """Code that runs a command and goes on where it exits."""
    return (
        f"import {module}\n"
        f"try:\n    code = {module}.main({list(arguments)!r})\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code"
    )


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    assert python("import tune_fusion; assert tune_fusion.__version__; dir(tune_fusion)", tmp_path) == (
        "",
        [],
    )


def test_the_public_names_come_without_ray_and_mlflow(tmp_path):
    _, imported = python(
        "from tune_fusion import *; HNAdam, FusedOptimizer, build_model, layer_map, load_model", tmp_path
    )
    assert "torch" in imported
    assert not {"ray", "mlflow", "optuna", "pandas"} & set(imported)


def test_the_public_names_are_what_they_are_called():
    names = set(tune_fusion.__all__) - {"__version__"}
    assert names == {"HNAdam", "FusedOptimizer", "build_model", "layer_map", "load_model"}
    assert {getattr(tune_fusion, name).__name__ for name in names} == names


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'tune_fusion' has no attribute 'HNAdan'"):
        tune_fusion.HNAdan  # noqa: B018  (the access is the test)
    assert not hasattr(tune_fusion, "search_spaces_that_do_not_exist")


@pytest.mark.parametrize("module", ["tune_fusion.search", "tune_fusion.train", "tune_fusion.plan"])
def test_help_imports_nothing_heavy(tmp_path, module):
    out, imported = python(command(module, "--help"), tmp_path)
    assert out.startswith(f"usage: {module} ")
    assert "--space NAME|FILE" in out
    assert imported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_cache_is_listed_without_anything_heavy(tmp_path, arguments):
    out, imported = python(command("tune_fusion.cache", *arguments), tmp_path)
    assert "TUNE_FUSION_CACHE_GB" in out
    assert imported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--space", "digits", "--name", "///"], "--name '///': a name starts with"),
        (["search", "--space", "digits", "--name", "taken"], "--name taken: .* exists already"),
        (["search", "--space", "digits", "--storage", "/proc/x"], "--storage /proc/x: .* not writable"),
        (["search", "--space", "digits", "--tracking-uri", "mlruns"], "tracking URI 'mlruns': "),
        (["search", "--space", "digits", "--address", "head"], "--address head: expected HOST:PORT"),
        (["search", "--space", "digits", "--confirm", "--register", "a/b"], "--register 'a/b': "),
        (["search", "--space", "digitz"], "--space digitz: unknown space"),
        (["search", "--space", "digitz", "--dry-run"], "--space digitz: unknown space"),
        (["plan", "--space", "digitz"], "--space digitz: unknown space"),
        (["train", "--space", "digitz", "--config", "none.json"], "--space digitz: unknown space"),
        (["train", "--space", "digits", "--config", "none.json"], "none.json: cannot read the"),
        (["search", "--resume", "none"], "--resume none: .* holds no search of that name"),
        (["confirm", "none"], "NAME none: .* holds no search of that name"),
        (["confirm", "///"], "NAME '///': a name starts with"),
        (["report", "none"], "NAME none: "),
        (["report", "--compare", "none", "nor"], "--compare none: "),
        (["sync", "none"], "NAME none: "),
        (["predict", "none", "x.jpg"], "MODEL none: there is no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_mistyped_is_refused_before_anything_heavy_is_imported(tmp_path, words, message):
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    code = (
        "from tune_fusion.errors import InputError\n"
        f"import tune_fusion.{words[0]} as command\n"
        f"try:\n    command.main({words[1:]!r})\nexcept InputError as error:\n    print(error)"
    )
    out, imported = python(code, tmp_path)
    assert re.match(message, out)
    assert imported == []


def test_the_list_names_everything_and_imports_no_torch(tmp_path):
    out, imported = python(command("tune_fusion.search", "--list"), tmp_path)
    assert imported == []
    assert list(tmp_path.iterdir()) == []
    parts = out.split("\n\n")
    assert [part.splitlines()[0] for part in parts] == ["optimizers", "search spaces", "data sets"]
    optimizers, spaces, data = (
        {line.split()[0] for line in part.splitlines()[1:] if line[2] != " "} for part in parts
    )
    assert optimizers == set(OPTIMIZERS)
    folder = ROOT / "search_spaces"
    assert spaces == {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert data == set(DATA_SETS)


def test_a_dry_run_starts_no_ray_and_writes_nothing(tmp_path):
    out, imported = python(command("tune_fusion.search", "--space", "digits", "--dry-run"), tmp_path)
    assert [part.splitlines()[0].split(" (")[0] for part in out.strip().split("\n\n")[1:]] == [
        "layer map",
        "sampled configurations",
        "rungs, expected trials at each",
    ]
    assert not {"ray", "mlflow"} & set(imported)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pyproject.toml` makes of this checkout."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, the build backend")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_spaces_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = ("*.py", "*.c", "*.json", "*.html")
    ours = {str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "tune_fusion").rglob(kind)}
    spaces = {f"tune_fusion/{path.relative_to(ROOT)}" for path in (ROOT / "search_spaces").rglob("*.yaml")}
    assert "tune_fusion/search_spaces/papers/table2_vit.yaml" in spaces
    assert "tune_fusion/reporting/published/table2.json" in ours
    assert {name for name in names if ".dist-info/" not in name} == ours | spaces
    assert wheel.name == f"tune_fusion-{tune_fusion.__version__}-py3-none-any.whl"


def test_an_installed_package_finds_its_spaces_from_anywhere(wheel, tmp_path):
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    code = (
        "import tune_fusion\n"
        "from tune_fusion.space.loading import list_spaces, resolve_space\n"
        "print(tune_fusion.__file__)\n"
        "print(resolve_space('digits'))\n"
        "print(len(list_spaces()))"
    )
    out, _ = python(code, elsewhere, PYTHONPATH=str(installed))
    assert out.splitlines() == [
        str(installed / "tune_fusion" / "__init__.py"),
        str(installed / "tune_fusion" / "search_spaces" / "digits.yaml"),
        str(len(list((ROOT / "search_spaces").rglob("*.yaml")))),
    ]
    plan, _ = python(
        command("tune_fusion.search", "--space", "digits", "--dry-run"), elsewhere, PYTHONPATH=str(installed)
    )
    assert plan.startswith("digits: lenet5 on digits")
    assert list(elsewhere.iterdir()) == []
