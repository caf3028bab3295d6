import json

import pytest

from tune_fusion.errors import InputError
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.configuration_file import read_configuration

LAYERS = ["conv1", "conv2", "fc1", "fc2"]
ADAM = {"optimizer": "adam", "lr": 0.002}
SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}


@pytest.fixture
def read(tmp_path, parse, vocabulary):
    """Reads a configuration from a file that holds `content`: text, bytes or what JSON makes of it."""
    path = tmp_path / "one.json"

    def run(content, *overrides):
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
        return read_configuration(path, parse(*overrides), vocabulary, LAYERS)

    return run


@pytest.fixture
def refused(read, tmp_path):
    """The message with which the content is refused, without the file's path it starts with."""

    def run(content, *overrides):
        with pytest.raises(InputError) as caught:
            read(content, *overrides)
        place, message = str(caught.value).split(".json: ", 1)
        assert place == str(tmp_path / "one")
        return message

    return run


def test_a_fusion(read):
    found = read({"switch_layer": 1, "low": {**ADAM, "betas": [0.8, 0.9]}, "high": SGD})
    assert found.switch_layer == 1
    assert found.low == OptimizerChoice("adam", {"lr": 0.002, "betas": (0.8, 0.9)})
    assert found.high == OptimizerChoice("sgd", {"lr": 0.1, "momentum": 0.9})


def test_a_layer_may_be_named(read):
    assert read({"switch_layer": "fc1", "low": ADAM, "high": SGD}).switch_layer == 2


@pytest.mark.parametrize("given", [{}, {"switch_layer": "all"}, {"switch_layer": "all", "high": None}])
def test_one_optimizer_for_every_layer(read, given):
    found = read({**given, "low": ADAM})
    assert (found.switch_layer, found.high) == (ALL, None)


def test_training_comes_from_the_space_and_then_from_the_file(read):
    training = read({"low": ADAM}).training
    assert (training.epochs, training.batch_size) == (4, 64)
    training = read({"low": ADAM, "training": {"epochs": 7}}).training
    assert (training.epochs, training.batch_size) == (7, 64)


def test_training_that_the_space_searches_must_be_given(read, refused):
    searched = "training.batch_size={choice: [32, 64]}"
    assert refused({"low": ADAM}, searched) == (
        "training.batch_size: the space searches it, so the configuration must give it"
    )
    # Any sound value will do: the file is not bound to what the search would try.
    assert read({"low": ADAM, "training": {"batch_size": 48}}, searched).training.batch_size == 48


def test_a_result_stands_for_its_best_configuration(read):
    best = Configuration(2, OptimizerChoice("adam", {"lr": 0.5}), OptimizerChoice("sgd"))
    content = {"status": "completed", "best": {"trial": 3, "configuration": best.to_dict()}, "counts": {}}
    assert read(content) == best


@pytest.mark.parametrize("number", [3, 0.5])
def test_whole_and_fractional_numbers_do_for_a_rate(read, number):
    assert read({"low": {"optimizer": "adam", "lr": number}}).low.settings["lr"] == number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{'low': 1}", "not a JSON file: Expecting property name"),
        ("", "not a JSON file: Expecting value"),
        (b"\xff\xfe", "not a JSON file: "),
        ([ADAM], "a configuration is an object with the keys switch_layer, low, high, training, got [{"),
        ("null", "a configuration is an object"),
        ({"low": ADAM, "hihg": SGD}, "unknown key 'hihg'; did you mean 'high'?"),
        ({}, 'low: needs an object such as {"optimizer": "adam", "lr": 0.001}, got None'),
        ({"low": "adam"}, "low: needs an object such as"),
        ({"low": {"lr": 1}}, "low: needs an object such as"),
        ({"low": {"optimizer": ["adam"]}}, "low: needs an object such as"),
        ({"low": {"optimizer": "adan"}}, "low.optimizer: unknown optimizer 'adan'; did you mean 'adam'?"),
        (
            {"low": {"optimizer": "adam", "beta": 1}},
            "low.beta: adam has no hyperparameter 'beta'; did you mean 'betas'?",
        ),
        ({"low": {"optimizer": "adam", "lr": 0}}, "low.lr: needs 0 < lr, got 0"),
        ({"low": {"optimizer": "adam", "lr": "1e-3"}}, "low.lr: needs 0 < lr, got '1e-3'"),
        ({"low": {"optimizer": "adam", "lr": True}}, "low.lr: needs 0 < lr, got True"),
        ('{"low": {"optimizer": "adam", "lr": NaN}}', "low.lr: needs 0 < lr, got nan"),
        ('{"low": {"optimizer": "adam", "lr": 1e999}}', "low.lr: needs 0 < lr, got inf"),
        (
            {"low": {"optimizer": "adam", "betas": [0.9]}},
            "low.betas: needs two numbers in [0, 1), got [0.9]",
        ),
        (
            {"low": {"optimizer": "hn_adam", "lambda0": 5}},
            "low.lambda0: needs 2 <= lambda0 <= 4, got 5",
        ),
        (
            {"switch_layer": 1, "low": ADAM, "high": {"optimizer": "sgd", "momentum": 1}},
            "high.momentum: needs 0 <= momentum < 1, got 1",
        ),
        ({"switch_layer": 1, "low": ADAM}, "high: needs an object such as"),
        (
            {"low": ADAM, "high": SGD},
            "high: switch_layer 'all' leaves no layer for a high optimizer; remove 'high'",
        ),
        (
            {"switch_layer": 3, "low": ADAM, "high": SGD},
            "switch_layer: switch layer 3 must lie in 0..2 (conv1 to fc1) or be 'all'",
        ),
        ({"switch_layer": -1, "low": ADAM, "high": SGD}, "switch_layer: switch layer -1 must lie in 0..2"),
        (
            {"switch_layer": "conv3", "low": ADAM},
            "switch_layer: the model has no layer 'conv3'; did you mean",
        ),
        ({"low": ADAM, "training": {"epoch": 3}}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ({"low": ADAM, "training": {"epochs": 0}}, "training.epochs: needs a whole number >= 1, got 0"),
        ({"low": ADAM, "training": {"epochs": 2.5}}, "training.epochs: needs a whole number >= 1, got 2.5"),
        (
            {"low": ADAM, "training": {"precision": "float8"}},
            "training.precision: needs one of float32, bfloat16, float16, got 'float8'",
        ),
    ],
)
def test_mistakes(refused, content, message):
    assert refused(content).startswith(message)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "folder"])
def test_a_file_that_cannot_be_read(tmp_path, parse, vocabulary, make):
    path = tmp_path / "one.json"
    make(path)
    with pytest.raises(InputError, match=f"{path}: cannot read the configuration: "):
        read_configuration(path, parse(), vocabulary, LAYERS)
