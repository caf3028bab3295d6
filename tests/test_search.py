"""Whole searches as a user types them: real Ray, real MLflow on SQLite, real training on real images."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from running import QUICK, descendants, journal, query, trial_workers, wait_for_end
from safetensors.torch import load_file

import tune_fusion
from tune_fusion.events import WorkerLost
from tune_fusion.space.configuration import Configuration
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.training.metrics import Evaluator
from tune_fusion.training.workbench import Workbench

TRIALS = 40


@pytest.fixture(scope="module")
def search(searches, tmp_path_factory):
    """One search of forty trials: its folder, standard output and parsed result."""
    folder = tmp_path_factory.mktemp("search")
    code, out, err = searches.run(
        folder, "--space", "digits", "--name", "forty", "--trials", TRIALS, "--epochs", 3, *QUICK
    )
    assert code == 0, err
    assert err == ""
    result = json.loads((folder / "runs" / "forty" / "result.json").read_text())
    return folder, out, result


def rows(folder, name="forty"):
    with (folder / "runs" / name / "trials.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_one_plain_line_for_each_finished_trial_then_the_summary(search):
    folder, out, _ = search
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:TRIALS]] == [f"[{i + 1}/{TRIALS}]" for i in range(TRIALS)]
    assert (folder / "runs" / "forty" / "logs" / "search.txt").read_text().splitlines() == lines[:TRIALS]
    ending = "\n".join(lines[TRIALS:])
    for words in ("best configuration", "best single optimizer", "untuned fusion", "MLflow UI"):
        assert words in ending
    assert f"--backend-store-uri sqlite:///{folder / 'mlflow.db'}" in ending
    assert str(folder / "runs" / "forty" / "result.json") in ending


def test_result_json_agrees_with_the_table(search):
    folder, _, result = search
    table = rows(folder)
    assert result["status"] == "completed"
    assert result["trials"] == result["planned_trials"] == len(table) == TRIALS
    assert result["counts"] == dict(Counter(row["state"] for row in table))
    values = {
        int(row["trial"]): float(row["best.val_accuracy"]) for row in table if row["state"] != "diverged"
    }
    assert result["best"]["value"] == max(values.values())
    assert values[result["best"]["trial"]] == result["best"]["value"]
    single = [
        values[int(row["trial"])] for row in table if row["single"] == "True" and row["state"] != "diverged"
    ]
    assert result["best_control"]["value"] == max(single)
    assert result["untuned_fusion"]["origin"] == result["untuned_control"]["origin"] == "default"
    assert result["epochs"] == sum(int(row["epochs"]) for row in table)
    assert result["training_seconds"] == pytest.approx(sum(float(row["train_seconds"]) for row in table))
    assert result["training_seconds"] < 2 * result["wall_seconds"]
    for name in ("result", "trials", "space", "layers", "logs", "weights"):
        assert Path(result["paths"][name]).exists()
    assert {"ray", "torch", "optuna", "mlflow", "tune_fusion"} <= result["versions"].keys()


def test_the_table_has_every_parameter_and_metric_of_every_trial(search):
    folder, _, _ = search
    for row in rows(folder):
        assert row["low.optimizer"]
        assert float(row["low.lr"]) > 0
        assert bool(row["high.optimizer"]) == (row["switch_layer"] != "all")
        assert row["switch_layer_name"]
        assert 1 <= int(row["epochs"]) <= 3
        assert (row["state"] == "completed") == (int(row["epochs"]) == 3)
        assert float(row["train_seconds"]) > 0
        assert float(row["wall_seconds"]) > 0


def test_mlflow_holds_one_parent_and_one_child_a_trial(search):
    folder, _, _ = search
    runs = query(folder, "select run_uuid, name, status from runs")
    parents = dict(query(folder, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    assert len(runs) == TRIALS + 1
    top = [run for run in runs if run[0] not in parents]
    assert [(name, status) for _, name, status in top] == [("forty", "FINISHED")]
    assert set(parents.values()) == {top[0][0]}
    numbers = query(folder, "select value from params where key = 'switch_layer_name'")
    assert len(numbers) == TRIALS


def test_mlflow_holds_each_metric_once_an_epoch_with_the_values_of_the_table(search):
    folder, _, _ = search
    counted = query(folder, "select count(*) from metrics where key = 'val_accuracy'")
    table = rows(folder)
    assert counted[0][0] == sum(int(row["epochs"]) for row in table if row["final.val_accuracy"])
    doubled = query(folder, "select 1 from metrics group by run_uuid, key, step having count(*) > 1")
    assert doubled == []
    states = dict(Counter(state for (state,) in query(folder, "select value from tags where key = 'state'")))
    assert states.pop("completed") == sum(row["state"] == "completed" for row in table) + 1
    statuses = Counter(status for (status,) in query(folder, "select status from runs"))
    assert statuses["KILLED"] == sum(row["state"] == "stopped" for row in table)


def test_mlflow_has_the_files_of_the_search_and_the_model_of_the_best_trial_alone(search):
    folder, _, result = search
    logged = [path for path in (folder / "mlartifacts").rglob("*") if path.is_file()]
    figures = sorted(path.name for path in logged if path.parent.name == "figures")
    assert figures == sorted(path.name for path in (folder / "runs" / "forty" / "figures").iterdir())
    assert "heat-map.png" in figures
    files = Counter(path.name for path in logged if path.suffix != ".png")
    assert files == Counter(
        [
            "space.yaml",
            "layers.json",  # of the search, and in the model's folder
            "layers.json",
            "report.html",
            "result.json",
            "trials.csv",
            "weights.safetensors",
            "config.json",
            "signature.json",
        ]
    )
    signature = json.loads(next((folder / "mlartifacts").rglob("signature.json")).read_text())
    assert json.loads(signature["inputs"])[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 1]}
    best = query(folder, "select t.run_uuid from tags t where t.key = 'best' and t.value = 'true'")
    number = query(folder, f"select value from tags where key = 'trial' and run_uuid = '{best[0][0]}'")
    assert (len(best), int(number[0][0])) == (1, result["best"]["trial"])


def test_the_kept_weights_give_the_reported_accuracy_again(search):
    _, _, result = search
    best = result["best"]
    data = DataSettings(name="digits", validation=0.2, limit=300)
    bench = Workbench(ModelSettings(name="lenet5"), data, result["seed"], torch.device("cpu"))
    assert bench.data.fingerprint == result["data"]["fingerprint"]
    bench.model.load_state_dict(load_file(result["paths"]["weights"]))
    training = Configuration.from_dict(best["configuration"]).training
    off = torch.autocast("cpu", enabled=False)
    measured = Evaluator(10, bench.device).measure(
        bench.model, bench.validation_batches(training).epoch(1), off
    )
    assert measured.accuracy == pytest.approx(best["value"], abs=1e-6)
    assert measured.macro_f1 == pytest.approx(best["metrics"]["val_macro_f1"], abs=1e-6)
    model = tune_fusion.load_model(Path(result["paths"]["weights"]).parents[1] / "model")
    validation = bench.data.validation
    images = validation.take(torch.arange(len(validation))).permute(0, 2, 3, 1).numpy()
    found = torch.from_numpy(model.classify(images)).argmax(dim=1)
    assert (found == validation.labels).double().mean() == pytest.approx(best["value"], abs=1e-6)
    assert model.config.trained_on.metrics["val_accuracy"] == best["value"]


def test_the_space_file_as_run_describes_the_same_search(search):
    folder, _, _ = search
    text = (folder / "runs" / "forty" / "space.yaml").read_text()
    assert "trials: 40" in text
    assert "limit: 300" in text


def test_nothing_of_the_losing_trials_weighs_on_the_disk(search):
    folder, _, result = search
    kept = {int(path.stem) for path in (folder / "runs" / "forty" / "weights").iterdir()}
    best = {result[key]["trial"] for key in ("best", "best_control", "best_fusion")}
    assert kept == best


def test_the_best_configuration_trains_alone_to_the_same_numbers(search, tmp_path):
    _, _, result = search
    command = [
        sys.executable,
        "-m",
        "tune_fusion.train",
        "--space",
        "digits",
        "--config",
        result["paths"]["result"],
    ]
    done = subprocess.run(
        [*command, *QUICK, "--epochs", "3", "--output", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    epochs = json.loads((tmp_path / "out" / "epochs.json").read_text())
    best = max(epochs, key=lambda epoch: epoch["val_accuracy"])
    assert best["val_accuracy"] == result["best"]["value"]
    assert best["val_loss"] == pytest.approx(result["best"]["metrics"]["val_loss"], rel=1e-6)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_keeps_what_it_found(searches, tmp_path, signum, code):
    # The best of each arm trains for longer than an interruption waits for it.
    options = ["--trials", "30", "--epochs", "400", *QUICK]
    process = searches.start(tmp_path, "--space", "digits", "--name", "cut", *options)
    for line in process.stdout:
        if line.startswith("[2/30]"):
            break
    time.sleep(0.5)
    children = descendants(process)
    assert children
    # To the whole process group, as a terminal and ``timeout`` do.
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "cut interrupted" in out
    result = json.loads((tmp_path / "runs" / "cut" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["trials"] >= 4
    assert result["counts"]["interrupted"] >= 1
    assert result["best"]["value"] > 0
    assert "report.html" not in out
    assert all(path in out and Path(path).exists() for path in result["paths"].values())
    statuses = Counter(status for (status,) in query(tmp_path, "select status from runs"))
    assert statuses["RUNNING"] == 0
    assert query(tmp_path, "select status from runs where name = 'cut'") == [("KILLED",)]
    wait_for_end(children)


def test_an_interruption_before_anything_started_leaves_nothing(searches, tmp_path):
    process = searches.start(tmp_path, "--space", "digits", "--name", "early")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_second_search_joins_the_store_and_an_existing_name_is_refused(search, searches):
    folder, _, _ = search
    process = searches.start(folder, "--space", "digits", "--name", "forty")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "exists already" in err


def test_trials_that_all_diverge_end_the_search_with_their_history(searches, tmp_path):
    space = tmp_path / "wild.yaml"
    space.write_text(
        "model: {name: lenet5}\ndata: {name: digits, limit: 300}\ntraining: {epochs: 2, batch_size: 32}\n"
        "space:\n  switch_layer: {int: [0, 3]}\n  low: sgd\n  high: sgd\n"
        "  optimizers: {sgd: {lr: {log: [1e8, 1e9]}}}\nsearch: {trials: 4}\n"
    )
    process = searches.start(tmp_path, "--space", str(space), "--name", "wild")
    out, err = process.communicate(timeout=120)
    result = json.loads((tmp_path / "runs" / "wild" / "result.json").read_text())
    assert result["counts"] == {"diverged": 4}
    assert result["best"] is None
    assert process.returncode == 1
    assert "loss not finite in epoch 1" in err
    assert result["status"] == "failed"
    assert "4 diverged" in out
    assert all(math.isfinite(float(row["train_seconds"])) for row in rows(tmp_path, "wild"))


def test_a_killed_worker_costs_nothing(searches, tmp_path):
    process = searches.start(tmp_path, "--space", "digits", "--name", "killed", "--trials", 24, *QUICK)
    for line in process.stdout:
        if line.startswith("[1/24]"):
            break
    trial_workers(process)[0].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads((tmp_path / "runs" / "killed" / "result.json").read_text())
    assert set(result["counts"]) <= {"completed", "stopped"}
    assert sum(result["counts"].values()) == 24
    assert sum(isinstance(event, WorkerLost) for event in journal(tmp_path, "killed")) == 1
    assert query(tmp_path, "select count(*) from runs") == [(25,)]


def test_a_packed_search_keeps_what_it_has_chosen(searches, tmp_path):
    quick = ["--trials", 4, "--epochs", 1, *QUICK]
    code, _, err = searches.run(tmp_path, "--space", "digits", "--name", "packed", "--pack", "auto", *quick)
    assert code == 0, err
    (line,) = err.splitlines()
    trials, cpus = map(int, re.match(r"tune_fusion.search: packed (\d+) trials? x (\d+) CPU", line).groups())
    assert trials * cpus <= os.cpu_count()
    folder = tmp_path / "runs" / "packed"
    as_run = (folder / "space.yaml").read_text()
    assert f"resources: {{cpu: {cpus}, pack: auto, gpu: 0.0}}" in as_run
    session = journal(tmp_path, "packed")[0]
    assert session.space.overrides[-2:] == (f"resources.cpu={cpus}", "resources.gpu=0.0")
    note = line.removeprefix("tune_fusion.search: ")
    assert json.loads((folder / "result.json").read_text())["notes"] == [note]
    # It goes on as it was packed, and with nothing measured anew; the file it was made from has not changed.
    code, _, err = searches.run(tmp_path, "--resume", "packed", "--trials", 5)
    assert (code, err) == (0, "")
    assert (folder / "space.yaml").read_text() == as_run.replace("trials: 4", "trials: 5")
    assert json.loads((folder / "result.json").read_text())["notes"] == [note]


def test_a_path_too_long_for_rays_sockets_is_refused(searches, tmp_path):
    long = tmp_path / ("x" * 90)
    code, out, err = searches.run(tmp_path, "--space", "digits", "--name", "long", RAY_TMPDIR=str(long))
    assert (code, out) == (2, "")
    assert "set $RAY_TMPDIR to a short one, such as /tmp/ray" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
