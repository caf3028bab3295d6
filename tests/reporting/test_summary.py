import math

import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.reporting.results import result
from tune_fusion.reporting.summary import summary

FUSION = make_trial(1, [0.9])
CONTROL = make_single(0, [0.8])


def lines_of(search, status="completed", url=None, resume=None, paths=None):
    facts = {
        "wall_seconds": 61.6,
        "data": {"validation_images": 100},
        "paths": paths or {},
        "mlflow": {"ui_command": "mlflow ui --backend-store-uri sqlite:///mlflow.db", "url": url},
        "resume_command": resume,
    }
    return summary(search, result(search, status, facts)).splitlines()


def starting(lines, words):
    return [line for line in lines if line.startswith(words)]


def test_a_fusion_that_wins():
    lines = lines_of(make_search(CONTROL, FUSION))
    assert lines[:2] == ["", "made completed: 2 completed of 8 trials in 62 s, 2 epochs"]
    assert lines[2] == "fusion: 1 trial, 1 epoch, best 0.9000; control: 1 trial, 1 epoch, best 0.8000"
    assert lines[3] == (
        "best configuration       val_accuracy 0.9000  trial 1, epoch 1/10: switch 1 conv2 | "
        "low adam lr 1.2e-03 | high sgd lr 3.0e-02"
    )
    assert lines[4] == (
        "best single optimizer    val_accuracy 0.8000  trial 0, epoch 1/10: switch all | low adam lr 1.0e-03"
    )
    assert starting(lines, "best fusion") == [
        "best fusion minus best single optimizer: +0.1000 val_accuracy on 100 validation images, one seed"
    ]


def test_a_fusion_that_loses_is_named_and_the_difference_negative():
    lines = lines_of(make_search(make_single(0, [0.9]), make_trial(1, [0.85])))
    assert starting(lines, "best configuration")[0].count("switch all") == 1
    assert len(starting(lines, "best single optimizer")) == 1
    named, difference = starting(lines, "best fusion")
    assert "trial 1" in named
    assert "-0.0500 val_accuracy" in difference


def test_the_noise_is_that_of_two_independent_shares():
    (line,) = (line for line in lines_of(make_search(CONTROL, FUSION)) if line.startswith("(both"))
    expected = 1.96 * math.sqrt(0.9 * 0.1 / 100 + 0.8 * 0.2 / 100)
    assert f"±{expected:.4f}" in line


@pytest.mark.parametrize("metric", ["val_loss", "val_macro_f1"])
def test_only_a_share_of_images_has_that_noise(metric):
    search = make_search(
        make_single(0, [0.8], metric=metric), make_trial(1, [0.9], metric=metric), metric=metric
    )
    lines = lines_of(search)
    assert starting(lines, "(both") == []
    assert any(f"+0.1000 {metric}" in line for line in lines)


@pytest.mark.parametrize("trial", [FUSION, CONTROL], ids=["no control", "no fusion"])
def test_nothing_is_compared_where_one_side_is_missing(trial):
    lines = lines_of(make_search(trial))
    assert "best configuration" in lines[3]
    assert not any("minus" in line for line in lines)
    assert bool(starting(lines, "best single optimizer")) == trial.single
    assert starting(lines, "best fusion") == []


def test_no_trial_at_all_and_files_that_were_not_written(tmp_path):
    paths = {name: str(tmp_path / name) for name in ("report", "result", "trials")}
    for name in ("result", "trials"):
        (tmp_path / name).touch()
    lines = lines_of(make_search(), "interrupted", paths=paths)
    assert lines == [
        "",
        "made interrupted: no trial of 8 trials in 62 s, 0 epochs",
        "",
        f"result     {paths['result']}",
        f"trials     {paths['trials']}",
        "MLflow UI  mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]


def test_trials_that_ended_without_a_value_are_counted_alone():
    search = make_search(
        make_trial(0, [], TrialState.FAILED), make_trial(1, [], TrialState.INTERRUPTED), planned=2
    )
    lines = lines_of(search, "failed")
    assert lines[1] == "made failed: 1 failed, 1 interrupted of 2 trials in 62 s, 0 epochs"
    assert lines[2:4] == ["fusion: 2 trials, 0 epochs", ""]


def test_what_another_search_ran_is_named_as_its():
    inherited = make_trial(-1, [0.9], source="first", source_trial=7)
    record = make_search(make_trial(0, [0.5]), make_single(1, [0.4]), inherited=[inherited])
    lines = lines_of(record)
    assert "known from the start: 1 trials of first" in lines
    (best,) = starting(lines, "best configuration")
    assert "0.9000  trial 7 of first, epoch 1/10: " in best


def test_duplicates_notes_the_defaults_and_the_address_are_told():
    defaults = [make_single(3, [0.6], origin="default"), make_trial(4, [0.7], origin="default")]
    search = make_search(CONTROL, FUSION, *defaults, duplicates=3, notes=["the grid ended", "and more"])
    lines = lines_of(search, url="http://host/#/experiments/1")
    assert lines[3] == "3 suggestions equal in effect to earlier trials were not run again"
    assert lines[4:6] == ["note: the grid ended", "note: and more"]
    (fusion,), (single,) = starting(lines, "untuned fusion"), starting(lines, "untuned single")
    assert "val_accuracy 0.7000  trial 4" in fusion
    assert "val_accuracy 0.6000  trial 3" in single
    assert lines[-1] == "           http://host/#/experiments/1"


def test_an_unfinished_search_ends_with_the_command_that_goes_on():
    command = "python -m tune_fusion.search --resume made"
    for url in (None, "http://host/#/experiments/1"):
        assert lines_of(make_search(CONTROL), "interrupted", url, command)[-1] == f"go on with {command}"
    assert not starting(lines_of(make_search(CONTROL, FUSION)), "go on with")
