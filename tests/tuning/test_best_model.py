import json

import pytest
import torch

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.runs import RunFolder
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.saved_model import load_model
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.best_files import best_model
from tune_fusion.tuning.best_model import write_model, write_retrained


@pytest.fixture(scope="module")
def bench():
    return Workbench(ModelSettings(name="lenet5"), DataSettings(name="digits"), 0, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def make_record(*values):
    """A search with one trial for each list of accuracies by epoch."""
    record = SearchRecord("run", "digits", "val_accuracy", "max", len(values), 0.0)
    for number, epochs in enumerate(values):
        # A tuple, as Python holds it, and a list, as JSON does.
        adam = OptimizerChoice("adam", {"betas": (0.9, 0.99)})
        record.trials.append(
            TrialRecord(
                number=number,
                arm="fusion",
                origin="sampled",
                configuration=Configuration(ALL, adam, None, TrainingSettings()).to_dict(),
                parameters={},
                switch_layer_name="all",
                single=True,
                max_epochs=3,
                started=0.0,
                state=TrialState.COMPLETED,
                epochs=[
                    {"val_accuracy": value, "val_loss": 1 - value, "train_seconds": 3.0} for value in epochs
                ],
            )
        )
    return record


def both(record):
    return record, record.best()


def test_the_best_trials_model_is_that_of_its_best_epoch(bench, folder):
    record = make_record([0.1, 0.2], [0.3, 0.6, 0.5])
    save_weights(weights_of(bench.model), folder.weights(1))
    best = write_model(folder, bench, *both(record))
    assert best.trial == 1
    names = ["config.json", "layers.json", "signature.json", "weights.safetensors"]
    assert [path.name for path in best.files] == names
    assert best == best_model(folder, record.best())
    trained_on = load_model(folder.model).config.trained_on
    assert (trained_on.epoch, trained_on.part, trained_on.seed) == (2, "training", 0)
    assert trained_on.metrics == {"val_accuracy": 0.6, "val_loss": 0.4}
    config = json.loads((folder.model / "config.json").read_text())
    assert config["configuration"] == json.loads(json.dumps(record.trials[1].configuration))


def test_a_better_model_takes_the_place_of_the_one_before(bench, folder):
    record = make_record([0.1], [0.3])
    for number in (0, 1):
        weights = {name: value + number for name, value in weights_of(bench.model).items()}
        save_weights(weights, folder.weights(number))
    record.trials.pop()
    write_model(folder, bench, *both(record))
    record = make_record([0.1], [0.3])
    write_model(folder, bench, *both(record))
    loaded = load_model(folder.model, "cpu")
    for name, value in weights_of(bench.model).items():
        assert torch.equal(loaded.model.state_dict()[name], value + 1)


@pytest.mark.parametrize("values", [[], [[0.1]]], ids=["no trial", "no weights"])
def test_without_weights_there_is_no_model(bench, folder, values):
    assert write_model(folder, bench, *both(make_record(*values))) is None
    assert not folder.model.exists()


def test_a_retrained_model_says_what_it_was_trained_on(bench, folder, tmp_path):
    record = make_record([0.3, 0.6, 0.5])
    weights = tmp_path / "retrained.safetensors"
    save_weights(weights_of(bench.model), weights)
    assert write_retrained(folder, bench, record.trials[0], 3, weights).trial == 0
    trained_on = load_model(folder.model).config.trained_on
    assert (trained_on.epoch, trained_on.part, trained_on.metrics) == (3, "training and validation", {})
