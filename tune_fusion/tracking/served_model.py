"""The code that MLflow keeps beside a logged model and runs to load it (its "models from code").

Nothing imports this file: `registry.log_model` names it to MLflow, which copies it.
"""

from __future__ import annotations

import warnings
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel

MODEL = "model"
"""Under this name the folder for `tune_fusion.load_model` is an artifact of the logged model."""

# MLflow warns of `predict` with type hints and without, past every filter: it would describe the input by
# them, which the signature does.
with warnings.catch_warnings(record=True):

    class ServedModel(PythonModel):
        """Classifies images: uint8 [N, H, W, C] in, float32 probabilities [N, classes] out."""

        def load_context(self, context: Any) -> None:
            """Load the folder that lies beside this file."""
            import tune_fusion

            self._model = tune_fusion.load_model(context.artifacts[MODEL])

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            """The probability of each class for each image."""
            return self._model.classify(model_input)


mlflow.models.set_model(ServedModel())
