import hashlib
import io
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import jpeg_bytes, picture, touch_later, write_picture
from PIL import Image

from tune_fusion.data import cache
from tune_fusion.data.cache import cache_folder, cached_images, stored_side
from tune_fusion.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / "photos" / f"{number}.png", number, width=20, height=16)
    return tmp_path / "photos"


FILES = [f"{number}.png" for number in range(4)]


def entries() -> list[Path]:
    return [path for path in cache_folder().iterdir() if path.is_dir()]


def test_small_images_of_one_size_are_kept_as_they_are(photos: Path):
    cached = cached_images(photos, FILES, 20)
    assert cached.images.dtype == torch.uint8
    assert cached.images.shape == (4, 3, 16, 20)
    for number, image in enumerate(cached.images):
        expected = np.asarray(picture(number, 20, 16)).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), expected)
    contents = [hashlib.sha256((photos / name).read_bytes()).hexdigest() for name in FILES]
    assert list(cached.digests) == contents


def test_larger_images_are_resized_by_their_shorter_side_and_cut_to_a_square(photos: Path):
    cached = cached_images(photos, FILES, 8)
    assert stored_side(8) == 9
    assert cached.images.shape == (4, 3, 9, 9)
    left = (20 - 16) / 2
    for number, image in enumerate(cached.images):
        expected = picture(number, 20, 16).resize(
            (9, 9), Image.Resampling.BILINEAR, box=(left, 0, left + 16, 16)
        )
        difference = image.numpy().astype(int) - np.asarray(expected).transpose(2, 0, 1)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("odd_one", [0, 3])
def test_images_of_different_sizes_become_squares(photos: Path, odd_one: int):
    write_picture(photos / FILES[odd_one], width=7, height=5)
    assert cached_images(photos, FILES, 20).images.shape == (4, 3, 23, 23)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "I;16", "LA"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str):
    grey = picture(3).convert("L")
    wide = np.asarray(grey).astype(np.uint16) * 257
    image = Image.fromarray(wide) if mode == "I;16" else picture(3).convert(mode)
    image.save(tmp_path / ("x.tif" if mode in {"CMYK", "I;16"} else "x.png"))
    name = next(tmp_path.glob("x.*")).name
    pixels = cached_images(tmp_path, [name], 12).images[0].numpy()
    reference = image.convert("RGB") if mode != "I;16" else grey.convert("RGB")
    assert np.array_equal(pixels, np.asarray(reference).transpose(2, 0, 1))


def test_photographs_are_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by 90 degrees
    picture(1, 12, 8).save(tmp_path / "x.png", exif=exif)
    pixels = cached_images(tmp_path, ["x.png"], 12).images[0]
    assert pixels.shape == (3, 12, 8)
    expected = picture(1, 12, 8).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(pixels.numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_an_entry_is_decoded_once(photos: Path, monkeypatch: pytest.MonkeyPatch):
    first = cached_images(photos, FILES, 20)
    monkeypatch.setattr(cache, "_decode", None)  # decoding now would fail
    second = cached_images(photos, FILES, 20)
    assert torch.equal(first.images, second.images)
    assert first.digests == second.digests
    assert len(entries()) == 1


def test_writing_to_the_images_does_not_reach_the_cache(photos: Path):
    cached_images(photos, FILES, 20).images.zero_()
    assert cached_images(photos, FILES, 20).images.any()


def test_a_changed_file_a_new_size_or_another_folder_is_another_entry(photos: Path, tmp_path: Path):
    before = cached_images(photos, FILES, 20).images.clone()
    write_picture(photos / FILES[0], seed=50, width=20, height=16)
    touch_later(photos / FILES[0])
    after = cached_images(photos, FILES, 20).images
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])
    cached_images(photos, FILES, 24)
    shutil.copytree(photos, tmp_path / "copy")
    cached_images(tmp_path / "copy", FILES, 20)
    assert len(entries()) == 4


@pytest.mark.parametrize("harm", ["truncate", "no index", "half index", "stray partial"])
def test_a_damaged_entry_is_built_again(photos: Path, harm: str):
    before = cached_images(photos, FILES, 20).images.clone()
    (entry,) = entries()
    if harm == "truncate":
        with (entry / "images.u8").open("r+b") as file:
            file.truncate(100)
    elif harm == "no index":
        (entry / "index.json").unlink()
    elif harm == "half index":
        (entry / "index.json").write_text('{"shape": [4')
    else:
        entry.rename(entry.with_suffix(".partial"))
    assert torch.equal(cached_images(photos, FILES, 20).images, before)
    assert entries() == [entry]


def _load(photos: Path, barrier, results) -> None:
    barrier.wait()
    results.put(cached_images(photos, FILES, 20).images.sum(dtype=torch.int64).item())


def test_processes_that_build_at_once_get_the_same(photos: Path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_load, args=(photos, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert sums == {cached_images(photos, FILES, 20).images.sum(dtype=torch.int64).item()}
    assert len(entries()) == 1


def damage(path: Path, kind: str) -> None:
    whole = jpeg_bytes(64, 64)
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": whole[:-300]}[kind])


@pytest.mark.parametrize("image_size", [64, 16])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "no image that can be read"),
        ("truncated", "image file is truncated"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, kind: str, reason: str, image_size: int):
    (tmp_path / "good.jpg").write_bytes(jpeg_bytes(64, 64))
    damage(tmp_path / "bad.jpg", kind)
    with pytest.raises(
        InputError, match=rf"1 of the images cannot be read; .*\n  {tmp_path}/bad.jpg: {reason}"
    ):
        cached_images(tmp_path, ["bad.jpg", "good.jpg"], image_size)
    assert entries() == []


def test_all_damaged_images_are_reported_together(tmp_path: Path):
    names = []
    for number in range(9):
        names.append(f"{number}.jpg")
        if number % 9 == 4:
            (tmp_path / names[-1]).write_bytes(jpeg_bytes())
        else:
            damage(tmp_path / names[-1], ("empty", "text", "truncated")[number % 3])
    with pytest.raises(InputError, match="8 of the images cannot be read") as caught:
        cached_images(tmp_path, names, 12)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0].strip() for line in lines[1:6]] == [
        str(tmp_path / f"{number}.jpg") for number in (0, 1, 2, 3, 5)
    ]
    assert lines[6:] == ["  and 3 more"]


def test_files_that_are_gone_and_pixels_of_other_kinds(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone.jpg: No such file or directory"):
        cached_images(tmp_path, ["gone.jpg"], 12)
    Image.new("F", (12, 12)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float.tif: pixels of mode F are not supported"):
        cached_images(tmp_path, ["float.tif"], 12)


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_picture(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb.png: Image size \(144 pixels\) exceeds limit"):
        cached_images(tmp_path, ["bomb.png"], 12)


def test_a_cache_that_cannot_be_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write the image cache .*set \$TUNE_FUSION_CACHE"):
        cached_images(photos, FILES, 20)


def test_a_disk_without_room(photos: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(photos)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(
        InputError, match=r"needs 0.0 GB for 4 images, 0.0 GB are free: set \$TUNE_FUSION_CACHE"
    ):
        cached_images(photos, FILES, 20)
    assert entries() == []


def test_jpeg_scaled_while_decoding_stays_close_to_the_full_picture(tmp_path: Path):
    buffer = io.BytesIO()
    picture(9, 640, 480).save(buffer, "JPEG", quality=95)
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    pixels = cached_images(tmp_path, ["x.jpg"], 32).images[0].numpy().astype(int)
    box = (80, 0, 560, 480)
    full = Image.open(buffer).resize((37, 37), Image.Resampling.BILINEAR, box=box)
    assert np.abs(pixels - np.asarray(full).transpose(2, 0, 1)).mean() < 2


@settings(max_examples=60)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP"]), st.integers(0, 2**32 - 1), st.booleans())
def test_bytes_gone_wrong_are_an_image_or_an_input_error(tmp_path_factory, kind: str, seed: int, cut: bool):
    buffer = io.BytesIO()
    picture(2, 24, 16).save(buffer, kind)
    rng = np.random.default_rng(seed)
    content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
    content[rng.integers(0, min(len(content), 200), 4)] = rng.integers(0, 256, 4)
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "x.img").write_bytes(content[: rng.integers(len(content)) if cut else None].tobytes())
    try:
        outcome = f"{cached_images(folder, ['x.img'], 16).images.shape[:2]}"
    except InputError as error:
        outcome = str(error)
    assert outcome == "torch.Size([1, 3])" or f"{folder}/x.img: " in outcome
