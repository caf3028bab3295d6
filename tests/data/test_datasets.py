import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CIFAR10, MakeFolder, write_picture
from PIL import Image
from sklearn.datasets import load_digits

from tune_fusion.data import splits
from tune_fusion.data.datasets import DATA_SETS, Split, describe_data, load_data
from tune_fusion.data.entries import cache_folder
from tune_fusion.data.folder import scan
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings


def data(name: str, **values: object) -> DataSettings:
    return DataSettings.model_validate({"name": name, **values})


def everything(split: Split) -> torch.Tensor:
    return split.take(torch.arange(len(split)))


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch):
    """The paths of all files opened from now on, as Python's audit events name them."""
    paths: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watching and isinstance(arguments[0], (str, bytes, Path)):
            paths.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)  # cannot be removed: it falls silent instead
    yield paths
    watching.clear()


class TestDigits:
    def test_pixels_and_labels_are_scikit_learns(self):
        loaded = load_data(data("digits"), seed=0, image_size=8)
        reference = load_digits()
        known = {
            np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
            for image, label in zip(reference.images, reference.target, strict=True)
        }
        for split in (loaded.train, loaded.validation):
            images = everything(split)
            assert images.dtype == torch.uint8
            assert images.shape == (len(split), 1, 8, 8)
            assert [known[image.numpy().tobytes()] for image in images] == split.labels.tolist()

    def test_the_test_part_is_in_neither_split_whatever_the_seed(self):
        reference = load_digits()
        kept = splits.hold_out(reference.target.astype(np.int64), 10, 0.1)
        test = np.delete(reference.images, kept, axis=0)
        test_images = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in test}
        for seed in (0, 1):
            loaded = load_data(data("digits"), seed=seed, image_size=8)
            for split in (loaded.train, loaded.validation):
                assert not test_images & {image.numpy().tobytes() for image in everything(split)}

    @pytest.mark.parametrize("values", [{}, {"limit": 200}, {"validation": 300}, {"test": 0.3, "limit": 90}])
    def test_described_as_loaded(self, values):
        settings = data("digits", **values)
        facts, loaded = describe_data(settings), load_data(settings, seed=5, image_size=8)
        assert (facts.train_images, facts.validation_images) == (len(loaded.train), len(loaded.validation))
        assert (facts.name, facts.classes, facts.channels) == (loaded.name, loaded.classes, loaded.channels)

    def test_fingerprint_follows_the_split_and_not_the_run(self):
        def fingerprint(seed: int, **values: object) -> str:
            return load_data(data("digits", **values), seed=seed, image_size=8).fingerprint

        assert fingerprint(0) == fingerprint(0)
        assert len({fingerprint(0), fingerprint(1), fingerprint(0, limit=100), fingerprint(0, test=0.2)}) == 4

    def test_the_fingerprint_is_the_same_on_every_machine(self):
        fingerprint = load_data(data("digits"), seed=0, image_size=8).fingerprint
        assert fingerprint == "65a3efdfc00f3d4ea88fde3cd2492162b72cd8b67a805380ee7513d4b435b448"


class TestFolder:
    def test_real_photographs_with_a_train_folder(self, jpeg_archive, opened_files):
        settings = data(f"folder:{jpeg_archive}", validation=0.2)
        facts = describe_data(settings)
        assert not [path for path in opened_files if path.endswith(".jpg")]
        loaded = load_data(settings, seed=0, image_size=32)
        assert loaded.classes == facts.classes == tuple(CIFAR10)
        assert (len(loaded.train), len(loaded.validation)) == (240, 60)
        assert (facts.train_images, facts.validation_images) == (240, 60)
        assert loaded.train.labels.bincount().tolist() == [24] * 10
        assert facts.test.endswith("left unread")
        photographs = [path for path in opened_files if path.endswith(".jpg")]
        assert len(set(photographs)) == 300
        assert not [path for path in photographs if "/test/" in path]

    def test_one_tree_never_opens_its_test_part(self, make_folder: MakeFolder, opened_files):
        root = make_folder({"cat": 20, "dog": 30, "owl": 10})
        settings = data(f"folder:{root}", test=0.2, validation=0.25)
        opened_files.clear()
        first = load_data(settings, seed=0, image_size=12)
        seen = {path for path in opened_files if path.endswith(".jpg")}
        assert len(seen) == 48
        test_part = {str(path) for path in root.rglob("*.jpg")} - seen
        assert len(test_part) == 12
        for path in test_part:
            Path(path).write_bytes(b"")  # damaged from now on: reading one would be an error
        shutil.rmtree(cache_folder())
        opened_files.clear()
        second = load_data(settings, seed=1, image_size=12)
        assert {path for path in opened_files if path.endswith(".jpg")} == seen
        for loaded in (first, second):
            assert loaded.train.labels.bincount().tolist() == [12, 18, 6]
            assert loaded.validation.labels.bincount().tolist() == [4, 6, 2]

    def test_images_keep_their_labels_in_every_split(self, tmp_path: Path):
        """Images of one colour a class: the pixels tell the label."""
        for part, count in (("train", 9), ("val", 4)):
            for label in range(3):
                for number in range(count):
                    path = tmp_path / "colours" / part / f"class{label}" / "deeper" / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (4, 4), 80 * label + number).save(path)
        loaded = load_data(data("folder:colours", limit=6), seed=0, image_size=4)
        for split, size in ((loaded.train, 6), (loaded.validation, 3)):
            assert len(split) == size
            assert (everything(split)[:, 0, 0, 0] // 80).tolist() == split.labels.tolist()

    def test_fingerprint_follows_contents_and_not_places_or_times(self, make_folder: MakeFolder, tmp_path):
        root = make_folder({"cat": 8, "dog": 8})

        def fingerprint(path: Path) -> str:
            return load_data(data(f"folder:{path}"), seed=0, image_size=12).fingerprint

        before = fingerprint(root)
        moved = root.rename(tmp_path / "moved")
        for path in moved.rglob("*.jpg"):
            os.utime(path, (0, 0))
        assert fingerprint(moved) == before
        write_picture(moved / scan(moved, 0.1).train.files[0], seed=999)
        assert fingerprint(moved) != before

    def test_own_validation_folder(self, make_folder: MakeFolder):
        root = make_folder({"train/a": 6, "train/b": 6, "valid/a": 4, "valid/b": 4})
        facts = describe_data(data(f"folder:{root}"))
        assert (facts.train_images, facts.validation_images) == (12, 8)
        assert facts.test == f"none: {root} has no folder 'test'"
        loaded = load_data(data(f"folder:{root}", validation=4), seed=0, image_size=12)
        assert (len(loaded.train), len(loaded.validation)) == (12, 4)

    def test_home_is_expanded(self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch):
        root = make_folder({"a": 6, "b": 6})
        monkeypatch.setenv("HOME", str(root.parent))
        assert describe_data(data("folder:~/photos")).classes == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "digit"}, r"data.name: no data set is called 'digit'; did you mean 'digits'\?"),
        ({"name": "imagenet"}, r"no data set is called 'imagenet'; known: digits, mnist"),
        ({"name": "folder:PATH"}, r"data.name=folder:/.*: cannot read .*PATH: No such file or directory"),
        ({"name": "folder:"}, r"'folder:' needs the path of the images"),
        ({"name": "folder:~nobody_here/x"}, r"cannot expand '~nobody_here/x'"),
        ({"name": "folder:" + "x" * 300}, r"cannot read .*File name too long"),
        ({"name": "digits", "validation": 1700}, r"data.validation=1700 asks for 1,700 images"),
        ({"name": "digits", "limit": 9}, r"data.limit=9 cannot hold one image of each of the 10 classes"),
        ({"name": "digits", "test": 0.999}, r"data.test=0.999 of 1,797 images leaves"),
        ({"name": "digits", "mean": [0.5, 0.5, 0.5]}, r"data.mean has 3 values, but the images of"),
        ({"name": "digits", "std": [0.0]}, r"data.std=\[0.0\] must be finite and above 0"),
        ({"name": "digits", "mean": [float("nan")]}, r"data.mean=\[nan\] must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_read(settings, message):
    for attempt in (describe_data, lambda wanted: load_data(wanted, seed=0, image_size=8)):
        with pytest.raises(InputError, match=message):
            attempt(DataSettings.model_validate(settings))


@pytest.mark.parametrize("image_size", [1, 3, 2049, 10**6])
def test_absurd_image_sizes(image_size):
    with pytest.raises(
        InputError, match=f"data.image_size={image_size} is out of range: images have 4 to 2048"
    ):
        load_data(data("digits"), seed=0, image_size=image_size)


def test_the_catalogue_names_every_data_set_and_imports_no_torch():
    assert list(DATA_SETS) == ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder:PATH"]
    assert all(info.title and info.source and info.provide for info in DATA_SETS.values())
    code = (
        "import sys; import tune_fusion.data.catalogue; print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
