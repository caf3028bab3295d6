from pathlib import Path

import pytest
from pictures import MakeFolder, write_picture

from tune_fusion.data.folder import scan
from tune_fusion.errors import InputError


def test_imagenet_layout(tmp_path: Path):
    """WordNet names, files ending in .JPEG, val beside train, and things that are no images."""
    for name in ("n01440764", "n01443537"):
        for part, count in (("train", 3), ("val", 2)):
            for number in range(count):
                path = tmp_path / part / name / f"{name}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    (tmp_path / "train" / "n01440764" / "notes.txt").touch()
    (tmp_path / "train" / "n01440764" / ".hidden.jpg").touch()
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "LOC_synset_mapping.txt").touch()
    folder = scan(tmp_path, 0.1)
    assert folder.classes == ("n01440764", "n01443537")
    assert folder.train.files[:3] == tuple(f"train/n01440764/n01440764_{n}.JPEG" for n in range(3))
    assert folder.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.validation is not None
    assert folder.validation.labels.tolist() == [0, 0, 1, 1]


def test_train_without_validation_leaves_the_test_folder_alone(make_folder: MakeFolder):
    root = make_folder({"train/a": 4, "train/b": 4, "test/a": 2, "test/other": 1})
    folder = scan(root, 0.5)
    assert folder.validation is None
    assert len(folder.train.files) == 8
    assert folder.test == f"{root / 'test'}, left unread"


def test_a_class_may_be_called_train(make_folder: MakeFolder):
    assert scan(make_folder({"train": 4, "car": 4}), 0.1).classes == ("car", "train")


def test_folders_within_a_class_and_links_are_followed_once(make_folder: MakeFolder, tmp_path: Path):
    root = make_folder({"train/a/x": 2, "train/a/y": 3, "elsewhere": 4})
    (root / "train" / "b").symlink_to(root / "elsewhere")
    (root / "train" / "a" / "loop").symlink_to(root / "train" / "a")
    folder = scan(root, 0.1)
    assert folder.train.labels.tolist() == [0] * 5 + [1] * 4
    assert folder.train.files[0] == "train/a/x/0.jpg"


def test_files_are_listed_in_the_same_order_however_they_were_made(tmp_path: Path):
    for order, root in ((range(12), tmp_path / "up"), (reversed(range(12)), tmp_path / "down")):
        for number in order:
            for name in ("b", "a"):
                write_picture(root / name / f"{number}.png")
    assert scan(tmp_path / "up", 0.2).train.files == scan(tmp_path / "down", 0.2).train.files


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"needs at least two class folders with images in .*photos.*, found none"),
        ({"cat": 5}, r"needs at least two class folders with images in .*photos.*, found only 'cat'"),
        ({"train/cat": 5, "val/cat": 5}, r"two class folders .*photos/train.*, found only 'cat'"),
        ({"cat": 5, "dog": 0, "owl": 5}, r"has no image in .*photos/dog: add images or remove it"),
        ({"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 0}, r"has no image in .*val/b"),
        ({"cat": 5, "dog": 2}, r"fewer than 3 images, .* validation and test, in class dog \(2\)"),
        ({"train/a": 3, "train/b": 1}, r"fewer than 2 images, .*training and validation, in class b \(1\)"),
        ({"train/a": 3, "train/b": 3, "val/a": 3}, r"folders in train and val, but val lacks class b"),
        (
            {"train/a": 3, "train/b": 3, "val/a": 3, "val/c": 3},
            r"but val lacks class b; train lacks class c",
        ),
        ({"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 1, "valid/a": 1}, r"has 2 folders of validation"),
        ({"val/a": 3, "val/b": 3, "test/a": 3}, r"has test and val but no folder 'train' with class folders"),
        ({"train/a": 3, "train/b": 3, "val": 4}, r"has no class folders in val: sort its images into"),
    ],
)  # fmt: skip
def test_folders_that_are_no_data_set(make_folder: MakeFolder, tmp_path: Path, counts, message):
    (tmp_path / "photos").mkdir()
    make_folder(counts)
    with pytest.raises(InputError, match=message):
        scan(tmp_path / "photos", 0.1)


def test_many_empty_classes_are_counted(make_folder: MakeFolder):
    root = make_folder({"z": 3} | {f"class{number}": 0 for number in range(8)})
    with pytest.raises(InputError, match=r"class0, .*class4 and 3 more: add"):
        scan(root, 0.1)


@pytest.mark.parametrize(("name", "reason"), [("none", "No such file"), ("a.jpg", "Not a directory")])
def test_a_path_that_is_no_folder(tmp_path: Path, name, reason):
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=rf"folder:.*{name}: cannot read .*{name}: {reason}"):
        scan(tmp_path / name, 0.1)


def test_a_folder_that_may_not_be_read(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch):
    root = make_folder({"a": 3, "b": 3})
    forbidden = str(root / "b")
    real = __import__("os").scandir

    def scandir(path):
        if str(path) == forbidden:
            raise PermissionError(13, "Permission denied", forbidden)
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)  # chmod does not stop root
    with pytest.raises(InputError, match=rf"cannot read {forbidden}: Permission denied"):
        scan(root, 0.1)
