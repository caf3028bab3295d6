import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.runs import RunFolder
from tune_fusion.tuning.kept_files import FileKeeper, best_trials


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "first")


def write_files(folder, trial):
    """What a trial with an epoch leaves: weights of its best epoch and a checkpoint."""
    folder.weights(trial.number).parent.mkdir(parents=True, exist_ok=True)
    folder.weights(trial.number).write_bytes(b"weights")
    checkpoints = folder.checkpoint_folder(trial.number)
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "0001").write_bytes(b"checkpoint")


def weights(folder):
    return sorted(int(path.stem) for path in (folder.path / "weights").iterdir())


def checkpoints(folder):
    return sorted(int(path.name) for path in folder.checkpoints.iterdir())


@pytest.fixture
def kept(folder):
    """Runs trials one after the other past a keeper; returns the numbers whose weights are left."""

    def run(*trials, **changes):
        search = make_search(**changes)
        keeper = FileKeeper(search, folder, best_trials)
        for trial in trials:
            search.trials.append(trial)
            keeper.trial_started(trial)
            if trial.epochs:
                write_files(folder, trial)
                keeper.epoch_ended(trial)
            if trial.state is not TrialState.RUNNING:
                keeper.trial_ended(trial)
        return weights(folder)

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


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.INTERRUPTED])
def test_a_trial_that_may_train_on_keeps_its_own_files(kept, folder, state):
    assert kept(make_trial(0, [0.9]), make_trial(1, [0.1], state), make_trial(2, [0.5])) == [0, 1]
    assert checkpoints(folder) == [1]


def test_a_running_trial_does_not_push_out_the_best_of_the_ended_as_it_may_diverge(kept, folder):
    running = make_trial(1, [0.9], TrialState.RUNNING)
    assert kept(make_trial(0, [0.6]), running, make_trial(2, [0.5])) == [0, 1]


def test_the_best_that_diverged_leaves_the_next_best(folder):
    search = make_search(make_trial(0, [0.6]), make_trial(1, [0.9], TrialState.RUNNING))
    keeper = FileKeeper(search, folder, best_trials)
    for trial in search.trials:
        write_files(folder, trial)
    keeper.trial_ended(search.trials[0])
    search.trials[1].state = TrialState.DIVERGED
    keeper.trial_ended(search.trials[1])
    assert (weights(folder), checkpoints(folder)) == ([0], [])


def test_diverged_trials_and_trials_without_an_epoch_leave_nothing(kept, folder):
    diverged = make_trial(0, [0.9], TrialState.DIVERGED)
    assert kept(diverged, make_trial(1, [], TrialState.FAILED), make_trial(2, [0.4])) == [2]
    assert checkpoints(folder) == []


def test_what_a_killed_worker_had_begun_to_write_goes_with_its_trial(folder):
    search = make_search(make_trial(1, [0.4]), make_trial(11, [0.5], TrialState.RUNNING))
    keeper = FileKeeper(search, folder, best_trials)
    for trial in search.trials:
        write_files(folder, trial)
        folder.weights(trial.number).with_name(f".{folder.weights(trial.number).name}.node.17").touch()
    keeper.trial_ended(search.trials[0])
    left = {path.name for path in (folder.path / "weights").iterdir() if path.name.startswith(".")}
    assert left == {f".{folder.weights(11).name}.node.17"}


def test_the_lowest_loss_is_the_best(kept):
    trials = [make_trial(n, [loss], metric="val_loss") for n, loss in enumerate([0.5, 0.2, 0.9])]
    assert kept(*trials, metric="val_loss") == [1]


def test_nobody_looks_again_at_what_was_given_up(folder):
    search, asked = make_search(), []

    def wanted(record):
        asked.append(len(record.trials))
        return best_trials(record)

    keeper = FileKeeper(search, folder, wanted)
    for number, value in enumerate([0.3, 0.6, 0.4, 0.5, 0.7, 0.2, 0.1, 0.8]):
        search.trials.append((make_single if number % 3 else make_trial)(number, [value]))
        write_files(folder, search.trials[number])
        keeper.trial_ended(search.trials[number])
    # The best fusion, the best single optimizer, and the one that has just ended.
    assert max(asked) == 3
    assert weights(folder) == [3, 7]
    later = FileKeeper(search, folder, best_trials)
    search.trials.append(make_trial(8, [0.9]))
    write_files(folder, search.trials[8])
    later.trial_ended(search.trials[8])
    assert weights(folder) == [7, 8]


def test_an_inherited_trial_is_given_up_once_a_better_one_has_ended(folder):
    search = make_search(inherited=[make_trial(-1, [0.5])])
    write_files(folder, search.inherited[0])
    keeper = FileKeeper(search, folder, best_trials)
    for number, value, left in ((0, 0.4, -1), (1, 0.6, 1)):
        search.trials.append(make_trial(number, [value]))
        write_files(folder, search.trials[number])
        keeper.trial_ended(search.trials[number])
        assert weights(folder) == [left]


def test_tidying_leaves_what_is_needed_to_go_on_and_the_best(folder):
    search = make_search(
        make_single(0, [0.6]),
        make_trial(1, [0.7]),
        make_trial(2, [0.5]),
        make_trial(3, [0.4], TrialState.RUNNING),
        make_trial(4, [0.9], TrialState.INTERRUPTED),
        make_trial(5, [], TrialState.RUNNING),
    )
    for trial in search.trials:
        write_files(folder, trial)
    stray = make_trial(6, [0.9])
    write_files(folder, stray)
    (folder.weights(0).parent / ".0003.safetensors.part").write_bytes(b"half")
    (folder.checkpoints / ".0003-x").mkdir()
    keeper = FileKeeper(search, folder, best_trials)
    for _ in range(2):
        keeper.tidy()
        assert weights(folder) == [0, 1, 3, 4, 5]
        assert checkpoints(folder) == [3, 4, 5]
    assert (folder.checkpoint_folder(3) / "0001").read_bytes() == b"checkpoint"


def test_there_may_be_nothing_to_tidy(folder):
    FileKeeper(make_search(), folder, best_trials).tidy()
    assert not folder.path.exists()
