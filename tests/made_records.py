"""Records of searches that never ran, for the tests of what reads records."""

from tune_fusion.events import Session, SpaceAsRun
from tune_fusion.records import SearchRecord, TrialRecord, TrialState


def make_trial(number, values=(), state=TrialState.COMPLETED, *, metric="val_accuracy", **changes):
    """A fusion of Adam and SGD whose epochs had these values; `changes` are fields of the record."""
    fields = {
        "arm": "fusion",
        "origin": "sampled",
        "configuration": {"switch_layer": 1, "low": {"optimizer": "adam", "lr": 1e-3}},
        "parameters": {
            "switch_layer": 1,
            "low.optimizer": "adam",
            "low.lr": 1.2e-3,
            "high.optimizer": "sgd",
            "high.lr": 3e-2,
        },
        "switch_layer_name": "conv2",
        "single": False,
        "max_epochs": 10,
        "started": 1000.0 + 10 * number,
        "epochs": [{metric: value, "train_seconds": 0.5, "eval_seconds": 0.25} for value in values],
        "ended": None if state is TrialState.RUNNING else 1008.0 + 10 * number,
    } | changes
    fields.setdefault("times", [fields["started"] + index + 1.0 for index in range(len(fields["epochs"]))])
    return TrialRecord(number=number, state=state, **fields)


def make_single(number, values=(), state=TrialState.COMPLETED, **changes):
    """A control that trains every layer with Adam."""
    fields = {
        "arm": "control",
        "single": True,
        "switch_layer_name": "all",
        "configuration": {"switch_layer": "all", "low": {"optimizer": "adam", "lr": 1e-3}, "high": None},
        "parameters": {"switch_layer": "all", "low.optimizer": "adam", "low.lr": 1e-3},
    } | changes
    return make_trial(number, values, state, **fields)


def make_search(*trials, metric="val_accuracy", planned=8, **changes):
    """A search of these trials, ended in the order of their numbers."""
    direction = "min" if metric == "val_loss" else "max"
    open_ones = (TrialState.RUNNING, TrialState.INTERRUPTED)
    changes.setdefault("ended", [trial.number for trial in trials if trial.state not in open_ones])
    return SearchRecord("made", "digits", metric, direction, planned, 990.0, list(trials), **changes)


def make_session(**changes):
    """The event that begins a session; `changes` are fields of it."""
    fields = {
        "search": "made",
        "key": "0123456789abcdef" * 2,
        "started": 990.0,
        "host": "host",
        "pid": 100,
        "space": SpaceAsRun(
            name="digits", text="search: {}\n", origin="/made.yaml", overrides=(), rehearse=False
        ),
        "metric": "val_accuracy",
        "direction": "max",
        "planned_trials": 8,
        "fusions": True,
        "searched_training": (),
        "code": {"tune_fusion": "0.1.0"},
        "commit": "abc",
        "data": "d" * 64,
        "tracking": "sqlite:////mlflow.db",
    } | changes
    return Session(**fields)
