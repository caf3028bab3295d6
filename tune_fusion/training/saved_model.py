"""A trained model as a folder: what a search and a confirmation leave, and what classifies images later.

Four files: ``weights.safetensors``, ``config.json`` (`SavedConfig`), ``layers.json`` (the layer map) and
``signature.json`` (what goes in and comes out, as MLflow writes it down). The first two are all that is
needed to load it: no data, no network, and nothing in the folder is run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import safetensors
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from tune_fusion.data.cache import fit_image, read_image, to_colour
from tune_fusion.data.datasets import Split
from tune_fusion.data.pipeline import Batches
from tune_fusion.errors import InputError
from tune_fusion.models.build import build_model
from tune_fusion.models.layers import Layer
from tune_fusion.space.settings import ModelSettings, Positive, Section
from tune_fusion.training.workbench import Workbench, pick_device

FORMAT: Literal[1] = 1
"""Of the folder: raised when older versions could not read it any more."""
_WEIGHTS, _CONFIG, _LAYERS, _SIGNATURE = "weights.safetensors", "config.json", "layers.json", "signature.json"

Images = NDArray[np.uint8] | Sequence[Image.Image]


class TrainedOn(Section):
    """Where a model's weights come from."""

    data: str
    fingerprint: str
    """Of the training and validation images (`ImageData.fingerprint`)."""
    part: Literal["training", "training and validation"]
    seed: int
    epoch: int
    """The epoch whose weights these are."""
    metrics: dict[str, float]
    """What was measured with these weights."""


class SavedConfig(Section):
    """``config.json``: how to build the model, how images are brought to it, and how it was trained."""

    format: Literal[1]
    model: ModelSettings
    classes: tuple[str, ...]
    """Names by label."""
    channels: Literal[1, 3]
    image_size: Positive
    """Side in pixels of the square images that the model sees."""
    stored_size: tuple[Positive, Positive]
    """Height and width of the images it was trained with, before they were brought to `image_size`."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalisation of pixels in [0, 1], one value a channel."""
    configuration: dict[str, Any]
    """Switch layer, optimizers and training, nested (`Configuration.to_dict`)."""
    trained_on: TrainedOn


def save_model(
    folder: Path,
    bench: Workbench,
    weights: Path,
    *,
    configuration: Mapping[str, Any],
    epoch: int,
    metrics: Mapping[str, float],
    signature: str,
    whole: bool = False,
) -> None:
    """Write `folder`, whole or not at all; what it held is replaced.

    Args:
        folder: where to.
        bench: the model and the data it was trained on; its model is only asked for its layers.
        weights: a file of `save_weights`. It gets a second name, or is copied.
        configuration: what it was trained with, nested plain values.
        epoch: the epoch whose weights these are.
        metrics: what was measured with these weights.
        signature: the text of ``signature.json``.
        whole: trained on training and validation images together.

    Raises OSError where the folder cannot be written.
    """
    config = SavedConfig(
        format=FORMAT,
        model=bench.model_settings,
        classes=bench.data.classes,
        channels=1 if bench.data.channels == 1 else 3,
        image_size=bench.image_size,
        stored_size=bench.stored_size,
        mean=bench.mean,
        std=bench.std,
        configuration=dict(configuration),
        trained_on=TrainedOn(
            data=bench.data.name,
            fingerprint=bench.data.fingerprint,
            part="training and validation" if whole else "training",
            seed=bench.seed,
            epoch=epoch,
            metrics=dict(metrics),
        ),
    )
    part = folder.with_name(f".{folder.name}.part")
    for stale in (part, folder):
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _copy(weights, part / _WEIGHTS)
        (part / _CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (part / _LAYERS).write_text(layers_json(bench.layers), encoding="utf-8")
        (part / _SIGNATURE).write_text(signature, encoding="utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def layers_json(layers: Sequence[Layer]) -> str:
    """A layer map as the text of ``layers.json``."""
    content = [
        {
            "index": layer.index,
            "name": layer.name,
            "parameters": layer.count,
            "tensors": list(layer.parameters),
        }
        for layer in layers
    ]
    return json.dumps(content, indent=2) + "\n"


def load_model(folder: str | Path, device: str | torch.device | None = None) -> SavedModel:
    """The model in `folder`, ready to classify images.

    Args:
        folder: what `save_model` has written.
        device: where it runs; None: the GPU where there is one, else the CPU.

    Raises:
        InputError: no such folder, a file that is missing or damaged, another format version, or weights
            that do not fit the model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
        model = build_model(
            config.model.name,
            num_classes=len(config.classes),
            in_channels=config.channels,
            image_size=config.image_size,
        )
    _fill(model, folder / _WEIGHTS, config.model.name)
    device = pick_device() if device is None else torch.device(device)
    return SavedModel(config, model.to(device).eval(), device)


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained model and all it needs to know of images."""

    config: SavedConfig
    model: nn.Module
    """In evaluation mode, on `device`."""
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of the probabilities."""
        return self.config.classes

    def classify(self, images: Images, batch_size: int = 128) -> NDArray[np.float32]:
        """The probability of each class for each image: float32 [N, classes].

        Images are brought to the model as the validation images were when it was trained, and those of
        another size than theirs are resized and cut to that size first. Computed in float32.

        Args:
            images: uint8 [N, H, W, C] with the model's number of channels (C last, 0 to 255), or Pillow's
                images of any size and mode.
            batch_size: images at a time, at least 1.

        Raises:
            InputError: an array of another shape or type.
        """
        return np.concatenate([self._no_probabilities(), *self._probabilities(images, batch_size)])

    def read(self, path: Path) -> NDArray[np.uint8]:
        """An image file, decoded as training images are: uint8 [H, W, C], in the size `classify` wants.

        Raises:
            InputError: it cannot be read; the message names it.
        """
        pixels = read_image(path, self.config.stored_size).transpose(1, 2, 0)
        return pixels if self.config.channels == 3 else _pixels(Image.fromarray(pixels).convert("L"))

    def logits(self, images: NDArray[np.uint8], batch_size: int = 128) -> Iterator[Tensor]:
        """What the model answers, batch by batch: float32 [B, classes] on its device.

        `images` are uint8 [N, *stored_size, C].
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        batches = Batches(
            Split(pixels, torch.zeros(len(pixels), dtype=torch.int64)),
            batch_size=batch_size,
            image_size=self.config.image_size,
            mean=self.config.mean,
            std=self.config.std,
            shuffle=False,
            seed=0,
            device=self.device,
        )
        for batch, _ in batches.epoch(1):
            # Not around the loop: whoever takes the batches would be in inference mode, too.
            with torch.inference_mode():
                answer: Tensor = self.model(batch)
            yield answer

    def _probabilities(self, images: Images, batch_size: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(images), batch_size):
            ready = self._ready(images[start : start + batch_size])
            for logits in self.logits(ready, batch_size):
                yield logits.float().softmax(dim=1).cpu().numpy()

    def _no_probabilities(self) -> NDArray[np.float32]:
        return np.empty((0, len(self.classes)), np.float32)

    def _ready(self, images: Images) -> NDArray[np.uint8]:
        """The images as uint8 [N, *stored_size, C]."""
        if isinstance(images, np.ndarray):
            channels = self.config.channels
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
                raise InputError(
                    f"images must be uint8 [N, H, W, {channels}], got {images.dtype} {list(images.shape)}"
                )
            if images.shape[1:3] == self.config.stored_size:
                return images
            images = [Image.fromarray(image[:, :, 0] if channels == 1 else image) for image in images]
        return np.stack([self._fitted(image) for image in images])

    def _fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        image = fit_image(to_colour(ImageOps.exif_transpose(image)), self.config.stored_size)
        return _pixels(image if self.config.channels == 3 else image.convert("L"))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, C]."""
    return np.atleast_3d(np.asarray(image))


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _read_config(folder: Path) -> SavedConfig:
    path = folder / _CONFIG
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except OSError as error:
        raise InputError(_no_model(folder, path, error.strerror or str(error))) from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; restore the folder from its origin") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise InputError(
            f"{path}: its format is {version!r}, this version of tune_fusion reads {FORMAT}: load it with "
            "the version that wrote it, or train it again"
        )
    try:
        return SavedConfig.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged: {place}: {first['msg']}; restore it from its origin") from error


def _no_model(folder: Path, path: Path, reason: str) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder; give that of a model, such as runs/NAME/model"
    return f"{folder} is no model's folder: {path.name} cannot be read ({reason})"


def _fill(model: nn.Module, path: Path, name: str) -> None:
    try:
        weights = load_file(path)
    except OSError as error:
        raise InputError(_no_model(path.parent, path, error.strerror or str(error))) from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}; restore it from its origin") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path} does not fit {name} as config.json describes it: {problem:.300}") from error
