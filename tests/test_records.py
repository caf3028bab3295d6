import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState, jsonable

STEADY = settings(derandomize=True, deadline=None, max_examples=60)
VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=4)


def test_best_epoch_is_the_first_of_the_best_with_its_number():
    trial = make_trial(0, [0.2, 0.9, 0.9, 0.4])
    best = trial.best_epoch("val_accuracy", "max")
    assert best == {"val_accuracy": 0.9, "train_seconds": 0.5, "eval_seconds": 0.25, "epoch": 2.0}
    assert trial.best_epoch("val_accuracy", "min")["epoch"] == 1.0
    assert "epoch" not in trial.epochs[1]


def test_epochs_without_the_metric_keep_their_place_in_the_count():
    trial = make_trial(0, epochs=[{"train_loss": 1.0}, {"val_loss": 2.0}, {"val_loss": 2.5}])
    assert trial.best_epoch("val_loss", "min") == {"val_loss": 2.0, "epoch": 2.0}
    assert trial.best_epoch("val_accuracy", "max") is None
    assert make_trial(0).best_epoch("val_loss", "min") is None


def test_totals_count_a_missing_metric_as_nothing():
    trial = make_trial(0, epochs=[{"train_seconds": 0.1}, {}, {"train_seconds": 0.2}])
    assert trial.total("train_seconds") == math.fsum([0.1, 0.2])
    assert trial.total("eval_seconds") == 0


def test_counts_come_in_the_order_of_the_states_without_zeros():
    search = make_search(
        make_trial(0, state=TrialState.FAILED), make_trial(1), make_trial(2, state=TrialState.RUNNING)
    )
    assert list(search.counts().items()) == [("running", 1), ("completed", 1), ("failed", 1)]
    assert make_search().counts() == {}


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@STEADY
@given(runs=st.lists(st.tuples(VALUES, st.booleans(), st.sampled_from(TrialState)), max_size=6))
def test_best_is_what_a_plain_search_of_the_table_finds(metric, runs):
    makers = [make_single if single else make_trial for _, single, _ in runs]
    search = make_search(
        *(
            make(n, values, state, metric=metric)
            for n, (make, (values, _, state)) in enumerate(zip(makers, runs, strict=True))
        ),
        metric=metric,
    )
    extreme = max if metric == "val_accuracy" else min
    for single in (None, True, False):
        counted = {
            n: extreme(values)
            for n, (values, alone, state) in enumerate(runs)
            if values and state is not TrialState.DIVERGED and single in (None, alone)
        }
        best = search.best(single=single)
        if not counted:
            assert best is None
            continue
        top = extreme(counted.values())
        # The earliest of equals.
        assert best.number == next(n for n, value in counted.items() if value == top)
        assert search.value(best) == top


def test_best_among_an_origin_and_an_arm():
    search = make_search(
        make_single(0, [0.6], origin="default"),
        make_single(1, [0.9]),
        make_trial(2, [0.5], origin="default"),
        make_trial(3, [0.8]),
    )
    assert search.best().number == 1
    assert search.best(arm="fusion").number == 3
    assert search.best(origin="default").number == 0
    assert search.best(origin="default", arm="fusion").number == 2
    assert search.best(single=True, arm="fusion") is None


def test_inherited_trials_are_known_and_may_be_the_best_but_do_not_count():
    inherited = [
        make_trial(-1, [0.5], source="first", source_trial=0),
        make_trial(-2, [0.7], source="first", source_trial=4),
        make_trial(-3, [0.7], source="first", source_trial=9),
    ]
    own = [make_trial(0, [0.6]), make_trial(1, [0.7])]
    search = make_search(*own, inherited=inherited)
    assert search.known == [*inherited, *own]
    assert [search.trial(n) for n in (-1, -2, -3, 0, 1)] == search.known
    assert search.counts() == {"completed": 2}
    # Ties go to the earlier one.
    assert search.best() is inherited[1]
    assert [trial.title for trial in search.known[::2]] == ["trial 0 of first", "trial 9 of first", "trial 1"]


def test_the_untuned_of_an_arm_is_the_best_of_its_defaults():
    search = make_search(
        make_single(0, [0.4], origin="default"),
        make_single(1, [0.6], origin="default"),
        make_single(2, [0.9]),
        make_trial(3, [0.8]),
    )
    assert search.untuned("control").number == 1
    assert search.untuned("fusion") is None
    search.trials += [make_trial(4, [0.5], origin="default")]
    assert search.untuned("fusion").number == 4
    search.trials[1].state = TrialState.DIVERGED
    assert search.untuned("control").number == 0


def test_elapsed_leaves_out_what_the_search_did_not_run():
    assert make_search(paused_seconds=100.0).elapsed(1190.0) == 100.0


def test_every_search_has_a_key_of_its_own():
    keys = {make_search().key for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def standard(value):
    """`jsonable`, written out as the standard says: through Python's own JSON, constants read as null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


@STEADY
@given(PLAIN)
def test_jsonable_is_what_json_would_make_of_it_with_null_for_numbers_that_are_not_finite(value):
    plain = jsonable(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == standard(value)


def test_jsonable_by_example():
    value = {1: (math.nan, 2.5), "state": TrialState.STOPPED, "deep": [{"x": -math.inf}], "none": None}
    assert jsonable(value) == {
        "1": [None, 2.5],
        "state": "stopped",
        "deep": [{"x": None}],
        "none": None,
    }


def test_what_each_arm_has_spent():
    record = make_search(
        make_trial(0, [0.1, 0.2]), make_single(1, [0.3]), make_trial(2, []), inherited=[make_trial(-1, [0.9])]
    )
    assert record.arms() == {"fusion": (2, 2), "control": (1, 1)}
    assert list(record.arms()) == ["fusion", "control"]
    assert make_search().arms() == {}
