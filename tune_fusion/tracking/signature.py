"""What goes into a model and what comes out of it, as MLflow writes it down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tune_fusion.tracking.imports import load_mlflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def model_signature(channels: int, classes: int) -> ModelSignature:
    """Images as bytes, (images, height, width, channels), in; float32 probabilities, (images, classes), out.

    Height and width are left open: the model itself brings images to its size. Imports MLflow, which takes
    seconds.
    """
    import numpy as np

    load_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )


def signature_json(channels: int, classes: int) -> str:
    """`model_signature` as the text of a JSON file."""
    return json.dumps(model_signature(channels, classes).to_dict(), indent=2) + "\n"
