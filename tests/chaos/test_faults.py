"""What dies, hangs or fills up beside the process of a search: its workers, its data, its disks."""

import json
import random
import re
import shlex
import shutil
import signal
import socket

import pytest
from evidence import check_mlflow, check_order, check_same, decided, decisions, files, lines, lines_so_far
from running import ASHA, QUICK, trial_workers, wait_for_end, wait_until
from small_disk import fill, small_disk

pytestmark = pytest.mark.chaos

TRIALS = 24
KILLS = 10
STARTING = 3
"""How many of the kills hit a worker that starts; the others hit one that trains."""
SEARCH = [
    *("--space", "digits", "--trials", TRIALS, "--epochs", 3, *QUICK, *ASHA, "--concurrent", 1),
    *("--set", f"search.retries={KILLS}"),
]


@pytest.fixture(scope="module")
def undisturbed(searches, tmp_path_factory):
    """The folder of the search that the others must equal."""
    place = tmp_path_factory.mktemp("undisturbed")
    code, _, err = searches.run(place, *SEARCH, "--name", "calm")
    assert (code, err) == (0, "")
    return place / "runs" / "calm"


def lost(folder):
    return [line for line in lines_so_far(folder) if line["event"] == "lost"]


def a_worker(process):
    """The process that trains trials, as soon as there is one."""
    found = []
    wait_until(lambda: found.extend(trial_workers(process)) or found, process=process)
    return found[0]


def check_ended(folder, process):
    """The search came to a good end, and said nothing of what it had overcome."""
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert f"{folder.name} completed: " in out
    check_mlflow(folder.parent.parent / "mlflow.db", folder)
    assert list((folder / "checkpoints").iterdir()) == []


def test_ten_killed_workers_change_nothing(undisturbed, searches, tmp_path):
    chance = random.Random(10)
    folder = tmp_path / "runs" / "killed"
    share = (decided(undisturbed) - 8) / (KILLS - STARTING)
    moments = [1 + int(share * (i + chance.random())) for i in range(KILLS - STARTING)]
    for place in chance.sample(range(1, len(moments)), STARTING):
        moments.insert(place, None)
    process = searches.start(tmp_path, *SEARCH, "--name", "killed")
    for count, moment in enumerate(moments):
        if moment is not None:
            wait_until(lambda moment=moment: decided(folder) >= moment, process=process)
        a_worker(process).kill()
        wait_until(lambda count=count: len(lost(folder)) > count, process=process)
        assert len(lost(folder)) == count + 1
    check_ended(folder, process)
    reasons = {line["reason"] for line in lost(folder)}
    assert len(lost(folder)) == KILLS
    assert all("killed (SIGKILL" in reason for reason in reasons), reasons
    check_same(folder, undisturbed)
    check_order(folder, TRIALS, at_once=1)


def test_a_trial_whose_workers_all_die_fails_alone(searches, tmp_path):
    folder = tmp_path / "runs" / "unlucky"
    options = ["--space", "digits", "--trials", 5, "--epochs", 2, *QUICK, *ASHA, "--concurrent", 1]
    process = searches.start(tmp_path, *options, "--name", "unlucky", "--set", "search.retries=1")
    for count in range(2):
        # Before it has read the data: no later trial can be meant.
        a_worker(process).kill()
        wait_until(lambda count=count: len(lost(folder)) > count, process=process)
    check_ended(folder, process)
    assert [(line["trial"], line["ends"]) for line in lost(folder)] == [(0, False), (0, True)]
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["counts"].pop("failed") == 1
    assert sum(result["counts"].values()) == 4
    assert set(result["counts"]) <= {"completed", "stopped"}
    reason = "killed (SIGKILL; by the system, where its memory was full) or crashed in native code "
    assert f"{reason}(its worker was lost 2 times)" in (folder / "trials.csv").read_text()


def test_a_worker_that_hangs_is_replaced(undisturbed, searches, tmp_path):
    chance = random.Random(25)
    folder = tmp_path / "runs" / "hung"
    process = searches.start(tmp_path, *SEARCH, "--name", "hung", "--set", "search.trial_timeout=25")
    moment = chance.randrange(2, decided(undisturbed) - 8)
    wait_until(lambda: decided(folder) >= moment, process=process)
    # On a busy machine a worker may have taken too long to start as well.
    earlier = len(lost(folder))
    worker = a_worker(process)
    worker.send_signal(signal.SIGSTOP)
    reached = decided(folder)
    wait_until(lambda: len(lost(folder)) > earlier, process=process)
    # What it had sent before may have come in meanwhile.
    assert decided(folder) <= reached + 2
    assert lost(folder)[earlier]["reason"] == "no epoch ended within 25 s (search.trial_timeout)"
    check_ended(folder, process)
    wait_for_end([worker])
    assert decisions(folder) == decisions(undisturbed)
    check_order(folder, TRIALS, at_once=1)


def test_trials_that_all_fail_alike_end_the_search_at_once(searches, tmp_path, image_folder):
    photos = image_folder(classes=2, images=10, side=32)
    folder = tmp_path / "runs" / "robbed"
    options = ["--space", "digits", "--set", f"data.name=folder:{photos}", "--set", "data.image_size=32"]
    process = searches.start(
        tmp_path, *options, "--trials", 30, "--name", "robbed", TUNE_FUSION_CACHE=str(tmp_path / "cache")
    )
    # The driver has read the images, and the workers have not.
    wait_until(folder.exists, process=process)
    shutil.rmtree(photos)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in out + err
    lacking = f"data on {socket.gethostname()}: data.name=folder:{photos}: cannot read {photos}: No such"
    expected = f"the first trials all failed alike: {lacking}"
    assert err.startswith(f"tune_fusion.search: {expected}")
    assert err.count("\n") == 1
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["best"]) == ("failed", None)
    assert 3 <= result["counts"]["failed"] <= 4
    assert result["trials"] <= 5
    (closed,) = (line for line in lines(folder) if line["event"] == "closed")
    assert expected in closed["problem"]


def test_a_disk_that_fills_up_ends_the_search_until_there_is_room(undisturbed, searches, tmp_path):
    chance = random.Random(64)
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        output = disk / "runs"
        folder = output / "full"
        process = searches.start(tmp_path, *SEARCH, "--name", "full", "--storage", output)
        moment = chance.randrange(3, decided(undisturbed) - 8)
        wait_until(lambda: decided(folder) >= moment, process=process)
        ballast = fill(disk)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "Traceback" not in out + err
        assert err.count("\n") == 1, err
        assert re.match(rf"tune_fusion.search: {folder}: .+; the search needs \d+ MB more there, ", err)
        assert re.search("No space left on device|disk full", err)
        resume = shlex.split(err.partition("then go on with: ")[2])
        assert resume[1:4] == ["-m", "tune_fusion.search", "--resume"]
        assert [line["status"] for line in lines(folder) if line["event"] == "closed"] == ["failed"]
        reached = decided(folder)
        assert json.loads((folder / "result.json").read_text())["status"] == "failed"
        assert not [path for path in files(output) if path.rpartition("/")[2].startswith(".")]
        ballast.unlink()
        code, out, err = searches.run(tmp_path, *resume[3:])
        assert (code, err) == (0, "")
        assert reached < decided(folder)
        check_same(folder, undisturbed)
        check_order(folder, TRIALS, at_once=1)
        check_mlflow(tmp_path / "mlflow.db", folder)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(searches, tmp_path):
    with small_disk(tmp_path / "disk", 8 * 1024) as disk:
        code, out, err = searches.run(tmp_path, *SEARCH, "--name", "cramped", "--storage", disk / "runs")
        assert (code, out) == (2, "")
        assert re.search(r"of 1 trials at once need \d+ MB, 8 MB are free there: make room", err)
        assert err.count("\n") == 1
        assert list(disk.iterdir()) == []
        assert not (tmp_path / "mlflow.db").exists()
