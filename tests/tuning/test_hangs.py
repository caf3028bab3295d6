import pytest

from tune_fusion.tuning.hangs import HangWatch


def test_a_trial_without_a_new_epoch_hangs_when_its_time_is_over():
    watch = HangWatch(30.0)
    watch.runs(0, 100.0)
    assert watch.overdue(130.0) == []
    assert watch.overdue(130.1) == [0]


def test_an_epoch_and_nothing_else_begins_the_time_anew():
    watch = HangWatch(30.0)
    watch.runs(0, 100.0)
    watch.runs(0, 120.0)
    assert watch.overdue(131.0) == [0]
    watch.progressed(0, 131.0)
    assert watch.overdue(161.0) == []
    assert watch.overdue(161.1) == [0]


def test_each_trial_has_its_own_time():
    watch = HangWatch(30.0)
    watch.runs(0, 100.0)
    watch.runs(1, 120.0)
    watch.runs(2, 100.0)
    watch.progressed(2, 125.0)
    assert watch.overdue(135.0) == [0]
    assert sorted(watch.overdue(160.0)) == [0, 1, 2]


def test_what_no_worker_trains_does_not_hang():
    watch = HangWatch(30.0)
    watch.runs(0, 100.0)
    watch.left(0)
    watch.left(0)
    assert watch.overdue(1000.0) == []
    watch.runs(0, 1000.0)
    assert watch.overdue(1030.0) == []
    assert watch.overdue(1031.0) == [0]


def test_without_a_timeout_ten_times_the_longest_epoch_and_at_least_ten_minutes():
    watch = HangWatch(None)
    assert watch.timeout == 600
    watch.runs(0, 0.0)
    watch.progressed(0, 50.0)
    watch.progressed(0, 100.0)
    assert watch.timeout == 600
    watch.progressed(0, 190.0)
    assert watch.timeout == 900
    watch.progressed(0, 191.0)
    assert watch.timeout == 900
    assert watch.overdue(191.0 + 900) == []
    assert watch.overdue(191.0 + 901) == [0]


@pytest.mark.parametrize("epoch", [1.0, 10_000.0])
def test_a_timeout_that_was_asked_for_is_not_stretched(epoch):
    watch = HangWatch(30.0)
    watch.runs(0, 0.0)
    watch.progressed(0, epoch)
    assert watch.timeout == 30


def test_an_epoch_of_a_trial_that_was_never_seen_to_run_says_nothing_of_its_length():
    watch = HangWatch(None)
    watch.progressed(0, 1e6)
    assert watch.timeout == 600
    assert watch.overdue(1e6 + 601) == [0]
