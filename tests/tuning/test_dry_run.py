import os
import re

import pytest

from tune_fusion.errors import InputError
from tune_fusion.space.loading import list_spaces
from tune_fusion.space.sampling import grid_parameters
from tune_fusion.training.checks import check_space
from tune_fusion.tuning import dry_run
from tune_fusion.tuning.dry_run import describe_plan

SPACES = [name for name, _, _ in list_spaces()]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """An empty working directory and cache; whether data and weights can be fetched is asked elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dry_run, "check_provided", lambda checked: None)


def plan_of(name, *overrides):
    return describe_plan(check_space(name, overrides))


def section(plan, title):
    return next(part for part in plan.split("\n\n") if part.startswith(title)).splitlines()


@pytest.mark.parametrize("name", SPACES)
def test_every_shipped_space_shows_its_whole_plan(name, tmp_path, image_folder):
    folders = ("folder", "papers/hn_adam_remark3")
    data = [f"data.name=folder:{image_folder(images=20)}"] if name in folders else []
    checked = check_space(name, data)
    plan = describe_plan(checked)
    lines = section(plan, "layer map")
    assert lines[0].startswith(f"layer map ({len(checked.layers)} layers, ")
    assert len(lines) == 1 + len(checked.layers)
    grid = checked.space.search.sampler == "grid"
    points = len(list(grid_parameters(checked.space, "fusion"))) if grid else 10
    assert len(section(plan, "sampled configurations")) == 1 + min(points, 10)
    assert section(plan, "rungs")[-1].startswith("  plan ")
    assert "not ready" not in plan
    assert {path.name for path in tmp_path.iterdir()} <= {"photos"}


def test_the_plan_of_digits_in_full():
    thirds = ("asha.reduction_factor=3", "search.control_share=0.4")
    plan = plan_of("digits", "search.trials=20", "training.epochs=9", *thirds)
    header, *_ = plan.splitlines()
    assert header == (
        "digits: lenet5 on digits, 1294 training and 323 validation images, 10 classes; "
        "20 trials, tpe sampler, promotion scheduler, val_accuracy, seed 0"
    )
    layers = section(plan, "layer map")
    assert layers[0] == "layer map (5 layers, 81,194 trainable parameters)"
    counts = [int(line.split()[2].replace(",", "")) for line in layers[1:]]
    shares = [float(line.split()[-1].rstrip("%")) for line in layers[1:]]
    assert sum(counts) == 81_194
    assert shares == [pytest.approx(100 * sum(counts[: i + 1]) / 81_194, abs=0.051) for i in range(5)]
    # One in three goes on: 8 controls spend 8 + 2 * 8/3 + 6 * 1 epochs, 12 fusions 12 + 2 * 4 + 6 * 4/3.
    assert section(plan, "rungs") == [
        "rungs, expected trials at each",
        "  fusion   epoch 1: 12.0, epoch 3: 4.0, epoch 9: 1.3; about 28 of 108 epochs",
        "  control  epoch 1: 8.0, epoch 3: 2.7, epoch 9: 1.0; about 19 of 72 epochs",
        "  plan     about 47 of 180 epochs, 61,249 training images",
    ]


def test_without_a_scheduler_every_trial_trains_to_the_end():
    plan = plan_of("digits", "search.scheduler=none", "search.trials=10", "training.epochs=4")
    assert section(plan, "rungs")[1:] == [
        "  fusion   epoch 4: 5.0; about 20 of 20 epochs",
        "  control  epoch 4: 5.0; about 20 of 20 epochs",
        "  plan     about 40 of 40 epochs, 51,760 training images",
    ]


def test_the_sampled_configurations_are_those_that_the_search_will_draw():
    first = section(plan_of("digits"), "sampled")
    assert first[1].endswith("(untuned default)")
    assert sum("default" in line for line in first) == 1
    assert first == section(plan_of("digits"), "sampled")
    assert first[2:] != section(plan_of("digits", "search.seed=1"), "sampled")[2:]
    assert all(
        re.match(r"  switch [0-3] \(\w+\) low \w+ lr \S+ .*\| high \w+ lr ", line) for line in first[1:]
    )


def test_a_small_grid_is_shown_to_its_end():
    plan = plan_of(
        "digits",
        "search.sampler=grid",
        "space.switch_layer=[0, 3]",
        "space.low=[adam]",
        "space.high=[sgd]",
        "space.controls=[]",
        "space.optimizers={adam: {lr: 1e-3}, sgd: {lr: {choice: [0.1, 0.01]}, momentum: 0.9}}",
    )
    assert len(section(plan, "sampled")) == 1 + 4


def test_what_the_search_would_still_miss_is_said_at_the_end(monkeypatch):
    def missing(checked):
        raise InputError("digits.yaml:9: data.name: not there")

    monkeypatch.setattr(dry_run, "check_provided", missing)
    assert plan_of("digits").endswith("\n\nnot ready to start: digits.yaml:9: data.name: not there")


def test_the_environment_is_left_alone():
    before = dict(os.environ)
    plan_of("digits")
    assert dict(os.environ) == before


def test_a_grid_spends_no_more_than_its_points():
    points = (
        "search.sampler=grid",
        "space.switch_layer={choice: [1, 2]}",
        "space.low=[sgd]",
        "space.high=[sgd]",
        "space.controls=[sgd]",
        "space.optimizers={sgd: {lr: {choice: [0.01, 0.1]}}}",
        "training.epochs=3",
        "search.scheduler=none",
    )
    assert section(plan_of("digits", *points), "rungs")[1:3] == [
        "  fusion   epoch 3: 8.0; about 24 of 72 epochs",
        "  control  epoch 3: 2.0; about 6 of 72 epochs",
    ]


@pytest.mark.parametrize("scheduler", ["hyperband", "curves"])
def test_where_nobody_knows_how_many_trials_stop_there_is_a_bound(scheduler):
    last = section(plan_of("digits", f"search.scheduler={scheduler}"), "rungs")[-1]
    assert last.startswith("  plan     at most 480 of 480 epochs")
