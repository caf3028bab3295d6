import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import MakeFolder, write_picture
from PIL import Image
from sklearn.datasets import load_digits

from tune_fusion.data.arrays import ARRAY_SETS
from tune_fusion.data.datasets import Split, load_data
from tune_fusion.data.heldout import HeldOut, check_heldout, load_heldout
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

DIGITS = ARRAY_SETS["digits"].classes
FASHION = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).with_name("watched_reading.py")


def data(name: str, **values: object) -> DataSettings:
    return DataSettings.model_validate({"name": name} | values)


def load(settings: DataSettings, classes: tuple[str, ...], size: tuple[int, int] = (12, 12)) -> HeldOut:
    return load_heldout(settings, classes=classes, image_size=12, size=size)


def everything(split: Split) -> torch.Tensor:
    return split.take(torch.arange(len(split)))


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))


def mnist_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Black images with the label in the first pixel."""
    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0] = labels
    return images, labels


def cifar_files(names: dict[str, str], labels: str, classes: int) -> dict[str, bytes]:
    """Small CIFAR files by name: two images a class in each, their labels in the first pixel."""
    wanted = list(range(classes)) * 2
    entry = np.zeros((len(wanted), 3, 32, 32), np.uint8)
    entry[:, :, 0, 0] = np.asarray(wanted)[:, None]
    content = {"data": entry.reshape(len(wanted), -1), labels: wanted}
    return {name: pickle.dumps(content if kind == "images" else {kind: []}) for name, kind in names.items()}


CIFAR = {
    "CIFAR10": (
        "cifar-10-batches-py",
        cifar_files(
            {"batches.meta": "label_names", "test_batch": "images"}
            | {f"data_batch_{number}": "images" for number in range(1, 6)},
            "labels",
            10,
        ),
    ),
    "CIFAR100": (
        "cifar-100-python",
        cifar_files({"meta": "fine_label_names", "train": "images", "test": "images"}, "fine_labels", 100),
    ),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Which files of each data set its two readers opened, in a process that was watched from its start."""
    root = tmp_path_factory.mktemp("all")
    for folder in ("MNIST/raw", "FashionMNIST/raw"):
        write_idx(root / folder, "train", *mnist_images(60_000))
        write_idx(root / folder, "t10k", *mnist_images(10_000))
    checksums = {}
    for name, (folder, files) in CIFAR.items():
        (root / folder).mkdir()
        for file, content in files.items():
            (root / folder / file).write_bytes(content)
        checksums[name] = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    for label in ("cat", "dog"):
        for number in range(10):
            for part in ("parts/train", "parts/test", "tree"):
                write_picture(root / part / label / f"{number}.jpg", number)
    environment = {**os.environ, "TUNE_FUSION_CACHE": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(root), json.dumps(checksums)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "test_images", "is_test_file"),
    [
        ("mnist", 10_000, lambda path: path.name.startswith("t10k")),
        ("fashion_mnist", 10_000, lambda path: path.name.startswith("t10k")),
        ("cifar10", 20, lambda path: path.name == "test_batch"),
        ("cifar100", 200, lambda path: path.name == "test"),
        ("parts", 20, lambda path: path.parts[-3] == "test"),
    ],
)
def test_training_opens_no_test_file_and_testing_does(seen, name, test_images, is_test_file):
    one = seen[name]
    assert not [path for path in one["training"] if is_test_file(Path(path))]
    assert [path for path in one["training"] if not path.endswith(".json")]
    assert [path for path in one["testing"] if is_test_file(Path(path))]
    assert one["images"] == test_images


def test_of_one_tree_each_image_is_opened_by_one_of_the_two(seen):
    trained, tested = (
        [p for p in seen["tree"][key] if p.endswith(".jpg")] for key in ("training", "testing")
    )
    assert (len(trained), len(tested)) == (18, 2)
    assert not set(trained) & set(tested)
    assert seen["tree"]["counted"] == seen["tree"]["images"] == 2


def test_counting_test_images_opens_none_of_them(seen):
    for name, one in seen.items():
        assert one["checking"] == [], name
        if not name.startswith("cifar"):  # the small ones of this test hold fewer
            assert one["counted"] == one["images"]


def test_digits_give_the_images_that_no_split_has():
    settings = data("digits", test=0.2)
    found = load_heldout(settings, classes=DIGITS, image_size=8, size=(8, 8))
    trained = load_data(settings, seed=3, image_size=8)
    parts = (found.split, trained.train, trained.validation)
    pixels = sorted(image.numpy().tobytes() for part in parts for image in everything(part))
    assert pixels == sorted(
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images
    )
    assert len(found.split) == check_heldout(settings) == 359


def test_neither_seed_nor_limit_but_the_fraction_changes_the_test_images():
    def fingerprint(**values: object) -> str:
        return load_heldout(data("digits", **values), classes=DIGITS, image_size=8, size=(8, 8)).fingerprint

    assert fingerprint() == fingerprint(limit=100) == fingerprint(validation=0.3)
    assert fingerprint() != fingerprint(test=0.3)
    assert len(fingerprint()) == 64


def test_labels_belong_to_their_images(tmp_path):
    write_idx(tmp_path / "MNIST/raw", "t10k", *mnist_images(10_000))
    found = load(data("mnist", root=str(tmp_path)), DIGITS)  # no training files are needed
    assert everything(found.split)[:, 0, 0, 0].tolist() == found.split.labels.tolist()


@pytest.mark.skipif(
    not FASHION.is_dir(), reason="Fashion-MNIST is not here: apt install dataset-fashion-mnist"
)
def test_the_real_test_split_of_fashion_mnist():
    found = load(data("fashion_mnist"), ARRAY_SETS["fashion_mnist"].classes)
    assert found.split.labels.bincount().tolist() == [1_000] * 10
    assert everything(found.split).double().mean() / 255 == pytest.approx(0.2868, abs=1e-3)


def test_missing_test_files_are_named_by_both(tmp_path):
    write_idx(tmp_path / "MNIST/raw", "train", *mnist_images(60_000))
    settings = data("mnist", root=str(tmp_path))
    for attempt in (check_heldout, lambda wanted: load(wanted, DIGITS)):
        with pytest.raises(InputError, match=r"Put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"):
            attempt(settings)


def test_test_files_of_another_size_are_refused(tmp_path):
    write_idx(tmp_path / "MNIST/raw", "t10k", *mnist_images(50))
    with pytest.raises(
        InputError, match="holds 50 test images and 50 labels up to 9; mnist has 10,000 in 10"
    ):
        load(data("mnist", root=str(tmp_path)), DIGITS)


def test_a_cifar_test_file_that_is_not_the_original_is_not_opened(tmp_path):
    folder, files = CIFAR["CIFAR10"]
    (tmp_path / folder).mkdir()
    for name, content in files.items():
        (tmp_path / folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"missing or damaged \(MD5 differs\): test_batch, batches.meta"):
        load(data("cifar10", root=str(tmp_path)), ARRAY_SETS["cifar10"].classes)


def test_a_folder_in_parts_needs_test_images(make_folder: MakeFolder):
    root = make_folder({"train/cat": 4, "train/dog": 4})
    for attempt in (check_heldout, lambda wanted: load(wanted, ("cat", "dog"))):
        with pytest.raises(InputError, match=f"has no test images: .* must be in {root}/test"):
            attempt(data(f"folder:{root}"))


def test_the_test_part_has_the_classes_of_the_training_part(make_folder: MakeFolder):
    root = make_folder({"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/owl": 2})
    with pytest.raises(InputError, match="test lacks class dog; train lacks class owl"):
        check_heldout(data(f"folder:{root}"))


def test_classes_that_have_changed_since_training_are_refused(make_folder: MakeFolder):
    root = make_folder({"cat": 5, "dog": 5, "owl": 5})
    with pytest.raises(InputError, match="are of the classes cat, dog, owl, but training knew cat, dog: "):
        load(data(f"folder:{root}"), ("cat", "dog"))


def test_unreadable_test_images_are_an_error_or_left_out(make_folder: MakeFolder):
    root = make_folder({"train/cat": 4, "train/dog": 4, "test/cat": 3, "test/dog": 3})
    (root / "test/cat/1.jpg").write_bytes(b"half")
    with pytest.raises(InputError, match=r"test/cat/1\.jpg: no image that can be read"):
        load(data(f"folder:{root}"), ("cat", "dog"))
    found = load(data(f"folder:{root}", on_corrupt="skip"), ("cat", "dog"))
    assert found.split.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(found.skipped) == 1
    for name in ("0", "2"):
        (root / f"test/cat/{name}.jpg").unlink()
    with pytest.raises(InputError, match="leaves no test image of class cat"):
        load(data(f"folder:{root}", on_corrupt="skip"), ("cat", "dog"))


def test_test_images_are_stored_as_the_training_images_are(make_folder: MakeFolder):
    """One larger image among small ones would otherwise have all of them enlarged and cut."""
    root = make_folder({"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2})
    write_picture(root / "test/cat/9.jpg", 3, 40, 20)
    trained = load_data(data(f"folder:{root}"), seed=0, image_size=12)
    assert trained.train.images.shape[-2:] == (12, 12)
    found = load(data(f"folder:{root}"), trained.classes)
    assert found.split.images.shape == (5, 3, 12, 12)
    with Image.open(root / "test/cat/0.jpg") as image:
        assert np.array_equal(everything(found.split)[0].permute(1, 2, 0).numpy(), np.asarray(image))


def test_fingerprints_follow_contents(make_folder: MakeFolder):
    root = make_folder({"cat": 12, "dog": 12})
    first = load(data(f"folder:{root}"), ("cat", "dog")).fingerprint
    shutil.copytree(root, root.parent / "copy")
    assert load(data(f"folder:{root.parent / 'copy'}"), ("cat", "dog")).fingerprint == first
    for path in root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b" ")
    assert load(data(f"folder:{root}"), ("cat", "dog")).fingerprint != first
