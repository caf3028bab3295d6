import contextlib
import fcntl
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pictures import write_picture

from tune_fusion.data import entries
from tune_fusion.data.cache import cached_images
from tune_fusion.data.entries import (
    bound,
    cache_folder,
    in_use,
    list_entries,
    remove,
    remove_debris,
    size_words,
)
from tune_fusion.errors import InputError

CONTEXT = multiprocessing.get_context("fork")
FILES = [f"{number}.png" for number in range(5)]
PIXELS = 5 * 3 * 16 * 20


def write_set(folder: Path, seed: int) -> Path:
    for number, name in enumerate(FILES):
        write_picture(folder / name, 100 * seed + number, width=20, height=16)
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Four folders of pictures whose entries are of nearly one size."""
    return [write_set(tmp_path / f"set{seed}", seed) for seed in range(4)]


def build(folder: Path) -> torch.Tensor:
    return cached_images(folder, FILES, 20).images


def sources() -> list[str]:
    return [Path(entry.source).name for entry in list_entries()]


def room_for(count: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds the cache to the pixels and indices of `count` of the sets."""
    size = max((entry.size for entry in list_entries()), default=PIXELS)
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", str(math.ceil(count * size) / 1e9))


def used_in_this_order(*folders: Path) -> None:
    for age, folder in enumerate(reversed(folders)):
        (entry,) = [entry for entry in list_entries() if entry.source == str(folder)]
        os.utime(entry.path, (1e9 - age, 1e9 - age))


def test_a_cache_that_cannot_be_made_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch):
    # /proc refuses new folders to everybody, root included.
    monkeypatch.setenv("TUNE_FUSION_CACHE", "/proc/nope")
    with pytest.raises(
        InputError, match=r"the image cache /proc/nope/images \(\$TUNE_FUSION_CACHE\): /proc is"
    ):
        list_entries()


def test_an_empty_cache_and_the_entries_of_one(sets: list[Path]):
    assert list_entries() == []
    build(sets[0])
    (entry,) = list_entries()
    assert entry.path.parent == cache_folder()
    assert entry.source == str(sets[0])
    assert entry.images == 5
    assert entry.size == PIXELS + (entry.path / "index.json").stat().st_size
    assert entry.built == (entry.path / "index.json").stat().st_mtime


def test_opening_an_entry_counts_as_its_use(sets: list[Path]):
    for folder in sets[:3]:
        build(folder)
    used_in_this_order(*sets[:3])
    assert sources() == ["set0", "set1", "set2"]
    build(sets[0])
    assert sources() == ["set1", "set2", "set0"]


@pytest.mark.parametrize(
    "index", ["", "{", "[1]", '{"source": 3}', '{"source": "x", "shape": []}', "[" * 10**5]
)
def test_a_damaged_entry_is_listed_and_goes_like_the_others(sets: list[Path], index: str):
    build(sets[0])
    (entry,) = list_entries()
    (entry.path / "index.json").write_text(index)
    (damaged,) = list_entries()
    assert (damaged.path, damaged.images) == (entry.path, 0)
    assert remove(entry.path)
    assert list_entries() == []


def test_the_bound_is_half_of_what_would_be_free_without_the_cache(
    sets: list[Path], monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(sets[0])._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert bound() == 5 * 10**5
    build(sets[0])
    assert bound() == (10**6 + list_entries()[0].size) // 2


@pytest.mark.parametrize(
    ("text", "size"), [("1", 10**9), ("0.5", 5 * 10**8), (" 2e3 ", 2 * 10**12), ("0.00000109", 1090)]
)
def test_the_bound_is_the_users(monkeypatch: pytest.MonkeyPatch, text: str, size: int):
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", text)
    assert bound() == size


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "inf", "1 GB"])
def test_a_bound_that_is_none(sets: list[Path], monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", text)
    with pytest.raises(InputError, match=rf"\$TUNE_FUSION_CACHE_GB needs a number .* above 0, got '{text}'"):
        build(sets[0])
    assert list_entries() == []


def test_what_was_not_used_for_the_longest_time_makes_room(sets: list[Path], monkeypatch: pytest.MonkeyPatch):
    for folder in sets[:3]:
        build(folder)
    used_in_this_order(sets[1], sets[2], sets[0])
    room_for(3.1, monkeypatch)
    build(sets[3])
    assert sources() == ["set2", "set0", "set3"]


def test_as_much_goes_as_is_needed_and_never_the_new_entry(sets: list[Path], monkeypatch: pytest.MonkeyPatch):
    for folder in sets[:3]:
        build(folder)
    room_for(1.1, monkeypatch)
    new = build(sets[3])
    assert sources() == ["set3"]
    assert torch.equal(build(sets[3]), new)


def test_what_is_in_use_stays_even_if_the_cache_grows_beyond_its_bound(
    sets: list[Path], monkeypatch: pytest.MonkeyPatch
):
    image = build(sets[0])[0]  # a view of it is enough
    before = image.clone()
    build(sets[1])
    used_in_this_order(*sets[:2])
    room_for(1.1, monkeypatch)
    build(sets[2])
    assert sources() == ["set0", "set2"]
    assert torch.equal(image, before)
    del image
    build(sets[3])
    assert sources() == ["set3"]


def test_a_set_larger_than_the_bound_is_refused_before_anything_goes(
    sets: list[Path], monkeypatch: pytest.MonkeyPatch
):
    build(sets[0])
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "0.0000048")
    with pytest.raises(InputError) as refused:
        cached_images(sets[1], FILES, 24, (20, 20))
    assert str(refused.value) == (
        f"the image cache {cache_folder()} needs 6.0 kB for 5 images of 20x20 pixels from {sets[1]}, and may "
        "hold 4.8 kB ($TUNE_FUSION_CACHE_GB=0.0000048): set $TUNE_FUSION_CACHE_GB=0.000006 (gigabytes) or "
        "more, or use smaller or fewer images (data.image_size, data.limit)"
    )
    assert sources() == ["set0"]
    assert not list(cache_folder().glob("*.partial"))
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "0.000006")
    cached_images(sets[1], FILES, 24, (20, 20))


def test_a_set_larger_than_half_of_the_disk_may_go_to_another(
    sets: list[Path], monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(sets[0])._replace(free=PIXELS + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(InputError) as refused:
        build(sets[0])
    assert str(refused.value).endswith(
        "needs 4.8 kB for 5 images of 16x20 pixels from "
        f"{sets[0]}, and may hold 2.5 kB (half of its disk's room): set $TUNE_FUSION_CACHE_GB=0.0000048 "
        "(gigabytes) or more, set $TUNE_FUSION_CACHE to a folder with room, or use smaller or fewer images "
        "(data.image_size, data.limit)"
    )


@pytest.mark.parametrize(
    ("size", "words", "gigabytes"),
    [
        (0, "0.0 kB", "0"),
        (90, "0.1 kB", "0.00000009"),
        (4_800, "4.8 kB", "0.0000048"),
        (7_680_001, "7.7 MB", "0.00769"),
        (999_000_001, "999.0 MB", "1"),
        (12_345_678_901, "12.3 GB", "12.4"),
        (1_234_000_000_000, "1,234.0 GB", "1240"),
    ],
)
def test_sizes_are_said_in_a_fitting_unit_and_bounds_hold_them(size: int, words: str, gigabytes: str):
    assert size_words(size) == words
    assert entries._gigabytes(size) == gigabytes
    assert round(float(gigabytes) * 1e9) >= size


def test_a_full_disk_makes_room_as_the_bound_does(sets: list[Path], monkeypatch: pytest.MonkeyPatch):
    for folder in sets[:2]:
        build(folder)
    used_in_this_order(*sets[:2])
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "1")
    real, held = shutil.disk_usage(cache_folder()), entries._held

    def usage(_path: Path) -> object:
        return real._replace(free=int(2.5 * PIXELS) - held())

    monkeypatch.setattr(shutil, "disk_usage", usage)
    build(sets[2])
    assert "set0" not in sources()
    assert sources()[-1] == "set2"


def _open_and_wait(folder: Path, opened, may_end) -> None:
    images = build(folder)
    opened.set()
    may_end.wait()
    del images


def test_what_another_process_uses_is_kept_until_it_dies(sets: list[Path]):
    build(sets[0])
    (entry,) = list_entries()
    assert not in_use(entry.path)
    opened, may_end = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=_open_and_wait, args=(sets[0], opened, may_end))
    process.start()
    assert opened.wait(60)
    assert in_use(entry.path)
    assert not remove(entry.path)
    assert sources() == ["set0"]
    process.kill()
    process.join()
    assert not in_use(entry.path)
    assert remove(entry.path)
    assert list(cache_folder().glob("*.removed")) == []


def test_an_entry_built_anew_since_it_was_looked_at_is_not_removed(sets: list[Path], monkeypatch):
    build(sets[0])
    (entry,) = list_entries()
    real, again = fcntl.flock, []

    def flock(handle: object, how: int) -> None:
        if how & fcntl.LOCK_NB and not again:
            again.append(True)
            shutil.rmtree(entry.path)
            build(sets[0])
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert not remove(entry.path)
    assert again
    assert sources() == ["set0"]


def _build_all(folders: list[Path], barrier, results) -> None:
    barrier.wait()
    for _ in range(10):
        for folder in folders:
            results.put((folder.name, build(folder).sum(dtype=torch.int64).item()))


def test_processes_that_build_and_make_room_at_once_get_the_right_images(
    sets: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """Room for less than two sets, and six processes that go through all four in different orders."""
    expected = {folder.name: build(folder).sum(dtype=torch.int64).item() for folder in sets}
    room_for(1.9, monkeypatch)
    barrier, results = CONTEXT.Barrier(6), CONTEXT.Queue()
    orders = [sets[turn % 4 :] + sets[: turn % 4] for turn in range(6)]
    processes = [CONTEXT.Process(target=_build_all, args=(order, barrier, results)) for order in orders]
    for process in processes:
        process.start()
    seen = [results.get(timeout=120) for _ in range(6 * 4 * 10)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert set(seen) == set(expected.items())
    build(sets[0])
    remove_debris()
    assert {path.suffix for path in cache_folder().iterdir()} == {""}


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def test_what_killed_processes_left_is_removed_and_what_is_being_built_is_not(sets: list[Path]):
    build(sets[0])
    for name in ("a.partial", "b.partial", "c.123.removed"):
        (cache_folder() / name).mkdir()
        (cache_folder() / name / "images.u8").write_bytes(bytes(100))
    for name in ("a.lock", "d.lock"):
        (cache_folder() / name).touch()
    with held(cache_folder() / "b.lock"):
        build(sets[1])
        left = {path.name for path in cache_folder().iterdir() if path.suffix}
        assert left == {"b.partial", "b.lock"}
    assert sorted(sources()) == ["set0", "set1"]


def test_an_entry_that_may_not_be_written_is_used_and_not_removed(sets: list[Path], monkeypatch):
    """As in a cache on a read-only disk; permissions alone do not stop root."""
    before = build(sets[0]).clone()
    (entry,) = list_entries()
    real = Path.open

    def refuse(path: Path, mode: str = "r", **more: object) -> object:
        if "+" in mode or "w" in mode or "a" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert torch.equal(build(sets[0]), before)
    assert not remove(entry.path)
    assert sources() == ["set0"]
