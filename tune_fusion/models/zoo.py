"""The papers' own networks: those on which HN_Adam was compared with other optimizers.

Source: Reyad, Sarhan & Arafa, "A modified Adam algorithm for deep neural network optimization" (Neural
Comput. Appl., 2023), section 6. The paper gives two of them layer by layer and the others by their number of
parameters, which determines the shapes used here. Where it says nothing of activations, pooling or dropout,
those usual for the architecture are used.

All return logits: the softmax that the paper puts into the network is part of the loss here. Weights start as
in Keras, in which the paper's experiments were written: Glorot-uniform, biases zero. Every convolution and
linear layer has a bias.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

_PAPER = "Reyad, Sarhan & Arafa 2023, section 6"
HEAD = "head"
"""Module name of the classifier in every network here."""
FIRST_CONVOLUTION = "conv1"
"""Module name of the convolution that sees the image in every network here."""


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes:
        name: what `tune_fusion.build_model` calls it.
        build: makes the network from (num_classes, in_channels); not yet initialised as in the paper.
        input_size: side of the paper's square images, in pixels.
        in_channels: channels of the paper's images.
        fixed_input: whether images must have that size.
        reference: where the network is described.
        description: one line.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    input_size: int
    in_channels: int
    fixed_input: bool
    reference: str
    description: str

    def make(self, num_classes: int, in_channels: int) -> nn.Module:
        """The network with fresh weights. Input (N, in_channels, H, W), output (N, num_classes) logits."""
        model = self.build(num_classes, in_channels)
        model.apply(_initialise)
        return model


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Layers(nn.Sequential):
    """Named layers that run one after another; shown by name in the layer map."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def _hn_convolutions(in_channels: int) -> dict[str, nn.Module]:
    """Two pairs of 3x3 convolutions; as the paper's text has it, ReLU comes after the pooling only."""
    return {
        "conv1": nn.Conv2d(in_channels, 32, 3),
        "conv2": nn.Conv2d(32, 32, 3),
        "pool1": nn.MaxPool2d(2),
        "relu1": nn.ReLU(),
        "conv3": nn.Conv2d(32, 64, 3),
        "conv4": nn.Conv2d(64, 64, 3),
        "pool2": nn.MaxPool2d(2),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
    }


def _hidden(*widths: int) -> dict[str, nn.Module]:
    """Linear layers from each width to the next, a ReLU after each."""
    layers: dict[str, nn.Module] = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"fc{number}_relu"] = nn.ReLU()
    return layers


def _hn_mnist_cnn(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        **_hn_convolutions(in_channels),
        **_hidden(1024, 512, 128, 256, 32),
        dropout=nn.Dropout(0.1),
        head=nn.Linear(32, num_classes),
    )


def _hn_cifar_cnn(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        **_hn_convolutions(in_channels),
        **_hidden(1600, 512, 128, 32, 10),
        head=nn.Linear(10, num_classes),
    )


def _lenet5(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        conv1=nn.Conv2d(in_channels, 6, 3),
        relu1=nn.ReLU(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(6, 16, 3),
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        **_hidden(576, 120, 84),
        head=nn.Linear(84, num_classes),
    )


def _alexnet_cifar(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        conv1=nn.Conv2d(in_channels, 48, 3, stride=2, padding=1),
        norm1=nn.BatchNorm2d(48),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(48, 96, 3, padding=1),
        norm2=nn.BatchNorm2d(96),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, stride=2),
        conv3=nn.Conv2d(96, 192, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(192, 192, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(192, 256, 3, padding=1),
        norm5=nn.BatchNorm2d(256),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, stride=2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(256, 512),
        fc1_relu=nn.ReLU(),
        dropout1=nn.Dropout(0.5),
        fc2=nn.Linear(512, 256),
        fc2_relu=nn.ReLU(),
        dropout2=nn.Dropout(0.5),
        head=nn.Linear(256, num_classes),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a strided 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, norm: bool) -> None:
        super().__init__()

        def normalised(convolution: nn.Conv2d) -> nn.Module:
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs)) if norm else convolution

        self.conv1 = normalised(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
        self.conv2 = normalised(nn.Conv2d(outputs, outputs, 3, padding=1))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else normalised(nn.Conv2d(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride), rounded up."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def _stages(*widths: int, blocks: int, norm: bool) -> nn.Sequential:
    """`blocks` residual blocks of each width; wherever the width changes the image is halved."""
    stages = [width for width in widths for _ in range(blocks)]
    members = [_Residual(widths[0], widths[0], 1, norm=norm)]
    for inputs, outputs in itertools.pairwise(stages):
        members.append(_Residual(inputs, outputs, 1 if inputs == outputs else 2, norm=norm))
    return nn.Sequential(*members)


def _resnet20_plain(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1),
        relu1=nn.ReLU(),
        blocks=_stages(16, 32, 64, blocks=3, norm=False),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(64, num_classes),
    )


def _resnet18_bias(num_classes: int, in_channels: int) -> nn.Module:
    return _Layers(
        conv1=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3),
        norm1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        blocks=_stages(64, 128, 256, 512, blocks=2, norm=True),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(512, num_classes),
    )


ZOO: Mapping[str, Network] = MappingProxyType(
    {
        network.name: network
        for network in (
            Network(
                "hn_mnist_cnn",
                _hn_mnist_cnn,
                28,
                1,
                True,
                f"{_PAPER}, first experiment",
                "four convolutions, five linear layers; 697,034 parameters on MNIST",
            ),
            Network(
                "hn_cifar_cnn",
                _hn_cifar_cnn,
                32,
                3,
                True,
                f"{_PAPER}, second experiment",
                "four convolutions, five linear layers; 955,512 parameters on CIFAR-10",
            ),
            Network(
                "lenet5",
                _lenet5,
                32,
                1,
                True,
                f"{_PAPER}; LeCun et al. 1998",
                "LeNet-5 with 3x3 kernels; 81,194 parameters on MNIST",
            ),
            Network(
                "alexnet_cifar",
                _alexnet_cifar,
                32,
                3,
                True,
                f"{_PAPER}; Krizhevsky et al. 2012",
                "AlexNet for 32x32 images with batch norm; 1,249,866 parameters on CIFAR-10",
            ),
            Network(
                "resnet20_plain",
                _resnet20_plain,
                32,
                3,
                False,
                f"{_PAPER}; He et al. 2016, section 4.2",
                "ResNet-20 with biases and without batch norm; 271,690 parameters on CIFAR-10",
            ),
            Network(
                "resnet18_bias",
                _resnet18_bias,
                224,
                3,
                False,
                f"{_PAPER}; He et al. 2016",
                "ResNet-18 whose convolutions have biases; 11,186,442 parameters with 10 classes",
            ),
        )
    }
)
"""The networks by name."""
