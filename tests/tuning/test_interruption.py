"""Real signals, sent to small processes that do nothing but wait for them."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from tune_fusion.commands import Interrupted
from tune_fusion.tuning.interruption import Interruption

BOTH = pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture
def process():
    """Starts Python on a body that runs inside an `Interruption` named `interruption`."""
    started = []

    def start(body, *, after=""):
        script = (
            "import os, signal, sys, time\n"
            "from tune_fusion.commands import Interrupted\n"
            "from tune_fusion.tuning.interruption import Interruption\n"
            "def say(word):\n    print(word, flush=True)\n"
            # Short sleeps: a signal that comes right before a long one would be heeded only after it.
            "def wait():\n    say('ready')\n    for _ in range(3000): time.sleep(0.01)\n"
            "try:\n    with Interruption('made') as interruption:\n"
            + textwrap.indent(textwrap.dedent(body), " " * 8)
            + "\nexcept Interrupted as stop:\n    say(f'{type(stop).__name__} {stop.exit_code} {stop}')\n"
            + textwrap.dedent(after)
        )
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def ended(child):
    out, err = child.communicate(timeout=20)
    assert err == ""
    return child.returncode, out.split("\n")[:-1]


@BOTH
def test_the_first_signal_ends_the_work_at_once(process, signum, code):
    child = process("wait()\nsay('never')")
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert ended(child) == (0, [f"Interrupted {code} interrupted by {signum.name}"])


@BOTH
def test_a_deferred_signal_waits_for_the_next_check(process, signum, code):
    child = process("""
        interruption.defer()
        say('ready')
        while not interruption.signalled:
            time.sleep(0.01)
        say('went on')
        interruption.check()
        say('never')
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert ended(child) == (0, ["went on", f"Interrupted {code} interrupted by {signum.name}"])


@BOTH
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_with_its_own_code(process, first, signum, code):
    child = process("""
        interruption.defer()
        say('ready')
        while not interruption.signalled:
            time.sleep(0.01)
        time.sleep(0.3)
        try:
            wait()
        finally:
            say('never')
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(first)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert ended(child) == (code, [])


def test_a_second_signal_is_heeded_while_the_first_one_is_being_handled(process):
    child = process("""
        while True:
            try:
                wait()
            finally:
                time.sleep(0.3)
                continue
    """)
    for _ in range(2):
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
    code, out = ended(child)
    assert (code, set(out)) in [(130, {"ready"}), (130, set())]


def test_a_signal_while_a_module_is_imported_ends_the_process(process, tmp_path):
    # What libraries make of an exception at that time cannot be foreseen.
    (tmp_path / "slow.py").write_text(
        "import time\nprint('ready', flush=True)\n"
        "try:\n    for _ in range(3000): time.sleep(0.01)\nfinally:\n    print('never', flush=True)\n"
    )
    child = process(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import slow
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (143, "")
    assert err == "made: interrupted before anything was written\n"


def test_a_signal_that_was_swallowed_is_heeded_where_the_work_must_not_be_torn_any_more(process):
    child = process("""
        try:
            wait()
        except BaseException:
            interruption.defer()
        say('never')
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (0, ["Interrupted 143 interrupted by SIGTERM"])


def test_an_error_that_a_signal_causes_is_an_interruption(process):
    # As of a library that is used although it was imported in part only.
    child = process("""
        try:
            wait()
        except BaseException:
            raise AttributeError('half imported')
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert ended(child) == (0, ["Interrupted 130 interrupted by SIGINT"])


def test_a_second_signal_is_heeded_while_the_main_thread_is_in_foreign_code(process):
    # As in Ray's and torch's: Python runs no handler before that has returned, here after minutes.
    child = process("""
        import hashlib, threading
        threading.Timer(0.5, say, ['ready']).start()
        hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
        say('never')
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (143, [])


def test_a_signal_that_comes_twice_at_once_is_one(process):
    # As from `timeout`, which signals its child and then the child's whole group.
    child = process("""
        interruption.defer()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
        time.sleep(0.5)
        say('went on')
        interruption.check()
    """)
    returncode, lines = ended(child)
    assert returncode == 0
    assert lines[0] == "went on"
    assert lines[1].startswith("Interrupted 1")


@BOTH
def test_who_asks_learns_of_the_signal_and_when_it_came(process, signum, code):
    child = process("""
        interruption.defer()
        say((interruption.signalled, interruption.signalled_at, interruption.exit_code))
        before = time.monotonic()
        say('ready')
        while not interruption.signalled:
            time.sleep(0.01)
        at = interruption.signalled_at
        say((before <= at <= time.monotonic(), interruption.exit_code))
    """)
    assert child.stdout.readline() == "(False, None, 0)\n"
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert ended(child) == (0, [f"(True, {code})"])


def test_signals_are_taken_back_from_whoever_took_them_in_between(process):
    child = process("""
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        interruption.install()
        wait()
    """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (0, ["Interrupted 143 interrupted by SIGTERM"])


def test_afterwards_signals_mean_what_they_meant_before(process):
    child = process("pass", after="wait()")
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (-signal.SIGTERM, [])


def test_check_is_silent_without_a_signal():
    with Interruption("made") as interruption:
        interruption.check()
        interruption.defer()
        interruption.check()


def test_the_handlers_are_restored_after_an_error_too():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    interruption = Interruption("made")
    with pytest.raises(ZeroDivisionError), interruption:
        raise ZeroDivisionError
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_nothing_of_it_stays_behind():
    threads = threading.active_count()
    with Interruption("made"):
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    # -1: none was set.
    assert signal.set_wakeup_fd(-1) == -1


def test_interrupted_is_no_ordinary_exception():
    # Nothing that catches errors on the way may swallow it.
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)
