import csv
import io
import json
import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_search, make_single, make_trial
from small_disk import small_disk

from tune_fusion.records import TrialState
from tune_fusion.reporting.results import result, trial_summary, write_results, write_trials
from tune_fusion.runs import RunFolder

STEADY = settings(derandomize=True, deadline=None, max_examples=60)
# pandas reads carriage returns of a quoted cell as it finds them only with the newline handling off.
TRIALS_NAMED = ("best", "best_fusion", "best_control", "untuned_fusion", "untuned_control")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


def read(path):
    with path.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_the_columns_and_their_order(tmp_path):
    trial = make_trial(1, [0.25, 0.75, 0.5], reason="", node="host:7")
    trial.parameters |= {"training.epochs": 10, "low.betas": (0.9, 0.99)}
    control = make_single(0, [0.5])
    control.parameters |= {"training.epochs": 10}
    write_trials(make_search(control, trial), tmp_path / "trials.csv")
    rows = read(tmp_path / "trials.csv")
    assert list(rows[1].items()) == [
        ("trial", "1"),
        ("arm", "fusion"),
        ("origin", "sampled"),
        ("state", "completed"),
        ("reason", ""),
        ("single", "False"),
        ("switch_layer", "1"),
        ("switch_layer_name", "conv2"),
        ("high.lr", "0.03"),
        ("high.optimizer", "sgd"),
        ("low.betas", "(0.9, 0.99)"),
        ("low.lr", "0.0012"),
        ("low.optimizer", "adam"),
        ("training.epochs", "10"),
        ("epochs", "3"),
        ("best_epoch", "2"),
        ("best.eval_seconds", "0.25"),
        ("best.train_seconds", "0.5"),
        ("best.val_accuracy", "0.75"),
        ("final.eval_seconds", "0.25"),
        ("final.train_seconds", "0.5"),
        ("final.val_accuracy", "0.5"),
        ("train_seconds", "1.5"),
        ("eval_seconds", "0.75"),
        ("wall_seconds", "8.0"),
        ("node", "host:7"),
    ]
    assert (rows[0]["switch_layer"], rows[0]["high.optimizer"], rows[0]["low.betas"]) == ("all", "", "")


def test_metrics_of_single_layers_are_no_columns(tmp_path):
    trial = make_trial(0, [0.25, 0.5])
    for epoch in trial.epochs:
        epoch |= {"low.mean_lambda": 2.25, "layer_00.mean_lambda": 2.0, "layer_00.amsgrad_share": 0.5}
    write_trials(make_search(trial), tmp_path / "trials.csv")
    (row,) = read(tmp_path / "trials.csv")
    assert row["best.low.mean_lambda"] == row["final.low.mean_lambda"] == "2.25"
    assert not [column for column in row if "layer_0" in column]


def test_a_trial_without_an_epoch_has_empty_cells(tmp_path):
    search = make_search(
        make_trial(0, [0.5]),
        make_trial(1, [], TrialState.FAILED, reason='RuntimeError: a, "b"\nc'),
        make_trial(2, [], TrialState.RUNNING),
    )
    write_trials(search, tmp_path / "trials.csv")
    rows = read(tmp_path / "trials.csv")
    assert [row["best_epoch"] == "" for row in rows] == [False, True, True]
    assert rows[1]["reason"] == 'RuntimeError: a, "b"\nc'
    assert rows[1]["epochs"] == "0"
    assert rows[1]["best.val_accuracy"] == rows[1]["final.val_accuracy"] == ""
    assert rows[2]["wall_seconds"] == ""


@STEADY
@given(
    reason=TEXT,
    node=TEXT,
    name=TEXT,
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
    parameters=st.dictionaries(
        TEXT.map(lambda key: f"low.{key}"),
        st.integers(-(2**53), 2**53) | st.booleans() | TEXT | st.floats(allow_nan=False),
        max_size=4,
    ),
)
def test_whatever_a_trial_holds_comes_back_from_the_table(
    tmp_path_factory, reason, node, name, numbers, parameters
):
    trial = make_trial(0, numbers, reason=reason, node=node, switch_layer_name=name)
    trial.parameters |= parameters
    search = make_search(trial)
    path = tmp_path_factory.mktemp("table") / "trials.csv"
    write_trials(search, path)
    (row,) = read(path)
    assert (row["reason"], row["node"], row["switch_layer_name"]) == (reason, node, name)
    assert float(row["best.val_accuracy"]) == max(numbers)
    assert float(row["final.val_accuracy"]) == numbers[-1]
    for key, value in parameters.items():
        if isinstance(value, float):
            assert float(row[key]) == value
        else:
            assert row[key] == str(value)


def test_the_table_reads_back_as_a_frame_with_numbers(tmp_path):
    write_trials(make_search(*(make_trial(n, [0.1 * n]) for n in range(12))), tmp_path / "trials.csv")
    frame = pd.read_csv(tmp_path / "trials.csv")
    assert list(frame["trial"]) == list(range(12))
    assert frame["best.val_accuracy"].tolist() == [0.1 * n for n in range(12)]


def test_trial_summary():
    trial = make_trial(3, [0.25, 0.75])
    search = make_search(trial)
    assert trial_summary(search, None) is None
    assert trial_summary(search, trial) == {
        "trial": 3,
        "source": None,
        "arm": "fusion",
        "origin": "sampled",
        "state": "completed",
        "value": 0.75,
        "epochs": 2,
        "switch_layer_name": "conv2",
        "configuration": trial.configuration,
        "metrics": {"val_accuracy": 0.75, "train_seconds": 0.5, "eval_seconds": 0.25, "epoch": 2.0},
    }


def test_result_sums_up_the_search_and_takes_the_facts():
    search = make_search(
        make_single(0, [0.5], origin="default"),
        make_trial(1, [0.5, 0.75], origin="default"),
        make_trial(2, [0.9], TrialState.DIVERGED),
        duplicates=2,
        notes=["a note"],
    )
    content = result(search, "completed", {"wall_seconds": 12.5, "seed": 7})
    assert {key: content[key] for key in ("status", "name", "space", "metric", "direction")} == {
        "status": "completed",
        "name": "made",
        "space": "digits",
        "metric": "val_accuracy",
        "direction": "max",
    }
    best = [content[key]["trial"] for key in TRIALS_NAMED]
    assert best == [1, 1, 0, 1, 0]
    assert (content["trials"], content["planned_trials"], content["epochs"]) == (3, 8, 4)
    assert content["counts"] == {"completed": 2, "diverged": 1}
    assert (content["duplicates"], content["notes"]) == (2, ["a note"])
    assert (content["training_seconds"], content["evaluation_seconds"]) == (2.0, 1.0)
    assert (content["wall_seconds"], content["seed"]) == (12.5, 7)


def test_result_of_a_search_without_a_trial():
    content = result(make_search(), "interrupted", {})
    for key in TRIALS_NAMED:
        assert content[key] is None
    assert (content["trials"], content["epochs"], content["training_seconds"]) == (0, 0, 0)
    assert content["counts"] == {}


def written(folder, content, search=None):
    """What ``result.json`` holds once `content` has been written to `folder`."""
    run = RunFolder(folder)
    write_results(run, search or make_search(), content)
    return json.loads(run.result.read_text(encoding="utf-8"))


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    content = {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}}
    assert written(tmp_path, content) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert not any(word in text for word in ("NaN", "Infinity"))
    assert text.endswith("}\n")


def test_the_table_is_written_with_the_result(tmp_path):
    written(tmp_path, {"first": 1}, make_search(make_trial(0, [0.5]), make_trial(1, [0.25])))
    assert [row["trial"] for row in read(tmp_path / "trials.csv")] == ["0", "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "trials.csv"]


def test_a_search_without_a_trial_has_a_table_without_rows(tmp_path):
    written(tmp_path, {})
    assert (tmp_path / "trials.csv").read_text().splitlines() == [
        "trial,arm,origin,state,reason,single,switch_layer,switch_layer_name"
    ]


@STEADY
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_result_json_reads_back_as_written(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    folder.mkdir(exist_ok=True)
    assert written(folder, content) == content


def test_a_whole_record_goes_through_json(tmp_path):
    search = make_search(make_single(0, [math.nan]), make_trial(1, [0.5]))
    content = result(search, "completed", {"path": "x"})
    back = written(tmp_path, content, search)
    assert back.keys() == content.keys()
    assert back["counts"] == {"completed": 2}


def test_what_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path):
    written(tmp_path, {"first": 1})
    with pytest.raises(TypeError):
        written(tmp_path, {"second": object()})
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == {"first": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "trials.csv"]


def test_a_disk_that_fills_up_leaves_no_half_file(tmp_path):
    search = make_search(*(make_trial(n, [0.5], reason="x" * 1000) for n in range(40)))
    with small_disk(tmp_path / "disk", 64) as disk:
        written(disk, {"first": 1}, make_search(make_trial(0, [0.5])))
        table = (disk / "trials.csv").read_bytes()
        # First there is no room for the result, then not even for the table.
        with pytest.raises(OSError, match="No space"):
            written(disk, {"second": "x" * 100_000}, make_search(make_trial(0, [0.5])))
        with pytest.raises(OSError, match="No space"):
            written(disk, {"third": 3}, make_search(*search.trials, *search.trials))
        assert json.loads((disk / "result.json").read_text(encoding="utf-8")) == {"first": 1}
        assert (disk / "trials.csv").read_bytes() == table


def test_whoever_reads_the_old_result_reads_it_to_its_end(tmp_path):
    path, reader = tmp_path / "result.json", tmp_path / "reader"
    written(tmp_path, {"first": 1})
    reader.hardlink_to(path)
    assert written(tmp_path, {"second": 2}) == {"second": 2}
    assert json.loads(reader.read_text(encoding="utf-8")) == {"first": 1}


def test_a_table_is_text_that_other_readers_understand(tmp_path):
    trial = make_trial(0, [0.5], reason='Λ0, "quoted"; line\nbreak')
    write_trials(make_search(trial), tmp_path / "trials.csv")
    text = (tmp_path / "trials.csv").read_text(encoding="utf-8")
    frame = pd.read_csv(io.StringIO(text))
    assert frame["reason"][0] == trial.reason
