import re

import pytest

from tune_fusion.errors import InputError
from tune_fusion.training.checks import check_space
from tune_fusion.tuning.preflight import Request, check_request


@pytest.fixture(scope="module")
def checked():
    return check_space("digits")


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def request_for(**changes):
    return Request(**({"space": "digits"} | changes))


def test_the_folder_is_absolute_free_and_not_made(checked, tmp_path):
    folder = check_request(request_for(name="first"), checked)
    assert folder == tmp_path / "runs" / "first"
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_a_name_is_called_after_its_space_and_the_time(checked, tmp_path):
    folder = check_request(request_for(output=tmp_path / "a" / "b"), checked)
    assert folder.parent == tmp_path / "a" / "b"
    assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)


def test_a_home_folder_is_understood(checked, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_request(request_for(name="x", output=Path("~/out")), checked) == tmp_path / "out" / "x"


@pytest.mark.parametrize("name", ["a", "7", "A.b_c-d", "x" * 128])
def test_good_names(checked, name):
    assert check_request(request_for(name=name), checked).name == name


@pytest.mark.parametrize("name", [".hidden", "-x", "a/b", "..", "a b", "x" * 129, "naïve", "a\n", "a\\b"])
def test_names_that_would_not_do_as_a_folder_everywhere(checked, name):
    with pytest.raises(InputError, match="a name starts with a letter or digit") as refused:
        check_request(request_for(name=name), checked)
    assert str(refused.value).startswith(f"--name {name!r}: ")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_never_overwritten(checked, tmp_path, kind):
    taken = tmp_path / "runs" / "first"
    taken.parent.mkdir()
    taken.mkdir() if kind == "folder" else taken.write_text("mine")
    with pytest.raises(InputError, match=re.escape(f"{taken} exists already and is never overwritten")):
        check_request(request_for(name="first"), checked)


def test_an_output_inside_a_file(checked, tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(InputError, match=re.escape(f"--output runs: {tmp_path / 'runs'} is not a folder")):
        check_request(request_for(name="first"), checked)


def test_an_output_that_cannot_be_written(checked, monkeypatch):
    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(InputError, match=r"--output runs: .* is not writable \(Read-only file system\)"):
        check_request(request_for(name="first"), checked)


def test_the_tracking_store_is_asked_too_and_after_the_folder(checked, tmp_path):
    with pytest.raises(InputError, match="sqlight"):
        check_request(request_for(name="first", tracking_uri="sqlight:///x.db"), checked)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        check_request(request_for(name="first", tracking_uri="sqlight:///x.db"), checked)
