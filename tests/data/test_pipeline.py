import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.data import pipeline
from tune_fusion.data.augment import AUGMENTATIONS, Geometry, scoped_generator
from tune_fusion.data.datasets import Split
from tune_fusion.data.entries import list_entries
from tune_fusion.data.feeding import ahead
from tune_fusion.data.mapped import Source
from tune_fusion.data.pipeline import Batches
from tune_fusion.vision import v2

CPU = torch.device("cpu")


def make_split(count: int = 20, channels: int = 3, height: int = 8, width: int = 8) -> Split:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def make_batches(split: Split, **changes: object) -> Batches:
    values = {"batch_size": 4, "image_size": 8, "mean": [0.5], "std": [0.25]}
    values |= {"shuffle": True, "seed": 3, "device": CPU}
    return Batches(split, **(values | changes))


def augmented(name: str, images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    height, width = images.shape[-2:]
    return AUGMENTATIONS[name].draw(len(images), (height, width), size, generator)(images, slice(None))


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    """Back from mean 0.5 and std 0.25 to uint8."""
    return ((images * 0.25 + 0.5) * 255).round().to(torch.uint8)


def same(
    first: list[tuple[torch.Tensor, torch.Tensor]], second: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_pixels_are_normalised_by_channel():
    split, mean, std = make_split(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    (images, labels), *_ = make_batches(split, mean=mean, std=std, shuffle=False).epoch(1)
    expected = v2.functional.normalize(split.images[:4].double() / 255, mean, std)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images.double(), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_image_comes_once_an_epoch_with_its_label(count, batch_size, shuffle, seed):
    split = make_split(count, 1)
    batches = make_batches(split, batch_size=batch_size, shuffle=shuffle, seed=seed)
    epoch = list(batches.epoch(2))
    assert len(epoch) == len(batches)
    lone = shuffle and batch_size > 1 and count % batch_size == 1
    seen = torch.cat([labels for _, labels in epoch]) if epoch else torch.empty(0)
    assert len(seen) == count - lone
    assert len(seen.unique()) == len(seen)
    if not shuffle:
        assert seen.tolist() == list(range(count))
    for images, labels in epoch:
        assert torch.equal(pixels_of(images), split.images[labels])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_an_epoch_depends_on_seed_and_number_alone(augment):
    split = make_split(height=10, width=9)
    batches = make_batches(split, augment=augment)
    first, second = list(batches.epoch(1)), list(batches.epoch(2))
    resumed = make_batches(split, augment=augment)
    torch.rand(5)
    assert same(list(resumed.epoch(2)), second)
    assert same(list(resumed.epoch(1)), first)
    assert not same(first, second)
    assert not same(list(make_batches(split, augment=augment, seed=4).epoch(1)), first)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_global_random_state_is_left_alone(augment):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    for _ in make_batches(make_split(), augment=augment).epoch(1):
        assert torch.equal(torch.random.get_rng_state(), before)


def test_the_order_does_not_depend_on_the_batch_size_or_the_augmentation():
    split = make_split()
    orders = [
        torch.cat([labels for _, labels in make_batches(split, **changes).epoch(1)]).tolist()
        for changes in ({}, {"batch_size": 7}, {"augment": "trivial"}, {"image_size": 16})
    ]
    assert orders[1:] == orders[:1] * 3


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [(8, 8), (6, 6), (40, 40), (9, 14)])
def test_every_augmentation_gives_the_models_size(augment, channels, stored):
    split = make_split(5, channels, *stored)
    for images, _ in make_batches(split, augment=augment, batch_size=3).epoch(1):
        assert images.shape[1:] == (channels, 8, 8)


@pytest.mark.parametrize("augment", [name for name in AUGMENTATIONS if name != "none"])
def test_images_of_a_batch_are_augmented_one_by_one(augment):
    image = make_split(1, 3, 12, 12).images
    split = Split(image.expand(32, -1, -1, -1), torch.zeros(32, dtype=torch.int64))
    ((images, _),) = make_batches(split, batch_size=32, augment=augment).epoch(1)
    different = len({one.numpy().tobytes() for one in images})
    assert different == 2 if augment == "flip" else different > 4


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([(8, 8), (8, 9), (9, 9)]))
def test_crop_flip_cuts_windows_out_of_the_padded_image(seed, stored):
    split = make_split(6, 2, *stored)
    padded = split.images if min(stored) > 8 else torch.nn.functional.pad(split.images, [1] * 4)
    cut = augmented("crop_flip", split.images, 8, scoped_generator(seed))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    both = torch.cat([windows, windows.flip(-1)], 1)
    assert (cut[:, None] == both).flatten(2).all(2).any(1).all()


def test_flips_are_fair():
    images = make_split(2000, 1, 4, 4).images
    flipped = augmented("flip", images, 4, scoped_generator(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 900 < int(mirrored.sum()) < 1100


@pytest.mark.parametrize("stored", [(8, 8), (8, 11), (11, 9)])
def test_flip_and_crop_flip_are_what_they_are_image_by_image(stored):
    """The same draws give what slicing and mirroring one image after the other gives."""
    images = make_split(50, 3, *stored).images
    generator = scoped_generator(5)
    padded = images if min(stored) > 8 else torch.nn.functional.pad(images, [1] * 4)
    tops, lefts = (torch.randint(side - 7, (50,), generator=generator).tolist() for side in padded.shape[-2:])
    mirrored = (torch.rand(50, generator=generator) < 0.5).tolist()
    cut = [
        image[:, top : top + 8, left : left + 8] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    expected = torch.stack([one.flip(-1) if turn else one for one, turn in zip(cut, mirrored, strict=True)])
    assert torch.equal(augmented("crop_flip", images, 8, scoped_generator(5)), expected)
    mirrored = (torch.rand(50, generator=scoped_generator(5)) < 0.5).tolist()
    expected = torch.stack(
        [one.flip(-1) if turn else one for one, turn in zip(images, mirrored, strict=True)]
    )
    assert torch.equal(augmented("flip", images, 8, scoped_generator(5)), expected)


def test_trivial_is_torchvisions():
    """The same draws from the same global state give the same pixels."""
    images = make_split(5, 3, 12, 12).images
    ours = augmented("trivial", images, 12, scoped_generator(1))
    generator = scoped_generator(1)
    mirrored = augmented("flip", images, 12, generator)
    transform = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        expected = torch.stack([transform(image) for image in mirrored])
    assert torch.equal(ours, expected)


def test_resized_crop_mirrors_half_of_the_images():
    images = make_split(1, 1, 9, 9).images.expand(2000, -1, -1, -1).clone()
    images[:] = torch.arange(9, dtype=torch.uint8) * 25  # brighter from left to right
    cut = augmented("resized_crop", images, 8, scoped_generator(0)).int()
    mirrored = (cut[:, 0, 0, 0] > cut[:, 0, 0, -1]).sum()
    assert 900 < int(mirrored) < 1100


@pytest.mark.parametrize(
    ("stored", "resized"),
    [
        ((100, 100), (100, 100)),  # the input size
        ((115, 115), (115, 115)),  # as the cache stores: only cut
        ((300, 300), (115, 115)),
        ((300, 600), (115, 230)),
        ((28, 28), (100, 100)),
        ((28, 56), (100, 200)),
    ],
)
def test_geometry(stored, resized):
    geometry = Geometry(stored, 100, keep_room=False)
    assert geometry.resized == resized
    assert geometry.result == (100, 100)
    assert Geometry(stored, 100, keep_room=True).result == resized
    images = make_split(2, 1, *stored).images
    expected = v2.functional.center_crop(
        v2.functional.resize(images, list(resized), antialias=True), [100, 100]
    )
    assert torch.equal(geometry.apply(images), expected)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_resizing_ahead_or_batch_by_batch_gives_the_same(monkeypatch, augment):
    ahead = list(make_batches(make_split(), image_size=6, augment=augment).epoch(1))
    monkeypatch.setattr(pipeline, "_KEPT_BYTES", 0)
    assert same(list(make_batches(make_split(), image_size=6, augment=augment).epoch(1)), ahead)


def test_a_split_is_resized_once_and_not_kept_longer_than_itself(monkeypatch):
    calls = []
    real = Geometry.resize
    monkeypatch.setattr(Geometry, "resize", lambda self, images: calls.append(1) or real(self, images))
    split = make_split()
    for _ in range(3):
        list(make_batches(split, image_size=12).epoch(1))
        list(make_batches(split).epoch(1))
    assert len(calls) == 1
    gone = weakref.ref(split)
    del split
    gc.collect()
    assert gone() is None


def in_the_cache(monkeypatch: pytest.MonkeyPatch, split: Split, digest: str = "12ab") -> Split:
    """The split, with resized copies of any size in the cache."""
    monkeypatch.setattr(pipeline, "_OWN_BYTES", 0)
    return Split(split.images, split.labels, split.rows, Source("numbers", digest))


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("image_size", [6, 12])
def test_resized_images_come_from_the_cache(monkeypatch, augment, image_size):
    whole = make_split(30, height=10, width=9)
    rows = torch.tensor([9, 2, 29, 2])
    split = Split(whole.images, torch.arange(4), rows)
    changes = {"image_size": image_size, "augment": augment}
    expected = list(make_batches(split, **changes).epoch(1))
    assert list_entries() == []
    for _ in range(2):
        cached = in_the_cache(monkeypatch, split)
        assert same(list(make_batches(cached, **changes).epoch(1)), expected)
        monkeypatch.setattr(Geometry, "resize", None)  # resizing again would fail
    (entry,) = list_entries()
    height, width = Geometry((10, 9), image_size, keep_room=True).resized
    assert (entry.source, entry.images) == (f"numbers, resized to {height}x{width}", 3)


def test_another_size_other_images_or_other_rows_are_another_entry(monkeypatch):
    split = in_the_cache(monkeypatch, make_split())
    seen = {
        "first": make_batches(split, image_size=12),
        "other size": make_batches(split, image_size=13),
        "other images": make_batches(
            in_the_cache(monkeypatch, Split(255 - split.images, split.labels), "34cd"), image_size=12
        ),
        "other rows": make_batches(
            in_the_cache(monkeypatch, Split(split.images, split.labels, torch.arange(20).roll(1) // 2 * 2)),
            image_size=12,
        ),
    }
    assert len(list_entries()) == len(seen)
    again = in_the_cache(monkeypatch, Split(split.images, split.labels, torch.arange(20).flip(0)))
    make_batches(again, image_size=12)  # in another order they are the same
    assert len(list_entries()) == len(seen)


def test_a_cache_without_room_leaves_resizing_to_the_batches(monkeypatch):
    split = make_split()
    expected = list(make_batches(split, image_size=12).epoch(1))
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "0.000001")
    batches = make_batches(in_the_cache(monkeypatch, split), image_size=12)
    assert batches._split.images is split.images
    assert same(list(batches.epoch(1)), expected)
    assert list_entries() == []


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_batches_for_an_accelerator(monkeypatch, resident, kept, augment):
    """The meta device stands in: it has shapes and places, and no pixels."""
    monkeypatch.setattr(pipeline, "_RESIDENT_BYTES", 2**30 if resident else 0)
    monkeypatch.setattr(pipeline, "_KEPT_BYTES", 2**30 if kept else 0)
    moved = []
    real = pipeline._move
    monkeypatch.setattr(pipeline, "_move", lambda *args: moved.append(1) or real(*args))
    split = make_split()
    for image_size in (8, 12):
        batches = make_batches(split, device=torch.device("meta"), image_size=image_size, augment=augment)
        for images, labels in batches.epoch(1):
            assert images.device.type == labels.device.type == "meta"
            assert images.shape == (4, 3, image_size, image_size)
    assert bool(moved) == resident
    assert split.images.device.type == "cpu"


def test_what_is_only_cut_is_not_copied():
    """Of the cache's entry, which all processes share, no part may become a process's own."""
    split = make_split(height=10, width=9)
    batches = make_batches(split, image_size=8)
    assert batches._split.images.untyped_storage().data_ptr() == split.images.untyped_storage().data_ptr()
    assert len(list(batches.epoch(1))) == 5


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batches_are_the_same_made_ahead_one_by_one_or_kept(augment, channels_last):
    batches = make_batches(make_split(23, height=10), augment=augment, channels_last=channels_last)
    kept = list(batches.epoch(3))
    copies = [(images.clone(), labels) for images, labels in batches.epoch(3)]
    assert same(kept, copies)
    assert same(list(ahead(batches.epoch(3))), copies)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_parts_of_a_batch_do_not_matter(monkeypatch, augment, channels_last):
    changes = {"batch_size": 9, "augment": augment, "channels_last": channels_last}
    whole = list(make_batches(make_split(23, height=10), **changes).epoch(3))
    for pixels in (1, 500, 1000):
        monkeypatch.setattr(pipeline, "_PART_PIXELS", pixels)
        batches = make_batches(make_split(23, height=10), **changes)
        assert batches._at_once < 6
        assert same(list(batches.epoch(3)), whole)


def test_rows_pick_images_from_a_larger_array():
    whole = make_split(30)
    rows = torch.tensor([3, 29, 7])
    part = Split(whole.images, torch.tensor([0, 1, 2]), rows)
    for image_size in (8, 12):
        ((images, labels),) = make_batches(part, image_size=image_size, shuffle=False).epoch(1)
        ((expected, _),) = make_batches(
            Split(whole.images[rows], torch.arange(3)), image_size=image_size, shuffle=False
        ).epoch(1)
        assert torch.equal(images, expected)
        assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for images, _ in make_batches(make_split(), channels_last=channels_last).epoch(1):
        assert images.is_contiguous(memory_format=layout)


def test_streams_of_neighbouring_seeds_and_epochs_differ():
    states = {
        scoped_generator(seed, epoch, kind).initial_seed()
        for seed in range(30)
        for epoch in range(30)
        for kind in (0, 1)
    }
    assert len(states) == 1800
    assert abs(np.mean(list(states)) / 2**62 - 1) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"augment": "flips"}, "unknown augment 'flips'; did you mean 'flip'?"),
        ({"mean": [0.1, 0.2]}, r"mean needs 1 or 3 values, got \[0.1, 0.2\]"),
        ({"std": [0.1, 0.0, 0.1]}, "std must be above 0 in every channel"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        make_batches(make_split(), **changes)
