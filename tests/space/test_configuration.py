import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.settings import TrainingSettings

STEADY = settings(derandomize=True, deadline=None, max_examples=80)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = (
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=5) | st.tuples(NUMBERS, NUMBERS)
)
CHOICES = st.builds(
    OptimizerChoice,
    st.sampled_from(["adam", "sgd", "hn_adam"]),
    st.dictionaries(st.sampled_from(["lr", "betas", "momentum", "nesterov", "mode"]), VALUES),
)
TRAINING = st.builds(
    TrainingSettings,
    epochs=st.integers(1, 99),
    precision=st.sampled_from(["float32", "bfloat16"]),
    clip_norm=st.none() | st.floats(0.1, 9),
    compile=st.booleans(),
)
CONFIGURATIONS = st.builds(Configuration, st.just(ALL), CHOICES, st.none(), TRAINING) | st.builds(
    Configuration, st.integers(0, 30), CHOICES, CHOICES, TRAINING
)


@STEADY
@given(CONFIGURATIONS)
def test_a_configuration_survives_json(configuration):
    text = json.dumps(configuration.to_dict(), allow_nan=False)
    assert Configuration.from_dict(json.loads(text)) == configuration


@STEADY
@given(CONFIGURATIONS)
def test_a_configuration_survives_the_way_to_a_worker(configuration):
    assert pickle.loads(pickle.dumps(configuration)) == configuration  # noqa: S301  (made a line ago)


@STEADY
@given(CONFIGURATIONS)
def test_flat_names_every_value_once(configuration):
    flat = configuration.flat()
    assert flat["switch_layer"] == configuration.switch_layer
    halves = {"low": configuration.low, "high": configuration.high}
    for half, choice in halves.items():
        of_half = {key: value for key, value in flat.items() if key.startswith(f"{half}.")}
        if choice is None:
            assert of_half == {}
        else:
            expected = {f"{half}.{key}": value for key, value in choice.settings.items()}
            assert of_half == {f"{half}.optimizer": choice.name, **expected}
    training = configuration.training.model_dump()
    assert {key: flat[f"training.{key}"] for key in training} == training
    assert len(flat) == 1 + len(training) + sum(1 + len(c.settings) for c in halves.values() if c is not None)


def test_written_out():
    configuration = Configuration(
        2,
        OptimizerChoice("adam", {"lr": 1e-3, "betas": (0.9, 0.99)}),
        OptimizerChoice("sgd"),
        TrainingSettings(epochs=3),
    )
    written = configuration.to_dict()
    assert written["low"] == {"optimizer": "adam", "lr": 1e-3, "betas": [0.9, 0.99]}
    assert written["high"] == {"optimizer": "sgd"}
    assert written["training"]["epochs"] == 3
    assert list(configuration.flat())[:5] == [
        "switch_layer",
        "low.optimizer",
        "low.lr",
        "low.betas",
        "high.optimizer",
    ]


def test_what_is_left_out_has_its_default():
    read = Configuration.from_dict({"switch_layer": "all", "low": {"optimizer": "adam"}})
    assert read == Configuration(ALL, OptimizerChoice("adam"), None, TrainingSettings())


def test_reading_does_not_change_what_was_given():
    written = {"switch_layer": 0, "low": {"optimizer": "adam"}, "high": {"optimizer": "sgd", "lr": 1.0}}
    before = json.dumps(written)
    Configuration.from_dict(written)
    assert json.dumps(written) == before


@pytest.mark.parametrize("training", [{"epochs": 0}, {"epochs": 2.0}, {"epoch": 2}, {"precision": "float8"}])
def test_training_that_breaks_a_rule_is_refused(training):
    with pytest.raises(ValidationError):
        Configuration.from_dict({"switch_layer": "all", "low": {"optimizer": "adam"}, "training": training})
