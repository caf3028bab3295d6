"""What goes into a model and what comes out of it, as MLflow writes it down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def signature_json(
    input_example: NDArray[np.floating[Any]], output_example: NDArray[np.floating[Any]]
) -> str:
    """The model's signature as the text of a JSON file. Imports MLflow, which takes seconds.

    Args:
        input_example: images as the model is given them: float, (batch, channels, height, width).
        output_example: what the model answers to them: float, (batch, classes).
    """
    from mlflow.models import infer_signature

    signature = infer_signature(input_example, output_example)
    return json.dumps(signature.to_dict(), indent=2) + "\n"
