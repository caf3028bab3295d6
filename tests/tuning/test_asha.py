import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.asha import Asha, expected_trials, rung_epochs

SETTINGS = AshaSettings(grace_epochs=1, reduction_factor=3)


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [(1, 3, 10, (1, 3, 9)), (2, 2, 16, (2, 4, 8)), (1, 3, 1, ()), (5, 3, 5, ()), (4, 4, 17, (4, 16))],
)
def test_rungs_are_powers_of_the_reduction_factor_below_the_last_epoch(grace, factor, epochs, rungs):
    assert rung_epochs(AshaSettings(grace_epochs=grace, reduction_factor=factor), epochs) == rungs


def test_a_trial_goes_on_when_among_the_best_third_of_its_rung():
    asha = Asha(SETTINGS, 10, "max")
    decisions = [asha.report(i, 1, value) for i, value in enumerate([0.5, 0.4, 0.6, 0.55, 0.7, 0.65])]
    # n // 3 (at least one) of the values seen so far: one until the sixth, then two.
    assert decisions == [True, False, True, False, True, True]


def test_smaller_is_better_for_losses():
    asha = Asha(SETTINGS, 10, "min")
    assert asha.report(0, 1, 2.0)
    assert not asha.report(1, 1, 2.5)
    assert asha.report(2, 1, 1.5)


def test_epochs_between_rungs_never_stop_a_trial_and_disabled_asha_never_stops():
    asha = Asha(SETTINGS, 10, "max")
    asha.report(0, 1, 0.9)
    assert asha.report(1, 2, 0.0)
    off = Asha(SETTINGS, 10, "max", enabled=False)
    assert off.report(0, 1, 0.9)
    assert off.report(1, 1, 0.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_decision_equals_the_rank_rule_written_with_numpy(values):
    asha = Asha(SETTINGS, 10, "max")
    for i, value in enumerate(values):
        seen = np.array(values[: i + 1])
        better = int((seen > value).sum())
        assert asha.report(i, 1, value) == (better < max(1, len(seen) // 3))


@given(st.integers(1, 500), st.integers(1, 100))
def test_expected_trials_shrink_and_never_vanish(trials, epochs):
    plan = expected_trials(SETTINGS, epochs, trials)
    counts = [count for _, count in plan]
    assert plan[0][1] == trials
    assert plan[-1][0] == epochs
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= min(1, trials)
