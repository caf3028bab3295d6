"""A search that starts with the results of an earlier one, as a user types it: nothing in it is simulated."""

import json

import pytest
from running import QUICK, chronicle, journal, query

from tune_fusion.records import TrialState
from tune_fusion.tuning.preflight import Request
from tune_fusion.tuning.warm_start import find_earlier

WORDS = ["--space", "digits", *QUICK]


@pytest.fixture(scope="module")
def folder(searches, tmp_path_factory):
    """A search of four trials, ``first``, and one of two that starts with its results, ``second``."""
    folder = tmp_path_factory.mktemp("warm")
    for words in (
        ["--name", "first", "--trials", 4, "--epochs", 2],
        ["--name", "second", "--trials", 2, "--epochs", 2, "--warm-start", "first"],
    ):
        code, out, err = searches.run(folder, *WORDS, *words)
        assert (code, err) == (0, "")
    (folder / "out.txt").write_text(out)
    return folder


def ended(folder):
    return [t for t in chronicle(folder, "first").record.trials if t.state is not TrialState.FAILED]


def test_the_second_search_knows_the_first_and_runs_only_its_own(folder):
    record = chronicle(folder, "second").record
    assert [t.source_trial for t in record.inherited] == [t.number for t in ended(folder)]
    assert len(record.trials) == 2
    configurations = [json.dumps(t.configuration, sort_keys=True) for t in record.known]
    assert len(set(configurations)) == len(configurations)
    events = [event.event for event in journal(folder, "second")]
    assert events[: len(record.inherited) + 1] == ["session"] + ["inherited"] * len(record.inherited)


def test_its_result_is_the_best_of_both(folder):
    record = chronicle(folder, "second").record
    result = json.loads((folder / "runs" / "second" / "result.json").read_text())
    best = max(record.value(t) for t in record.known if t.state is not TrialState.DIVERGED)
    assert result["best"]["value"] == best
    assert (result["trials"], result["inherited"]) == (2, len(record.inherited))
    assert result["untuned_fusion"]["source"]["search"] == "first"
    for name in ("best", "best_fusion", "best_control"):
        # Whoever ran it, its weights are in the folder of this search.
        assert (folder / "runs" / "second" / "weights" / f"{result[name]['trial']:04d}.safetensors").exists()
    out = (folder / "out.txt").read_text()
    assert f"known from the start: {len(record.inherited)} trials of first" in out
    assert " of first, epoch " in out


def test_only_what_was_run_is_a_run_in_mlflow(folder):
    names = [name for (name,) in query(folder, "select name from runs order by start_time")]
    assert len(names) == 2 + 4 + 2
    assert names.count("first") == names.count("second") == 1


def test_mlflow_tells_the_same_of_the_first_search_as_its_folder(folder, tmp_path):
    store = f"sqlite:///{folder / 'mlflow.db'}"
    request = Request(storage=tmp_path, tracking_uri=store, warm_start="first")
    logged = find_earlier(request, "digits")
    known = find_earlier(Request(storage=folder / "runs", warm_start="first"), "digits")
    assert (logged.folder, logged.name, logged.conditions) == (None, "first", known.conditions)
    for one, other in zip(logged.trials, known.trials, strict=True):
        for field in ("number", "arm", "origin", "configuration", "parameters", "state", "single"):
            assert getattr(one, field) == getattr(other, field)
        assert [
            {key: value for key, value in epoch.items() if not key.startswith("layer_")}
            for epoch in other.epochs
        ] == one.epochs


def test_another_training_is_refused_before_anything_is_made(folder, searches):
    code, _, err = searches.run(
        folder, *WORDS, "--name", "third", "--trials", 2, "--epochs", 3, "--warm-start", "first"
    )
    assert code == 2
    assert "-training.epochs: 2" in err
    assert "+training.epochs: 3" in err
    assert not (folder / "runs" / "third").exists()
