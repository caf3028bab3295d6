"""Logging a model's folder to real stores, and loading it back through MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

import tune_fusion
from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.tracking import registration
from tune_fusion.tracking.changes import PARENT, Pending
from tune_fusion.tracking.registration import Registered, check_name, log_model
from tune_fusion.tracking.signature import signature_json
from tune_fusion.tracking.store import MlflowStore
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.saved_model import save_model
from tune_fusion.training.workbench import Workbench

EXAMPLE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    bench = Workbench(ModelSettings(name="lenet5"), DataSettings(name="digits"), 0, torch.device("cpu"))
    save_weights(weights_of(bench.model), root / "w.safetensors")
    signature = signature_json(1, 10)
    save_model(
        root / "model", bench, root / "w.safetensors",
        configuration={}, epoch=1, metrics={}, signature=signature,
    )  # fmt: skip
    return root / "model"


@pytest.fixture
def folder(made_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_folder, tmp_path / "model"))


def make_run(uri: str) -> str:
    run = Pending(PARENT, "k", name="confirmed", started=1)
    with MlflowStore(uri, "digits") as store:
        store.deliver(run, None)
    assert run.run_id is not None
    return run.run_id


def loaded(uri: str, model: Registered) -> Any:
    """The model as a user of MLflow loads it."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.pyfunc.load_model(model.uri)
    finally:
        mlflow.set_tracking_uri(before)


def check_everything(uri: str, folder: Path) -> None:
    """Log, register, log again, and load; the same on every kind of store."""
    client, run_id = MlflowClient(uri, registry_uri=uri), make_run(uri)
    before = mlflow.get_tracking_uri()
    only_logged = log_model(uri, run_id, folder, example=EXAMPLE, register=None)
    assert only_logged == Registered(f"models:/{only_logged.model_id}", only_logged.model_id)
    first = log_model(uri, run_id, folder, example=EXAMPLE, register="digits-lenet5")
    assert first == Registered("models:/digits-lenet5/1", only_logged.model_id, "digits-lenet5", "1")
    assert log_model(uri, run_id, folder, example=EXAMPLE, register="digits-lenet5") == first
    assert mlflow.get_tracking_uri() == before

    run = client.get_run(run_id)
    (one,) = client.search_logged_models([run.info.experiment_id])
    assert (one.model_id, str(one.status), one.source_run_id) == (first.model_id, "READY", run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [first.model_id]
    (version,) = client.search_model_versions("name = 'digits-lenet5'")
    assert (version.run_id, version.status) == (run_id, "READY")

    expected = tune_fusion.load_model(folder).classify(EXAMPLE)
    for model in (first, only_logged):
        served = loaded(uri, model)
        answer = served.predict(EXAMPLE)
        assert answer.dtype == np.float32
        assert np.array_equal(answer, expected)
        assert [spec.shape for spec in served.metadata.signature.inputs] == [(-1, -1, -1, 1)]
        assert [spec.shape for spec in served.metadata.signature.outputs] == [(-1, 10)]
    assert np.array_equal(served.input_example, EXAMPLE)
    with pytest.raises(mlflow.MlflowException, match="uint8"):
        served.predict(EXAMPLE.astype(np.float64))


def test_on_sqlite(uri: str, folder: Path) -> None:
    check_everything(uri, folder)


def test_on_a_server(server: Any, folder: Path) -> None:
    check_everything(server.url, folder)


def test_neither_logging_nor_loading_says_anything_of_its_own(
    uri: str, folder: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    run_id = make_run(uri)
    capfd.readouterr()
    made = log_model(uri, run_id, folder, example=EXAMPLE, register="quiet")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    loaded(uri, made).predict(EXAMPLE)
    assert [str(one.message) for one in recwarn if issubclass(one.category, UserWarning)] == []


def test_the_model_names_what_it_needs_and_its_files_are_whole(
    uri: str, folder: Path, tmp_path: Path
) -> None:
    run_id = make_run(uri)
    made = log_model(uri, run_id, folder, example=EXAMPLE, register=None)
    (root,) = tmp_path.rglob(f"{made.model_id}/artifacts")
    needs = (root / "requirements.txt").read_text().splitlines()
    assert f"tune_fusion=={tune_fusion.__version__}" in needs
    assert f"torch=={torch.__version__.partition('+')[0]}" in needs
    assert any(line.startswith("timm==") for line in needs)
    stored = {path.name: path.read_bytes() for path in (root / "artifacts" / "model").iterdir()}
    assert stored == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_other_contents_are_another_model(uri: str, folder: Path) -> None:
    run_id = make_run(uri)
    first = log_model(uri, run_id, folder, example=EXAMPLE, register="twice")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"epoch": 1', '"epoch": 2'))
    second = log_model(uri, run_id, folder, example=EXAMPLE, register="twice")
    assert first.model_id != second.model_id
    assert (first.version, second.version) == ("1", "2")


def test_a_call_that_died_is_made_good_by_the_next(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run(uri)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registration, "_link", die)
        with pytest.raises(KeyboardInterrupt):
            log_model(uri, run_id, folder, example=EXAMPLE, register="again")
    made = log_model(uri, run_id, folder, example=EXAMPLE, register="again")
    client = MlflowClient(uri, registry_uri=uri)
    (one,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert (one.model_id, made.version) == (made.model_id, "1")


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a:b", ".."])
def test_names_that_mlflow_does_not_take(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match="--register"):
        check_name(name)
    with pytest.raises(InputError, match="--register"):
        log_model("sqlite:///never-made.db", "run", folder, example=EXAMPLE, register=name)


def test_a_store_that_is_away_is_said_without_its_password(folder: Path) -> None:
    uri = "http://me:geheim-42@127.0.0.1:9/mlflow"
    with pytest.raises(TuneFusionError, match=r"did not take the model of run abc: .*same command") as caught:
        log_model(uri, "abc", folder, example=EXAMPLE, register=None)
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, InputError)


def test_a_missing_run_and_a_missing_database_are_said(uri: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneFusionError, match=r"Run with id=none.* not found"):
        log_model(uri, "none", folder, example=EXAMPLE, register=None)
    with pytest.raises(TuneFusionError, match="there is no such file"):
        log_model(f"sqlite:///{tmp_path}/gone.db", "none", folder, example=EXAMPLE, register=None)
    assert not (tmp_path / "gone.db").exists()
