"""Generated image tasks, and small networks for them, of which it is known what a search should find.

Images are class folders of PNG files of 6 x 6 pixels in three channels, 18 values a row. A value of class c
is normal with standard deviation 1 and mean a or -a: the sign is random but fixed for the class, the pixel
and the channel, and a belongs to the row (`SIGNAL`). Given the class all values are independent, so the
evidence for the classes is the sum over the rows of what each of them holds, and the best classifier there
is, Bayes' rule, is linear (`bayes_accuracy`; the pixels' rounding aside).
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tune_fusion.models.zoo import ZOO, Network
from tune_fusion.space.settings import DataSettings

SIDE, CHANNELS, CLASSES = 6, 3, 8
SIGNAL = np.array([0.12, 0.12, 0.12, 0.55, 0.55, 0.12])
"""a of each row: the two rows at the planted boundary hold most of the evidence."""
GAINS = (0.01, 0.01, 0.01, 0.01, 1.0, 1.0)
"""Of the layers of ``planted``, see `RowByRow`."""
PLANTED_SWITCH = 3
"""The last layer with the small gain."""

_GREY, _STEP = 128, 30
"""The value 0 is stored as the one, and 1 is so many levels above it."""


@dataclass(frozen=True)
class Task:
    """One generated data set."""

    folder: Path
    means: torch.Tensor
    """float64 [CLASSES, SIDE, SIDE, CHANNELS]: of every value, by class."""

    @property
    def settings(self):
        """The ``data`` section of a space."""
        return DataSettings(
            name=f"folder:{self.folder}",
            image_size=SIDE,
            validation=0.25,
            mean=[_GREY / 255],
            std=[_STEP / 255],
        )


def make_task(folder, seed, train=100, test=120):
    """Write ``folder/{train,test}/CLASS/*.png``; `train` images a class also have to validate."""
    random = np.random.default_rng(seed)
    means = SIGNAL[:, None, None] * random.choice([-1.0, 1.0], (CLASSES, SIDE, SIDE, CHANNELS))
    for part, count in (("train", train), ("test", test)):
        for label, mean in enumerate(means):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            values = mean + random.standard_normal((count, *mean.shape))
            pixels = np.clip(np.rint(_GREY + _STEP * values), 0, 255).astype(np.uint8)
            for number, image in enumerate(pixels):
                Image.fromarray(image).save(place / f"{number:03d}.png")
    return Task(folder, torch.from_numpy(means))


def bayes_accuracy(task, split, *, without=()):
    """What no classifier that ignores the rows `without` exceeds on a `Split`, but by chance."""
    rows = [row for row in range(SIDE) if row not in without]
    pixels = split.take(torch.arange(len(split))).permute(0, 2, 3, 1)
    values = ((pixels.double() - _GREY) / _STEP)[:, rows]
    # The means of all classes have the same length, so the likeliest class has the largest product.
    evidence = torch.einsum("nhwc,khwc->nk", values, task.means[:, rows])
    return float((evidence.argmax(1) == split.labels).double().mean())


class RowByRow(nn.Module):
    """A linear classifier with a layer for each row of the image; logits are the sum of gain x layer(row).

    It can be Bayes' rule, whatever the gains. A gain g changes nothing of a layer but its rates: with V = gW
    as the weights that matter, SGD with rate r on W is SGD with rate r g**2 on V, and Adam with rate r on W
    is Adam with rate r g on V.
    """

    def __init__(self, num_classes, in_channels, gains=GAINS):
        super().__init__()
        self.gains = gains
        for row in range(SIDE):
            self.add_module(f"row{row}", nn.Linear(in_channels * SIDE, num_classes))

    def forward(self, images):
        layers = zip(self.gains, self.children(), images.unbind(2), strict=True)
        return sum(gain * layer(row.flatten(1)) for gain, layer, row in layers)


def _tower(num_classes, in_channels):
    widths = (in_channels * SIDE * SIDE, 24, 24, 24)
    hidden = (part for ins, outs in pairwise(widths) for part in (nn.Linear(ins, outs), nn.ReLU()))
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))


def networks():
    """The zoo with ``planted`` (`RowByRow`) and ``tower`` (four linear layers, ReLUs between them) in it."""
    made = (
        Network(name, build, SIDE, CHANNELS, True, "made for tests", "made for tests")
        for name, build in (("planted", RowByRow), ("tower", _tower))
    )
    return {**ZOO, **{network.name: network for network in made}}
