"""The journal as a file: what is cut, damaged, written at once by many, or meets a full disk."""

import json
import os
import re
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_session
from small_disk import small_disk

from tune_fusion.errors import InputError
from tune_fusion.events import Closed, EpochEnded, Failed, Logged, Noted, RungDecision
from tune_fusion.journal import Journal, Lines, read_journal
from tune_fusion.records import TrialState

STEADY = settings(derandomize=True, deadline=None, max_examples=150)
EVENTS = [
    make_session(),
    Noted(note='Λ0, "quoted",\nand \x00 \u2028 ,"crc":"00000000"}'),
    *(
        EpochEnded(
            trial=n % 3,
            epoch=n // 3 + 1,
            metrics={"val_accuracy": 0.1 * n, "val_loss": 1e-300 * n, "low.lr": -0.0},
            diverged=False,
            node="host:7",
            rung=RungDecision(seen=n + 1, kept=1, cutoff=0.1 * n, goes_on=True) if n % 2 else None,
            ends=TrialState.STOPPED if n == 8 else None,
        )
        for n in range(9)
    ),
    Failed(trial=1, reason="RuntimeError: no"),
    Logged(run=-1, run_id="f" * 32, epochs=0, status=None),
    Closed(status="interrupted"),
]


def write(path, events):
    journal = Journal(path)
    for event in events:
        journal.append(event)
    journal.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a sound journal."""
    return write(tmp_path_factory.mktemp("journal") / "whole.jsonl", EVENTS)


def refused(path, content):
    """The line that is named as the first damaged one."""
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_journal(path)
    message = str(error.value)
    (line,) = re.findall(rf"^{re.escape(str(path))}:(\d+): ", message)
    assert f": head -n {int(line) - 1} {path.name} > sound, then rename" in message
    assert path.read_bytes() == content
    return int(line)


def test_what_was_written_is_read(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole)
    assert read_journal(path) == Lines(EVENTS, len(whole))


def test_a_line_is_an_object_with_its_number_and_the_checksum_of_what_stands_before(whole):
    for number, line in enumerate(whole.splitlines(), start=1):
        content = json.loads(line)
        assert next(iter(content)) == "n"
        assert list(content)[-1] == "crc"
        assert content["n"] == number
        body = line[: -len(b',"crc":"00000000"}')]
        assert content["crc"] == f"{zlib.crc32(body):08x}"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            EpochEnded,
            at=st.floats(0, 4e9),
            trial=st.integers(0, 10**6),
            epoch=st.integers(1, 10**6),
            metrics=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False)),
            diverged=st.booleans(),
            node=st.text(max_size=8),
            ends=st.none() | st.sampled_from(TrialState),
            reason=st.text(max_size=20),
        ),
        max_size=5,
    )
)
def test_whatever_an_event_holds_comes_back(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, events)
    assert read_journal(path).events == events


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    event = EpochEnded(trial=0, epoch=1, metrics={"val_loss": float("nan")}, diverged=False, node="")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(event)
    journal.append(EVENTS[0])
    journal.close()
    assert read_journal(tmp_path / "journal.jsonl").events == [EVENTS[0]]


def test_a_journal_that_was_cut_at_any_byte_gives_its_whole_lines_and_goes_on(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    assert len(whole) > 2000
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) - 2000, len(whole) + 1):
        path.write_bytes(whole[:cut])
        lines = read_journal(path)
        kept = sum(end <= cut for end in ends)
        assert lines == Lines(EVENTS[:kept], ends[kept - 1])
        journal = Journal(path, lines)
        journal.append(EVENTS[-1])
        journal.close()
        assert read_journal(path).events == [*EVENTS[:kept], EVENTS[-1]], f"cut at byte {cut}"


def test_a_journal_cut_within_its_first_line_is_an_empty_one(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    for cut in (0, 1, whole.index(b"\n")):
        path.write_bytes(whole[:cut])
        assert read_journal(path) == Lines([], 0)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"n":14,"at"' + b"\0" * 100, b"\xff\xfe"])
def test_what_follows_the_last_newline_is_a_half_written_line(tmp_path, whole, tail):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole + tail)
    lines = read_journal(path)
    assert lines == Lines(EVENTS, len(whole))
    Journal(path, lines).close()
    assert path.read_bytes() == whole


@STEADY
@given(data=st.data())
def test_a_changed_byte_is_refused_and_its_line_named(tmp_path_factory, whole, data):
    # The last newline left out: without it the line before is one that was not written to its end.
    place = data.draw(st.integers(0, len(whole) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    assert refused(path, changed) == whole[:place].count(b"\n") + 1


@STEADY
@given(place=st.integers(0, 10**6), count=st.integers(1, 40))
def test_bytes_that_are_missing_are_noticed(tmp_path_factory, whole, place, count):
    place %= len(whole) - 1
    content = whole[:place] + whole[place + count :]
    path = tmp_path_factory.getbasetemp() / "missing.jsonl"
    line = whole[:place].count(b"\n") + 1
    if b"\n" in content[place:]:
        assert refused(path, content) == line
    else:
        # The end of the file is gone: that is a line being written.
        path.write_bytes(content)
        assert read_journal(path).events == EVENTS[: line - 1]


def test_a_line_that_is_missing_is_noticed(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    for gone in range(len(lines) - 1):
        assert refused(tmp_path / "gone.jsonl", b"".join(lines[:gone] + lines[gone + 1 :])) == gone + 1


def test_a_line_that_stands_twice_is_noticed(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    for index in range(len(lines)):
        doubled = b"".join(lines[: index + 1] + lines[index:])
        assert refused(tmp_path / "doubled.jsonl", doubled) == index + 2


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.permutations(range(len(EVENTS))).filter(lambda order: order != sorted(order)))
def test_lines_in_another_order_are_noticed(tmp_path_factory, whole, order):
    lines = whole.splitlines(keepends=True)
    path = tmp_path_factory.getbasetemp() / "shuffled.jsonl"
    first = next(index for index, number in enumerate(order) if index != number)
    assert refused(path, b"".join(lines[number] for number in order)) == first + 1


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b'{"n":1}', b"\xff"])
def test_a_line_that_is_none_of_ours_is_refused(tmp_path, line):
    assert refused(tmp_path / "journal.jsonl", line + b"\n") == 1


def signed(content):
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"n": 1, "event": "danced"}, "an event that this version does not know"),
        ({"n": 1, "event": "noted", "at": 1.0, "note": 5}, "noted.note: Input should be a valid string"),
        ({"n": 1, "event": "noted", "at": 1.0, "note": "x", "more": 1}, "noted.more: Extra inputs"),
        ({"n": 2, "event": "noted", "at": 1.0, "note": "x"}, "line 2 stands where line 1 belongs"),
        ({"event": "noted", "at": 1.0, "note": "x"}, "line None stands where line 1 belongs"),
    ],
)
def test_a_sound_line_that_says_what_nobody_understands_is_refused(tmp_path, content, message):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(signed(content))
    with pytest.raises(InputError, match=re.escape(message)):
        read_journal(path)


def test_a_journal_that_is_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_journal(tmp_path / "journal.jsonl")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_journal(tmp_path)


def test_a_new_journal_never_takes_the_place_of_another(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole)
    with pytest.raises(FileExistsError):
        Journal(path)
    assert path.read_bytes() == whole


def test_a_journal_that_is_gone_is_not_begun_again_in_its_middle(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "journal.jsonl", Lines(EVENTS, 100))


def test_threads_append_at_the_same_time(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    barrier = threading.Barrier(8)

    def append(thread):
        barrier.wait()
        for index in range(40):
            journal.append(Noted(note=f"{thread} {index} " + "x" * (97 * thread)))

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    notes = [event.note.split()[:2] for event in read_journal(tmp_path / "journal.jsonl").events]
    assert len(notes) == 320
    for number in range(8):
        assert [int(index) for thread, index in notes if thread == str(number)] == list(range(40))


def test_a_closed_journal_writes_nowhere(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        with pytest.raises(OSError, match="Bad file descriptor"):
            journal.append(EVENTS[0])
        assert other.tell() == os.fstat(other.fileno()).st_size == 0


def test_the_time_spent_is_counted(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.seconds == 0
    journal.append(EVENTS[0])
    first = journal.seconds
    journal.append(EVENTS[1])
    assert 0 < first < journal.seconds
    journal.close()


def test_a_full_disk_leaves_a_sound_journal_that_goes_on_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        journal = Journal(disk / "journal.jsonl")
        reserve = disk / "reserve"
        reserve.write_bytes(bytes(16 * 1024))
        written = []

        def fill():
            for number in range(1000):
                event = Noted(note=f"{number} " + "x" * 700)
                journal.append(event)
                written.append(event)

        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                fill()
        assert len(written) > 20
        assert read_journal(disk / "journal.jsonl").events == written
        size = (disk / "journal.jsonl").stat().st_size
        assert read_journal(disk / "journal.jsonl").size == size
        reserve.unlink()
        journal.append(EVENTS[-1])
        journal.close()
        assert read_journal(disk / "journal.jsonl").events == [*written, EVENTS[-1]]
