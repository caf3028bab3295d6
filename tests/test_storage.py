import copy
import json
import os
import time
from pathlib import Path

import pytest
from object_store import PASSWORD, object_store

from tune_fusion import storage
from tune_fusion.errors import InputError
from tune_fusion.runs import find_run
from tune_fusion.storage import Place, Store, fetch, fetch_folder, journal_key, pull, push, push_folder
from tune_fusion.tuning import store_copy
from tune_fusion.tuning.store_copy import StoreCopy, kept


@pytest.fixture(scope="module")
def server():
    with object_store() as running:
        yield running


@pytest.fixture
def here(server, tmp_path, monkeypatch):
    """The folder of the working copies of a store that no other test uses."""
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_copy, "_SETTLED_SECONDS", 0.0)
    return storage.working_copy(server.uri(tmp_path.name))


def store_at(folder):
    return storage.store_of(folder)[0]


def elsewhere(folder, tmp_path, monkeypatch):
    """The same on another machine."""
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "another cache"))
    return storage.working_copy(store_at(folder).uri)


def test_objects_are_written_listed_read_and_deleted(here):
    store = store_at(here)
    assert store.get("first/a") is None
    assert store.entries("first") == {}
    store.put("first/journal/0", b"one")
    store.put("first/a", b"xy")
    store.put("other/a", b"")
    assert store.get("first/a") == b"xy"
    assert {name: entry.size for name, entry in store.entries("first").items()} == {"a": 2, "journal/0": 3}
    assert store.names() == ["first"]
    store.delete(["first/a", "first/never was"])
    assert list(store.entries("first")) == ["journal/0"]


def test_a_password_is_in_the_process_and_nowhere_else(here, server):
    assert PASSWORD not in str(here)
    assert PASSWORD not in storage.shown(here)
    assert storage.typed(here) == store_at(here).uri
    assert "key:***@bucket" in storage.shown(here)
    assert PASSWORD not in store_at(here).at("first")
    assert copy.copy(store_at(here)) == store_at(here)
    # Another password is another one for the same store.
    assert storage.working_copy(store_at(here).uri.replace(PASSWORD, "other")) == here


def test_a_mere_folder_is_in_no_store(tmp_path):
    assert storage.store_of(tmp_path) is None
    assert storage.typed(tmp_path) == storage.shown(tmp_path) == str(tmp_path)
    assert Place.of(tmp_path).here() == tmp_path
    for do in (pull, fetch, fetch_folder):
        do(tmp_path / "nothing")
    push([tmp_path / "nothing"])


@pytest.mark.parametrize("path", ["bucket//x", "bucket/x/../y", "bucket/./x"])
def test_a_path_in_a_store_is_plain(path):
    with pytest.raises(InputError, match=r"has no empty part, no '\.' and no '\.\.'"):
        storage.working_copy(f"s3://{path}?region=x")


@pytest.mark.parametrize("uri", ["s4://bucket/x", "s3://", "nonsense://"])
def test_what_is_no_store(uri):
    with pytest.raises(InputError):
        storage.working_copy(uri)


def test_a_place_is_a_folder_of_each_machine(here, tmp_path, monkeypatch):
    place = copy.deepcopy(Place.of(here / "first"))
    assert place.here() == here / "first"
    assert elsewhere(here, tmp_path, monkeypatch) / "first" == place.here() != here / "first"


def test_checkpoints_go_to_another_machine(here, tmp_path, monkeypatch):
    folder = here / "first" / "checkpoints" / "0003"
    folder.mkdir(parents=True)
    for epoch in (1, 2, 3):
        (folder / f"epoch-{epoch}.pt").write_bytes(b"%d" % epoch)
        (folder / f"epoch-{epoch - 2}.pt").unlink(missing_ok=True)
        push_folder(folder, folder / f"epoch-{epoch}.pt")
    (folder / "epoch-3.pt").write_bytes(b"trained again")
    push_folder(folder, folder / "epoch-3.pt")
    there = elsewhere(here, tmp_path, monkeypatch) / "first" / "checkpoints" / "0003"
    fetch_folder(there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        "epoch-2.pt": b"2",
        "epoch-3.pt": b"trained again",
    }
    fetch(there.parent / "nothing")
    assert not (there.parent / "nothing").exists()


def begin(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def test_a_search_is_brought_to_another_machine(here, tmp_path, monkeypatch):
    folder = here / "first"
    begin(folder, b"one")
    (folder / "weights").mkdir()
    (folder / "weights" / "0001.safetensors").write_bytes(b"large")
    (folder / "lock").write_text("ours")
    with kept(folder):
        ours = store_copy._RUNNING[folder]
        for number in range(5):
            begin(folder, b"line %d" % number)
            (folder / "result.json").write_text(str(number))
            assert ours.flush() == []
        begin(folder / "confirmation", b"another")
        (folder / "journal.jsonl").open("ab").write(b"half a li")
    there = elsewhere(here, tmp_path, monkeypatch) / "first"
    pull(there)
    found = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert found == {"journal.jsonl", "result.json", "confirmation/journal.jsonl"}
    assert (there / "journal.jsonl").read_bytes() == b"one\nline 0\nline 1\nline 2\nline 3\nline 4\n"
    assert (there / "result.json").read_text() == "4"
    # It goes on there, and then here again.
    with kept(there):
        begin(there, b"there")
        (there / "result.json").unlink()
    pull(folder)
    assert (folder / "journal.jsonl").read_bytes().endswith(b"line 4\nthere\n")
    assert list(store_at(there).entries("first")) == [
        *("confirmation/journal/000000000000000.jsonl", "journal/000000000000000.jsonl"),
        *(f"journal/{4 + 7 * n:015d}.jsonl" for n in range(1, 6)),
    ]


def test_many_parts_are_joined(here, monkeypatch):
    monkeypatch.setattr(store_copy, "_MANY_PARTS", 3)
    folder = here / "first"
    with kept(folder):
        ours = store_copy._RUNNING[folder]
        for number in range(8):
            begin(folder, b"line %d" % number)
            ours.flush()
            parts = [name for name in store_at(here).entries("first") if name.startswith("journal/")]
            assert len(parts) <= 3
    expected = (folder / "journal.jsonl").read_bytes()
    # As if the driver had died before it deleted what the joined part covers.
    store_at(here).put(f"first/{journal_key(7)}", b"line 1\n")
    (folder / "journal.jsonl").unlink()
    pull(folder)
    assert (folder / "journal.jsonl").read_bytes() == expected


def test_a_journal_that_has_lost_a_part_is_refused(here):
    store_at(here).put(f"first/{journal_key(0)}", b"one\n")
    store_at(here).put(f"first/{journal_key(9)}", b"three\n")
    with pytest.raises(InputError, match=r"begins at byte 9, and the parts before it end at 4"):
        pull(here / "first")


def test_what_only_this_machine_has_of_a_journal_stays(here):
    begin(here / "first", b"one", b"two")
    store_at(here).put(f"first/{journal_key(0)}", b"one\n")
    pull(here / "first")
    assert (here / "first" / "journal.jsonl").read_bytes() == b"one\ntwo\n"
    store_at(here).put(f"first/{journal_key(4)}", b"another machine's\n")
    pull(here / "first")
    assert (here / "first" / "journal.jsonl").read_bytes() == b"one\nanother machine's\n"


def test_a_journal_is_read_while_its_driver_joins_the_parts(here, monkeypatch):
    store = store_at(here)
    store.put(f"first/{journal_key(0)}", b"one\n")
    store.put(f"first/{journal_key(4)}", b"two\n")
    get = Store.get

    def joined_meanwhile(self, key, *arguments):
        content = get(self, key, *arguments)
        if key.endswith(journal_key(0)) and content == b"one\n":
            store.put(f"first/{journal_key(0)}", b"one\ntwo\nthree\n")
            store.delete([f"first/{journal_key(4)}"])
        return content

    monkeypatch.setattr(Store, "get", joined_meanwhile)
    pull(here / "first")
    assert (here / "first" / "journal.jsonl").read_bytes() == b"one\ntwo\nthree\n"


def test_what_was_written_here_after_the_store_had_gone_stays(here, monkeypatch):
    folder = here / "first"
    store_at(here).put(f"first/{journal_key(0)}", b"one\n")
    store_at(here).put("first/result.json", b"older")
    folder.mkdir(parents=True)
    later = time.time() + 60
    (folder / "result.json").write_bytes(b"newer")
    os.utime(folder / "result.json", (later, later))
    (folder / "trials.csv").write_bytes(b"older")
    os.utime(folder / "trials.csv", (1, 1))
    store_at(here).put("first/trials.csv", b"newer")
    pull(folder)
    assert [(folder / name).read_bytes() for name in ("result.json", "trials.csv")] == [b"newer"] * 2
    with kept(folder):
        store_copy._RUNNING[folder].flush()
    assert store_at(here).get("first/result.json") == b"newer"


def test_a_store_that_answers_again_gets_the_last_changes(here, monkeypatch):
    folder = here / "first"
    begin(folder, b"one")
    put = Store.put

    def away(self, key, content, *arguments):
        raise OSError("away")

    with kept(folder):
        ours = store_copy._RUNNING[folder]
        monkeypatch.setattr(Store, "put", away)
        (problem,) = ours.flush(patience=0.0)
        assert "away; what it lacks is in" in problem
        monkeypatch.setattr(Store, "put", put)
    assert store_at(here).get(f"first/{journal_key(0)}") == b"one\n"


def test_files_are_deleted_after_the_journal_tells_why(here):
    folder = here / "first"
    begin(folder, b"one")
    store = store_at(here)
    for key in ("weights/0001.safetensors", "weights/0002.safetensors", "checkpoints/0001/epoch-0001.pt"):
        store.put(f"first/{key}", b"x")
    with kept(folder):
        ours = store_copy._RUNNING[folder]
        ours.keep_only(
            folder / "checkpoints",
            [folder / "checkpoints" / "0001"],
            folder / "weights",
            [folder / "weights" / "0001.safetensors"],
        )
        ours.flush()
        assert set(store.entries("first/weights")) == {"0001.safetensors"}
        assert set(store.entries("first/checkpoints")) == {"0001/epoch-0001.pt"}
        ours.forget([folder / "checkpoints" / "0001"], [folder / "weights" / "0001.safetensors"])
        ours.flush()
    assert store.entries("first/weights") == store.entries("first/checkpoints") == {}


def claim_of(host, beat=1):
    holder = {"host": host, "pid": 7, "began": "never", "since": 0.0}
    return json.dumps({"token": "theirs", "beat": beat, "holder": holder}).encode()


def test_a_second_driver_is_refused_while_the_first_lives(here, monkeypatch):
    store = store_at(here)
    monkeypatch.setattr(store_copy, "_LOOK_SECONDS", 0.1)
    beats = iter(range(100))

    def beating(self):
        return claim_of("far", next(beats))

    monkeypatch.setattr(StoreCopy, "_claimed", beating)
    with pytest.raises(InputError, match=r"^first is being run by pid 7 on far since "), kept(here / "first"):
        pass
    assert store.get("first/.claim") is None


@pytest.mark.parametrize("host", ["far", os.uname().nodename])
def test_a_dead_drivers_search_is_taken_over(here, monkeypatch, host):
    monkeypatch.setattr(store_copy, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(store_copy, "_WATCH_SECONDS", 0.5 if host == "far" else 3600.0)
    store_at(here).put("first/.claim", claim_of(host))
    with kept(here / "first"):
        assert b"theirs" not in store_at(here).get("first/.claim")
    assert store_at(here).get("first/.claim") is None


STRANGE = [b"{", b"[]", b'{"token": 1, "beat": 0}', b'{"token": "x", "beat": 0, "holder": {"host": "far"}}']


@pytest.mark.parametrize("claim", STRANGE)
def test_what_is_no_claim_is_overwritten_when_it_does_not_change(here, monkeypatch, claim):
    monkeypatch.setattr(store_copy, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(store_copy, "_WATCH_SECONDS", 0.5)
    store = store_at(here)
    store.put("first/.claim", claim)
    with kept(here / "first"):
        assert store.get("first/.claim") != claim
    assert store.get("first/.claim") is None


@pytest.mark.parametrize(
    ("claim", "who"),
    [
        (None, "a driver that has ended"),
        (b"{", "a driver whose claim this version does not understand"),
        (b"theirs", "pid 7 on far since "),
    ],
)
def test_one_that_was_suspended_looks_at_its_claim_before_it_writes(here, monkeypatch, claim, who):
    monkeypatch.setattr(store_copy, "_LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(store_copy, "_BEAT_SECONDS", 3600.0)
    folder, store = here / "first", store_at(here)
    begin(folder, b"one")
    with kept(folder):
        ours = store_copy._RUNNING[folder]
        ours.flush()
        if claim is None:
            store.delete(["first/.claim"])
        else:
            store.put("first/.claim", claim_of("far") if claim == b"theirs" else claim)
        begin(folder, b"two")
        ours._renewed -= 60
        with pytest.raises(storage.TuneFusionError, match=f"first was taken over by {who}"):
            ours.flush()
    assert store.get(f"first/{journal_key(0)}") == b"one\n"
    assert store.get(f"first/{journal_key(4)}") is None


def test_a_claim_that_nobody_can_read_but_somebody_keeps_is_heeded(here, monkeypatch):
    monkeypatch.setattr(store_copy, "_LOOK_SECONDS", 0.1)
    beats = iter(range(100))
    monkeypatch.setattr(StoreCopy, "_claimed", lambda self: b"a later version's %d" % next(beats))
    with pytest.raises(InputError, match="whose claim this version does not understand"), kept(here / "x"):
        pass


def test_a_claim_is_given_up_where_the_search_cannot_be_brought(here):
    store = store_at(here)
    begin(here / "first", b"one")
    store.put(f"first/{journal_key(0)}", b"one\n")
    store.put(f"first/{journal_key(9)}", b"late\n")
    with pytest.raises(InputError, match="a part of the journal is missing"), kept(here / "first"):
        pass
    assert store.get("first/.claim") is None


def test_one_that_is_taken_over_writes_no_more(here, monkeypatch):
    monkeypatch.setattr(store_copy, "_BEAT_SECONDS", 0.1)
    folder = here / "first"
    begin(folder, b"one")
    with kept(folder):
        ours = store_copy._RUNNING[folder]
        ours.flush()
        deadline = time.monotonic() + 20
        while ours._threads[1].is_alive() and time.monotonic() < deadline:
            # Again and again, as a driver does: ours may have renewed its claim in between.
            store_at(here).put("first/.claim", claim_of("far"))
            ours._threads[1].join(0.5)
        begin(folder, b"two")
        with pytest.raises(storage.TuneFusionError, match="first was taken over by pid 7 on far"):
            ours.check()
    assert store_at(here).get(f"first/{journal_key(0)}") == b"one\n"
    assert store_at(here).get("first/.claim") == claim_of("far")


def test_googles_client_gives_up_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path))
    uri = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:9&scheme=http"
    assert storage._bounded(uri) == f"{uri}&retry_limit_seconds=5"
    assert storage._bounded("gs://bucket/x") == "gs://bucket/x?retry_limit_seconds=5"
    assert storage._bounded(f"{uri}&retry_limit_seconds=1") == f"{uri}&retry_limit_seconds=1"
    with pytest.raises(InputError, match=r"^--storage gs://.*: google::cloud::Status\(UNAVAILABLE"):
        find_run(storage.working_copy(f"{uri}&retry_limit_seconds=1"), "first", "--resume")


def test_a_store_that_does_not_answer_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path))
    here = storage.working_copy("s3://key:geheim@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=x")
    with pytest.raises(InputError) as refused:
        find_run(here, "first", "--resume")
    assert str(refused.value).startswith("--storage s3://key:***@bucket/x?")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (("@bucket/", "@nowhere/"), "; create the bucket"),
        (("127.0.0.1", "127.0.0.2"), "; check its address, and whether it runs"),
    ],
)
def test_what_a_store_refuses_is_told_with_what_to_do(here, tmp_path, monkeypatch, change, remedy):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "another cache"))
    folder = storage.working_copy(store_at(here).uri.replace(*change)) / "first"
    with pytest.raises(InputError) as refused, kept(folder):
        pass
    assert str(refused.value).endswith(remedy)
    assert PASSWORD not in str(refused.value)


def test_known_names_are_those_in_the_store(here):
    store_at(here).put(f"second/{journal_key(0)}", b"")
    with pytest.raises(InputError, match="did you mean 'second'"):
        find_run(here, "secund", "--resume")
    assert not Path(here / "secund").exists()
    assert isinstance(store_at(here), Store)
