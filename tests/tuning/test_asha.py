import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_fusion.events import RungDecision
from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.asha import Asha, expected_trials, rung_epochs

SETTINGS = AshaSettings(grace_epochs=1, reduction_factor=3)


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [(1, 3, 10, (1, 3, 9)), (2, 2, 16, (2, 4, 8)), (1, 3, 1, ()), (5, 3, 5, ()), (4, 4, 17, (4, 16))],
)
def test_rungs_are_powers_of_the_reduction_factor_below_the_last_epoch(grace, factor, epochs, rungs):
    assert rung_epochs(AshaSettings(grace_epochs=grace, reduction_factor=factor), epochs) == rungs


def reach(asha, trial, epoch, value):
    """A trial reaches an epoch; whether it goes on."""
    rung = asha.judge(trial, epoch, value)
    asha.tell(trial, epoch, value)
    return rung is None or rung.goes_on


def test_a_trial_goes_on_when_among_the_best_third_of_its_rung():
    asha = Asha(SETTINGS, 10, "max")
    decisions = [reach(asha, i, 1, value) for i, value in enumerate([0.5, 0.4, 0.6, 0.55, 0.7, 0.65])]
    # n // 3 (at least one) of the values seen so far: one until the sixth, then two.
    assert decisions == [True, False, True, False, True, True]


def test_a_decision_says_what_it_was_made_of():
    asha = Asha(SETTINGS, 10, "max")
    for trial, value in enumerate([0.5, 0.4, 0.6, 0.55, 0.7]):
        asha.tell(trial, 1, value)
    assert asha.judge(5, 1, 0.65) == RungDecision(seen=6, kept=2, cutoff=0.65, goes_on=True)
    assert asha.judge(5, 1, 0.45) == RungDecision(seen=6, kept=2, cutoff=0.6, goes_on=False)


def test_equal_values_go_on_together():
    asha = Asha(SETTINGS, 10, "max")
    assert [reach(asha, trial, 1, 0.5) for trial in range(4)] == [True] * 4


@pytest.mark.parametrize("direction", ["max", "min"])
def test_smaller_is_better_for_losses_and_cutoffs_are_the_metrics_own(direction):
    asha = Asha(SETTINGS, 10, direction)
    sign = 1 if direction == "max" else -1
    assert reach(asha, 0, 1, sign * -2.0)
    rung = asha.judge(1, 1, sign * -2.5)
    assert (rung.goes_on, rung.cutoff) == (False, sign * -2.0)
    assert reach(asha, 2, 1, sign * -1.5)
    assert asha.values == {1: {0: sign * -2.0, 2: sign * -1.5}, 3: {}, 9: {}}


def test_judging_changes_nothing():
    asha = Asha(SETTINGS, 10, "max")
    asha.tell(0, 1, 0.9)
    assert asha.judge(1, 1, 0.5) == asha.judge(1, 1, 0.5)
    assert asha.values == {1: {0: 0.9}, 3: {}, 9: {}}


def test_a_trial_counts_once_a_rung():
    asha = Asha(SETTINGS, 10, "max")
    for _ in range(3):
        asha.tell(0, 1, 0.9)
    assert asha.judge(0, 1, 0.9).seen == 1
    assert asha.judge(1, 1, 0.95).seen == 2


def test_epochs_between_rungs_never_stop_a_trial_and_disabled_asha_never_stops():
    asha = Asha(SETTINGS, 10, "max")
    reach(asha, 0, 1, 0.9)
    assert asha.judge(1, 2, 0.0) is None
    off = Asha(SETTINGS, 10, "max", enabled=False)
    assert reach(off, 0, 1, 0.9)
    assert off.judge(1, 1, 0.0) is None
    assert off.values == {}


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=60))
def test_decision_equals_the_rank_rule_written_with_numpy(values):
    asha = Asha(SETTINGS, 10, "max")
    for i, value in enumerate(values):
        seen = np.array(values[: i + 1])
        better = int((seen > value).sum())
        assert reach(asha, i, 1, value) == (better < max(1, len(seen) // 3))


@given(st.integers(1, 500), st.integers(1, 100))
def test_expected_trials_shrink_and_never_vanish(trials, epochs):
    plan = expected_trials(SETTINGS, epochs, trials)
    counts = [count for _, count in plan]
    assert plan[0][1] == trials
    assert plan[-1][0] == epochs
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= min(1, trials)
