import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import touch_later

from tune_fusion.data.entries import cache_folder, list_entries
from tune_fusion.data.mapped import mapped, name_of, name_of_files, new_images
from tune_fusion.errors import InputError

CONTEXT = multiprocessing.get_context("fork")
SHAPE = (6, 1, 3, 5)
NAME = name_of("test", SHAPE)


def pixels() -> torch.Tensor:
    return torch.arange(6 * 15, dtype=torch.uint8).view(SHAPE)


def write(folder: Path) -> Mapping[str, object]:
    with new_images(folder, SHAPE, "numbers") as images:
        images[:] = pixels()
    return {"source": "numbers", "shape": SHAPE, "word": "a"}


def read(images: torch.Tensor, index: Mapping[str, Any]) -> tuple[torch.Tensor, str]:
    if index["word"] not in {"a", "b"}:
        raise ValueError("another word")
    return images, index["word"]


def never(_folder: Path) -> Mapping[str, object]:
    raise AssertionError("it is there already")


def left() -> list[str]:
    """What is in the cache."""
    return sorted(path.name for path in cache_folder().iterdir())


def test_it_is_written_once_and_read_from_then_on():
    for writer in (write, never):
        images, word = mapped(NAME, read, writer)
        assert torch.equal(images, pixels())
        assert word == "a"
    (entry,) = list_entries()
    assert (entry.path.name, entry.source, entry.images) == (NAME, "numbers", 6)


def test_names_follow_what_entries_are_made_from(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"1")
    before = name_of_files(tmp_path, ["x"], "kind", 1)
    assert before == name_of_files(tmp_path, ["x"], "kind", 1)
    others = [
        name_of_files(tmp_path, files, *words) for files, *words in ([[], "kind", 1], [["x"], "kind", 2])
    ]
    touch_later(tmp_path / "x")
    others.append(name_of_files(tmp_path, ["x"], "kind", 1))
    shutil.copytree(tmp_path, tmp_path / "copy")
    others.append(name_of_files(tmp_path / "copy", ["x"], "kind", 1))
    assert len({before, *others}) == 5
    assert len({name_of("a", "b"), name_of("ab"), name_of("a", (1, 2)), name_of("a", (1, 3))}) == 4


@pytest.mark.parametrize(
    "change", [{"word": "c"}, {"word": None}, {"shape": [6, 15]}, {"shape": [5, 1, 3, 5]}]
)
def test_what_cannot_be_read_is_written_again(change: dict[str, object]):
    mapped(NAME, read, write)
    index = cache_folder() / NAME / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    images, word = mapped(NAME, lambda images, index: read(images.view(SHAPE), index), write)
    assert (images.shape, word) == (SHAPE, "a")
    assert left() == [NAME]


@pytest.mark.parametrize("error", [InputError("damaged"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_write_that_is_broken_off_leaves_nothing(error: BaseException):
    def broken(folder: Path) -> Mapping[str, object]:
        write(folder)
        raise error

    with pytest.raises((InputError, KeyboardInterrupt)):
        mapped(NAME, read, broken)
    assert left() == []


def _die_while_writing(folder: Path) -> Mapping[str, object]:
    write(folder)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_what_a_killed_process_has_written_is_never_read():
    process = CONTEXT.Process(target=mapped, args=(NAME, read, _die_while_writing))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert left() == [f"{NAME}.lock", f"{NAME}.partial"]
    assert torch.equal(mapped(NAME, read, write)[0], pixels())
    assert left() == [NAME]


def _map(barrier, results) -> None:
    written = []
    barrier.wait()
    images, _ = mapped(NAME, read, lambda folder: written.append(folder) or write(folder))
    results.put((images.sum(dtype=torch.int64).item(), len(written)))


def test_of_processes_that_start_at_once_one_writes():
    barrier, results = CONTEXT.Barrier(8), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=_map, args=(barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    sums, written = zip(*seen, strict=True)
    assert set(sums) == {pixels().sum(dtype=torch.int64).item()}
    assert sum(written) == 1
    assert left() == [NAME]


def test_room_is_taken_before_anything_is_written(monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")._replace(free=50)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(
        InputError,
        match=r"needs 0\.1 kB for 6 images of 3x5 pixels from numbers, and its disk has 0\.1 kB free: set \$",
    ):
        mapped(NAME, read, write)
    assert left() == []


def test_a_cache_that_cannot_be_made_is_said_so(monkeypatch: pytest.MonkeyPatch):
    # /proc refuses new folders to everybody, root included.
    monkeypatch.setenv("TUNE_FUSION_CACHE", "/proc/nope")
    with pytest.raises(
        InputError,
        match=r"cannot write the image cache /proc/nope/images: .* to a folder that can be written$",
    ):
        mapped(NAME, read, write)


def test_a_disk_that_fills_up_while_an_entry_is_written_is_said_so():
    def full(_folder: Path) -> Mapping[str, object]:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"No space left on device; .* to a folder with room$"):
        mapped(NAME, read, full)


def test_images_may_be_written_to_and_the_entry_stays_as_it_is():
    mapped(NAME, read, write)[0].zero_()
    assert torch.equal(mapped(NAME, read, never)[0], pixels())
    stored = np.fromfile(cache_folder() / NAME / "images.u8", np.uint8)
    assert np.array_equal(stored, pixels().numpy().ravel())
