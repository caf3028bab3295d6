"""Replays make the decisions of real searches; what they return is what a search would return."""

import math
from dataclasses import replace

import pytest
from made_spaces import VOCABULARY
from made_tables import make_table

from tune_fusion.events import Chronicle
from tune_fusion.replay.contenders import Contender, papers_first
from tune_fusion.replay.judge import verdict
from tune_fusion.replay.simulation import Incumbent, replay, session_of, train
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.engine import Engine


def searched(table, slots=1, budget=60, **search):
    space = replace(table.space, search=table.space.search.model_copy(update=search))
    return replay(table, space, VOCABULARY, slots, budget)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("scheduler", ["asha", "promotion", "none"])
def test_after_every_epoch_it_tells_what_the_search_would_return(slots, scheduler):
    table = make_table()
    space = replace(table.space, search=table.space.search.model_copy(update={"scheduler": scheduler}))
    engine = Engine(
        space, VOCABULARY, make_arms(space), Chronicle.begin(session_of(space)), table.layers, lambda: slots
    )
    incumbent, running = Incumbent(engine.record), []
    for _ in range(60):
        while (trial := engine.suggest()) is not None:
            running.append(trial)
        if not running:
            break
        trial = running.pop(0)
        if train(engine, trial.number, table.nearest(trial.arm, trial.configuration), incumbent):
            running.append(trial)
        assert incumbent.trial is engine.record.best()


def test_a_diverged_trial_is_not_returned():
    table = make_table()
    best = max(table.runs, key=table.value)
    table._groups = {
        group: [replace(run, diverged=True, epochs=run.epochs[:1]) if run is best else run for run in runs]
        for group, runs in table._groups.items()
    }
    trace = searched(table, scheduler="none")
    assert max(trace.returned) < table.best


def test_the_budget_is_kept_and_time_passes_as_the_slots_allow():
    table = make_table()
    one, four = searched(table, 1, 40), searched(table, 4, 40)
    assert len(one.returned) == len(four.returned) == 40
    assert one.elapsed == sorted(one.elapsed)
    assert one.elapsed[-1] == pytest.approx(40, rel=0.1)
    assert four.elapsed[-1] == pytest.approx(10, rel=0.2)


def test_the_same_seed_repeats_a_replay_and_another_one_does_not():
    table = make_table()
    assert searched(table, 3, seed=1) == searched(table, 3, seed=1)
    assert searched(table, 3, seed=1).elapsed != searched(table, 3, seed=2).elapsed


@pytest.mark.parametrize(
    "scheduler", ["asha", "promotion", "hyperband", "curves", "none", "pasha", "one-then-best"]
)
def test_every_contender_finds_the_best_of_a_small_table_in_the_end(scheduler):
    table = make_table()
    contender = Contender("", {"sampler": "random", "scheduler": scheduler, "defaults": "none"})
    trace = contender.run(table, VOCABULARY, 2, 400, 0)
    # What curves foretell is wrong for some: the best there gain more than those seen before them.
    assert trace.returned[-1] >= table.best - (0.011 if scheduler == "curves" else 0)


def test_a_search_that_stops_itself_ends_before_its_budget():
    trace = searched(make_table(), budget=2000, stop="auto")
    assert trace.stopped
    assert len(trace.returned) < 2000
    assert "search.stop" in trace.notes[0]


def test_a_verdict_counts_the_epochs_until_the_regret_is_within_the_noise():
    table = make_table()
    traces = [searched(table, 1, 80, seed=seed) for seed in range(6)]
    found = verdict(table, traces, 80)
    assert found.regret.shape == (6, 80)
    assert (found.regret >= -1e-12).all()
    for hit, regret in zip(found.hits, found.regret, strict=True):
        first = [epoch for epoch, value in enumerate(regret, 1) if value <= table.noise + 1e-12]
        assert hit == (first[0] if first else math.inf)
    assert found.quartiles() == tuple(sorted(found.quartiles()))


def test_the_papers_pairs_come_behind_the_default_once_each():
    answers = papers_first(make_table().space)
    pairs = [(one["low.optimizer"], one["high.optimizer"], one["switch_layer"]) for one in answers]
    assert pairs == [("adam", "sgd", 1), ("sgd", "adam", 1), ("sgd", "adam", 3), ("adam", "sgd", 3)]
