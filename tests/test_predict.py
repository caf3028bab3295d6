"""Classifying images from the command line, with a model trained on two kinds of pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from object_store import PASSWORD, object_store
from PIL import Image

import tune_fusion
from tune_fusion.predict import main
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.checkpoint import save_weights, weights_of
from tune_fusion.training.saved_model import save_model
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench


def write(path: Path, bright: bool, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (16, 16, 3), dtype=np.uint8) + 180 * bright
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A search's folder with its model, and pictures of both classes in ``new``."""
    root = tmp_path_factory.mktemp("predict")
    for number in range(12):
        for name in ("dark", "light"):
            write(root / "photos" / name / f"{number}.png", name == "light", number)
            write(root / "new" / f"{name}{number}.png", name == "light", 100 + number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_FUSION_CACHE", str(root / "cache"))
        data = DataSettings(name=f"folder:{root}/photos", image_size=32)
        bench = Workbench(ModelSettings(name="lenet5"), data, 0, torch.device("cpu"))
        adam = OptimizerChoice("adam", {"lr": 0.003})
        configuration = Configuration(ALL, adam, None, TrainingSettings(epochs=8, batch_size=6))
        trainer = Trainer(bench, configuration)
        while not trainer.finished:
            trainer.run_epoch()
        save_weights(weights_of(trainer.model), root / "w.safetensors")
        for place in ("run/model", "confirmed/model", "confirmed/confirmation/model"):
            save_model(
                root / place,
                bench,
                root / "w.safetensors",
                configuration=configuration.to_dict(),
                epoch=len(place),
                metrics={},
                signature="{}",
            )
    return root


def test_each_image_has_a_line_with_its_class(run, capsys):
    assert main([str(run / "run"), str(run / "new"), "--batch-size", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    for line in lines:
        path, name, probability = line.split()
        assert Path(path).name.startswith(name)
        assert 0.5 <= float(probability) <= 1
    assert [line.split()[0] for line in lines] == sorted(str(path) for path in (run / "new").iterdir())


def test_json_lines_hold_the_top_classes_as_the_library_gives_them(run, capsys):
    image = run / "new" / "dark3.png"
    assert main([str(run / "run" / "model"), str(image), "--json", "--top", "5"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer["path"] == str(image)
    (expected,) = tune_fusion.load_model(run / "run/model").classify([Image.open(image)])
    assert [one["class"] for one in answer["top"]] == ["dark", "light"]
    assert [one["probability"] for one in answer["top"]] == [float(expected[0]), float(expected[1])]


def test_of_a_search_the_confirmed_model_is_taken(run, capsys, monkeypatch):
    taken = []
    real = tune_fusion.load_model
    monkeypatch.setattr(
        "tune_fusion.training.saved_model.load_model", lambda folder: taken.append(folder) or real(folder)
    )
    for name in ("run", "confirmed"):
        assert main([str(run / name), str(run / "new" / "dark3.png")]) == 0
    assert taken == [run / "run/model", run / "confirmed/confirmation/model"]


def test_unreadable_images_are_named_and_the_others_classified(run, tmp_path, capsys):
    write(tmp_path / "some" / "deep" / "good.PNG", True, 1)
    (tmp_path / "some" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "some" / "notes.txt").write_text("not asked for")
    (tmp_path / "some" / "empty.gif").touch()
    assert main([str(run / "run"), str(tmp_path / "some"), "--batch-size", "1"]) == 1
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()] == ["light"]
    assert f"{tmp_path}/some/bad.jpg: no image that can be read" in said.err
    assert f"{tmp_path}/some/empty.gif: the file is empty" in said.err
    assert "2 of 3 images cannot be read" in said.err
    assert "notes" not in said.err


def test_an_image_named_twice_has_one_line(run, capsys):
    image = str(run / "new" / "light0.png")
    assert main([str(run / "run"), image, image, str(run / "new")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 24


@pytest.mark.parametrize(
    ("model", "image", "message"),
    [
        ("nowhere", "new", "MODEL .*nowhere: there is no such folder"),
        ("new", "new", "MODEL .*new: it is neither a model's folder, with config.json, nor that of a search"),
        ("run", "gone.jpg", "IMAGE .*gone.jpg: there is no such file or folder"),
        ("run", "run", "IMAGE .*run: there is no image in this folder"),
    ],
)
def test_bad_input(run, model, image, message):
    with pytest.raises(tune_fusion.errors.InputError, match=message):
        main([str(run / model), str(run / image)])


def test_a_folder_may_be_a_uri(run, capsys):
    image = str(run / "photos" / "dark" / "0.png")
    assert main([str(run / "run" / "model"), image]) == 0
    plain = capsys.readouterr().out
    assert main([(run / "run" / "model").as_uri(), image]) == 0
    assert capsys.readouterr().out == plain


def test_a_store_is_asked_for_a_search(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    with object_store() as store:
        for uri, message in {
            store.uri("se/frist"): "argument MODEL: NAME frist: s3://key:***@bucket/se?",
            store.uri("se"): "argument MODEL: NAME se: s3://key:***@bucket?",
            store.uri("").replace("/?", "?"): "names no search: one in a store is URI/NAME",
        }.items():
            with pytest.raises(SystemExit):
                main([uri, "photo.png"])
            err = capsys.readouterr().err
            assert message in err
            assert PASSWORD not in err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom tune_fusion.predict import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', {'torch', 'numpy', 'ray', 'mlflow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--top K" in done.stdout
    assert "HEAVY set()" in done.stdout
