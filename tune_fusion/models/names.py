"""The names of the papers' own networks, for whoever must not wait for torch's import."""

ZOO_NAMES = ("hn_mnist_cnn", "hn_cifar_cnn", "lenet5", "alexnet_cifar", "resnet20_plain", "resnet18_bias")
"""Every other model is timm's."""
