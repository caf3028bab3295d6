import re
from pathlib import Path

import pytest
from made_records import make_session

from tune_fusion.errors import InputError
from tune_fusion.events import Closed, Noted
from tune_fusion.journal import Journal
from tune_fusion.runs import RunFolder, find_run, read_past, run_folder


def journal(folder, *events):
    folder.mkdir(parents=True)
    written = Journal(folder / "journal.jsonl")
    for event in events:
        written.append(event)
    written.close()


def test_what_lies_where():
    folder = RunFolder(Path("/runs/first"))
    assert folder.name == "first"
    names = ("journal", "space", "layers", "result", "trials", "logs", "model", "checkpoints")
    assert [str(getattr(folder, name).relative_to(folder.path)) for name in names] == [
        "journal.jsonl",
        "space.yaml",
        "layers.json",
        "result.json",
        "trials.csv",
        "logs",
        "model",
        "checkpoints",
    ]
    assert folder.checkpoint_folder(7) == folder.checkpoints / "0007"
    assert folder.weights(12345) == folder.path / "weights" / "12345.safetensors"
    assert folder.trial_log(7) == folder.logs / "trial-0007.txt"


@pytest.mark.parametrize("name", ["a", "7", "A.b_c-d", "x" * 128])
def test_good_names(tmp_path, name):
    assert run_folder(tmp_path, name, "--name") == RunFolder(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "a/b", "../x", "/etc", "a b", "x" * 129, "naïve", "a\n", "a\\b", "a\0b"],
)
@pytest.mark.parametrize("option", ["--name", "--resume"])
def test_names_that_would_leave_the_output_folder_or_not_do_everywhere(tmp_path, name, option):
    for find in (run_folder, find_run):
        with pytest.raises(InputError, match="a name starts with a letter or digit") as refused:
            find(tmp_path, name, option)
        assert str(refused.value).startswith(f"{option} {name!r}: ")


def test_the_output_folder_may_be_relative_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run_folder(Path("runs"), "x", "--name").path == tmp_path / "runs" / "x"
    assert run_folder(Path("~/runs"), "x", "--name").path == tmp_path / "home" / "runs" / "x"


def test_a_search_is_found_by_its_journal(tmp_path):
    journal(tmp_path / "first", make_session())
    assert find_run(tmp_path, "first", "--resume") == RunFolder(tmp_path / "first")


def test_a_search_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as refused:
        find_run(tmp_path / "runs", "first", "--resume")
    assert str(refused.value) == f"--resume first: {tmp_path / 'runs'} holds no search of that name; " + (
        "--storage says where searches are kept"
    )
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(InputError, match=r"runs/first has no journal.jsonl, from which a search goes on"):
        find_run(tmp_path / "runs", "first", "--resume")


def test_the_nearest_name_is_suggested_and_never_what_is_only_half_made(tmp_path):
    journal(tmp_path / "digits-20250101", make_session())
    journal(tmp_path / ".first-x1", make_session())
    with pytest.raises(InputError, match="did you mean 'digits-20250101'"):
        find_run(tmp_path, "digits-20250102", "--resume")
    with pytest.raises(InputError) as refused:
        find_run(tmp_path, "first", "--resume")
    assert ".first-x1" not in str(refused.value)


def test_a_past_is_what_the_journal_tells(tmp_path):
    events = [make_session(), Noted(note="x"), make_session(pid=7), Closed(status="completed")]
    journal(tmp_path / "first", *events)
    past = read_past(RunFolder(tmp_path / "first"))
    assert past.lines.events == events
    assert past.session == events[2]
    assert past.complete
    assert past.chronicle.record.notes == ["x"]


@pytest.mark.parametrize("status", ["interrupted", "failed", None])
def test_only_a_completed_search_is_complete(tmp_path, status):
    ended = [Closed(status=status)] if status else []
    journal(tmp_path / "first", make_session(), *ended)
    assert not read_past(RunFolder(tmp_path / "first")).complete
    journal(tmp_path / "second", make_session(), Closed(status="completed"), make_session())
    assert not read_past(RunFolder(tmp_path / "second")).complete


def test_a_search_that_never_began(tmp_path):
    journal(tmp_path / "first")
    with pytest.raises(InputError, match=re.escape(f"never began; remove {tmp_path / 'first'}")):
        read_past(RunFolder(tmp_path / "first"))


def test_a_journal_that_does_not_begin_with_a_session(tmp_path):
    journal(tmp_path / "first", Noted(note="x"), make_session())
    with pytest.raises(InputError, match=r"journal.jsonl: a journal begins with a session, got 'noted'"):
        read_past(RunFolder(tmp_path / "first"))


def test_a_damaged_journal_names_its_line(tmp_path):
    journal(tmp_path / "first", make_session(), Noted(note="first"), Noted(note="second"))
    path = tmp_path / "first" / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"first", b"frist", 1))
    with pytest.raises(InputError, match=r"journal.jsonl:2: the line is damaged"):
        read_past(RunFolder(tmp_path / "first"))
