"""What both peers train: the model, the data and the loop, in PyTorch as its own tutorials write it.

The ranges come from our space file, the split from our seeded rule and the two papers' optimizers from our
package, because otherwise another search would be measured. Everything else is what stands in the
documentation of torch and torchvision: a Dataset with a transform, a DataLoader, an eager loop.
"""

import argparse
import functools
import time
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

# PyPI's torchvision is compiled for CUDA and does not import beside a CPU-only torch: this module first
# declares the two operators that it misses. Elsewhere it is plain `import torchvision`.
from tune_fusion.vision import torchvision  # isort: skip
from torchvision import transforms

from tune_fusion import FusedOptimizer, HNAdam, build_model
from tune_fusion.data.splits import hold_out, select
from tune_fusion.space.settings import DataSettings

CLASSES = 10
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
    "hn_adam": HNAdam,
    "hn_adam_root": functools.partial(HNAdam, second_moment="root"),
}


def settings(description):
    """The command line of a peer: the space file as a dictionary, with what was set from outside in it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--space", type=Path, required=True, metavar="FILE")
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--slots", type=int, default=2, help="trials at once, one torch thread each")
    parser.add_argument("--limit", type=int, help="train on so many images")
    parser.add_argument("--images", type=Path, metavar="DIR", help="instead of the space's data: DIR/train")
    parser.add_argument("--data", type=Path, metavar="DIR", help="torchvision's data folder")
    parser.add_argument("--channels-last", action="store_true", help="where the space asks for it")
    parser.add_argument("--folder", type=Path, required=True, help="everything is written here")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    content = YAML(typ="safe").load(options.space)
    content["data"]["limit"] = options.limit
    if options.images:
        content["data"]["name"] = f"folder:{options.images.absolute()}"
    if options.data:
        content["data"]["root"] = str(options.data.absolute())
    content["training"]["epochs"] = options.epochs
    if not options.channels_last:
        content["training"]["channels_last"] = False
    content["search"]["trials"] = options.trials
    return content | {"slots": options.slots, "folder": folder, "store": f"sqlite:///{folder / 'mlflow.db'}"}


def suggest(trial, space):
    """Ask `trial` for one configuration: a fusion of two optimizers, or a single one for every layer."""
    halves = {"single": space["controls"]}
    if trial.suggest_categorical("arm", ["fusion", "control"]) == "fusion":
        suggest_value(trial, "switch_layer", space["switch_layer"])
        halves = {"low": space["low"], "high": space["high"]}
    for half, names in halves.items():
        name = trial.suggest_categorical(f"{half}.optimizer", names)
        for key, domain in space["optimizers"][name].items():
            suggest_value(trial, f"{half}.{name}.{key}", domain)


def suggest_value(trial, name, domain):
    ((kind, values),) = domain.items()
    if kind == "choice":
        trial.suggest_categorical(name, values)
    elif kind == "int":
        trial.suggest_int(name, *values)
    else:
        trial.suggest_float(name, *values, log=kind == "log")


def epochs(content, parameters):
    """Train one configuration; yields the metrics of each epoch."""
    torch.set_num_threads(1)
    seed = content["search"]["seed"]
    torch.manual_seed(seed)
    training = content["training"]
    train_set, validation_set, channels = data_sets(DataSettings.model_validate(content["data"]), seed)
    loader = DataLoader(train_set, batch_size=training["batch_size"], shuffle=True)
    validation_loader = DataLoader(validation_set, batch_size=training["batch_size"])
    layout = torch.channels_last if training.get("channels_last") else torch.contiguous_format
    model = build_model(
        content["model"]["name"],
        num_classes=CLASSES,
        weights=content["model"].get("weights"),
        in_channels=channels,
        image_size=content["data"].get("image_size"),
    ).to(memory_format=layout)
    optimizer = make_optimizer(model, parameters)
    for epoch in range(1, training["epochs"] + 1):
        started = time.perf_counter()
        train_loss = train(model, loader, optimizer, layout)
        val_loss, val_accuracy = evaluate(model, validation_loader, layout)
        yield {
            "epoch": epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": time.perf_counter() - started,
        }


def train(model, loader, optimizer, layout):
    model.train()
    total, count = 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


@torch.inference_mode()
def evaluate(model, loader, layout):
    model.eval()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images.to(memory_format=layout))
        total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return total / count, correct / count


def make_optimizer(model, parameters):
    def factory(half):
        name = parameters[f"{half}.optimizer"]
        start = f"{half}.{name}."
        values = {key.removeprefix(start): v for key, v in parameters.items() if key.startswith(start)}
        return functools.partial(OPTIMIZERS[name], **values)

    if parameters["arm"] == "control":
        return factory("single")(model.parameters())
    return FusedOptimizer.split(model, parameters["switch_layer"], low=factory("low"), high=factory("high"))


@functools.cache
def data_sets(data, seed):
    """The training and the validation set, and their channels; read once a process."""
    if data.name == "digits":
        return digits(data, seed)
    side = data.image_size or 32
    resize = [transforms.Resize((side, side)), transforms.ToTensor()]
    if data.name == "fashion_mnist":
        sets = [
            torchvision.datasets.FashionMNIST(data.root, train=True, transform=transforms.Compose(resize))
        ] * 2
        channels = 1
    else:
        centre = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        flip = [transforms.RandomHorizontalFlip()] if data.augment == "flip" else []
        folder = Path(data.name.removeprefix("folder:")) / "train"
        sets = [
            torchvision.datasets.ImageFolder(folder, transforms.Compose([*more, *resize, centre]))
            for more in (flip, [])
        ]
        channels = 3
    rows = select(data, np.asarray(sets[0].targets), None, classes=CLASSES, seed=seed)
    return Subset(sets[0], rows.train), Subset(sets[1], rows.validation), channels


def digits(data, seed):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    kept = hold_out(labels, CLASSES, data.test)
    images, labels = torch.from_numpy(images[kept]).float().reshape(-1, 1, 8, 8) / 16, labels[kept]
    # LeNet-5 takes 32 pixels; so small a set is resized at once, not image by image.
    images = transforms.functional.resize(images, [32, 32])
    rows = select(data, labels, None, classes=CLASSES, seed=seed)
    parts = [TensorDataset(images[r], torch.from_numpy(labels[r])) for r in (rows.train, rows.validation)]
    return *parts, 1
