import pytest
import torch
from torch import nn

from tune_fusion.models.build import build_model
from tune_fusion.models.layers import layer_map
from tune_fusion.models.names import ZOO_NAMES
from tune_fusion.models.zoo import FIRST_CONVOLUTION, HEAD, ZOO

CONVOLUTIONS = ["conv1", "conv2", "conv3", "conv4"]
BLOCKS = [f"blocks.{number}" for number in range(9)]

# (trainable, not trainable) as the paper gives them with its images and 10 classes
COUNTS = {
    "hn_mnist_cnn": (697_034, 0),
    "hn_cifar_cnn": (955_512, 0),
    "lenet5": (81_194, 0),
    "alexnet_cifar": (1_249_866, 800),
    "resnet20_plain": (271_690, 0),
    "resnet18_bias": (11_186_442, 9_600),
}
LAYERS = {
    "hn_mnist_cnn": [*CONVOLUTIONS, "fc1", "fc2", "fc3", "fc4", "head"],
    "hn_cifar_cnn": [*CONVOLUTIONS, "fc1", "fc2", "fc3", "fc4", "head"],
    "lenet5": ["conv1", "conv2", "fc1", "fc2", "head"],
    "alexnet_cifar": ["stem", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2", "head"],
    "resnet20_plain": ["conv1", *BLOCKS, "head"],
    "resnet18_bias": ["stem", *BLOCKS[:8], "head"],
}


def test_the_zoo_is_complete():
    assert set(ZOO) == set(COUNTS)
    assert all(name == network.name for name, network in ZOO.items())
    assert set(ZOO_NAMES) == set(ZOO)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_papers(name):
    model = build_model(name, in_channels=ZOO[name].in_channels)
    statistics = [b for key, b in model.named_buffers() if not key.endswith("num_batches_tracked")]
    counts = sum(p.numel() for p in model.parameters()), sum(b.numel() for b in statistics)
    assert counts == COUNTS[name]
    assert f"{counts[0]:,}" in ZOO[name].description


@pytest.mark.parametrize("name", COUNTS)
def test_layers_are_those_of_the_paper(name):
    assert [layer.name for layer in layer_map(build_model(name))] == LAYERS[name]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("classes", "channels"), [(10, None), (3, 2)])
def test_images_become_logits_and_every_parameter_gets_a_gradient(name, classes, channels):
    torch.manual_seed(0)
    network = ZOO[name]
    channels = channels or network.in_channels
    side = network.input_size if network.fixed_input else network.input_size // 4
    model = build_model(name, num_classes=classes, in_channels=channels)
    logits = model(torch.randn(4, channels, side, side))
    assert logits.shape == (4, classes)
    assert logits.isfinite().all()
    assert not torch.allclose(logits.sum(1), torch.ones(4)), "logits, not probabilities"
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", COUNTS)
def test_first_and_last_layer_have_the_common_names_and_all_have_biases(name):
    modules = dict(build_model(name).named_modules())
    weighted = {key: m for key, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert next(iter(weighted)) == FIRST_CONVOLUTION
    assert list(weighted)[-1] == HEAD
    for key, module in weighted.items():
        assert module.bias is not None, key
        assert not module.bias.any(), key
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.8 * bound < module.weight.abs().max() <= bound, key


def test_the_hn_networks_pool_before_the_activation():
    kinds = [type(layer).__name__ for layer in build_model("hn_mnist_cnn")]
    pair = ["Conv2d", "Conv2d", "MaxPool2d", "ReLU"]
    assert kinds == [*pair, *pair, "Flatten", *["Linear", "ReLU"] * 4, "Dropout", "Linear"]


def test_a_residual_block_adds_its_input():
    block = build_model("resnet20_plain").blocks[0]
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), x)
