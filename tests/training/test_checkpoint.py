import os
import shutil
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_disk import small_disk
from torch import nn

from tune_fusion.training.checkpoint import newest_checkpoint, save_checkpoint, save_weights, weights_of
from tune_fusion.training.files import DiskFullError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def always(state):
    return True


def save(folder, *epochs, **more):
    for epoch in epochs:
        save_checkpoint(folder, epoch, {"epoch": epoch, "x": torch.full((300,), float(epoch)), **more})


def test_weights_come_back_with_their_bits(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "deep" / "w.safetensors"
    save_weights(weights_of(model), path)
    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())
    assert names(path.parent) == ["w.safetensors"]


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
    assert names(tmp_path) == ["w"]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {
        "model": OrderedDict(weight=torch.tensor([float("nan"), -0.0]), count=torch.tensor(3)),
        "groups": [{"betas": (0.9, 0.99), "lr": 0.1, "name": "adam", "foreach": None, "amsgrad": False}],
        "half": torch.ones(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
    }
    save_checkpoint(tmp_path / "deep" / "0003", 1, state)
    loaded = newest_checkpoint(tmp_path / "deep" / "0003", always)
    assert loaded["groups"] == state["groups"]
    assert loaded["model"]["weight"].view(torch.int32).equal(state["model"]["weight"].view(torch.int32))
    assert loaded["model"]["count"].equal(torch.tensor(3))
    assert loaded["half"].equal(state["half"])
    assert loaded["half"].stride() == state["half"].stride()
    assert names(tmp_path / "deep" / "0003") == ["epoch-0001.pt"]


def test_where_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere", always) is None
    (tmp_path / "epoch-one.pt").write_bytes(b"something else")
    assert newest_checkpoint(tmp_path, always) is None


def test_the_newest_two_stay_and_the_newest_is_found(tmp_path):
    save(tmp_path, 1)
    assert names(tmp_path) == ["epoch-0001.pt"]
    save(tmp_path, 2, 3, 4)
    assert names(tmp_path) == ["epoch-0003.pt", "epoch-0004.pt"]
    assert newest_checkpoint(tmp_path, always)["epoch"] == 4
    save(tmp_path, 9_999, 10_000)
    assert names(tmp_path) == ["epoch-10000.pt", "epoch-9999.pt"]
    assert newest_checkpoint(tmp_path, always)["epoch"] == 10_000


def test_the_older_one_serves_where_the_newest_is_not_usable(tmp_path):
    save(tmp_path, 1, 2)
    assert newest_checkpoint(tmp_path, lambda state: state["epoch"] < 2)["epoch"] == 1
    assert newest_checkpoint(tmp_path, lambda state: False) is None


def test_a_trial_that_takes_a_folder_over_keeps_its_own_checkpoints(tmp_path):
    save(tmp_path, 8, 9, of="another")
    save(tmp_path, 1, of="ours")
    assert newest_checkpoint(tmp_path, lambda state: state["of"] == "ours")["epoch"] == 1
    assert names(tmp_path) == ["epoch-0001.pt"]


def test_no_damage_to_a_checkpoint_goes_unnoticed(tmp_path):
    save(tmp_path, 1, 2)
    path = tmp_path / "epoch-0002.pt"
    whole = path.read_bytes()
    expected = newest_checkpoint(tmp_path, always)
    fallen_back = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        state = newest_checkpoint(tmp_path, always)
        if state["epoch"] == 1:
            fallen_back += 1
        else:  # The space between the tensors means nothing.
            assert state.keys() == expected.keys()
            assert torch.equal(state["x"], expected["x"])
    # 1,200 bytes are the tensor's.
    assert fallen_back > 1200 // 7
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert newest_checkpoint(tmp_path, always)["epoch"] == 1


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    save(tmp_path, 1)
    torch.save({"epoch": 2, "trap": Trap()}, tmp_path / "epoch-0002.pt")
    assert newest_checkpoint(tmp_path, always)["epoch"] == 1
    assert not (tmp_path / "sprung").exists()


def test_parts_that_a_dead_writer_left_are_cleared_and_those_of_a_living_one_are_not(tmp_path):
    for name, age in ((".epoch-0001.pt.here.17", 3600), (".epoch-0001.pt.there.18", 5)):
        (tmp_path / name).write_bytes(b"part")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save(tmp_path, 1)
    assert names(tmp_path) == [".epoch-0001.pt.there.18", "epoch-0001.pt"]


def test_files_may_vanish_at_any_moment(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    real = Path.unlink

    def unlink(path, **options):
        if path.name == "epoch-0001.pt":
            shutil.rmtree(tmp_path)
        real(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    save(tmp_path, 3)
    assert not tmp_path.exists()


def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_part(tmp_path):
    with small_disk(tmp_path / "disk", 1024) as disk:
        save(disk / "0000", 1, 2)
        before = names(disk / "0000")
        big = {"x": torch.zeros(2**19), "epoch": 3}
        with pytest.raises(DiskFullError, match=r"epoch-0003\.pt needs 2\.0 MiB, \d\.\d MiB are free$"):
            save_checkpoint(disk / "0000", 3, big)
        assert names(disk / "0000") == before
        assert newest_checkpoint(disk / "0000", always)["epoch"] == 2
        with pytest.raises(DiskFullError, match=r"w\.safetensors needs 2\.0 MiB"):
            save_weights({"x": big["x"]}, disk / "w.safetensors")
        assert names(disk) == ["0000"]
