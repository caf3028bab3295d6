"""What a user may get wrong: one message on standard error with place, rule, value and a way out, exit 2."""

import functools
import re
import socket

import pytest

from tune_fusion import commands, search

FILE = """\
# made for a test
model: {{name: {model}}}
data: {{name: {data}}}
space:
  switch_layer: {switch}
  low: {low}
  high: {high}
  controls: [adam]
  optimizers:
    sgd: {sgd}
    hn_adam: {hn_adam}
search: {search}
"""
GOOD = {
    "model": "lenet5",
    "data": "digits",
    "switch": "{int: [0, 3]}",
    "low": "[adam, hn_adam]",
    "high": "[sgd]",
    "sgd": "{lr: {log: [1e-3, 1e-1]}}",
    "hn_adam": "{lambda0: {float: [2, 4]}}",
    "search": "{trials: 4}",
}

# (what is wrong in the file, what the message must say; every message starts with the file's name)
IN_THE_FILE = {
    "unknown model": ({"model": "lenet6"}, r":2: model.name: .*lenet6.*did you mean 'lenet5'"),
    "unknown timm model": (
        {"model": "efficientnetv2_z"},
        r":2: model.name: .*efficientnetv2_z.*did you mean",
    ),
    "unknown data": ({"data": "digit"}, r":3: data.name: .*'digit'.*did you mean 'digits'"),
    "missing folder": ({"data": "folder:nowhere"}, r":3: data.name: .*nowhere"),
    "folder without path": ({"data": "'folder:'"}, r":3: data.name: .*folder:"),
    "unknown optimizer": ({"low": "[adan]"}, r":6: space.low.*'adan'.*did you mean 'adam'"),
    "optimizer twice": ({"low": "[adam, adam]"}, r":6: space.low.*adam.*twice"),
    "no optimizer": ({"high": "[]"}, r":7: space.high"),
    "range reversed": (
        {"sgd": "{lr: {log: [0.1, 0.001]}}"},
        r":10: space.optimizers.sgd.lr: log range needs 0 < low < high, got \[0.1, 0.001\]",
    ),
    "range of the wrong type": ({"sgd": "{lr: {log: [a, b]}}"}, r":10: space.optimizers.sgd.lr: .*got \[.*a"),
    "range with one end": ({"sgd": "{lr: {float: [0.1]}}"}, r":10: space.optimizers.sgd.lr: .*\[0.1\]"),
    "kind of range": (
        {"sgd": "{lr: {lgo: [0.1, 1]}}"},
        r":10: space.optimizers.sgd.lr: .*'lgo'.*did you mean 'log'",
    ),
    "hyperparameter": (
        {"sgd": "{momentun: 0.9}"},
        r":10: space.optimizers.sgd.*momentun.*did you mean 'momentum'",
    ),
    "momentum of 1.5": ({"sgd": "{momentum: 1.5}"}, r":10: space.optimizers.sgd.momentum: .*1.5"),
    "empty choice": ({"sgd": "{lr: {choice: []}}"}, r":10: space.optimizers.sgd.lr: .*\[\]"),
    "norm above 4": ({"hn_adam": "{lambda0: {float: [2, 5]}}"}, r":11: .*hn_adam.lambda0: .*4.*got.*5"),
    "norm below 2": ({"hn_adam": "{lambda0: 1.5}"}, r":11: space.optimizers.hn_adam.lambda0: .*2.*1.5"),
    "switch beyond the model": (
        {"switch": "{int: [0, 9]}"},
        r":5: space.switch_layer: .*switch layer 9 must lie in 0..3",
    ),
    "switch at the last layer": (
        {"switch": "4"},
        r":5: space.switch_layer: .*switch layer 4 must lie in 0..3",
    ),
    "unknown layer": ({"switch": "[conv1, conv9]"}, r":5: space.switch_layer: .*conv9.*did you mean 'conv"),
    "high without a layer": ({"switch": "all"}, r": space.high"),
    "unknown metric": (
        {"search": "{metric: val_acuracy}"},
        r":12: search.metric: .*val_acuracy.*did you mean 'val_accuracy'",
    ),
    "unknown sampler": ({"search": "{sampler: tpee}"}, r":12: search.sampler: .*tpee.*did you mean 'tpe'"),
    "unknown scheduler": (
        {"search": "{scheduler: ash}"},
        r":12: search.scheduler: .*ash.*did you mean 'asha'",
    ),
    "grid over a range": ({"search": "{sampler: grid}"}, r": .*grid.*choice"),
    "no trials": ({"search": "{trials: 0}"}, r":12: search.trials: .*0"),
    "unknown key": ({"search": "{trails: 4}"}, r":12: search.trails: .*did you mean 'trials'"),
    "executable tag": ({"search": "!!python/object/apply:os.system [ls]"}, r"search|python/object"),
    "broken YAML": ({"search": "{trials: 4"}, r":1[23]"),
    "duplicate key": ({"search": "{trials: 4, trials: 5}"}, r":12.*trials"),
}

# (arguments after a good --space, what the message must say)
ON_THE_COMMAND_LINE = {
    "misspelt section": (["--set", "serach.trials=3"], r"--set serach.trials.*did you mean 'search'"),
    "misspelt key": (["--set", "search.trails=3"], r"--set search.trails.*did you mean 'trials'"),
    "no value": (["--set", "search.trials"], r"--set search.trials.*KEY=VALUE"),
    "batch size 0": (["--set", "training.batch_size=0"], r"--set training.batch_size: .*0"),
    "precision": (
        ["--set", "training.precision=float8"],
        r"--set training.precision: .*float16, got 'float8'",
    ),
    "validation 1.5": (["--set", "data.validation=1.5"], r"--set data.validation: .*1.5"),
    "image size": (["--set", "data.image_size=28"], r"--set data.image_size: .*28.*32|32.*28"),
    "more images than there are": (["--set", "data.validation=9000"], r"--set data.validation: .*9000"),
    "weights that are not there": (["--set", "model.weights=no.pth"], r"--set model.weights: .*no.pth"),
    "trials": (["--trials", "many"], r"--trials.*many"),
    "epochs": (["--epochs", "0"], r"--epochs.*0"),
    "gpus": (["--gpus", "-1"], r"--gpus.*-1"),
    "packing": (["--pack", "tight"], r"--pack.*'tight'.*auto.*fixed"),
    "packing in the space": (
        ["--set", "resources.pack=atuo"],
        r"--set resources.pack: needs one of fixed, auto, got 'atuo'; did you mean 'auto'",
    ),
    "packing and CPUs": (["--pack", "auto", "--cpus", "2"], r"--set resources.cpu: .*--pack fixed"),
    "packing without a GPU": (["--pack", "auto", "--gpus", "1"], r"resources: .*1 GPUs.*--gpus 0"),
    "seed": (["--seed", "-3"], r"--seed.*-3"),
    "unknown option": (["--trails", "3"], r"'--trails'.*did you mean '--trials'"),
    "name": (["--name", "../out"], r"--name '\.\./out'.*letters, digits"),
    "plain folder as store": (["--tracking-uri", "mlruns"], r"mlruns.*sqlite:///"),
    "kind of store": (["--tracking-uri", "sqlight:///x.db"], r"sqlight.*did you mean 'sqlite'"),
    "folder of the store": (["--tracking-uri", "sqlite:////nowhere/x.db"], r"/nowhere"),
    "cluster address": (["--address", "localhost"], r"--address localhost.*HOST:PORT"),
    "client address": (["--address", "ray://localhost:10001"], r"--address ray://.*HOST:PORT"),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; returns the message after checking that it is one, and alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            commands.run("tune_fusion.search", functools.partial(search.main, list(arguments)))
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert err.startswith("tune_fusion.search: ")
        assert "Traceback" not in err
        left = {path for path in tmp_path.rglob("*") if (tmp_path / "cache") not in (path, *path.parents)}
        assert left == set(before)
        return err

    return run


def write(tmp_path, **changes):
    path = tmp_path / "space.yaml"
    path.write_text(FILE.format(**(GOOD | changes)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("case", IN_THE_FILE)
def test_mistakes_in_the_space_file(case, refused, tmp_path):
    changes, message = IN_THE_FILE[case]
    error = refused("--space", write(tmp_path, **changes))
    assert error.startswith("tune_fusion.search: space.yaml:")
    assert re.search(message, error), error


@pytest.mark.parametrize("case", ON_THE_COMMAND_LINE)
def test_mistakes_on_the_command_line(case, refused, tmp_path):
    arguments, message = ON_THE_COMMAND_LINE[case]
    error = refused("--space", write(tmp_path), *arguments)
    assert re.search(message, error), error


def test_unknown_space(refused):
    assert re.search(r"--space digitz: .*did you mean 'digits'", refused("--space", "digitz"))


def test_space_file_that_is_not_there(refused):
    assert "none.yaml" in refused("--space", "none.yaml")


def test_no_space_at_all(refused):
    assert "--list" in refused()


def test_a_name_that_exists_is_never_overwritten(refused, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    error = refused("--space", write(tmp_path), "--name", "first")
    assert re.search(r"--name first: .*runs/first exists.*another name", error)


def test_output_that_is_a_file(refused, tmp_path):
    (tmp_path / "out").write_text("")
    assert re.search(r"--storage out.*not a folder", refused("--space", write(tmp_path), "--storage", "out"))


def test_output_that_cannot_be_written(refused, tmp_path):
    # /proc refuses new folders to everybody, root included.
    assert re.search(
        r"--storage /proc.*not writable", refused("--space", write(tmp_path), "--storage", "/proc/x")
    )


def test_tracking_server_and_cluster_that_do_not_answer(refused, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for option, value in (
            ("--tracking-uri", f"http://127.0.0.1:{port}"),
            ("--address", f"127.0.0.1:{port}"),
        ):
            error = refused("--space", write(tmp_path), option, value)
            assert value in error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: [f.write_bytes(b"no image") for f in (root / "class0").iterdir()], r"class0/\d+\.png"),
        (lambda root: [f.write_bytes(b"") for f in (root / "class1").iterdir()], r"class1/\d+\.png"),
        (lambda root: (root / "class3").mkdir(), r"class3"),
        (lambda root: [path.unlink() for path in (root / "class1").iterdir()], r"class1"),
    ],
    ids=["corrupt image", "empty file", "empty class", "emptied class"],
)
def test_damaged_folders_name_the_file_or_class(refused, tmp_path, image_folder, damage, message):
    root = image_folder()
    damage(root)
    error = refused("--space", write(tmp_path, model="test_efficientnet", data=f"folder:{root}", switch="0"))
    assert re.search(message, error), error


def test_one_class_is_nothing_to_classify(refused, tmp_path, image_folder):
    space = write(tmp_path, model="test_efficientnet", data=f"folder:{image_folder(classes=1)}", switch="0")
    assert re.search(r"class0|one class|two classes", refused("--space", space))


@pytest.mark.parametrize("option", [["--cpus", "4096"], ["--gpus", "64"], ["--gpus", "1.5"]])
def test_more_than_the_machine_has_shows_what_it_has(refused, tmp_path, option):
    assert re.search(r"CPUs|whole GPUs", refused("--space", write(tmp_path), *option))
