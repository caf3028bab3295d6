import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pictures import MakeFolder, write_picture

from tune_fusion.data import cache
from tune_fusion.data.datasets import ImageData, Split, load_data
from tune_fusion.data.entries import cache_folder
from tune_fusion.data.pipeline import Batches
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

PARTS = {"train/cat": 5, "train/dog": 5, "val/cat": 3, "val/dog": 3}


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    return make_folder(PARTS)


def load(photos: Path, on_corrupt: str = "skip", **values: object) -> ImageData:
    settings = {"name": f"folder:{photos}", "on_corrupt": on_corrupt, **values}
    return load_data(DataSettings.model_validate(settings), seed=0, image_size=12)


def damage(photos: Path, *names: str) -> None:
    for name in names:
        (photos / name).write_bytes(b"")


def pictures(split: Split) -> list[tuple[bytes, int]]:
    """The images of a split with their labels, in its order."""
    images = split.take(torch.arange(len(split)))
    return [(image.numpy().tobytes(), int(label)) for image, label in zip(images, split.labels, strict=True)]


def test_failing_is_the_default_and_names_the_file(photos: Path):
    damage(photos, "train/cat/3.jpg")
    message = (
        r"^1 of the images cannot be read; repair or remove them, or set data.on_corrupt=skip to do without "
        rf"them:\n  {photos}/train/cat/3.jpg: the file is empty$"
    )
    with pytest.raises(InputError, match=message):
        load_data(DataSettings(name=f"folder:{photos}"), seed=0, image_size=12)


def test_many_unreadable_images_are_named_together(photos: Path):
    bad = [f"train/{name}/{number}.jpg" for name in ("cat", "dog") for number in range(4)]
    damage(photos, *bad)
    with pytest.raises(InputError, match="8 of the images cannot be read") as caught:
        load(photos, "fail")
    lines = str(caught.value).splitlines()[1:]
    assert lines == [f"  {photos}/{name}: the file is empty" for name in bad[:5]] + ["  and 3 more"]


def test_without_unreadable_images_both_ways_are_the_same(photos: Path):
    failing, skipping = load(photos, "fail"), load(photos, "skip")
    assert failing.skipped == skipping.skipped == ()
    assert failing.fingerprint == skipping.fingerprint
    assert len(skipping.train) == 10


def test_skipped_images_leave_all_others_where_they_were(photos: Path):
    whole = load(photos)
    gone = ["train/cat/3.jpg", "train/dog/0.jpg", "val/dog/1.jpg"]
    # Known by their pixels: the labels and the order of the rest must be those from before.
    files = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    images = cache.cached_images(photos, files, 12).images
    lost = {images[files.index(name)].numpy().tobytes() for name in gone}
    damage(photos, *gone)
    left = load(photos)
    assert left.skipped == tuple(f"{photos}/{name}: the file is empty" for name in gone)
    for split, before, size in ((left.train, whole.train, 8), (left.validation, whole.validation, 5)):
        assert len(split) == size
        assert pictures(split) == [pair for pair in pictures(before) if pair[0] not in lost]


@pytest.mark.parametrize("values", [{}, {"limit": 20}, {"validation": 12}])
def test_the_split_of_one_tree_stays_the_same(make_folder: MakeFolder, values):
    photos = make_folder({"cat": 20, "dog": 20})
    whole = load(photos, **values)
    damage(photos, "cat/7.jpg", "dog/2.jpg", "dog/11.jpg")
    left = load(photos, **values)
    for split, before in ((left.train, whole.train), (left.validation, whole.validation)):
        kept = pictures(split)
        assert kept == [pair for pair in pictures(before) if pair in kept]
    removed = len(whole.train) + len(whole.validation) - len(left.train) - len(left.validation)
    # Images of the test part, and those beyond a limit, are never opened: they are not counted either.
    assert removed == len(left.skipped) <= 3


def test_the_fingerprint_tells_what_was_skipped(photos: Path, tmp_path: Path):
    fingerprints = [load(photos).fingerprint]
    for name in ("train/cat/3.jpg", "train/cat/4.jpg"):
        copy = tmp_path / hashlib.md5(name.encode()).hexdigest()
        shutil.copytree(photos, copy)
        damage(copy, name)
        fingerprints += [load(copy).fingerprint]
        (copy / name).write_bytes(b"damaged in another way: what is trained on is the same")
        assert load(copy).fingerprint == fingerprints[-1]
    assert len(set(fingerprints)) == 3


def test_an_entry_made_either_way_serves_the_other(photos: Path, monkeypatch: pytest.MonkeyPatch):
    damage(photos, "train/cat/3.jpg")
    for first, second in (("skip", "fail"), ("fail", "skip")):
        shutil.rmtree(cache_folder(), ignore_errors=True)
        with monkeypatch.context() as patch:
            for policy in (first, second, first):
                if policy == "fail":
                    with pytest.raises(InputError, match=r"train/cat/3\.jpg: the file is empty"):
                        load(photos, policy)
                else:
                    assert len(load(photos, policy).skipped) == 1
                patch.setattr(cache, "decode_image", None)  # decoding from now on would fail


@pytest.mark.parametrize(
    ("gone", "part", "name"),
    [
        ([f"train/dog/{number}.jpg" for number in range(5)], "training", "dog"),
        ([f"val/cat/{number}.jpg" for number in range(3)], "validation", "cat"),
    ],
)
def test_a_class_must_keep_an_image_in_each_part(photos: Path, gone, part, name):
    damage(photos, *gone, "train/cat/0.jpg")
    with pytest.raises(InputError) as caught:
        load(photos)
    head, *lines = str(caught.value).splitlines()
    assert head == (
        f"data.on_corrupt=skip leaves no {part} image of class {name}: repair or replace its images:"
    )
    assert lines == [f"  {photos}/{file}: the file is empty" for file in gone]


def test_half_of_the_images_may_be_skipped_and_no_more(photos: Path):
    files = [f"{part}/{number}.jpg" for part, count in PARTS.items() for number in range(1, count)][:8]
    damage(photos, *files)
    left = load(photos)
    assert (len(left.skipped), len(left.train), len(left.validation)) == (8, 2, 6)
    damage(photos, "val/cat/1.jpg")
    with pytest.raises(
        InputError, match=r"data.on_corrupt=skip: 9 of the 16 images cannot be read, more than half; see"
    ):
        load(photos)


def test_a_worker_that_decodes_again_finds_what_has_become_unreadable(photos: Path):
    """The driver's check was passed, then a file was damaged and the node's cache cleared."""
    before = load(photos)
    shutil.rmtree(cache_folder())
    damage(photos, "train/cat/3.jpg")
    with pytest.raises(InputError, match=rf"{photos}/train/cat/3\.jpg: the file is empty"):
        load(photos, "fail")
    worker = load(photos, "skip")
    assert worker.skipped == (f"{photos}/train/cat/3.jpg: the file is empty",)
    assert worker.fingerprint != before.fingerprint


def test_a_file_that_vanishes_after_it_was_listed_is_skipped(photos: Path, monkeypatch: pytest.MonkeyPatch):
    gone, real = photos / "val/dog/1.jpg", cache.name_of_files
    monkeypatch.setattr(cache, "name_of_files", lambda *args: (gone.unlink(missing_ok=True), real(*args))[1])
    assert load(photos).skipped == (f"{photos}/val/dog/1.jpg: No such file or directory",)


def test_no_epoch_opens_a_file(photos: Path):
    """That is why an image cannot turn out to be unreadable in the midst of one."""
    opened: list[object] = []
    watching = [True]
    sys.addaudithook(  # cannot be removed: it falls silent instead
        lambda event, arguments: opened.append(arguments[0]) if event == "open" and watching else None
    )
    data = load(photos)
    images = [path for path in opened if isinstance(path, str | Path) and os.fspath(path).endswith(".jpg")]
    assert images  # it sees them
    batches = Batches(
        data.train,
        batch_size=4,
        image_size=12,
        mean=[0.5],
        std=[0.5],
        augment="crop_flip",
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
    )
    shutil.rmtree(photos)
    opened.clear()
    assert sum(len(labels) for epoch in (1, 2) for _, labels in batches.epoch(epoch)) == 20
    watching.clear()
    assert opened == []


def test_a_repaired_image_is_used_again(photos: Path):
    damage(photos, "train/cat/3.jpg")
    assert len(load(photos).train) == 9
    write_picture(photos / "train/cat/3.jpg", seed=5)
    assert (len(load(photos).train), load(photos).skipped) == (10, ())
