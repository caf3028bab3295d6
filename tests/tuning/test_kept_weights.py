import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.tuning.weights import WeightKeeper


@pytest.fixture
def kept(tmp_path):
    """Runs trials one after the other past a keeper; returns the numbers whose weights are left."""

    def run(*trials, **changes):
        search = make_search(**changes)
        keeper = WeightKeeper(search, lambda number: tmp_path / f"{number}.safetensors")
        for trial in trials:
            search.trials.append(trial)
            keeper.trial_started(trial)
            if trial.epochs:
                (tmp_path / f"{trial.number}.safetensors").write_bytes(b"weights")
                keeper.epoch_ended(trial)
            if trial.state is not TrialState.RUNNING:
                keeper.trial_ended(trial)
        return sorted(int(path.stem) for path in tmp_path.iterdir())

    return run


def test_the_best_of_each_kind_are_kept(kept):
    trials = [
        make_single(0, [0.6]),
        make_single(1, [0.8]),
        make_single(2, [0.7]),
        make_trial(3, [0.5]),
        make_trial(4, [0.75]),
        make_trial(5, [0.65], TrialState.STOPPED),
    ]
    assert kept(*trials) == [1, 4]


def test_the_earlier_of_equals_is_kept(kept):
    assert kept(make_trial(0, [0.5]), make_trial(1, [0.5])) == [0]


def test_a_running_trial_keeps_its_own(kept):
    running = make_trial(1, [0.1], TrialState.RUNNING)
    assert kept(make_trial(0, [0.9]), running, make_trial(2, [0.5])) == [0, 1]


def test_diverged_trials_and_trials_without_an_epoch_leave_nothing(kept):
    diverged = make_trial(0, [0.9], TrialState.DIVERGED)
    assert kept(diverged, make_trial(1, [], TrialState.FAILED), make_trial(2, [0.4])) == [2]


def test_the_lowest_loss_is_the_best(kept):
    trials = [make_trial(n, [loss], metric="val_loss") for n, loss in enumerate([0.5, 0.2, 0.9])]
    assert kept(*trials, metric="val_loss") == [1]
