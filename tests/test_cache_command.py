import os
import re
import time

import pytest
import torch

from tune_fusion import cache, commands
from tune_fusion.data import pipeline
from tune_fusion.data.cache import cached_images
from tune_fusion.data.datasets import load_data
from tune_fusion.data.entries import list_entries
from tune_fusion.data.locks import locked
from tune_fusion.data.pipeline import Batches
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "2")


@pytest.fixture
def two_sets(image_folder):
    """Two entries, of 4 and of 6 images, the second used two hours later than the first."""
    for index, images in enumerate((2, 3)):
        root = image_folder(classes=2, images=images, name=f"set{index}")
        cached_images(root, sorted(str(path.relative_to(root)) for path in root.rglob("*.png")), 16)
        (entry,) = [entry for entry in list_entries() if entry.source == str(root)]
        used = time.time() - (5 - 2 * index) * 3600
        os.utime(entry.path, (used, used))
    return list_entries()


def ended(*arguments):
    with pytest.raises(SystemExit) as stop:
        commands.run("tune_fusion.cache", lambda: cache.main(list(arguments)))
    return stop.value.code


def test_an_empty_cache(capsys, tmp_path):
    assert ended() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "cache" / "images")
    assert lines[1:] == ["0 entries, 0.0 kB of at most 2.0 GB (set $TUNE_FUSION_CACHE_GB to change it)"]
    assert not (tmp_path / "cache").exists()


def test_entries_are_listed_the_last_used_first(capsys, two_sets):
    assert ended() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == [entry.path.name[:12] for entry in two_sets[::-1]]
    assert [line.split()[1] for line in lines[2:4]] == ["6", "4"]
    assert "just now      3 hours ago   " in lines[2]
    assert lines[2].endswith("/set1")
    assert "just now      5 hours ago   " in lines[3]
    assert re.match(r"2 entries, \d\.\d kB of at most 2\.0 GB \(set ", lines[4])


def test_an_entry_in_use_and_a_damaged_one_are_named_so(capsys, two_sets):
    (two_sets[0].path / "index.json").write_text("{")
    root, files = two_sets[1].source, 6
    names = [f"class{label}/{number}.png" for label in range(2) for number in range(3)]
    cached = cached_images(type(two_sets[0].path)(root), names, 16)
    assert len(cached.images) == files
    assert ended() == 0
    lines = capsys.readouterr().out.splitlines()
    assert " in use " in lines[2]
    assert lines[3].endswith("(damaged)")
    assert ended("--clear") == 1
    out, err = capsys.readouterr()
    assert out.startswith("removed 1 of 2 entries, ")
    assert two_sets[1].path.name[:12] in err
    assert "a running process uses them" in err
    assert [entry.path for entry in list_entries()] == [two_sets[1].path]


def test_resized_copies_are_listed_as_what_they_are(capsys, image_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "_OWN_BYTES", 0)  # these are small
    root = image_folder(classes=2, images=6)
    data = load_data(DataSettings(name=f"folder:{root}"), seed=0, image_size=32)
    batches = Batches(
        data.train,
        batch_size=4,
        image_size=32,
        mean=[0.5],
        std=[0.5],
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
    )
    assert ended() == 0
    listed = sorted(capsys.readouterr().out.splitlines()[2:4], key=len)
    assert listed[0].endswith(f" {root}")
    assert listed[1].endswith(f" {root}, resized to 32x32")
    assert f" {len(data.train)} " in listed[1]
    assert all(" in use " in line for line in listed)
    assert len(batches) > 0


def test_everything_is_removed(capsys, two_sets):
    assert ended("--clear") == 0
    assert re.fullmatch(r"removed 2 of 2 entries, \d\.\d kB\n", capsys.readouterr().out)
    assert list_entries() == []
    assert ended("--clear") == 0


def test_locks_go_with_the_entries_but_for_those_that_somebody_holds(capsys, two_sets):
    folder = two_sets[0].path.parent
    for name in ("free.lock", "held.lock"):
        (folder / name).touch()
    with locked(folder / "held.lock"):
        assert ended("--clear") == 0
        assert [path.name for path in folder.iterdir()] == ["held.lock"]


def test_one_entry_is_removed_by_the_beginning_of_its_name(capsys, two_sets):
    name = two_sets[0].path.name
    assert ended("--clear", name[:12], name) == 0
    assert re.fullmatch(r"removed 1 of 1 entries, \d\.\d kB\n", capsys.readouterr().out)
    assert [entry.path for entry in list_entries()] == [two_sets[1].path]


def test_names_that_are_none_of_an_entry(capsys, two_sets):
    name = two_sets[0].path.name[:12]
    assert ended("--clear", name[:11] + "x") == 2
    assert capsys.readouterr().err == (
        f"tune_fusion.cache: --clear {name[:11]}x: no such entry; did you mean {name!r}?\n"
    )
    two_sets[1].path.rename(two_sets[0].path.with_name(name[:6] + "0" * 26))
    assert ended("--clear", name[:6]) == 2
    assert capsys.readouterr().err.endswith("begins the names of 2 entries: give more of it\n")
    assert len(list_entries()) == 2


def test_a_name_where_the_cache_is_empty(capsys):
    assert ended("--clear", "abc") == 2
    assert capsys.readouterr().err == "tune_fusion.cache: --clear abc: no such entry; the cache is empty\n"


def test_a_bound_that_is_none_is_said(capsys, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE_GB", "lots")
    assert ended() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("needs a number of gigabytes above 0, got 'lots'\n")


def test_a_cache_that_is_no_folder_is_said_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot read the image cache .*file/images: Not a directory; set"):
        cache.main([])


@pytest.mark.parametrize("arguments", [[], ["--clear"], ["--clear", "abc"]])
def test_a_cache_that_cannot_be_made_is_said_so(capsys, monkeypatch, arguments):
    # /proc refuses new folders to everybody, root included.
    monkeypatch.setenv("TUNE_FUSION_CACHE", "/proc/nope")
    assert ended(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"tune_fusion.cache: the image cache /proc/nope/images \(\$TUNE_FUSION_CACHE\): /proc is not "
        r"writable \(.*\); choose another folder\n",
        err,
    )
