"""Confirmations as a user types them: real Ray, real MLflow on SQLite, real training on real images."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from running import QUICK, kill, query, wait_until

import tune_fusion
from tune_fusion.data.heldout import load_heldout
from tune_fusion.events import Chronicle, EpochEnded, Session
from tune_fusion.journal import read_journal
from tune_fusion.reporting.answer import Answer
from tune_fusion.space.settings import DataSettings

SEEDS = [1_000_001, 1_000_002, 1_000_003, 1_000_004, 1_000_005]
# What a run takes differs between two runs of the same thing; what it finds does not.
_MEASURED_TIME = {"train_seconds", "eval_seconds", "images_per_second"}


@pytest.fixture(scope="module")
def places(searches, tmp_path_factory):
    """A folder with one small search, ``first``, and an untouched copy of it."""
    place = tmp_path_factory.mktemp("places") / "first"
    place.mkdir()
    words = ["--space", "digits", "--name", "first", "--trials", 8, "--epochs", 3, *QUICK]
    code, _, err = searches.run(place, *words, "--set", "space.controls=[adam]")
    assert (code, err) == (0, "")
    return place, shutil.copytree(place, place.with_name("copy"))


@pytest.fixture(scope="module")
def searched(places):
    """A folder with the search, not to be changed."""
    return places[1]


@pytest.fixture(scope="module")
def confirmed(searches, places):
    """The search confirmed: folder, standard output, content of ``confirmation.json``."""
    place = places[0]
    words = ["first", "--top", 1, "--concurrent", 1]
    code, out, err = searches.run(place, *words, command="confirm")
    assert (code, err) == (0, "")
    return place, out, json.loads((place / "runs/first/confirmation/confirmation.json").read_text())


def copied(place, target):
    """A copy of a folder with the search, and the option that has it logged to the copy of its store."""
    shutil.copytree(place, target)
    return target, ["--tracking-uri", f"sqlite:///{target / 'mlflow.db'}"]


def folder_of(place):
    return place / "runs" / "first" / "confirmation"


def events(place):
    return read_journal(folder_of(place) / "journal.jsonl").events


def record(place):
    return Chronicle.replay(events(place)).record


def findings(place):
    """What every run has found: configuration and seed, and the metrics of each epoch."""
    return {
        (json.dumps(trial.configuration, sort_keys=True), trial.seed): [
            {key: value for key, value in epoch.items() if key not in _MEASURED_TIME}
            for epoch in trial.epochs
        ]
        for trial in record(place).trials
    }


def test_every_finalist_is_trained_to_the_end_with_every_seed(confirmed):
    place, _, content = confirmed
    runs = record(place).trials
    finalists = content["answer"]["finalists"]
    assert Counter((str(t.configuration), t.seed) for t in runs) == {
        (str(one["configuration"]), seed): 1 for one in finalists for seed in SEEDS
    }
    assert {t.state.value for t in runs} == {"completed"}
    assert {len(t.epochs) for t in runs} == {3}
    kinds = {(one["single"], one["origin"]) for one in finalists}
    assert {(False, "default"), (True, "default")} <= kinds
    assert content["seeds"] == SEEDS


def test_test_images_are_measured_once_a_run_in_its_last_epoch(confirmed):
    place, _, content = confirmed
    measured = [
        event.epoch
        for event in events(place)
        if isinstance(event, EpochEnded) and any(key.startswith("test_") for key in event.metrics)
    ]
    assert measured == [3] * len(record(place).trials)
    last = record(place).trials[0].epochs[-1]
    assert {key for key in last if key.startswith("test_")} == {
        "test_accuracy",
        "test_loss",
        "test_loss_softmax",
        "test_macro_f1",
    }
    assert content["answer"]["test_images"] == 180
    search = read_journal(place / "runs/first/journal.jsonl").events
    named = {key for event in search if isinstance(event, EpochEnded) for key in event.metrics}
    assert not [key for key in named if key.startswith("test")]


def test_the_answer_is_that_of_its_runs(confirmed):
    place, out, content = confirmed
    answer = Answer.from_dict(content["answer"])
    by_run = {(str(t.configuration), t.seed): t.epochs for t in record(place).trials}
    for finalist in answer.finalists:
        for run in finalist.runs:
            epochs = by_run[str(finalist.configuration), run.seed]
            best = max(epoch["val_accuracy"] for epoch in epochs)
            assert run.values["val_accuracy"] == best
            assert epochs[run.best_epoch - 1]["val_accuracy"] == best
            assert run.values["test_accuracy"] == epochs[-1]["test_accuracy"]
    (comparison, *_) = answer.comparisons
    assert comparison.metric == "test_accuracy"
    ours, theirs = answer.finalist(answer.fusion), answer.finalist(answer.control)
    assert not ours.single
    assert theirs.single
    paired = {s: ours.by_seed("test_accuracy")[s] - theirs.by_seed("test_accuracy")[s] for s in SEEDS}
    assert comparison.differences == paired
    assert comparison.mean == pytest.approx(np.mean(list(paired.values())))
    assert answer.sentence in out
    for finalist in answer.finalists:
        assert f"{finalist.mean('test_accuracy'):.4f} ± {finalist.sd('test_accuracy'):.4f}" in out


def test_the_saved_model_is_the_winners_and_measures_as_its_run_did(confirmed, monkeypatch):
    place, out, content = confirmed
    monkeypatch.chdir(place)
    path = content["paths"]["model"]
    line = f"tune_fusion.load_model({path!r})"
    assert line in out
    model = tune_fusion.load_model(path)
    answer = Answer.from_dict(content["answer"])
    sides = [answer.finalist(answer.fusion), answer.finalist(answer.control)]
    winner = max(sides, key=lambda one: one.mean("val_accuracy"))
    trained = model.config.trained_on
    assert dict(model.config.configuration) == dict(winner.configuration)
    best = max(winner.runs, key=lambda run: run.values["val_accuracy"])
    assert (trained.seed, trained.epoch) == (best.seed, best.best_epoch)
    data = DataSettings(name="digits")
    heldout = load_heldout(data, classes=model.classes, image_size=32, size=(8, 8)).split
    images = heldout.images if heldout.rows is None else heldout.images[heldout.rows]
    right = model.classify(images.permute(0, 2, 3, 1).numpy()).argmax(1) == heldout.labels.numpy()
    assert right.mean() == pytest.approx(best.values["test_accuracy"])


def test_mlflow_holds_it_as_nested_runs_of_the_searchs_run(confirmed):
    place, _, content = confirmed
    ids = dict(query(place, "select name, run_uuid from runs"))
    parents = dict(query(place, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    own = ids["first confirmation"]
    assert parents[own] == ids["first"]
    children = [run for run, parent in parents.items() if parent == own]
    assert len(children) == len(record(place).trials)
    seeds = [v for run, v in query(place, "select run_uuid, value from params where key = 'seed'")]
    assert Counter(seeds) == {str(seed): len(children) // 5 for seed in SEEDS}
    named = "select value from metrics where key = 'test_accuracy' order by value"
    logged = [value for (value,) in query(place, named)]
    assert logged == sorted(trial.epochs[-1]["test_accuracy"] for trial in record(place).trials)
    stored = {path.name for path in (place / "mlartifacts").rglob(f"{own}/artifacts/*")}
    assert {"confirmation.json", "trials.csv", "report.html", "figures"} <= stored
    assert content["mlflow"]["model"].startswith("models:/")


def test_the_page_tells_the_answer(confirmed):
    place, _, content = confirmed
    page = (place / "runs/first/report.html").read_text()
    assert content["answer"]["sentence"].replace("|", "|") in page


def test_a_complete_confirmation_is_left_alone(confirmed, searches):
    place, out, _ = confirmed
    before = (folder_of(place) / "journal.jsonl").read_bytes()
    code, again, err = searches.run(place, "first", command="confirm")
    assert (code, err) == (0, "")
    assert "first confirmation is complete already: --seeds N or --top K extends it" in again
    assert out[out.index("first confirmation completed") :] in again
    assert (folder_of(place) / "journal.jsonl").read_bytes() == before


def test_sync_brings_it_to_another_store_nested_as_well(confirmed, searches, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(confirmed[0] / "runs", place / "runs")
    store = f"sqlite:///{place / 'mlflow.db'}"
    code, _, err = searches.run(place, "first", "--tracking-uri", store, command="sync")
    assert (code, err) == (0, "")
    ids = dict(query(place, "select name, run_uuid from runs"))
    parents = dict(query(place, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    assert parents[ids["first confirmation"]] == ids["first"]
    runs = len(record(confirmed[0]).trials)
    assert list(parents.values()).count(ids["first confirmation"]) == runs
    (stored,) = (place / "mlartifacts").rglob(f"{ids['first confirmation']}/artifacts/report.html")
    assert confirmed[2]["answer"]["sentence"] in stored.read_text()


def test_a_killed_confirmation_goes_on_and_ends_the_same(confirmed, searched, searches, tmp_path):
    place, store = copied(searched, tmp_path / "place")
    words = ["first", "--top", 1, "--concurrent", 1, *store]
    first = searches.start(place, *words, command="confirm")
    done = lambda: (folder_of(place) / "journal.jsonl").exists() and len(record(place).ended) >= 2  # noqa: E731
    wait_until(done, 240, first)
    kill(first)
    assert not (folder_of(place) / "confirmation.json").exists()
    # What is to be confirmed stands in the journal: it need not be said again.
    code, _, err = searches.run(place, "first", *store, command="confirm")
    assert (code, err) == (0, "")
    assert findings(place) == findings(confirmed[0])
    assert len(record(place).trials) == len(record(confirmed[0]).trials)
    undisturbed = Answer.from_dict(confirmed[2]["answer"])
    content = json.loads((folder_of(place) / "confirmation.json").read_text())
    assert Answer.from_dict(content["answer"]).comparisons == undisturbed.comparisons


def test_more_seeds_extend_it_retraining_and_registering_follow(confirmed, searches, tmp_path):
    place, store = copied(confirmed[0], tmp_path / "place")
    before = findings(place)
    words = ["first", "--seeds", 6, "--retrain", "--register", "digits-winner", *store]
    code, out, err = searches.run(place, *words, command="confirm")
    assert code == 0, err
    after = findings(place)
    assert before.items() <= after.items()
    assert {seed for _, seed in after} == {*SEEDS, 1_000_006}
    sessions = [event for event in events(place) if isinstance(event, Session)]
    assert [list(session.seeds) for session in sessions] == [SEEDS, [*SEEDS, 1_000_006]]
    content = json.loads((folder_of(place) / "confirmation.json").read_text())
    assert [note for note in content["notes"] if "extended when a result was known" in note]
    assert content["mlflow"]["model"] == "models:/digits-winner/1"
    assert "models:/digits-winner/1" in out
    model = tune_fusion.load_model(folder_of(place) / "model")
    assert model.config.trained_on.part == "training and validation"
    assert model.config.trained_on.metrics == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["second"], "NAME second: .* holds no search of that name; known: first"),
        (["first", "--register", "a/b"], "--register 'a/b': "),
        (["first", "--top", 0], "argument --top: needs a whole number from 1, got '0'"),
    ],
)
def test_what_cannot_be_confirmed_is_refused(searched, searches, words, message):
    code, out, err = searches.run(searched, *words, command="confirm")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not folder_of(searched).exists()


def test_a_space_or_data_that_are_not_the_searchs_are_refused(searched, searches, tmp_path):
    place, store = copied(searched, tmp_path / "place")
    as_run = place / "runs/first/space.yaml"
    whole = as_run.read_text()
    as_run.write_text(whole.replace("limit: 300", "limit: 299"))
    code, _, err = searches.run(place, "first", *store, command="confirm")
    assert code == 2
    assert f"{as_run}: is not the space that the search was run with" in err
    assert not folder_of(place).exists()


def test_a_search_that_is_to_be_confirmed_is_confirmed(searches, tmp_path):
    words = ["--space", "digits", "--name", "first", "--trials", 2, "--epochs", 1, *QUICK, "--confirm"]
    options = ["--top", 1, "--seeds", 2, "--storage", "results", "--set", "space.controls=[adam]"]
    code, out, err = searches.run(tmp_path, *words, *options)
    assert (code, err) == (0, "")
    search, _, confirmation = out.partition("first completed: ")[2].partition(
        "first confirmation completed: "
    )
    assert search.startswith("2 completed of 2 trials")
    assert confirmation.startswith("4 completed of 2 finalists x 2 seeds")
    assert "fewer than 5 seeds decide nothing" in confirmation
    content = json.loads((tmp_path / "results/first/confirmation/confirmation.json").read_text())
    assert content["seeds"] == SEEDS[:2]


def test_what_belongs_to_a_confirmation_needs_one(searches, tmp_path):
    code, _, err = searches.run(tmp_path, "--space", "digits", "--seeds", 2)
    assert (code, err) == (2, "tune_fusion.search: --seeds goes with --confirm only\n")


_WATCH = """
import os, sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if "/photos/test/" in path:
            descriptor = os.open(os.environ["TF_TEST_OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, (path + "\\n").encode())
            os.close(descriptor)
sys.addaudithook(watch)
"""


def test_a_search_opens_no_test_image_and_a_confirmation_does(searches, image_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for part in ("train", "test"):
        shutil.move(image_folder(classes=2, images=10, side=32, name=part), photos / part)
    space = tmp_path / "mine.yaml"
    space.write_text(
        f"model: {{name: hn_cifar_cnn}}\ndata: {{name: 'folder:{photos}', image_size: 32, validation: 0.4}}\n"
        "training: {epochs: 1, batch_size: 8}\nspace:\n  switch_layer: 1\n  low: adam\n  high: sgd\n"
        "  controls: [adam]\nsearch: {trials: 2}\n"
    )
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_WATCH)
    opened = tmp_path / "opened.txt"
    # Every process of the search has the hook: the driver, Ray's, and the workers.
    around = {
        "PYTHONPATH": f"{tmp_path / 'hook'}:{Path(tune_fusion.__file__).parents[1]}",
        "TF_TEST_OPENED": str(opened),
        "TUNE_FUSION_CACHE": str(tmp_path / "cache"),
    }
    code, _, err = searches.run(tmp_path, "--space", space, "--name", "first", **around)
    assert code == 0, err
    assert not opened.exists()
    code, out, err = searches.run(tmp_path, "first", "--seeds", 2, command="confirm", **around)
    assert code == 0, err
    assert {Path(line).parent.name for line in opened.read_text().splitlines()} == {"class0", "class1"}
    assert "20 test images, measured once a run" in out


def test_data_without_a_test_part_are_refused_before_anything_runs(searches, image_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.move(image_folder(classes=2, images=10, side=32, name="train"), photos / "train")
    space = tmp_path / "mine.yaml"
    space.write_text(
        f"model: {{name: hn_cifar_cnn}}\ndata: {{name: 'folder:{photos}', image_size: 32, validation: 0.4}}\n"
        "training: {epochs: 1, batch_size: 8}\nspace:\n  switch_layer: 1\n  low: adam\n  high: sgd\n"
        "  controls: [adam]\nsearch: {trials: 2}\n"
    )
    place = {"TUNE_FUSION_CACHE": str(tmp_path / "cache")}
    assert searches.run(tmp_path, "--space", space, "--name", "first", **place)[0] == 0
    code, out, err = searches.run(tmp_path, "first", command="confirm", **place)
    assert (code, out) == (2, "")
    assert "test" in err
    assert not folder_of(tmp_path).exists()
