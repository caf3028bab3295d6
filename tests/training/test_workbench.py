from dataclasses import replace

import pytest
import torch

from tune_fusion.data.datasets import Split
from tune_fusion.errors import InputError
from tune_fusion.models.build import build_model
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.workbench import Workbench, input_size, pick_device

CPU = torch.device("cpu")
TRAINING = TrainingSettings(batch_size=32)


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_bench(seed=0, model="lenet5", **data):
    settings = DataSettings(**({"name": "digits", "limit": 200} | data))
    return Workbench(ModelSettings(name=model), settings, seed, CPU)


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def batches(bench, epoch=1, training=TRAINING, validation=False):
    source = bench.validation_batches(training) if validation else bench.training_batches(training)
    return [(images.clone(), labels.clone()) for images, labels in source.epoch(epoch)]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_initial_weights_follow_the_seed_and_not_the_process():
    torch.manual_seed(11)
    first = make_bench().model.state_dict()
    torch.manual_seed(12)
    assert same(make_bench().model.state_dict(), first)
    assert not same(make_bench(seed=1).model.state_dict(), first)


def test_building_the_model_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert make_bench().model is not None
    assert torch.equal(torch.rand(4), expected)


def test_a_renewed_model_is_the_same_object_with_its_first_weights_and_no_gradients():
    bench = make_bench()
    model = bench.renew_model(TRAINING)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = batches(bench)[0]
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    assert not same(model.state_dict(), first)
    again = bench.renew_model(TRAINING)
    assert again is model
    assert same(again.state_dict(), first)
    assert all(parameter.grad is None for parameter in again.parameters())


def test_running_statistics_are_renewed_too():
    bench = make_bench(model="alexnet_cifar", image_size=32)
    model = bench.renew_model(TRAINING)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    assert buffers
    model.train()(batches(bench)[0][0])
    assert not same(dict(model.named_buffers()), buffers)
    assert same(dict(bench.renew_model(TRAINING).named_buffers()), buffers)


def test_the_memory_format_is_that_of_the_trial():
    bench = make_bench(model="test_efficientnet", image_size=32)

    def formats(training):
        weights = [p for p in bench.renew_model(training).parameters() if p.dim() == 4 and min(p.shape) > 1]
        assert weights
        return {p.is_contiguous(memory_format=torch.channels_last) for p in weights}

    last = TrainingSettings(channels_last=True)
    assert formats(TRAINING) == {False}
    assert formats(last) == {True}
    assert formats(TRAINING) == {False}
    (images, _), *_ = batches(make_bench(name="digits", image_size=32), training=last)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_every_trial_sees_the_same_batches_and_every_epoch_others():
    bench = make_bench()
    first = batches(bench)
    assert equal(batches(bench), first)
    assert equal(batches(make_bench()), first)
    assert not equal(batches(bench, epoch=2), first)
    assert not equal(batches(make_bench(seed=1)), first)
    assert sum(len(labels) for _, labels in first) == len(bench.data.train.labels)


def test_validation_batches_are_the_same_in_every_epoch():
    bench = make_bench(augment="crop_flip")
    first = batches(bench, validation=True)
    assert equal(batches(bench, epoch=5, validation=True), first)
    labels = torch.cat([labels for _, labels in first])
    assert torch.equal(labels, bench.data.validation.labels.to(labels))


def test_augmentation_touches_training_images_alone():
    plain, augmented = make_bench(), make_bench(augment="crop_flip")
    assert equal(batches(augmented, validation=True), batches(plain, validation=True))
    pairs = list(zip(batches(augmented), batches(plain), strict=True))
    assert all(torch.equal(a[1], b[1]) for a, b in pairs)
    assert not any(torch.equal(a[0], b[0]) for a, b in pairs)


def test_batches_have_the_size_asked_for():
    bench = make_bench(image_size=20)
    images, labels = batches(bench, training=TrainingSettings(batch_size=16))[0]
    assert images.shape == (16, 1, 20, 20)
    assert images.dtype == torch.float32
    assert labels.shape == (16,)


def test_the_datas_own_statistics_go_before_the_models():
    own = make_bench(mean=[0.25], std=[0.5])
    unit = make_bench(mean=[0.0], std=[1.0])
    for (a, _), (b, _) in zip(batches(own, validation=True), batches(unit, validation=True), strict=True):
        assert torch.allclose(a, (b - 0.25) / 0.5, atol=1e-6)


def test_grey_images_take_the_mean_of_the_models_colour_statistics():
    bench = make_bench(model="test_efficientnet", image_size=32)
    mean, std = (sum(values) / len(values) for values in (bench.facts.mean, bench.facts.std))
    assert len(bench.facts.mean) == 3
    unit = make_bench(image_size=32, mean=[0.0], std=[1.0])
    for (a, _), (b, _) in zip(batches(bench, validation=True), batches(unit, validation=True), strict=True):
        assert a.shape[1] == 1
        assert torch.allclose(a, (b - mean) / std, atol=1e-5)


def test_the_image_size_is_the_datas_else_the_models():
    model = ModelSettings(name="lenet5")
    assert input_size(model, DataSettings(name="digits")) == 32
    assert input_size(model, DataSettings(name="digits", image_size=48)) == 48
    assert make_bench().image_size == 32


def test_the_layers_are_those_of_the_model():
    bench = make_bench()
    assert [layer.name for layer in bench.layers] == ["conv1", "conv2", "fc1", "fc2", "head"]
    assert sum(layer.count for layer in bench.layers) == sum(p.numel() for p in bench.model.parameters())
    reference = build_model("lenet5", num_classes=10, in_channels=1)
    assert bench.model.state_dict().keys() == reference.state_dict().keys()


def test_the_device_follows_what_is_granted(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == pick_device(0).type == "cpu"
    assert pick_device(0.5).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device().type, pick_device(0).type) == ("cuda", "cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (pick_device(0).type, pick_device(1).type) == ("mps", "cuda")


@pytest.fixture
def parts(image_folder, tmp_path):
    """A folder in parts whose test images are damaged: reading one would be an error."""
    for name, images in (("train", 10), ("val", 3), ("test", 4)):
        image_folder(classes=2, images=images, name=f"photos/{name}")
    for path in (tmp_path / "photos" / "test").rglob("*.png"):
        path.write_bytes(b"never to be opened")
    return tmp_path / "photos"


def test_only_who_asks_for_the_test_images_reads_them(parts):
    bench = make_bench(model="test_efficientnet", name=f"folder:{parts}", image_size=32, limit=None)
    assert batches(bench)
    assert batches(bench, validation=True)
    assert list(bench.whole_training_batches(TRAINING).epoch(1))
    assert bench.count_heldout() == 8
    for ask in (lambda: bench.heldout, lambda: bench.test_batches(TRAINING)):
        with pytest.raises(InputError, match="no image that can be read"):
            ask()


def test_test_batches_are_all_test_images_in_a_fixed_order_without_augmentation():
    bench, plain = make_bench(augment="crop_flip"), make_bench(limit=90, seed=1)
    found = list(bench.test_batches(TRAINING).epoch(1))
    assert equal(list(bench.test_batches(TRAINING).epoch(7)), found)
    assert equal(list(plain.test_batches(TRAINING).epoch(1)), found)
    assert sum(len(labels) for _, labels in found) == bench.count_heldout() == 180
    assert torch.equal(torch.cat([labels for _, labels in found]), bench.heldout.split.labels)


@pytest.mark.parametrize("given", [False, True], ids=["one tensor", "two tensors"])
def test_the_whole_training_batches_hold_training_and_validation_images_once(given):
    bench = make_bench()
    if given:
        data = bench.data
        apart = Split(data.validation.take(torch.arange(len(data.validation))), data.validation.labels)
        bench.__dict__["data"] = replace(data, validation=apart)
    found = list(bench.whole_training_batches(TRAINING).epoch(1))
    expected = [*batches(bench), *batches(bench, validation=True)]

    def pairs(source):
        return sorted(
            (image.numpy().tobytes(), int(label))
            for images, labels in source
            for image, label in zip(images, labels, strict=True)
        )

    assert pairs(found) == pairs(expected)
    again = list(bench.whole_training_batches(TRAINING).epoch(1))
    assert equal(again, found)
    assert not equal(list(bench.whole_training_batches(TRAINING).epoch(2)), found)


def test_whole_training_batches_are_augmented():
    plain, augmented = make_bench(), make_bench(augment="crop_flip")
    first, second = (list(one.whole_training_batches(TRAINING).epoch(1)) for one in (plain, augmented))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
