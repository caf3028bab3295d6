"""``python -m tune_fusion.plan`` as a user types it."""

import functools
import os
import re
import signal
import subprocess
import sys

import pytest
from running import descendants, wait_for_end, wait_until

from tune_fusion import commands, plan

QUICK = ["--trials", "9", "--epochs", "3", "--set", "data.limit=300"]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        commands.run("tune_fusion.plan", functools.partial(plan.main, list(arguments)))
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("tune_fusion.plan: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("pack", ["auto", "fixed"])
def test_a_plan_measures_and_starts_nothing(tmp_path, pack):
    arguments = ["--space", "digits", "--pack", pack, *QUICK]
    code = (
        f"import sys; from tune_fusion.plan import main; main({arguments})\n"
        "assert not {'ray', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, probe, rungs, cost = done.stdout.strip().split("\n\n")
    assert header.startswith("digits: lenet5 on digits, 300 training and 75 validation images")
    cpus = os.cpu_count()
    layouts = [re.match(r"  (\d+) trials? x (\d+) CPUs? ", line).groups() for line in probe.splitlines()[1:]]
    assert all(int(trials) * int(threads) <= cpus for trials, threads in layouts)
    assert ("1", str(cpus)) in layouts or pack == "fixed"
    assert probe.count("(chosen)") == (len(layouts) > 1)
    # 4.5 trials of each arm, of which one in four goes on for two epochs more.
    assert rungs.splitlines()[1] == "  fusion   epoch 1: 4.5, epoch 3: 1.1; about 7 of 14 epochs"
    names = [line.split()[0] for line in cost.splitlines()[1:]]
    assert names == ["hours", "GPU-hours", "CPU-hours", "memory", "disk"]
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--space NAME or FILE is needed"),
        (["--space", "digitz"], "did you mean 'digits'"),
        (["--space", "digits", "--trails", "3"], r"'--trails'.*did you mean '--trials'"),
        (["--space", "digits", "--concurrent", "0"], r"--concurrent.*whole number from 1, got '0'"),
        (["--space", "digits", "--set", "training.batch_size=0"], r"--set training.batch_size: .*0"),
        (["--space", "digits", "--cpus", "4096"], "one trial asks for 4096 CPUs.*lower --cpus"),
        (["--space", "digits", "--gpus", "1"], "--set resources.gpu: 1, and .* has no GPU"),
        (["--space", "digits", "--pack", "auto", "--cpus", "1"], "--set resources.cpu: .*--pack fixed"),
        (["--space", "digits", "--set", "data.name=folder:none"], "--set data.name: .*none"),
    ],
)
def test_mistakes_are_answered_before_anything_is_measured(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("tune_fusion.tuning.packing.probe", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert re.search(message, refused(capsys, *arguments))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_plan_with_one_line_and_all_its_processes(searches, tmp_path, signum, code):
    process = searches.start(tmp_path, "--space", "digits", "--pack", "auto", *QUICK, command="plan")
    wait_until(lambda: descendants(process), process=process)
    seats = descendants(process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    message = "tune_fusion.plan: interrupted before anything was written\n"
    assert (process.returncode, out, err) == (code, "", message)
    wait_for_end(seats, timeout=5)
