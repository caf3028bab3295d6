"""Records of searches that never ran, for the tests of what reads records."""

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
    """A search of these trials."""
    direction = "min" if metric == "val_loss" else "max"
    return SearchRecord("made", "digits", metric, direction, planned, 990.0, list(trials), **changes)
