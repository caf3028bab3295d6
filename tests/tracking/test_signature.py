from __future__ import annotations

import json

from tune_fusion.tracking.signature import signature_json


def test_images_of_any_size_go_in_and_probabilities_come_out() -> None:
    text = signature_json(channels=3, classes=10)
    signature = json.loads(text)
    (images,), (answers,) = json.loads(signature["inputs"]), json.loads(signature["outputs"])
    assert images["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 3]}
    assert answers["tensor-spec"] == {"dtype": "float32", "shape": [-1, 10]}
    assert text.endswith("}\n")
