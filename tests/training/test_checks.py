import pickle
import re

import pytest
import torch

from tune_fusion.errors import InputError
from tune_fusion.training import checks
from tune_fusion.training.checks import check_provided, check_space, prove

TEXT = """\
model: {name: MODEL}
data: {name: DATA, limit: 200}
space:
  switch_layer: SWITCH
  low: [adam]
  high: [sgd]
"""


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNE_FUSION_DATA", raising=False)


@pytest.fixture
def check(tmp_path):
    def run(*overrides, model="lenet5", data="digits", switch="1", **options):
        path = tmp_path / "space.yaml"
        path.write_text(TEXT.replace("MODEL", model).replace("DATA", data).replace("SWITCH", switch))
        return check_space(str(path), overrides, **options)

    return run


def test_a_space_that_fits(check):
    checked = check(switch="[conv1, fc1]")
    assert checked.layer_names == ["conv1", "conv2", "fc1", "fc2", "head"]
    assert [layer.index for layer in checked.layers] == [0, 1, 2, 3, 4]
    assert checked.space.switch_layer.values == (0, 2)
    assert (checked.data.name, len(checked.data.classes), checked.data.channels) == ("digits", 10, 1)
    assert "hn_adam" in checked.vocabulary.optimizers
    assert pickle.loads(pickle.dumps(checked.space)) == checked.space  # noqa: S301  (made a line ago)


def test_the_model_is_built_for_the_data(check, image_folder):
    grey = check(model="test_efficientnet", switch="0")
    colour = check(model="test_efficientnet", data=f"folder:{image_folder(classes=3, images=20)}", switch="0")

    def count(checked):
        return sum(layer.count for layer in checked.layers)

    # Two more colours in the first convolution, seven classes fewer in the head.
    assert colour.layers[0].count > grey.layers[0].count
    assert colour.layers[-1].count < grey.layers[-1].count
    assert count(colour) != count(grey)


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"switch": "9"}, (), r"space\.yaml:4: space\.switch_layer: .* must lie in 0\.\.3"),
        ({"model": "lenet6"}, (), r"space\.yaml:1: model\.name: .*'lenet5'"),
        ({"data": "digitz"}, (), r"space\.yaml:2: data\.name: .*'digits'"),
        ({"data": "folder:nowhere"}, (), r"space\.yaml:2: data\.name: .*nowhere"),
        # The message of another module starts with the key it means: the place is that key's.
        ({}, ("data.validation=9000",), r"--set data\.validation: .*9000"),
        ({}, ("data.image_size=20",), r"--set data\.image_size: .*20"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(check, changes, overrides, message):
    with pytest.raises(InputError, match=message) as refused:
        check(*overrides, **changes)
    # The key is named once, not by the place and again by the message.
    key = re.search(r"(\w+\.\w+): ", str(refused.value).split(" ", 1)[1])[1]
    assert str(refused.value).count(f"{key}: ") == 1


def test_a_rehearsal_takes_a_small_model_of_the_family_and_digits(check):
    checked = check(
        "model.pretrained=true", model="tf_efficientnetv2_s.in1k", data="cifar10", switch="3", stand_in=True
    )
    assert checked.space.model.name == "test_efficientnet"
    assert checked.data.name == "digits"
    assert sum(layer.count for layer in checked.layers) < 1_000_000
    assert 0 <= checked.space.switch_layer.value < len(checked.layers) - 1


def test_weights_that_are_not_there_are_found_before_a_search(check):
    checked = check("model.weights=none.pth")
    with pytest.raises(InputError, match=r"^--set model\.weights: .*none\.pth"):
        check_provided(checked)
    with pytest.raises(InputError, match=r"^--set model\.weights: .*none\.pth"):
        prove(checked, torch.device("cpu"))


def test_data_out_of_reach_are_found_before_a_search(check, monkeypatch):
    def missing(settings):
        raise InputError("put these files there")

    monkeypatch.setattr(checks.datasets, "check_provided", missing)
    with pytest.raises(InputError, match=r"^space\.yaml:2: data\.name: put these files there$"):
        check_provided(check(data="cifar10"))


def test_a_proven_space_has_read_its_images_and_built_its_model(check):
    bench = prove(check(), torch.device("cpu"))
    assert {"data", "model"} <= bench.__dict__.keys()
    assert len(bench.data.train.labels) == 200
    assert sum(p.numel() for p in bench.model.parameters()) == 81_194


def test_a_damaged_image_is_found_by_the_proof(check, image_folder):
    root = image_folder(classes=2, images=20)
    damaged = root / "class1" / "7.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    checked = check("data.limit=null", model="test_efficientnet", data=f"folder:{root}", switch="0")
    with pytest.raises(InputError, match=r"^space\.yaml:2: data\.name: (?s:.*)class1/7\.png"):
        prove(checked, torch.device("cpu"))
