"""SIGKILL of the process of a search, again and again: nothing is lost, nothing is done or decided twice."""

import json
import random
import shutil
import signal
import socket
import time
import uuid
from pathlib import Path

import pytest
from evidence import (
    check_mlflow,
    check_order,
    check_same,
    decided,
    epochs,
    files,
    lines,
    lines_so_far,
)
from running import (
    ASHA,
    QUICK,
    descendants,
    kill,
    marked,
    query,
    ray_cluster,
    trial_workers,
    wait_for_end,
    wait_until,
)
from watching import Watcher

pytestmark = pytest.mark.chaos

TRIALS = 24
SEARCH = ["--space", "digits", "--trials", TRIALS, "--set", "data.limit=300", *ASHA]
# Epochs of about a tenth of a second.
SEARCH += ["--set", "training.batch_size=16"]
KILLS = 20
PATIENCE = 400
"""Seconds after which a search on a busy machine is taken to hang."""


class Victim:
    """A search that is started, killed and resumed, and what its processes leave outside of its folder."""

    def __init__(self, searches, place, name, epochs, *options):
        self.place = place
        self.folder = place / "runs" / name
        self._searches = searches
        self._name = name
        self._epochs = epochs
        self._options = options
        (place / "temporary").mkdir(parents=True)
        self._watcher = Watcher(place)
        self._mark = uuid.uuid4().hex
        self._environment = {
            **self._watcher.environment,
            "TMPDIR": str(place / "temporary"),
            "TF_TEST_MARK": self._mark,
        }

    def start(self):
        """Start the search, or resume it where there is one."""
        what = [*SEARCH, "--epochs", self._epochs, "--name", self._name]
        if self.folder.exists():
            what = ["--resume", self._name]
        return self._searches.start(self.place, *what, *self._options, **self._environment)

    def finish(self):
        """Start or resume the search and wait for its end; returns its standard output."""
        process = self.start()
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        return out

    def trained(self):
        """(trial, epoch) of every checkpoint that was begun: one a trained epoch."""
        return self._watcher.trained(self._name)

    def relatives(self):
        """The processes that the search has started, directly or not, and that are alive."""
        return marked(self._mark)


def moments(chance, decisions, starting, ending=()):
    """When to kill: seconds after the start, or a number of decisions in the journal and seconds after these.

    These numbers are spread over the first `decisions`; `starting` is how many kills come in a start, that of
    the search itself among them; `ending` are the last moments.
    """
    counted = KILLS - starting - len(ending)
    share = decisions / counted
    later = [(1 + int(share * (i + chance.random())), chance.uniform(0, 0.3)) for i in range(counted)]
    for place in chance.sample(range(1, counted), starting - 1):
        later.insert(place, chance.uniform(0.5, 8))
    return [chance.uniform(0.5, 4), *later, *ending]


def wait_for(moment, process, folder):
    """Wait until the moment has come; one in a start has come with the first decision at the latest."""
    before = decided(folder)
    if isinstance(moment, float):
        end = time.monotonic() + moment
        wait_until(lambda: time.monotonic() > end or decided(folder) > before, PATIENCE, process)
    elif moment == "closed":
        wait_until(lambda: b'"event":"closed"' in (folder / "journal.jsonl").read_bytes(), PATIENCE, process)
    else:
        count, seconds = moment
        wait_until(lambda: decided(folder) >= max(count, before + 1), PATIENCE, process)
        time.sleep(seconds)


@pytest.fixture(scope="module")
def undisturbed(searches, tmp_path_factory):
    """The same search, one trial at a time, from its start to its end."""
    victim = Victim(searches, tmp_path_factory.mktemp("undisturbed"), "calm", 4, "--concurrent", 1)
    victim.finish()
    return victim


def test_every_epoch_is_trained_and_counted_once_where_nothing_is_killed(undisturbed):
    assert undisturbed.trained() == epochs(undisturbed.folder)
    assert list((undisturbed.folder / "checkpoints").iterdir()) == []
    check_order(undisturbed.folder, TRIALS, at_once=1)
    check_mlflow(undisturbed.place / "mlflow.db", undisturbed.folder)


def test_twenty_kills_change_nothing(undisturbed, searches, tmp_path):
    chance = random.Random(20)
    victim = Victim(searches, tmp_path, "killed", 4, "--concurrent", 1)
    known, trained = set(), []
    total = decided(undisturbed.folder)
    # The last two hit a search that has nothing left to train, and one that has nothing left to write.
    for moment in moments(chance, total - 10, starting=4, ending=[(total, chance.uniform(0, 0.3)), "closed"]):
        process = victim.start()
        wait_for(moment, process, victim.folder)
        family = descendants(process)
        assert process.poll() is None, process.communicate()
        kill(process)
        assert process.returncode == -signal.SIGKILL
        wait_for_end(family)
        wait_until(lambda: not victim.relatives(), timeout=20)
        known, trained = check_trained(victim, known, trained)
    victim.finish()  # the report, which its driver did not come to any more
    assert "killed is complete already" in victim.finish()
    check_trained(victim, known, trained)
    check_same(victim.folder, undisturbed.folder)
    check_order(victim.folder, TRIALS, at_once=1)
    check_mlflow(victim.place / "mlflow.db", victim.folder)
    assert sum(line["event"] == "session" for line in lines(victim.folder)) >= KILLS - 4
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["killed"]


def check_trained(victim, known, before):
    """What was trained since the process before this one died: of what had been trained, at most one epoch.

    And none that the journal held already, which are `known`; returns both as they are now.
    """
    now = victim.trained()
    new = now[len(before) :]
    again = [epoch for place, epoch in enumerate(new, start=len(before)) if epoch in now[:place]]
    assert len(again) <= 1
    assert not known & set(new)
    return set(epochs(victim.folder)) if victim.folder.exists() else set(), now


def test_twenty_kills_with_four_trials_at_a_time_on_a_cluster(undisturbed, searches, tmp_path):
    chance = random.Random(4)
    with ray_cluster(4) as (cluster, address):
        core = {child.pid for child in descendants(cluster)}
        # More epochs than with one trial at a time: four go on while one of them is waited for.
        victim = Victim(searches, tmp_path, "joined", 9, "--address", address, "--concurrent", 4)
        for moment in moments(chance, 3 * TRIALS, starting=8):
            process = victim.start()
            wait_for(moment, process, victim.folder)
            assert process.poll() is None, process.communicate()
            actors = trial_workers(cluster)
            kill(process)
            assert process.returncode == -signal.SIGKILL
            wait_for_end(actors)
            wait_until(lambda: not trial_workers(cluster) and not victim.relatives(), timeout=20)
            assert cluster.poll() is None
            assert core <= {child.pid for child in descendants(cluster)}
        victim.finish()
        assert core <= {child.pid for child in descendants(cluster)}
    check_order(victim.folder, TRIALS, at_once=4)
    check_mlflow(victim.place / "mlflow.db", victim.folder)
    assert json.loads((victim.folder / "result.json").read_text())["status"] == "completed"
    assert list((victim.folder / "checkpoints").iterdir()) == []
    mentioned = {path.split("/")[0] for path in files(victim.folder)}
    assert mentioned == {path.split("/")[0] for path in files(undisturbed.folder)}
    assert not [path for path in files(victim.folder) if Path(path).name.startswith(".")]


def test_a_journal_that_lost_its_end_is_completed_to_the_same(undisturbed, searches):
    chance = random.Random(2000)
    place, whole = undisturbed.place, (undisturbed.folder / "journal.jsonl").read_bytes()
    for cut in range(4):
        lost = 500 * cut + chance.randrange(1, 500)
        folder = place / f"cut{cut}" / "calm"
        shutil.copytree(undisturbed.folder, folder)
        (folder / "journal.jsonl").write_bytes(whole[:-lost])
        code, out, err = searches.run(
            place, "--resume", "calm", "--storage", folder.parent, "--concurrent", 1
        )
        assert (code, err) == (0, ""), f"{lost} bytes lost: {err}"
        assert "calm completed: " in out
        check_same(folder, undisturbed.folder)
        check_order(folder, TRIALS, at_once=1)
        check_mlflow(place / "mlflow.db", folder)


def test_one_driver_a_search(searches, tmp_path):
    quick = ["--space", "digits", "--epochs", 4, *QUICK, *ASHA, "--concurrent", 1]
    first = searches.start(tmp_path, *quick, "--name", "held", "--trials", 400)
    folder = tmp_path / "runs" / "held"
    wait_until(lambda: decided(folder) >= 1, PATIENCE, first)
    seconds = [
        searches.start(tmp_path, "--resume", "held"),
        searches.start(tmp_path, *quick, "--name", "held"),
        searches.start(tmp_path, "held", command="sync"),
    ]
    for second in seconds:
        out, err = second.communicate(timeout=PATIENCE)
        assert (second.returncode, out) == (2, ""), err
        assert f"being run by pid {first.pid} on {socket.gethostname()}" in err
        assert "Traceback" not in err
    reached = decided(folder)
    wait_until(lambda: decided(folder) > reached + 1, PATIENCE, first)
    kill(first)
    assert first.returncode == -signal.SIGKILL
    assert [line["pid"] for line in lines_so_far(folder) if line["event"] == "session"] == [first.pid]
    reached = decided(folder)
    heir = searches.start(tmp_path, "--resume", "held", "--concurrent", 1)
    wait_until(lambda: decided(folder) > reached, PATIENCE, heir)
    kill(heir)
    owners = [line["pid"] for line in lines_so_far(folder) if line["event"] == "session"]
    assert owners == [first.pid, heir.pid]


def test_a_finished_search_is_left_alone_extended_and_never_shortened(searches, tmp_path):
    space = tmp_path / "mine.yaml"
    space.write_text(
        "model: {name: lenet5}\ndata: {name: digits, limit: 300}\ntraining: {epochs: 2, batch_size: 128}\n"
        "space:\n  switch_layer: {int: [0, 3]}\n  low: [adam, sgd]\n  high: sgd\n  controls: [adam]\n"
        "  optimizers: {sgd: {lr: {log: [0.003, 0.3]}}}\nsearch: {trials: 4}\n"
    )
    folder = tmp_path / "runs" / "small"

    def search(*arguments):
        return searches.run(tmp_path, *arguments, "--concurrent", 1)

    def everything():
        tables = ("runs", "metrics", "params", "tags")
        return files(folder), [query(tmp_path, f"select * from {table} order by 1, 2, 3") for table in tables]

    def extended(trials, *arguments):
        before = (folder / "journal.jsonl").read_bytes()
        code, out, err = search("--resume", "small", "--trials", trials, *arguments)
        assert code == 0, err
        assert f"of {trials} trials" in out
        assert (folder / "journal.jsonl").read_bytes().startswith(before)
        check_order(folder, trials, at_once=1)
        check_mlflow(tmp_path / "mlflow.db", folder)
        result = json.loads((folder / "result.json").read_text())
        assert result["trials"] == result["planned_trials"] == trials
        return err

    code, _, err = search("--space", space, "--name", "small", *ASHA)
    assert code == 0, err

    # Again: it says so, and nothing changes.
    before = everything()
    code, out, err = search("--resume", "small")
    assert (code, err) == (0, "")
    assert "small is complete already" in out
    assert everything() == before

    # Fewer trials than there are.
    code, out, err = search("--resume", "small", "--trials", 3)
    assert (code, out) == (2, "")
    assert "planned with 4 trials; a search can be extended, not shortened" in err
    assert everything() == before

    assert extended(6) == ""

    # Another space: refused with what has changed, taken by force.
    before = everything()
    space.write_text(space.read_text().replace("0.3]", "0.2]"))
    code, out, err = search("--resume", "small", "--trials", 7)
    assert (code, out) == (2, "")
    assert "-  optimizers: {sgd: {lr: {log: [0.003, 0.3]}}}" in err
    assert "+  optimizers: {sgd: {lr: {log: [0.003, 0.2]}}}" in err
    assert "--force" in err
    assert everything() == before
    assert "+  optimizers: {sgd: {lr: {log: [0.003, 0.2]}}}" in extended(7, "--force")
