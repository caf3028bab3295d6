"""Hosts die or cannot be reached: a search ends as if that had not happened."""

import time
from collections import Counter

import pytest
from evidence import check_order, check_same, check_store, decided, lines, lines_so_far
from stack import WORKERS

pytestmark = pytest.mark.cluster

CUT_SECONDS = 60


def lost(folder):
    return [line for line in lines_so_far(folder) if line["event"] == "lost"]


def check_trained(stack, name):
    """Of what had been trained, each loss of a trial cost it one epoch at most."""
    losses = Counter(line["trial"] for line in lines(stack.folder(name)) if line["event"] == "lost")
    again = Counter()
    for (trial, _), times in Counter(stack.watcher.trained(name)).items():
        again[trial] += times - 1
    assert not +(again - losses), (again, losses)


def epochs_on(folder, host):
    """The epochs that this host has trained, as they stand in the journal."""
    return [
        line
        for line in lines_so_far(folder)
        if line["event"] == "epoch" and line["node"].startswith(f"{host}:")
    ]


def trains_on(folder, host):
    """True a moment after an epoch of a trial that goes on there."""
    trained = epochs_on(folder, host)
    return trained and not trained[-1]["ends"] and time.time() - trained[-1]["at"] < 0.25


def test_a_worker_is_killed_and_another_one_cut_off_for_a_minute(stack, search):
    folder, trials = stack.folder("cut"), 24
    # Two at once, and enough to be still under way when the first worker is back.
    longer = ["--trials", trials, "--epochs", 6, "--set", "data.limit=1200", "--concurrent", 2]
    longer += ["--set", "search.scheduler=none"]
    job = stack.submit(*search, *longer, "--name", "cut")
    killed, cut = WORKERS
    job.until(lambda: trains_on(folder, killed))
    stack.kill(killed)
    job.until(lambda: lost(folder))
    assert all("node died" in line["reason"] for line in lost(folder))
    stack.start(killed)
    stack.wait_for_workers()
    job.until(lambda: trains_on(folder, cut))
    stack.host(cut).unplug("cluster")
    try:
        time.sleep(1)
        reached = len(epochs_on(folder, cut))
        time.sleep(CUT_SECONDS - 1)
        assert len(epochs_on(folder, cut)) == reached
    finally:
        stack.host(cut).plug("cluster")
    assert job.end() == 0, job.text
    assert "cut completed: " in job.text
    check_order(folder, trials, at_once=2, halving=False)
    check_store(stack.rows, folder)
    check_trained(stack, "cut")
    stack.wait_for_workers()


def test_the_head_dies_and_the_job_is_submitted_again(stack, search, undisturbed):
    folder = stack.folder("headless")
    job = stack.submit(*search, "--name", "headless")
    job.until(lambda: decided(folder) >= 9)
    stack.host("head").kill()
    assert job.end() != 0
    reached = decided(folder)
    stack.start("head")
    stack.wait_healthy("head")
    stack.wait_for_workers()
    assert decided(folder) == reached
    again = stack.resume("headless")
    assert again.end() == 0, again.text
    assert "headless completed: " in again.text
    check_same(folder, undisturbed)
    check_order(folder, 16, at_once=1)
    check_store(stack.rows, folder)
    trained = stack.watcher.trained("headless")
    assert len(trained) - len(set(trained)) <= 1
    assert sum(line["event"] == "session" for line in lines(folder)) == 2


def test_the_database_goes_away_and_comes_back(stack, search, undisturbed):
    folder = stack.folder("databaseless")
    job = stack.submit(*search, "--name", "databaseless")
    job.until(lambda: decided(folder) >= 6)
    stack.stop_postgres()
    try:
        reached = decided(folder)
        job.until(lambda: decided(folder) >= reached + 8)
        logged = [line["n"] for line in lines_so_far(folder) if line["event"] == "logged"]
        time.sleep(2)
        assert logged == [line["n"] for line in lines_so_far(folder) if line["event"] == "logged"]
    finally:
        stack.start("postgres")
        stack.wait_healthy("postgres")
    assert job.end() == 0, job.text
    assert "databaseless completed: " in job.text
    assert "did not take everything" not in job.text
    check_same(folder, undisturbed)
    check_store(stack.rows, folder)
    assert sum(line["event"] == "session" for line in lines(folder)) == 1
