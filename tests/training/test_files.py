import errno
import os

import pytest
from small_disk import small_disk

from tune_fusion.training import files
from tune_fusion.training.files import DiskFullError, causes, no_space, write_whole


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    for content in (b"first", b"second"):
        write_whole(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        assert path.read_bytes() == b"old"
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_whole(path, lambda file: file.write(b"new one"))
    assert synced == [7]
    assert path.read_bytes() == b"new one"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_part(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of it")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_with_the_bytes_that_are_needed(tmp_path):
    with small_disk(tmp_path / "disk", 256) as disk:
        path = disk / "folder" / "file"
        write_whole(path, lambda file: file.write(b"old"))
        with pytest.raises(DiskFullError) as refused:
            write_whole(path, lambda file: [file.write(bytes(2**19)) for _ in range(4)])
        assert str(refused.value).startswith(f"disk full: {path} needs 2.0 MiB, 0.")
        assert no_space(refused.value).errno == errno.ENOSPC
        assert path.read_bytes() == b"old"
        assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_full_disk_is_found_behind_other_errors():
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    try:
        try:
            raise quota
        except OSError:
            raise RuntimeError("unexpected pos") from None
    except RuntimeError as error:
        outer = ValueError("no checkpoint")
        outer.__cause__ = error
    assert no_space(outer) is quota
    assert no_space(OSError(errno.EACCES, "Permission denied")) is None
    assert no_space(ValueError()) is None


def test_causes_that_go_round_in_circles_end():
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
