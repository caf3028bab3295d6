"""What `ray job submit --working-dir .` uploads, by Ray's own packing with the checkout's ignore files."""

import shutil
import zipfile

from deployment import ROOT
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package, get_excludes_from_ignore_files

TAKEN = {"tune_fusion/data/datasets.py", "search_spaces/digits.yaml", "my.yaml", "pyproject.toml"}
LEFT = {
    ".ci/run",
    ".git/config",
    ".venv/bin/python",
    "benchmarks/driver.py",
    "data/cifar10/train/cat/1.jpg",
    "docker/.env",
    "docker/compose.yaml",
    "docs/report.png",
    "mlartifacts/1/model.bin",
    "mlflow.db",
    "mlflow.db-wal",
    "mlruns/0/meta.yaml",
    "runs/first/journal.jsonl",
    "tests/data/test_folder.py",
    "tune_fusion/__pycache__/search.cpython-311.pyc",
}


def packed(folder, archive):
    create_package(
        str(folder), archive, include_gitignore=True, excludes=list(get_runtime_env_default_excludes())
    )
    return {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}


def test_data_runs_and_secrets_stay_here(tmp_path):
    checkout = tmp_path / "checkout"
    for name in TAKEN | LEFT:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    assert packed(checkout, tmp_path / "job.zip") - {".gitignore", ".rayignore"} == TAKEN


def test_all_of_the_package_goes_along():
    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    needed = [
        path for kind in ("py", "c", "json", "html") for path in (ROOT / "tune_fusion").rglob(f"*.{kind}")
    ]
    needed += (ROOT / "search_spaces").rglob("*.yaml")
    assert [path for path in needed if any(ignores(path) for ignores in ignored)] == []
