"""A real search whose trials pause at rungs: on Ray, from checkpoints, and resumed."""

import json
import shutil

import pytest
from running import QUICK, journal

from tune_fusion.records import TrialState

TRIALS = 14


@pytest.fixture(scope="module")
def search(searches, tmp_path_factory):
    """A search of a shipped space that is interrupted by nothing."""
    folder = tmp_path_factory.mktemp("promoted")
    options = ["--space", "digits", "--name", "promoted", "--trials", TRIALS, "--epochs", 4, *QUICK]
    code, _, err = searches.run(folder, *options, "--concurrent", 1)
    assert (code, err) == (0, "")
    return folder


def test_trials_pause_and_the_best_of_each_arm_are_trained_to_the_end(search):
    result = json.loads((search / "runs" / "promoted" / "result.json").read_text())
    assert result["status"] == "completed"
    assert set(result["counts"]) == {"completed", "stopped"}
    assert len(result["best"]["metrics"]) > 3
    events = journal(search, "promoted")
    kinds = [event.event for event in events]
    assert {"promoted", "given up"} <= set(kinds)
    promoted = {event.trial for event in events if event.event == "promoted"}
    for number in promoted:
        mine = [event.epoch for event in events if event.event == "epoch" and event.trial == number]
        # Its checkpoint was taken up: no epoch is trained twice, none is left out.
        assert mine == list(range(1, len(mine) + 1))
        assert len(mine) > 1


def test_untuned_defaults_come_first_and_are_judged_like_the_others(search):
    result = json.loads((search / "runs" / "promoted" / "result.json").read_text())
    assert result["untuned_fusion"]["origin"] == result["untuned_control"]["origin"] == "default"
    events = journal(search, "promoted")
    epochs = [event for event in events if event.event == "epoch"]
    assert any(event.rung is not None and not event.rung.goes_on and event.ends is None for event in epochs)
    assert sum(event.ends is TrialState.COMPLETED for event in epochs) < TRIALS / 2


def test_nothing_of_the_trials_that_waited_is_left_on_the_disk(search):
    run = search / "runs" / "promoted"
    assert not list((run / "checkpoints").glob("*"))
    assert 1 <= len(list((run / "weights").glob("*.safetensors"))) <= 3


def test_an_extension_adds_trials_and_leaves_those_that_were_given_up_alone(search, searches, tmp_path):
    folder = shutil.copytree(search, tmp_path / "copy")
    before = journal(folder, "promoted")
    code, _, err = searches.run(folder, "--resume", "promoted", "--trials", TRIALS + 4, "--concurrent", 1)
    assert (code, err) == (0, "")
    result = json.loads((folder / "runs" / "promoted" / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["trials"] == sum(result["counts"].values()) == TRIALS + 4
    after = journal(folder, "promoted")
    assert after[: len(before)] == before
    ended = {event.trial for event in before if event.event == "suggested"}
    assert {event.trial for event in after[len(before) :] if event.event == "epoch"}.isdisjoint(ended)
