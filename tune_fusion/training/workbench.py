"""What all trials of one process share: the data, the model and its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from tune_fusion.data.datasets import ImageData, Split, joined, load_data
from tune_fusion.data.heldout import HeldOut, check_heldout, load_heldout
from tune_fusion.data.pipeline import Batches
from tune_fusion.models.build import ModelFacts, build_model, model_facts
from tune_fusion.models.layers import Layer, layer_map
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings


def pick_device(gpu: float | None = None) -> torch.device:
    """The device to train on: CUDA where `gpu` of one is granted, else MPS where it exists, else the CPU.

    `gpu` None means: whatever the machine has.
    """
    if gpu is None:
        gpu = float(torch.cuda.is_available())
    if gpu > 0:
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def input_size(model: ModelSettings, data: DataSettings) -> int:
    """Side in pixels of the images the model sees: the data's own setting, else the model's input size."""
    return data.image_size or model_facts(model.name).input_size


@dataclass(frozen=True)
class Workbench:
    """A model and data on a device, made once and used by one trial after the other.

    Every trial starts from the same initial weights (made from `seed`) and sees the same batches in the
    same order, so that trials differ by their configuration alone.
    """

    model_settings: ModelSettings
    data_settings: DataSettings
    seed: int
    device: torch.device

    @cached_property
    def facts(self) -> ModelFacts:
        """The model's input size and normalisation."""
        return model_facts(self.model_settings.name)

    @cached_property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return input_size(self.model_settings, self.data_settings)

    @cached_property
    def data(self) -> ImageData:
        """The training and validation images."""
        return load_data(self.data_settings, seed=self.seed, image_size=self.image_size)

    def count_heldout(self) -> int:
        """How many test images there are, without reading one; InputError where the data have none."""
        return check_heldout(self.data_settings)

    @cached_property
    def heldout(self) -> HeldOut:
        """The test images. Whoever touches this has read them: only a confirmation may."""
        return load_heldout(
            self.data_settings,
            classes=self.data.classes,
            image_size=self.image_size,
            size=self.stored_size,
        )

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the stored images, from which those that the model sees are made."""
        height, width = self.data.train.images.shape[-2:]
        return height, width

    @cached_property
    def whole_training(self) -> Split:
        """Training and validation images together, for retraining what has been chosen with both."""
        return joined(self.data.train, self.data.validation)

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from pixels in [0, 1], one value a channel: the data's own, else the model's."""
        return self._statistics(self.data_settings.mean, self.facts.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Divides the result, as `mean`."""
        return self._statistics(self.data_settings.std, self.facts.std)

    def _statistics(self, own: list[float] | None, models: tuple[float, ...]) -> tuple[float, ...]:
        channels = self.data.channels
        values = models if own is None else tuple(own)
        # Of colour statistics, grey images take the mean.
        return values if len(values) == channels else (sum(values) / len(values),) * channels

    @cached_property
    def model(self) -> nn.Module:
        """The one model of this workbench; `renew_model` gives it its initial weights back."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = build_model(
                self.model_settings.name,
                num_classes=len(self.data.classes),
                pretrained=self.model_settings.pretrained,
                weights=self.model_settings.weights,
                in_channels=self.data.channels,
                image_size=self.data_settings.image_size,
            )
        return model.to(self.device)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The model's layer map."""
        return layer_map(self.model)

    @cached_property
    def initial_weights(self) -> dict[str, Tensor]:
        """A copy of the model's state before any training."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @cached_property
    def compiled_model(self) -> nn.Module:
        """The same model behind ``torch.compile``; its graph serves every trial that asks for one."""
        return cast(nn.Module, torch.compile(self.model))

    def renew_model(self, training: TrainingSettings) -> nn.Module:
        """The model with its initial weights, no gradients, in the memory format that `training` asks for."""
        self.model.load_state_dict(self.initial_weights)
        for parameter in self.model.parameters():
            parameter.grad = None
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        self.model.to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stub
        return self.compiled_model if training.compile else self.model

    def training_batches(self, training: TrainingSettings) -> Batches:
        """Shuffled, augmented training batches; order and augmentation depend on seed and epoch only."""
        return self._batches(self.data.train, training, train=True)

    def whole_training_batches(self, training: TrainingSettings) -> Batches:
        """As `training_batches`, of the training and the validation images together."""
        return self._batches(self.whole_training, training, train=True)

    def validation_batches(self, training: TrainingSettings) -> Batches:
        """Validation batches in a fixed order, without augmentation."""
        return self._batches(self.data.validation, training, train=False)

    def test_batches(self, training: TrainingSettings) -> Batches:
        """As `validation_batches`, of the test images: they are read now, if they were not yet."""
        return self._batches(self.heldout.split, training, train=False)

    def _batches(self, split: Split, training: TrainingSettings, *, train: bool) -> Batches:
        return Batches(
            split,
            batch_size=training.batch_size,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            augment=self.data_settings.augment if train else "none",
            shuffle=train,
            seed=self.seed,
            device=self.device,
            channels_last=training.channels_last,
        )
