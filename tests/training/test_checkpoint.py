import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tune_fusion.training.checkpoint import save_weights, weights_of


def test_weights_come_back_with_their_bits(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "deep" / "w.safetensors"
    save_weights(weights_of(model), path)
    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_tied_weights_are_written_under_both_names(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    save_weights(weights_of(model), tmp_path / "w")
    assert {"a.weight", "b.weight"} <= load_file(tmp_path / "w").keys()


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "w"
    save_weights({"x": torch.ones(2)}, path)
    with pytest.raises(Exception, match=r"(?i)sparse|support|strided|contiguous|layout"):
        save_weights({"x": torch.ones(2).to_sparse()}, path)
    assert torch.equal(load_file(path)["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
