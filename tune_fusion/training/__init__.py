"""The training loop: no Ray and no MLflow in it."""
