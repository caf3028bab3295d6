"""MLflow's import, which several threads must not do at once."""

from __future__ import annotations

import threading

_ALONE = threading.Lock()


def load_mlflow() -> None:
    """Import the parts of MLflow that this package uses; takes seconds the first time.

    Its modules import each other in circles: two threads that begin at different places may both meet
    modules that are only half there.
    """
    with _ALONE:
        import mlflow.entities
        import mlflow.models
        import mlflow.pyfunc
        import mlflow.tracking  # noqa: F401
