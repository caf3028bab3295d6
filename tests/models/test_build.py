import inspect

import pytest
import torch

import tune_fusion
from tune_fusion.errors import InputError
from tune_fusion.models.build import build_model, build_on_meta, model_facts, rehearsal_model
from tune_fusion.models.zoo import ZOO
from tune_fusion.vision import timm


def test_build_model_is_public():
    assert tune_fusion.build_model is build_model
    assert list(inspect.signature(build_model).parameters)[:5] == [
        "name",
        "num_classes",
        "pretrained",
        "weights",
        "in_channels",
    ]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit.r160_in1k", "lenet5"])
def test_a_seed_decides_the_weights(name):
    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return build_model(name, num_classes=5, in_channels=2).state_dict()

    first, second = build(), build()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("test_vit", None),
        ("test_vit", 64),
        ("test_vit", 160),
        ("test_efficientnet", 40),
        ("resnet20_plain", 20),
        ("hn_cifar_cnn", 32),
    ],
)
def test_models_take_images_of_the_asked_size_and_channels(name, image_size):
    side = image_size or model_facts(name).input_size
    model = build_model(name, num_classes=4, in_channels=1, image_size=image_size).eval()
    assert model(torch.rand(2, 1, side, side)).shape == (2, 4)


def test_a_resized_vit_has_position_embeddings_of_its_own():
    assert build_model("test_vit", image_size=64).pos_embed.shape[1] == (64 // 16) ** 2 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "efficientnetv2_ss"},
            "there is no model 'efficientnetv2_ss'; did you mean 'efficientnetv2_s'",
        ),
        ({"name": "lenet6"}, "there is no model 'lenet6'; did you mean 'lenet5'"),
        (
            {"name": "zzzzzzzz"},
            r"known: hn_mnist_cnn, .*, resnet18_bias, and the \d+ of timm.list_models\(\)$",
        ),
        ({"name": "hf-hub:timm/resnet18"}, "there is no model 'hf-hub:timm/resnet18'"),
        ({"name": "tf_efficientnetv2_s.in1kk"}, "no trained weights tagged 'in1kk'; did you mean 'in1k'"),
        ({"name": "lenet5", "num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"name": "lenet5", "in_channels": 0}, "in_channels must be at least 1, got 0"),
        (
            {"name": "lenet5", "image_size": 28},
            "data.image_size: lenet5 takes images of 32 pixels only, got 28",
        ),
        (
            {"name": "test_vit", "image_size": 70},
            r"test_vit cannot take images of 70 .* patch size .* size is 160",
        ),
        ({"name": "inception_v3", "image_size": 32}, "inception_v3 cannot take images of 32 pixels"),
        (
            {"name": "lenet5", "pretrained": True},
            "model.pretrained: there are no trained weights for 'lenet5'",
        ),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(**arguments)


def test_the_meta_model_has_shapes_but_no_memory():
    meta = build_on_meta("test_vit", num_classes=7, in_channels=1, image_size=64)
    real = build_model("test_vit", num_classes=7, in_channels=1, image_size=64)
    assert all(p.is_meta for p in meta.parameters())
    assert {k: v.shape for k, v in meta.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }
    with pytest.raises(InputError, match="there is no model"):
        build_on_meta("zzzzzzzz")


def test_facts_of_a_timm_model_are_those_of_its_trained_weights():
    facts = model_facts("vit_base_patch16_224")
    assert (facts.input_size, facts.fixed_input, facts.family) == (224, True, "vision_transformer")
    assert facts.mean == facts.std == (0.5, 0.5, 0.5)
    facts = model_facts("resnet18.a1_in1k")
    assert (facts.input_size, facts.fixed_input, facts.family) == (224, False, "resnet")
    assert facts.mean == (0.485, 0.456, 0.406)


def test_the_papers_networks_see_pixels_from_0_to_1():
    facts = model_facts("hn_mnist_cnn")
    assert (facts.input_size, facts.fixed_input, facts.mean, facts.std) == (28, True, (0.0,), (1.0,))
    assert model_facts("resnet18_bias").input_size == 224


def test_every_name_has_facts_and_a_stand_in_that_is_small():
    names = [*ZOO, *timm.list_models()]
    assert all(model_facts(name).input_size > 0 for name in names)
    for stand_in in {rehearsal_model(name) for name in names}:
        assert sum(p.numel() for p in build_on_meta(stand_in).parameters()) < 1_300_000, stand_in


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("tf_efficientnetv2_s.in1k", "test_efficientnet"),
        ("vit_base_patch16_224", "test_vit"),
        ("resnet50", "test_resnet"),
        ("convnext_tiny", "test_convnext"),
        ("swin_tiny_patch4_window7_224", "test_vit"),
        ("vgg16", "test_efficientnet"),
        ("hn_cifar_cnn", "hn_cifar_cnn"),
        ("resnet18_bias", "test_resnet"),
    ],
)
def test_stand_ins_are_of_the_same_family(name, stand_in):
    assert rehearsal_model(name) == stand_in
