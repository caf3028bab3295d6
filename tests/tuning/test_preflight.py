import os
import re
import shlex
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
from made_records import make_session

from tune_fusion.errors import InputError
from tune_fusion.tuning.ownership import owned
from tune_fusion.tuning.preflight import (
    Request,
    as_before,
    check_name,
    check_store,
    check_words,
    later,
    moved_store,
)


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def request_for(**changes):
    return Request(**({"space": "digits"} | changes))


def test_the_folder_is_absolute_free_and_not_made(tmp_path):
    folder = check_name(request_for(name="first"), "digits")
    assert folder.path == tmp_path / "runs" / "first"
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_a_name_is_called_after_its_space_and_the_time(tmp_path):
    folder = check_name(request_for(storage=tmp_path / "a" / "b"), "digits")
    assert folder.path.parent == tmp_path / "a" / "b"
    assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_name(request_for(name="x", storage=Path("~/out")), "digits").path == tmp_path / "out" / "x"


def test_a_name_that_is_none():
    with pytest.raises(InputError, match=r"^--name '../x': a name starts with a letter or digit"):
        check_name(request_for(name="../x"), "digits")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_never_overwritten(tmp_path, kind):
    taken = tmp_path / "runs" / "first"
    taken.parent.mkdir()
    taken.mkdir() if kind == "folder" else taken.write_text("mine")
    with pytest.raises(InputError, match=re.escape(f"{taken} exists already and is never overwritten")):
        check_name(request_for(name="first"), "digits")


def test_an_output_inside_a_file(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(InputError, match=re.escape(f"--storage runs: {tmp_path / 'runs'} is not a folder")):
        check_name(request_for(name="first"), "digits")


def test_an_output_that_cannot_be_written(monkeypatch):
    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(InputError, match=r"--storage runs: .* is not writable \(Read-only file system\)"):
        check_name(request_for(name="first"), "digits")


def test_a_name_that_somebody_is_using_right_now(tmp_path):
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    with owned(folder), pytest.raises(InputError) as refused:
        check_name(request_for(name="first"), "digits")
    message = str(refused.value)
    assert message.startswith(f"--name first (being run by pid {os.getpid()} on ")
    assert f"{folder} exists already" in message


def test_words_that_are_none_are_refused_without_asking_a_tracking_server():
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        check_words(request_for(tracking_uri=f"http://{address}", register="digits"))
        with pytest.raises(InputError, match=f"--address {address}: no Ray cluster answers there"):
            check_words(request_for(address=address))
    for changes, message in (
        ({"tracking_uri": "mlruns"}, "^tracking URI 'mlruns': "),
        ({"register": "a/b"}, "^--register 'a/b': "),
        ({"address": "head"}, "^--address head: expected HOST:PORT"),
    ):
        with pytest.raises(InputError, match=message):
            check_words(request_for(**changes))
    # That of an earlier search may be another one.
    check_words(request_for(tracking_uri="mlruns", tracking_given=False))


def test_the_tracking_store_is_asked_unless_the_search_is_offline():
    with pytest.raises(InputError, match="sqlight"):
        check_store(request_for(tracking_uri="sqlight:///x.db"))
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputError, match=re.escape(uri)):
            check_store(request_for(tracking_uri=uri))
        check_store(request_for(tracking_uri=uri, offline=True))


def test_the_store_that_is_there_is_not_changed_by_asking(tmp_path):
    check_store(request_for(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("search", {}, ["--resume", "first"]),
        ("sync", {}, ["first"]),
        (
            "search",
            {"storage": Path("my runs"), "tracking_uri": "http://me:secret@host:5000", "address": "auto"},
            [
                *("--resume", "first", "--storage", "my runs"),
                *("--tracking-uri", "http://me:***@host:5000", "--address", "auto"),
            ],
        ),
        ("sync", {"storage": Path("/x"), "address": "auto", "concurrent": 2}, ["first", "--storage", "/x"]),
        ("search", {"concurrent": 2}, ["--resume", "first", "--concurrent", "2"]),
    ],
)
def test_the_command_that_goes_on_later(command, changes, words):
    line = later(command, request_for(**changes), "first")
    assert shlex.split(line) == [sys.executable, "-m", f"tune_fusion.{command}", *words]
    assert "secret" not in line


def test_what_is_not_said_stays_as_it_was():
    session = make_session(tracking="sqlite:////kept/mlflow.db", concurrent=3)
    open_request = Request(resume="made", tracking_given=False)
    again = as_before(open_request, session)
    assert (again.tracking_uri, again.concurrent) == ("sqlite:////kept/mlflow.db", 3)
    assert moved_store(again, session) == []
    said = Request(resume="made", tracking_uri="sqlite:////other.db", concurrent=1)
    assert as_before(said, session) == said
    (sentence,) = moved_store(said, session)
    assert "was logged to sqlite:////kept/mlflow.db so far; all of it goes to sqlite:////other.db" in sentence


def test_a_password_that_was_not_kept_is_asked_for():
    session = make_session(tracking="http://me:***@host:5000")
    with pytest.raises(InputError, match=r"--tracking-uri is needed: .*http://me:\*\*\*@host:5000"):
        as_before(Request(resume="made", tracking_given=False), session)
