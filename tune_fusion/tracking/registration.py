"""A model's folder as an MLflow model of a run, and as a version of a registered model."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.passwords import redact
from tune_fusion.tracking.signature import model_signature
from tune_fusion.tracking.store import reading

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient
    from numpy.typing import NDArray

_NAME = "model"
_CODE = Path(__file__).with_name("served_model.py")
_DIGEST_TAG = "tune_fusion.digest"
_VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's pages lead from a model to its versions
_PACKAGES = ("torch", "torchvision", "timm", "mlflow", "numpy", "safetensors")


@dataclass(frozen=True)
class Registered:
    """Where a model is in MLflow."""

    uri: str
    """For ``mlflow.pyfunc.load_model``: ``models:/NAME/VERSION`` if it is registered, else ``models:/ID``."""
    model_id: str
    name: str | None = None
    version: str | None = None


def check_name(name: str) -> None:
    """Raise InputError for a name that MLflow does not take for a registered model."""
    if not name.strip() or "/" in name or ":" in name or name in {".", ".."}:
        raise InputError(
            f"--register {name!r}: a registered model's name is not empty and holds neither '/' nor ':'"
        )


def log_model(
    uri: str, run_id: str, folder: Path, *, example: NDArray[np.uint8], register: str | None
) -> Registered:
    """Log the model in `folder` to a run, as a pyfunc model, and register it as `register` if that is given.

    What was logged before is found again: a second call with the same contents makes neither a second model
    nor a second version, and one that follows a failure goes on from there.

    Args:
        uri: the tracking store, which is the registry as well.
        run_id: the run that the model belongs to.
        folder: as `tune_fusion.training.saved_model.save_model` writes it.
        example: some images, uint8 [N, H, W, C].
        register: name of the registered model; None: it is only logged.

    Raises:
        InputError: a name that MLflow does not take.
        TuneFusionError: the store cannot be reached or refuses; passwords are not shown.
    """
    if register is not None:
        check_name(register)
    with _explained(uri, run_id), reading(uri) as client, warnings.catch_warnings(record=True):
        if client is None:
            raise FileNotFoundError("there is no such file")
        model_id = _logged(client, run_id, folder, example)
        if register is None:
            return Registered(f"models:/{model_id}", model_id)
        number = _registered(client, register, run_id, model_id)
    return Registered(f"models:/{register}/{number}", model_id, register, number)


@contextmanager
def _explained(uri: str, run_id: str) -> Iterator[None]:
    """Whatever MLflow and its libraries raise becomes one message that can be acted on."""
    try:
        yield
    except TuneFusionError:
        raise
    except Exception as error:  # noqa: BLE001  (the libraries below MLflow have no base class for theirs)
        reason = redact(" ".join(str(error).split()), uri)
        # The error itself may hold a password: it is not shown as the cause.
        raise TuneFusionError(
            f"MLflow at {redact(uri)!r} did not take the model of run {run_id}: {reason:.500}; the model's "
            "folder is complete: see to the store and run the same command again"
        ) from None


def _logged(client: MlflowClient, run_id: str, folder: Path, example: NDArray[np.uint8]) -> str:
    """The id of the run's logged model with the contents of `folder`, which is made where it is missing."""
    experiment = client.get_run(run_id).info.experiment_id
    digest = _digest(folder)
    for known in _models_of(client, experiment, run_id):
        if known.tags.get(_DIGEST_TAG) != digest:
            continue
        if str(known.status) == "READY":
            return str(known.model_id)
        client.delete_logged_model(known.model_id)  # whoever made it died before it was complete
    made = client.create_logged_model(experiment, _NAME, run_id, tags={_DIGEST_TAG: digest})
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary, _NAME)
        _write_mlflow_model(local, folder, run_id, str(made.model_id), example)
        client.log_model_artifacts(made.model_id, str(local))
    _link(client, run_id, str(made.model_id))
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _models_of(client: MlflowClient, experiment: str, run_id: str) -> list[LoggedModel]:
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))


def _link(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Show the model on the run's page."""
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _write_mlflow_model(
    target: Path, folder: Path, run_id: str, model_id: str, example: NDArray[np.uint8]
) -> None:
    """Write `folder` in MLflow's own format to `target`."""
    import mlflow.pyfunc
    from mlflow.models import Model

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(_CODE),
        artifacts={_NAME: str(folder.absolute())},
        signature=model_signature(config["channels"], len(config["classes"])),
        input_example=example,
        pip_requirements=_requirements(),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )


def _requirements() -> list[str]:
    """What loading the model needs, in the versions of this process but for local builds such as ``+cpu``."""
    pinned = [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]
    return [f"tune_fusion=={version('tune_fusion')}", *pinned]


def _registered(client: MlflowClient, name: str, run_id: str, model_id: str) -> str:
    """The number of the version of `name` that is the logged model; it is made where it is missing."""
    from mlflow.exceptions import MlflowException

    model = client.get_logged_model(model_id)
    # Not "models:/ID": that MLflow would look up in the store that is set for the whole process.
    source = model.artifact_location
    for known in client.search_model_versions(f"run_id = '{run_id}'"):
        # Its id of the logged model does not come through a server.
        if known.name == name and known.source == source:
            return str(known.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(name, source, run_id, model_id=model_id)
    versions = json.loads(model.tags.get(_VERSIONS_TAG, "[]"))
    versions.append({"name": name, "version": made.version})
    client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps(versions)})
    return str(made.version)


def _digest(folder: Path) -> str:
    """Stands for the contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()
