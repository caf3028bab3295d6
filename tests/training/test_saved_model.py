import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tune_fusion
from tune_fusion.errors import InputError
from tune_fusion.folders import CACHE_VARIABLE
from tune_fusion.models.layers import layer_map
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.saved_model import load_model, save_model
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench

CPU = torch.device("cpu")
FILES = {"weights.safetensors", "config.json", "layers.json", "signature.json"}
CONFIGURATION = Configuration(
    1, OptimizerChoice("adam", {}), OptimizerChoice("sgd", {"lr": 0.01}), TrainingSettings(epochs=1)
)


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(model="lenet5", epochs=1, **data):
    """A workbench whose model has been trained a little, so that its running statistics have moved."""
    settings = DataSettings(**({"name": "digits", "limit": 200} | data))
    trainer = Trainer(Workbench(ModelSettings(name=model), settings, 3, CPU), CONFIGURATION)
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer.bench


def save(bench, folder, **more):
    weights = folder.parent / "w.safetensors"
    save_weights(weights_of(bench.model), weights)
    values = {
        "configuration": CONFIGURATION.to_dict(),
        "epoch": 1,
        "metrics": {"val_accuracy": 0.5},
        "signature": "{}\n",
    }
    save_model(folder, bench, weights, **(values | more))
    return folder


@pytest.fixture
def bench():
    return trained()


@pytest.fixture
def folder(bench, tmp_path):
    return save(bench, tmp_path / "model")


def validation_logits(bench):
    """As `Evaluator.measure` computes them in the trainer's validation pass."""
    bench.model.eval()
    batches = bench.validation_batches(CONFIGURATION.training).epoch(1)
    with torch.inference_mode():
        return torch.cat([bench.model(images) for images, _ in batches])


def stored(split):
    """The images of a split as `classify` takes them: uint8 [N, H, W, C]."""
    return split.take(torch.arange(len(split))).permute(0, 2, 3, 1).numpy()


def test_the_folder_tells_what_the_model_is_and_where_it_comes_from(bench, folder):
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 1
    assert config["model"]["name"] == "lenet5"
    assert config["classes"] == [str(digit) for digit in range(10)]
    assert (config["channels"], config["image_size"], config["stored_size"]) == (1, 32, [8, 8])
    assert Configuration.from_dict(config["configuration"]) == CONFIGURATION
    assert config["trained_on"] == {
        "data": "digits",
        "fingerprint": bench.data.fingerprint,
        "part": "training",
        "seed": 3,
        "epoch": 1,
        "metrics": {"val_accuracy": 0.5},
    }
    layers = json.loads((folder / "layers.json").read_text())
    assert [layer["name"] for layer in layers] == [layer.name for layer in layer_map(bench.model)]
    assert [layer["parameters"] for layer in layers] == [layer.count for layer in layer_map(bench.model)]


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("lenet5", {}),
        ("alexnet_cifar", {"image_size": 32}),
        ("test_efficientnet", {"image_size": 24, "mean": [0.2], "std": [0.4]}),
    ],
)
def test_logits_are_those_of_the_trainers_validation_pass_bit_for_bit(tmp_path, model, data):
    bench = trained(model, **data)
    expected = validation_logits(bench)
    loaded = load_model(save(bench, tmp_path / "model"), CPU)
    images = stored(bench.data.validation)
    batch = CONFIGURATION.training.batch_size
    assert torch.equal(torch.cat(list(loaded.logits(images, batch))), expected)
    probabilities = loaded.classify(images, batch)
    assert np.array_equal(probabilities, expected.softmax(dim=1).numpy())
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (len(images), 10))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("side", [16, 90], ids=["kept in their size", "fitted"])
def test_image_files_are_read_as_training_reads_them(tmp_path, image_folder, side):
    root = image_folder(classes=2, images=20, side=side)
    Image.open(root / "class0/0.png").resize((side, side + (side == 90))).save(root / "class0/0.png")
    bench = trained("test_efficientnet", name=f"folder:{root}", image_size=32, limit=None)
    assert bench.stored_size == ((16, 16) if side == 16 else (37, 37))
    loaded = load_model(save(bench, tmp_path / "model"), CPU)
    paths = [root / name for name in sorted(f"class{c}/{n}.png" for c in range(2) for n in range(20))]
    read = {loaded.read(path).tobytes() for path in paths}
    seen = {image.tobytes() for part in (bench.data.train, bench.data.validation) for image in stored(part)}
    assert len(seen) == 36
    assert seen < read
    by_path = loaded.classify(np.stack([loaded.read(path) for path in paths]))
    assert np.array_equal(loaded.classify([Image.open(path) for path in paths]), by_path)


def test_pictures_of_any_size_and_mode_are_classified(folder):
    loaded = load_model(folder, CPU)
    grey = Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8), (30, 1)))
    answers = loaded.classify([grey, grey.convert("RGB"), grey.convert("RGBA"), grey.resize((60, 60))])
    assert answers.shape == (4, 10)
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])
    array = np.asarray(grey)[None, :, :, None]
    assert np.allclose(loaded.classify(array)[0], answers[0], atol=1e-6)


def test_no_images_have_no_probabilities(folder):
    loaded = load_model(folder, CPU)
    assert loaded.classify([]).shape == (0, 10)
    assert loaded.classify(np.empty((0, 8, 8, 1), np.uint8)).shape == (0, 10)


def test_the_batch_size_does_not_matter(bench, folder):
    loaded = load_model(folder, CPU)
    images = stored(bench.data.validation)
    assert np.allclose(loaded.classify(images, 3), loaded.classify(images), atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((8, 8, 1), np.uint8),
    ],
)
def test_arrays_of_another_form_are_refused(folder, images):
    with pytest.raises(InputError, match=r"images must be uint8 \[N, H, W, 1\], got (uint8|float32) \["):
        load_model(folder, CPU).classify(images)


def test_loading_leaves_the_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(folder)
    assert torch.equal(torch.rand(3), expected)


def test_a_pretrained_model_loads_without_its_first_weights(tmp_path):
    bench = trained("test_efficientnet", image_size=32)
    folder = save(bench, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"pretrained": True, "weights": "/gone.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(folder, CPU)
    assert torch.equal(loaded.model.conv_stem.weight, bench.model.conv_stem.weight)


def test_saving_replaces_the_whole_folder(bench, folder):
    (folder / "left over").touch()
    save(bench, folder, epoch=4, whole=True)
    assert {path.name for path in folder.iterdir()} == FILES
    trained_on = load_model(folder, CPU).config.trained_on
    assert (trained_on.epoch, trained_on.part) == (4, "training and validation")
    assert [path.name for path in folder.parent.glob(".*")] == []


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"is no model's folder: {name} cannot be read"):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        load_model(tmp_path / "nowhere")


def _config(change):
    def apply(folder):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def _cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _other_weights(folder):
    weights = load_file(folder / "weights.safetensors")
    first = next(iter(weights))
    weights[first] = weights[first][:1].clone()
    (folder / "weights.safetensors").unlink()
    save_file(weights, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_config(lambda c: c.update(format=2)), "its format is 2, this version of tune_fusion reads 1"),
        (_config(lambda c: c.pop("format")), "its format is None"),
        (_config(lambda c: c.update(stored_size=[8])), "config.json is damaged: stored_size"),
        (_config(lambda c: c.pop("classes")), "config.json is damaged: classes: Field required"),
        (_config(lambda c: c["model"].update(name="lenet7")), "there is no model 'lenet7'"),
        (_config(lambda c: c.update(classes=["a", "b"])), "does not fit lenet5 as config.json describes it"),
        (_cut("config.json", 40), "config.json is damaged"),
        (_cut("weights.safetensors", 900), "weights.safetensors is damaged"),
        (_other_weights, "weights.safetensors does not fit lenet5 .* size mismatch"),
    ],
)
def test_what_cannot_be_loaded_is_said(folder, harm, message):
    harm(folder)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_the_package_loads_a_model_in_one_line_without_data_and_network(bench, folder, tmp_path):
    images = stored(bench.data.validation)[:4]
    np.save(tmp_path / "images.npy", images)
    shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    code = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'pickle.find_class'):\n"
        "        raise OSError(event)\n"
        "sys.addaudithook(refuse)\n"
        "import numpy, tune_fusion\n"
        "assert 'torch' not in sys.modules\n"
        "model = tune_fusion.load_model('elsewhere/model')\n"
        "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "print(model.classify(numpy.load('images.npy')).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = tune_fusion.load_model(folder).classify(images)
    assert np.allclose(json.loads(done.stdout), expected, atol=1e-6)
