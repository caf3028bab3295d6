"""Which trials are confirmed, and what their runs amount to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.tuning.finalists import (
    as_finalist,
    best_run,
    confirmed,
    finalists,
    fresh_seeds,
    listed_runs,
    mean_best_epoch,
)


def adam(number, value, **changes):
    """A single optimizer with a rate of its own."""
    configuration = {"switch_layer": "all", "low": {"optimizer": "adam", "lr": 1e-3 + number}, "high": None}
    return make_single(number, [value], configuration=configuration, **changes)


def fusion(number, value, **changes):
    configuration = {
        "switch_layer": 1,
        "low": {"optimizer": "adam", "lr": 1e-3 + number},
        "high": {"optimizer": "sgd", "lr": 0.1},
    }
    return make_trial(number, [value], configuration=configuration, **changes)


def numbers(trials):
    return [trial.number for trial in trials]


def test_the_best_of_each_kind_and_every_default():
    record = make_search(
        fusion(0, 0.3, origin="default"),
        adam(1, 0.5, origin="default"),
        adam(2, 0.2, origin="default"),
        fusion(3, 0.9),
        fusion(4, 0.95),
        fusion(5, 0.95),
        adam(6, 0.7),
        adam(7, 0.8, arm="fusion"),
        adam(8, 0.6),
    )
    # A single optimizer counts as one wherever it was found; equal values go by number.
    assert numbers(finalists(record, 2)) == [4, 5, 7, 6, 0, 1, 2]
    assert numbers(finalists(record, 1)) == [4, 7, 0, 1, 2]
    assert numbers(finalists(record, 4)) == [4, 5, 3, 0, 7, 6, 8, 1, 2]


def test_a_loss_is_best_when_it_is_small():
    record = make_search(
        make_trial(0, [0.5], metric="val_loss"), make_trial(1, [0.4], metric="val_loss"), metric="val_loss"
    )
    assert numbers(finalists(record, 1)) == [1]


def test_without_a_switch_layer_the_kinds_are_the_arms():
    record = make_search(adam(0, 0.9, arm="fusion"), adam(1, 0.8), adam(2, 0.7, arm="fusion"), fusions=False)
    assert numbers(finalists(record, 1)) == [0, 1]
    runs = listed_runs(record, [0, 1], [5])
    assert [run.trial for run in runs["fusion"]] == [0]
    assert [run.trial for run in runs["control"]] == [1]


@pytest.mark.parametrize(
    "state", [TrialState.RUNNING, TrialState.INTERRUPTED, TrialState.DIVERGED, TrialState.FAILED]
)
def test_what_has_no_sound_end_is_no_finalist(state):
    record = make_search(
        fusion(0, 0.9, state=state, origin="default"),
        fusion(1, 0.1),
        fusion(2, 0.2, state=TrialState.STOPPED),
    )
    assert numbers(finalists(record, 3)) == [2, 1]


def test_inherited_trials_can_be_finalists():
    record = make_search(fusion(0, 0.5), inherited=[fusion(-1, 0.9), adam(-2, 0.8)])
    assert numbers(finalists(record, 1)) == [-1, -2]
    runs = listed_runs(record, [-1, -2], [3])
    assert [run.trial for some in runs.values() for run in some] == [-1, -2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_fresh_seeds_are_distinct_valid_not_the_searchs_own_and_the_first_of_more(seed, count):
    seeds = fresh_seeds(seed, count)
    assert len({*seeds, seed}) == count + 1
    assert all(0 <= one < 2**32 for one in seeds)
    assert fresh_seeds(seed, count + 3)[:count] == seeds


def test_every_finalist_runs_with_every_seed_one_seed_after_the_other():
    record = make_search(fusion(0, 0.5), adam(1, 0.6), fusion(2, 0.7))
    runs = listed_runs(record, [2, 0, 1], [7, 8])
    assert [(run.trial, run.seed) for run in runs["fusion"]] == [(2, 7), (0, 7), (2, 8), (0, 8)]
    assert [(run.trial, run.seed) for run in runs["control"]] == [(1, 7), (1, 8)]
    assert runs["control"][0].configuration == Configuration.from_dict(record.trials[1].configuration)


def run_of(trial, number, seed, values, test=None, **changes):
    """A run of the confirmation; the last epoch holds the test metrics."""
    run = make_trial(
        number,
        values,
        configuration=trial.configuration,
        parameters=trial.parameters,
        single=trial.single,
        seed=seed,
        **changes,
    )
    if test is not None:
        run.epochs[-1] |= {"test_accuracy": test, "test_loss": 1 - test, "test_macro_f1": test}
    return run


def test_runs_are_given_to_their_finalists_and_pair_validation_with_test():
    search = make_search(fusion(0, 0.5), adam(1, 0.6))
    ours, theirs = search.trials
    confirmation = make_search(
        run_of(theirs, 0, 7, [0.2, 0.6, 0.4], 0.55),
        run_of(ours, 1, 7, [0.3, 0.8, 0.7], 0.75),
        run_of(ours, 2, 8, [0.3], state=TrialState.DIVERGED),
        run_of(ours, 3, 9, [0.3], state=TrialState.RUNNING),
    )
    ((first, first_runs), (second, second_runs)) = confirmed(search, confirmation, [0, 1])
    assert (first.number, numbers(first_runs)) == (0, [1, 2, 3])
    assert (second.number, numbers(second_runs)) == (1, [0])
    finalist = as_finalist(search, first, first_runs)
    assert (finalist.trial, finalist.search_value, finalist.label) == (0, 0.5, "adam|sgd @1")
    # The best epoch's validation, the test metrics of its weights; what still runs says nothing yet.
    assert [(run.seed, run.best_epoch, run.state) for run in finalist.runs] == [
        (7, 2, "completed"),
        (8, 1, "diverged"),
    ]
    assert finalist.runs[0].values == {
        "val_accuracy": 0.8,
        "test_accuracy": 0.75,
        "test_loss": 0.25,
        "test_macro_f1": 0.75,
    }
    assert finalist.by_seed("test_accuracy") == {7: 0.75}


def test_the_best_run_and_the_mean_best_epoch_look_at_validation_only():
    search = make_search(fusion(0, 0.5))
    runs = [
        run_of(search.trials[0], 0, 7, [0.2, 0.6, 0.4], 0.9),
        run_of(search.trials[0], 1, 8, [0.3, 0.5, 0.55, 0.7], 0.1),
        run_of(search.trials[0], 2, 9, []),
    ]
    confirmation = make_search(*runs)
    assert best_run(confirmation, runs) is runs[1]
    assert best_run(confirmation, runs[2:]) is None
    assert mean_best_epoch(confirmation, runs) == 3
    assert mean_best_epoch(confirmation, []) == 1
