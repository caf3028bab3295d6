"""Searches that are kept in an object store, by machines that share nothing else."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
from evidence import check_order, check_same
from object_store import PASSWORD, object_store
from PIL import Image
from running import ASHA, QUICK, descendants, kill, ray_cluster, ray_node, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

TRIALS, LONG = 16, 40
OUTAGE = 60
"""Seconds."""
SEARCH = [
    *("--space", "digits", "--trials", TRIALS, "--epochs", 3, *QUICK, *ASHA, "--concurrent", 1),
    *("--set", "search.retries=20"),
]


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(searches, tmp_path_factory):
    """The folder of the search that the others must equal."""
    place = tmp_path_factory.mktemp("undisturbed")
    code, _, err = searches.run(place, *SEARCH, "--name", "calm")
    assert (code, err) == (0, "")
    return place / "runs" / "calm"


@pytest.fixture
def machine(tmp_path):
    """Makes the settings of a machine that has no working copy yet."""

    def make(name):
        home = tmp_path / name
        home.mkdir()
        return {"HOME": str(home), "TUNE_FUSION_CACHE": str(home / "cache")}

    return make


def copied(machine, name):
    """The working copy of a search on a machine."""
    (found,) = Path(machine["TUNE_FUSION_CACHE"]).glob(f"stores/*/{name}")
    return found


def journal_in(store, path):
    """The lines of a journal as the store has them."""
    content = b""
    for key in store.keys(f"{path}/journal/"):
        if int(key.rpartition("/")[2].removesuffix(".jsonl")) == len(content):
            content += store.read(key)
    return [json.loads(line) for line in content.splitlines()]


def epochs_in(store, path):
    return sum(line["event"] == "epoch" for line in journal_in(store, path))


def test_a_killed_search_goes_on_on_another_machine(undisturbed, searches, store, tmp_path, machine):
    one, other = machine("one"), machine("other")
    where = ["--storage", store.uri("runs")]
    process = searches.start(tmp_path, *SEARCH, *where, "--name", "moved", **one)
    wait_until(lambda: epochs_in(store, "runs/moved") > 8, process=process)
    kill(process)
    reached = epochs_in(store, "runs/moved")
    shutil.rmtree(one["TUNE_FUSION_CACHE"])

    code, out, err = searches.run(tmp_path, "--resume", "moved", *where, **other)
    assert (code, err) == (0, "")
    assert epochs_in(store, "runs/moved") > reached
    folder = copied(other, "moved")
    check_same(folder, undisturbed)
    check_order(folder, TRIALS, at_once=1)
    assert PASSWORD not in out
    # The store has the same as the working copy, and nothing else.
    assert journal_in(store, "runs/moved") == [json.loads(line) for line in (folder / "journal.jsonl").open()]
    there = {key.removeprefix("runs/moved/") for key in store.keys("runs/moved/") if not key.endswith("/")}
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {key for key in there if not key.startswith("journal/")} == here - {"journal.jsonl", "lock"}
    for key in there & here:
        assert store.read(f"runs/moved/{key}") == (folder / key).read_bytes(), key
        assert PASSWORD.encode() not in store.read(f"runs/moved/{key}")

    third = machine("third")
    code, out, err = searches.run(tmp_path, "moved", *where, command="report", **third)
    assert (code, err) == (0, "")
    code, out, err = searches.run(tmp_path, "moved", *where, command="sync", **third)
    assert (code, err) == (0, "")
    photo = tmp_path / "photo.png"
    Image.new("L", (32, 32)).save(photo)
    model = store.uri("runs/moved")
    code, out, err = searches.run(tmp_path, model, photo, command="predict", **third)
    assert (code, err) == (0, "")
    code, out, err = searches.run(tmp_path, "--resume", "moves", *where, **third)
    assert code == 2
    assert "did you mean 'moved'?" in err
    assert PASSWORD not in err
    code, out, err = searches.run(tmp_path, *SEARCH, *where, "--name", "moved", **machine("fourth"))
    assert code == 2
    assert "exists already and is never overwritten" in err


def test_an_outage_costs_nothing_and_a_second_driver_is_refused(searches, tmp_path, machine):
    with object_store() as store:
        where = ["--storage", store.uri("runs")]
        options = [*SEARCH, "--trials", LONG, *where, "--name", "calm"]
        process = searches.start(tmp_path, *options, **machine("one"))
        wait_until(lambda: epochs_in(store, "runs/calm") > 3, process=process)
        code, _, err = searches.run(tmp_path, "--resume", "calm", *where, **machine("other"))
        assert code == 2
        assert f"calm is being run by pid {process.pid} on " in err
        assert len([line for line in journal_in(store, "runs/calm") if line["event"] == "closed"]) == 0
        store.gate.shut()
        time.sleep(OUTAGE)
        store.gate.open()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert err.count("tried again until it answers") == 1
        assert PASSWORD not in out + err
        other = machine("third")
        code, _, err = searches.run(tmp_path, "calm", *where, command="report", **other)
        assert (code, err) == (0, "")
        folder = copied(other, "calm")
        assert [line["event"] for line in journal_in(store, "runs/calm")][-1] in ("closed", "logged")
        check_order(folder, LONG, at_once=1)


def test_a_driver_that_slept_while_another_one_finished_changes_nothing(searches, store, tmp_path, machine):
    def told():
        """What the search's driver writes; a worker may have been about to add a checkpoint."""
        keys = [
            key for key in store.keys("slept/calm/") if not {"checkpoints", "weights"} & {*key.split("/")}
        ]
        return {key: store.read(key) for key in keys}

    where = ["--storage", store.uri("slept")]
    process = searches.start(tmp_path, *SEARCH, *where, "--name", "calm", **machine("one"))
    wait_until(lambda: epochs_in(store, "slept/calm") > 3, process=process)
    process.send_signal(signal.SIGSTOP)
    # What sleeps may hold MLflow's database locked; that is told, and no error.
    code, _, err = searches.run(tmp_path, "--resume", "calm", *where, **machine("other"))
    assert code == 0, err
    before = told()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "calm was taken over by a driver that has ended" in err
    assert told() == before
    third = machine("third")
    code, _, err = searches.run(tmp_path, "calm", *where, command="report", **third)
    assert (code, err) == (0, "")
    check_order(copied(third, "calm"), TRIALS, at_once=1)


def test_nodes_that_share_nothing_but_the_store_go_on_with_each_others_trials(
    searches, store, tmp_path, machine
):
    head, helper, driver = machine("head"), machine("helper"), machine("driver")
    where = ["--storage", store.uri("runs"), "--name", "apart"]
    options = [*SEARCH, "--set", "search.scheduler=none", "--epochs", 8, "--concurrent", 2]
    with (
        ray_cluster(1, **head) as (_, address),
        ray_node(address, 1, "127.0.0.2", **helper) as node,
    ):
        process = searches.start(
            tmp_path, *options, *where, "--address", address, RAY_AUTH_MODE="disabled", **driver
        )
        there = Path(helper["TUNE_FUSION_CACHE"])
        wait_until(lambda: list(there.glob("stores/*/apart/checkpoints/*/epoch-0004.pt")), process=process)
        for each in [*descendants(node), node]:
            each.kill()
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    told = journal_in(store, "runs/apart")
    (lost,) = (line for line in told if line["event"] == "lost")
    # It went on where it was, with a checkpoint of the node that is gone: no epoch is there twice.
    epochs = sorted((line["trial"], line["epoch"]) for line in told if line["event"] == "epoch")
    assert epochs == [(trial, epoch) for trial in range(TRIALS) for epoch in range(1, 9)]
    assert len(told) > 0
    assert not lost["ends"]
    result = json.loads(store.read("runs/apart/result.json"))
    best = {result[key]["trial"] for key in ("best", "best_control", "best_fusion")}
    weights = {f"runs/apart/weights/{number:04d}.safetensors" for number in best}
    assert {key for key in store.keys("runs/apart/weights/") if not key.endswith("/")} == weights
    assert not [key for key in store.keys("runs/apart/checkpoints/") if not key.endswith("/")]
    assert "runs/apart/model/weights.safetensors" in store.keys("runs/apart/model/")


def test_what_follows_a_search_works_from_the_store(searches, store, tmp_path, machine):
    where = ["--storage", store.uri("more")]
    short = ["--space", "digits", "--trials", 6, "--epochs", 2, *QUICK]
    confirmed = ["--confirm", "--top", 1, "--seeds", 2, "--retrain"]
    code, out, err = searches.run(tmp_path, *short, *where, "--name", "one", *confirmed, **machine("one"))
    assert (code, err) == (0, "")
    assert PASSWORD not in out
    answer = json.loads(store.read("more/one/confirmation/confirmation.json"))
    assert answer["status"] == "completed"
    assert {
        "more/one/confirmation/retrained.safetensors",
        "more/one/confirmation/model/weights.safetensors",
        "more/one/report.html",
    } <= set(store.keys("more/one/"))

    code, out, err = searches.run(
        tmp_path, *short, *where, "--name", "two", "--warm-start", "one", "--seed", 0, **machine("two")
    )
    assert (code, err) == (0, "")
    assert json.loads(store.read("more/two/result.json"))["best"] is not None
    third = machine("third")
    code, out, err = searches.run(tmp_path, "--compare", "one", "two", *where, command="report", **third)
    assert (code, err) == (0, "")
    assert "more/compare.html" in store.keys("more/compare")
    code, out, err = searches.run(tmp_path, "one", *where, "--seeds", 3, command="confirm", **third)
    assert (code, err) == (0, "")
    assert len(json.loads(store.read("more/one/confirmation/confirmation.json"))["seeds"]) == 3
    photo = tmp_path / "photo.png"
    Image.new("L", (32, 32)).save(photo)
    code, out, err = searches.run(
        tmp_path, store.uri("more/one"), photo, command="predict", **machine("fourth")
    )
    assert (code, err) == (0, "")


def test_an_interrupted_search_says_how_it_goes_on_without_its_password(searches, store, tmp_path, machine):
    one = machine("one")
    where = ["--storage", store.uri("runs")]
    process = searches.start(tmp_path, *SEARCH, *where, "--name", "stopped", **one)
    wait_until(lambda: epochs_in(store, "runs/stopped") > 2, process=process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (closed,) = (line for line in journal_in(store, "runs/stopped") if line["event"] == "closed")
    assert closed["status"] == "interrupted"
    result = json.loads(store.read("runs/stopped/result.json"))
    assert PASSWORD not in json.dumps(result) + out + err
    words = shlex.split(result["resume_command"])
    assert words[words.index("--storage") + 1] == store.uri("runs", "***")
    assert "runs/stopped/.claim" not in store.keys("runs/stopped")
