from __future__ import annotations

import json

import numpy as np

from tune_fusion.tracking.signature import signature_json


def test_a_signature_has_shapes_and_types() -> None:
    text = signature_json(np.zeros((2, 1, 8, 8), np.float32), np.zeros((2, 10), np.float32))
    signature = json.loads(text)
    (images,), (logits,) = json.loads(signature["inputs"]), json.loads(signature["outputs"])
    assert images["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert logits["tensor-spec"] == {"dtype": "float32", "shape": [-1, 10]}
    assert text.endswith("}\n")
