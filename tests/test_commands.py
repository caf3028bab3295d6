import argparse
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tune_fusion import commands, search, train
from tune_fusion.errors import InputError, TuneFusionError

QUICK = ["--space", "digits", "--set", "data.limit=200", "--set", "training.batch_size=32", "--epochs", "1"]
FUSION = {
    "switch_layer": 1,
    "low": {"optimizer": "adam", "lr": 0.002},
    "high": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
}


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parser():
    made = commands.Parser(prog="made", allow_abbrev=False)
    made.add_argument("--trials", type=commands.natural)
    made.add_argument("--seed", type=commands.seed)
    made.add_argument("--gpus", type=commands.fraction_of_gpus)
    made.add_argument("--set", action="append", default=[])
    return made


def test_the_parser_reads_what_it_knows():
    options = parser().parse(["--trials", "3", "--seed", "0", "--gpus", "0.5", "--set", "a=1", "--set=b=2"])
    assert (options.trials, options.seed, options.gpus, options.set) == (3, 0, 0.5, ["a=1", "b=2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trails", "3"], "unknown argument '--trails'; did you mean '--trials'?"),
        (["--trails=3"], "unknown argument '--trails=3'; did you mean '--trials'?"),
        (["--tri", "3"], "unknown argument '--tri'"),
        (["--zebra"], "unknown argument '--zebra'; known: --help, --trials, --seed, --gpus, --set"),
        (["digits"], "unknown argument 'digits'"),
        (["--trials"], "argument --trials: expected one argument"),
        (["--trials", "0"], "argument --trials: needs a whole number from 1, got '0'"),
        (["--trials", "1.5"], "argument --trials: needs a whole number from 1, got '1.5'"),
        (["--seed", "4294967296"], "argument --seed: needs a whole number from 0 to 4294967295, got '42949"),
        (["--gpus", "many"], "argument --gpus: needs a number from 0, got 'many'"),
    ],
)
def test_the_parser_answers_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parser().parse(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"made: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (commands.natural, {"1": 1, "40": 40, "007": 7}, ["0", "-1", "1.0", "", " 1", "1e3", "x"]),
        (commands.seed, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296", "0x1", ""]),
        (commands.fraction_of_gpus, {"0": 0.0, "0.25": 0.25, "2": 2.0}, ["-0.1", "nan", "inf", "", "x"]),
    ],
)
def test_numbers_on_the_command_line(read, good, bad):
    assert {text: read(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="needs a"):
            read(text)


def fail(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (fail(InputError("what, where, rule")), 2, "made: what, where, rule\n"),
        (fail(TuneFusionError("diverged")), 1, "made: diverged\n"),
        (fail(KeyboardInterrupt()), 130, "made: interrupted before anything was written\n"),
        (fail(commands.Interrupted(signal.SIGTERM)), 143, "made: interrupted before anything was written\n"),
    ],
    ids=["done", "failed", "bad input", "error", "Ctrl-C", "SIGTERM"],
)
def test_how_a_command_ends(capsys, body, code, message):
    with pytest.raises(SystemExit) as stop:
        commands.run("made", body)
    assert stop.value.code == code
    assert capsys.readouterr() == ("", message)


@pytest.fixture
def started(tmp_path):
    """Starts Python on some lines, with both of its outputs open to read."""

    def start(lines):
        script = tmp_path / "made.py"
        script.write_text(lines)
        return subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_a_command_goes_on_when_nobody_reads_its_output_any_more(started):
    with started(
        "import sys\nfrom tune_fusion import commands\n"
        "for number in range(20000):\n    commands.say(f'line {number}')\n"
        "commands.say('done', sys.stderr)\n"
    ) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == "done\n"
    assert process.returncode == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(started, signum, code):
    with started(
        "import time\nfrom tune_fusion import commands\n"
        "def body():\n    commands.say('begun')\n    time.sleep(60)\n"
        "commands.run('made', body)\n"
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signum)
        assert process.communicate(timeout=30) == ("", "made: interrupted before anything was written\n")
    assert process.returncode == code


def test_no_message_has_a_password(capsys):
    with pytest.raises(SystemExit):
        commands.run("made", fail(InputError("NAME 's3://key:geheim@bucket/x': is no name")))
    with pytest.raises(SystemExit):
        parser().parse(["--seed", "s3://key:geheim@bucket/x"])
    err = capsys.readouterr().err
    assert "geheim" not in err
    assert err.count("s3://key:***@bucket/x") == 2


def test_a_store_that_lacks_a_slash_is_no_folder():
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"neither a store .* nor clearly a folder \(\./s3:/b\)"
    ):
        commands.storage_folder("s3:/b")
    assert commands.storage_folder("./s3:/b") == Path("s3:/b")


def test_a_mistake_of_ours_is_not_dressed_up_as_the_users():
    with pytest.raises(ZeroDivisionError):
        commands.run("made", fail(ZeroDivisionError()))


@pytest.fixture
def config(tmp_path):
    """Writes a configuration and gives its path."""

    def write(content=FUSION):
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def ended(*arguments):
    with pytest.raises(SystemExit) as stop:
        commands.run("tune_fusion.train", lambda: train.main(list(arguments)))
    return stop.value.code


def test_train_prints_each_epoch_and_writes_what_it_made(config, tmp_path, capsys):
    assert ended(*QUICK, "--config", config(), "--epochs", "2", "--output", "out/deep") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"], ["weights", "and"]]
    assert "val_accuracy" in lines[0]
    epochs = json.loads((tmp_path / "out" / "deep" / "epochs.json").read_text())
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    weights = load_file(tmp_path / "out" / "deep" / "weights.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == 81_194


def test_train_repeats_itself_and_follows_its_seed(config, capsys):
    def losses(*arguments):
        assert ended(*QUICK, "--config", config(), *arguments) == 0
        return [word for line in capsys.readouterr().out.splitlines() for word in line.split("  ")[1:2]]

    first = losses()
    assert losses() == first
    assert losses("--seed", "1") != first


def test_train_writes_nothing_unless_asked(config, tmp_path):
    assert ended(*QUICK, "--config", config()) == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "cache"}


def test_train_takes_a_result_for_its_best_configuration(config, capsys):
    best = {"switch_layer": "all", "low": {"optimizer": "sgd", "lr": 0.1}, "high": None}
    training = {"epochs": 1, "batch_size": 64}
    result = {"status": "completed", "best": {"trial": 7, "configuration": {**best, "training": training}}}
    assert ended(*QUICK, "--config", config(result)) == 0
    assert capsys.readouterr().out.startswith("epoch 1/1 ")


def test_a_loss_that_is_not_finite_ends_train_with_an_error(config, tmp_path, capsys):
    wild = {"switch_layer": "all", "low": {"optimizer": "sgd", "lr": 1e9}}
    assert ended(*QUICK, "--config", config(wild), "--output", "out") == 1
    out, err = capsys.readouterr()
    assert out.startswith("epoch 1/1 ")
    assert err == "tune_fusion.train: diverged: the loss is not finite in epoch 1\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: not a JSON file: "),
        ({**FUSION, "hgih": 1}, "config.json: unknown key 'hgih'; did you mean 'high'?"),
        ({**FUSION, "low": {"optimizer": "adamm"}}, "unknown optimizer 'adamm'; did you mean 'adam'?"),
        ({**FUSION, "low": {"optimizer": "hn_adam", "lambda0": 5}}, "config.json: low.lambda0: needs 2 <="),
        ({**FUSION, "switch_layer": 4}, "config.json: switch_layer: switch layer 4 must lie in 0..3"),
    ],
)
def test_train_refuses_a_bad_configuration(config, capsys, content, message):
    assert ended(*QUICK, "--config", config(content), "--output", "out") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("tune_fusion.train: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "config.json"], "the following arguments are required: --space"),
        (["--space", "digits"], "the following arguments are required: --config"),
        (["--space", "digits", "--config", "none.json"], "none.json: cannot read the configuration: "),
        (["--space", "digitz", "--config", "config.json"], "--space digitz: unknown space; did you mean"),
        ([*QUICK, "--config", "config.json", "--output", "."], "exists already and is never overwritten"),
        ([*QUICK, "--config", "config.json", "--set", "data.lmit=3"], "did you mean 'limit'?"),
        ([*QUICK, "--config", "config.json", "--epochs", "0"], "--epochs: needs a whole number from 1"),
    ],
)
def test_train_refuses_bad_arguments(config, capsys, arguments, message):
    config()
    assert ended(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_the_epochs_on_disk_are_plain_json(config, tmp_path):
    assert ended(*QUICK, "--config", config(), "--output", "out") == 0
    (epoch,) = json.loads((tmp_path / "out" / "epochs.json").read_text(), parse_constant=pytest.fail)
    assert all(math.isfinite(value) for value in epoch.values())


def test_an_empty_output_folder_is_refused(capsys):
    with pytest.raises(SystemExit) as ended_with:
        search.main(["--space", "digits", "--storage", ""])
    assert ended_with.value.code == 2
    assert "argument --storage: needs the path of a folder, got an empty text" in capsys.readouterr().err


def test_a_store_of_no_known_kind_is_refused_without_showing_its_password(capsys):
    with pytest.raises(SystemExit) as stop:
        search.main(["--space", "digits", "--storage", "s4://key:secret@bucket/runs"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "argument --storage: s4://key:***@bucket/runs is no address of a store: " in error
    assert "secret" not in error


def test_a_file_address_is_its_folder():
    parser = commands.Parser(prog="made")
    commands.add_output(parser)
    assert parser.parse(["--storage", "file:///my%20runs/x"]).storage == Path("/my runs/x")
