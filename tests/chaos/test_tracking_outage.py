"""The MLflow server of a search goes away and comes back, and its password is kept to oneself."""

import re
import shlex
import sqlite3

import pytest
from evidence import check_mlflow, check_order, files, lines, lines_so_far
from mlflow_server import Server
from running import ASHA, QUICK, chronicle, kill, wait_until
from small_disk import fill, small_disk

pytestmark = pytest.mark.chaos

SECRET = "k3ep.th1s-to_yourself"
TRIALS = 24
SEARCH = ["--space", "digits", "--epochs", 3, "--concurrent", 1, *ASHA]


class Tracked:
    """A folder of searches that log to one server, and all that their commands said."""

    def __init__(self, searches, place, server):
        self.place = place
        self.server = server
        self.database = server.folder / "mlflow.db"
        self._searches = searches
        self._uri = f"http://user:{SECRET}@127.0.0.1:{server.port}"
        self._said = []

    def folder(self, name):
        return self.place / "runs" / name

    def start(self, *arguments, command="search"):
        return self._searches.start(self.place, *arguments, "--tracking-uri", self._uri, command=command)

    def finish(self, process):
        """(exit code, standard output, standard error) of a command."""
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in out + err
        self._said += [out, err]
        return process.returncode, out, err

    def run(self, *arguments, command="search"):
        return self.finish(self.start(*arguments, command=command))

    def ended(self, name):
        """How many trials of a search have ended so far."""
        folder = self.folder(name)
        return len(chronicle(self.place, name).record.ended) if folder.exists() else 0

    def check(self, name):
        """The server holds the completed search, each thing once and in order."""
        folder = self.folder(name)
        check_order(folder, self.ended(name), at_once=1)
        check_mlflow(self.database, folder)
        logged = [line for line in lines(folder) if line["event"] == "logged"]
        assert (logged[-1]["run"], logged[-1]["status"]) == (-1, "FINISHED")
        assert {line["status"] for line in logged[:-1] if line["run"] == -1} <= {None}
        key = lines(folder)[0]["key"]
        with sqlite3.connect(self.database) as store:
            points = store.execute(
                "select k.value, m.key, m.step from metrics m join tags k on k.run_uuid = m.run_uuid "
                "where k.key = 'tune_fusion.key' and (k.value = ? and m.key = 'best_value' "
                "or k.value like ? and substr(m.key, 1, 5) != 'best_') order by m.timestamp, m.step",
                (key, f"{key}-%"),
            ).fetchall()
        curves = {}
        for run, metric, step in points:
            curves.setdefault((run, metric), []).append(step)
        assert len(curves) > self.ended(name)
        assert all(steps == list(range(1, len(steps) + 1)) for steps in curves.values())
        assert curves[key, "best_value"][-1] == self.ended(name)

    def check_discretion(self):
        """The password stands nowhere, though what it belongs to is named."""
        written = files(self.place / "runs")
        named = f"http://user:***@127.0.0.1:{self.server.port}".encode()
        assert all(named in written[path] for path in written if path.endswith("journal.jsonl"))
        assert [path for path, content in written.items() if SECRET.encode() in content] == []
        with sqlite3.connect(self.database) as store:
            assert [line for line in store.iterdump() if SECRET in line] == []
        assert all(SECRET not in text for text in self._said)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    made = Server(folder, folder / "mlflow.db")
    yield made
    made.stop()


@pytest.fixture
def tracked(searches, tmp_path, server):
    return Tracked(searches, tmp_path, server)


def test_a_server_that_is_away_from_the_start(tracked):
    tracked.server.stop()
    begin = [*SEARCH, *QUICK, "--trials", 4, "--name", "away"]
    code, out, err = tracked.run(*begin)
    assert (code, out) == (2, "")
    assert "the store cannot be reached" in err
    assert err.count("\n") == 1
    assert list(tracked.place.iterdir()) == []

    code, out, err = tracked.run(*begin, "--offline")
    assert code == 0, err
    assert "away completed: " in out
    assert err.count("\n") == 1
    assert "did not take everything about " in err
    assert "'away'" in err
    assert "it is kept, deliver it later with: " in err
    assert "-m tune_fusion.sync away --tracking-uri " in err

    code, out, err = tracked.run("--resume", "away")
    assert (code, out) == (2, "")
    assert "the store cannot be reached" in err

    tracked.server.start()
    code, out, err = tracked.run("--resume", "away")
    assert (code, err) == (0, "")
    assert "away is complete already" in out
    tracked.check("away")
    tracked.check_discretion()


def test_a_server_that_goes_away_for_a_third_of_a_search(tracked):
    tracked.server.start()
    process = tracked.start(*SEARCH, "--trials", TRIALS, "--name", "cut")
    wait_until(lambda: tracked.ended("cut") >= TRIALS // 3, process=process)
    tracked.server.stop()
    # Nobody answers now, and trials end as before.
    wait_until(lambda: tracked.ended("cut") >= 2 * TRIALS // 3, process=process)
    reached = [line for line in lines_so_far(tracked.folder("cut")) if line["event"] == "logged"]
    tracked.server.start()
    code, out, err = tracked.finish(process)
    assert (code, err) == (0, "")
    assert "cut completed: " in out
    assert f" of {TRIALS} trials in " in out
    assert sum(line["event"] == "session" for line in lines(tracked.folder("cut"))) == 1
    assert len({line["run"] for line in reached}) < 2 * TRIALS // 3
    tracked.check("cut")
    tracked.check_discretion()


def test_a_search_that_was_killed_and_finished_while_its_server_was_away(tracked):
    tracked.server.start()
    process = tracked.start(*SEARCH, *QUICK, "--trials", 12, "--name", "apart")
    wait_until(lambda: tracked.ended("apart") >= 4, process=process)
    tracked.server.stop()
    reached = tracked.ended("apart")
    wait_until(lambda: tracked.ended("apart") >= reached + 2, process=process)
    kill(process)

    code, out, err = tracked.run("--resume", "apart")
    assert (code, out) == (2, "")
    assert "the store cannot be reached" in err
    code, out, err = tracked.run("--resume", "apart", "--offline", "--concurrent", 1)
    assert code == 0, err
    assert "apart completed: " in out
    assert " of 12 trials in " in out
    assert err.count("\n") == 1
    assert "it is kept, deliver it later with: " in err

    code, out, err = tracked.run("apart", command="sync")
    assert (code, out) == (2, "")
    assert "the store cannot be reached" in err

    tracked.server.start()
    code, out, err = tracked.run("apart", command="sync")
    assert (code, err) == (0, "")
    assert out.startswith("apart: delivered ")
    tracked.check("apart")
    journal = (tracked.folder("apart") / "journal.jsonl").read_bytes()
    code, out, err = tracked.run("apart", command="sync")
    assert (code, out, err) == (0, "apart: MLflow holds everything already\n", "")
    assert (tracked.folder("apart") / "journal.jsonl").read_bytes() == journal
    tracked.check("apart")
    tracked.check_discretion()


def test_a_full_disk_of_the_store_stops_nothing_and_is_caught_up_with(searches, tmp_path):
    with small_disk(tmp_path / "disk", 4 * 1024) as disk:
        store = ["--tracking-uri", f"sqlite:///{disk / 'mlflow.db'}"]
        folder = tmp_path / "runs" / "unlogged"
        process = searches.start(tmp_path, *SEARCH, *QUICK, "--trials", TRIALS, "--name", "unlogged", *store)

        def logged():
            return sum(line["event"] == "logged" and line["run"] >= 0 for line in lines_so_far(folder))

        wait_until(lambda: logged() >= 2, process=process)
        ballast = fill(disk)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "Traceback" not in out + err
        assert "unlogged completed: " in out
        assert err.count("\n") == 1, err
        assert re.match(rf"tune_fusion.search: sqlite:///{disk / 'mlflow.db'} did not take everything", err)
        check_order(folder, TRIALS, at_once=1)
        sync = shlex.split(err.partition("deliver it later with: ")[2])
        assert sync[1:4] == ["-m", "tune_fusion.sync", "unlogged"]
        ballast.unlink()
        code, out, err = searches.run(tmp_path, *sync[3:], command="sync")
        assert (code, err) == (0, "")
        assert out.startswith("unlogged: delivered ")
        check_mlflow(disk / "mlflow.db", folder)
