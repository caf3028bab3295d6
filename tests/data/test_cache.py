import errno
import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import jpeg_bytes, picture, touch_later, write_picture
from PIL import Image

from tune_fusion.data import cache
from tune_fusion.data.cache import cached_images, stored_side
from tune_fusion.data.entries import cache_folder
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
    monkeypatch.setattr(cache, "decode_image", None)  # decoding now would fail
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


def _folder_for_pixels(entry: Path) -> None:
    (entry / "images.u8").unlink()
    (entry / "images.u8").mkdir()


def _rewrite(**changes: object) -> Callable[[Path], None]:
    def harm(entry: Path) -> None:
        index = json.loads((entry / "index.json").read_text())
        (entry / "index.json").write_text(json.dumps(index | changes))

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: os.truncate(entry / "images.u8", 100),
        lambda entry: os.truncate(entry / "images.u8", 4 * 3 * 16 * 20 - 1),
        lambda entry: (entry / "images.u8").unlink(),
        _folder_for_pixels,
        lambda entry: (entry / "index.json").unlink(),
        lambda entry: (entry / "index.json").write_bytes(b""),
        lambda entry: (entry / "index.json").write_text('{"shape": [4'),
        lambda entry: (entry / "index.json").write_text("[4, 3]"),
        lambda entry: (entry / "index.json").write_bytes(b"\0" * 500),
        lambda entry: (entry / "index.json").write_text("[" * 100_000),
        _rewrite(shape=None),
        _rewrite(shape=["4", 3, 16, 20]),
        _rewrite(shape=[]),
        _rewrite(shape=[2, 3, 16, 40]),
        _rewrite(digests=7),
        _rewrite(unreadable="none"),
        lambda entry: entry.rename(entry.with_suffix(".partial")),
    ],
)
def test_a_damaged_entry_is_built_again(photos: Path, harm: Callable[[Path], object]):
    before = cached_images(photos, FILES, 20).images.clone()
    (entry,) = entries()
    harm(entry)
    assert torch.equal(cached_images(photos, FILES, 20).images, before)
    assert entries() == [entry]
    assert sorted(path.name for path in entry.iterdir()) == ["images.u8", "index.json"]


def _use_while_it_is_cut_short(photos: Path) -> None:
    faulthandler.disable()  # its report would only frighten
    cached = cached_images(photos, FILES, 20)
    (entry,) = entries()
    os.truncate(entry / "images.u8", 0)
    cached.images.sum()


def test_an_entry_cut_short_under_a_process_ends_that_one_only(photos: Path):
    """Nothing can be done for who has it mapped; the next process must not die of it as well."""
    before = cached_images(photos, FILES, 20).images.clone()
    worker = multiprocessing.get_context("fork").Process(target=_use_while_it_is_cut_short, args=(photos,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGBUS
    assert torch.equal(cached_images(photos, FILES, 20).images, before)


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


REASONS = {
    "empty": "the file is empty",
    "text": "no image that can be read",
    "truncated": "image file is truncated",
}


@pytest.mark.parametrize("image_size", [64, 16])
@pytest.mark.parametrize("kind", REASONS)
def test_a_damaged_image_is_named_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, image_size: int
):
    (tmp_path / "good.jpg").write_bytes(jpeg_bytes(64, 64))
    damage(tmp_path / "bad.jpg", kind)
    alone = cached_images(tmp_path, ["good.jpg"], image_size)
    first = cached_images(tmp_path, ["bad.jpg", "good.jpg"], image_size)
    monkeypatch.setattr(cache, "decode_image", None)  # decoding now would fail
    for cached in (first, cached_images(tmp_path, ["bad.jpg", "good.jpg"], image_size)):
        assert list(cached.unreadable) == ["bad.jpg"]
        assert cached.unreadable["bad.jpg"].startswith(REASONS[kind])
        assert torch.equal(cached.images[1], alone.images[0])
        assert not cached.images[0].any()
        assert cached.digests == ("", *alone.digests)
    assert alone.unreadable == {}


def test_all_damaged_images_are_named_in_their_order(tmp_path: Path):
    names = [f"{number}.jpg" for number in range(9)]
    kinds = [("empty", "text", "truncated")[number % 3] for number in range(9)]
    for name, kind in zip(names, kinds, strict=True):
        damage(tmp_path / name, kind)
    (tmp_path / "4.jpg").write_bytes(jpeg_bytes())
    unreadable = cached_images(tmp_path, names, 12).unreadable
    assert list(unreadable) == [name for name in names if name != "4.jpg"]
    assert all(
        unreadable[n].startswith(REASONS[k]) for n, k in zip(names, kinds, strict=True) if n != "4.jpg"
    )


def test_a_damaged_image_does_not_decide_about_the_size_of_the_others(photos: Path):
    """The head of a truncated file announces a size that no other image has."""
    (photos / "first.jpg").write_bytes(jpeg_bytes(22, 22)[:-300])
    cached = cached_images(photos, ["first.jpg", *FILES], 20)
    assert list(cached.unreadable) == ["first.jpg"]
    assert torch.equal(cached.images[1:], cached_images(photos, FILES, 20).images)


def test_a_file_that_is_gone_is_unreadable_until_it_is_back(photos: Path):
    files = [*FILES, "gone.png"]
    for _ in range(2):
        assert cached_images(photos, files, 20).unreadable == {"gone.png": "No such file or directory"}
    assert len(entries()) == 1
    write_picture(photos / "gone.png", width=20, height=16)
    assert cached_images(photos, files, 20).unreadable == {}


def test_a_file_that_vanishes_while_others_are_decoded(photos: Path, monkeypatch: pytest.MonkeyPatch):
    real = cache._common_size
    monkeypatch.setattr(cache, "_common_size", lambda *args: ((photos / "2.png").unlink(), real(*args))[1])
    assert cached_images(photos, FILES, 20).unreadable == {"2.png": "No such file or directory"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_machine_that_fails_is_no_damaged_image(photos: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """No entry may remember it: the next attempt can read the image."""
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "2.png":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(
            InputError, match=rf"2\.png cannot be read at the moment: {os.strerror(number)}; "
        ):
            cached_images(photos, FILES, 20)
    assert entries() == []
    assert cached_images(photos, FILES, 20).unreadable == {}


def test_pixels_of_other_kinds(tmp_path: Path):
    Image.new("F", (12, 12)).save(tmp_path / "float.tif")
    assert cached_images(tmp_path, ["float.tif"], 12).unreadable == {
        "float.tif": "pixels of mode F are not supported: convert it to 8 bits a channel"
    }


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_picture(tmp_path / "bomb.png")
    reason = cached_images(tmp_path, ["bomb.png"], 12).unreadable["bomb.png"]
    assert reason.startswith("Image size (144 pixels) exceeds limit")


def test_formats_that_run_programs_are_not_opened(tmp_path: Path):
    """Pillow hands what looks like PostScript to Ghostscript, whatever the file is called."""
    picture(1).save(tmp_path / "postscript.jpg", "EPS")
    picture(1).save(tmp_path / "really_a_png.jpg", "PNG")
    unreadable = cached_images(tmp_path, ["postscript.jpg", "really_a_png.jpg"], 12).unreadable
    assert unreadable == {"postscript.jpg": "no image that can be read"}


def test_the_disk_has_room_for_the_whole_entry_before_it_is_filled(tmp_path: Path):
    """A hole in the file would be found by a process that fills it on a full disk, and dies of it."""
    files = [f"{number}.jpg" for number in range(20)]
    for name in files[1:]:
        damage(tmp_path / name, "text")  # rows that are never written
    (tmp_path / files[0]).write_bytes(jpeg_bytes(64, 64))
    cached_images(tmp_path, files, 64)
    status = (entries()[0] / "images.u8").stat()
    assert status.st_size == 20 * 3 * 64 * 64
    assert status.st_blocks * 512 >= status.st_size


def test_a_cache_that_cannot_be_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write the image cache .*set \$TUNE_FUSION_CACHE"):
        cached_images(photos, FILES, 20)


def test_a_disk_without_room(photos: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(photos)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(
        InputError,
        match=r"needs 3.8 kB for 4 images .*, and its disk has 0.1 kB free: set \$TUNE_FUSION_CACHE",
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
def test_bytes_gone_wrong_are_an_image_or_unreadable(tmp_path_factory, kind: str, seed: int, cut: bool):
    buffer = io.BytesIO()
    picture(2, 24, 16).save(buffer, kind)
    rng = np.random.default_rng(seed)
    content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
    content[rng.integers(0, min(len(content), 200), 4)] = rng.integers(0, 256, 4)
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "x.img").write_bytes(content[: rng.integers(len(content)) if cut else None].tobytes())
    cached = cached_images(folder, ["x.img"], 16)
    assert cached.images.shape[:2] == (1, 3)
    assert all(cached.unreadable.values())
    assert bool(cached.digests[0]) != bool(cached.unreadable)
