import pickle
import sys
from pathlib import Path

import pytest

from tune_fusion.errors import InputError
from tune_fusion.space import loading
from tune_fusion.space.domain import Choice, Constant, FloatRange, IntRange
from tune_fusion.space.loading import list_spaces, load_space, resolve_space
from tune_fusion.space.settings import TrainingSettings


def test_a_file_becomes_a_space(parse):
    space = parse()
    assert (space.name, space.source, space.description) == (
        "test",
        "folder/test.yaml",
        "A space to test with",
    )
    assert space.model.name == "lenet5"
    assert space.search.trials == 8
    assert space.switch_layer == IntRange(0, 6)
    assert (space.low, space.high, space.controls) == (("adam", "sgd"), ("sgd", "adam"), ("adam", "hn_adam"))
    assert space.training["epochs"] == Constant(4)
    assert space.training.keys() == TrainingSettings.model_fields.keys()
    assert space.optimizers["sgd"] == {"lr": FloatRange(1e-3, 1e-1, log=True), "momentum": Choice((0.0, 0.9))}
    assert space.direction == "max"
    assert not space.single


def test_optimizers_without_an_entry_take_the_registrys_ranges(parse):
    assert parse().optimizers["hn_adam"] == {
        "lr": FloatRange(1e-4, 1e-2, log=True),
        "lambda0": FloatRange(2.0, 4.0),
    }


def test_an_empty_entry_searches_nothing(parse):
    assert parse("space.optimizers.sgd={}").optimizers["sgd"] == {}


def test_defaults_are_kept_for_every_named_optimizer(parse):
    assert parse().defaults["adam"] == {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}


def test_one_name_stands_for_a_list_of_one(parse):
    space = parse("space.low=adam", "space.high=sgd", "space.controls=null")
    assert (space.low, space.high, space.controls) == (("adam",), ("sgd",), ())


def test_spaces_pickle(parse):
    space = parse("search.seed=3")
    again = pickle.loads(pickle.dumps(space))  # noqa: S301  (what this test wrote itself)
    assert again == space
    assert again.place("search.seed") == space.place("search.seed")


def test_yaml_1_2_numbers_and_words(parse):
    space = parse("model.weights=no", "space.optimizers.adam.lr=1e-3", "data.limit=6000")
    assert space.model.weights == "no"
    assert space.optimizers["adam"]["lr"] == Constant(1e-3)
    assert space.data.limit == 6000


def test_values_are_ordinary_python_objects(parse):
    space = parse("space.optimizers.adam.lr=1e-3", "data.mean=[0.5]", "training.precision='bfloat16'")
    assert type(space.optimizers["adam"]["lr"].value) is float
    assert type(space.data.mean) is list
    assert type(space.training["precision"].value) is str
    assert type(space.search.trials) is int


# --- overrides


def test_overrides_reach_any_key(parse):
    space = parse(
        "space.low=[adam,sgd,hn_adam]",
        "space.optimizers.hn_adam={lr: 1e-2}",
        "training.schedule={choice: [constant, cosine]}",
        "resources.cpu=2",
        "data.name=folder:some/where",
        "search.trials=3",
        "search.trials=5",
    )
    assert space.low == ("adam", "sgd", "hn_adam")
    assert space.optimizers["hn_adam"] == {"lr": Constant(1e-2)}
    assert space.training["schedule"] == Choice(("constant", "cosine"))
    assert space.resources.cpu == 2
    assert space.data.name == "folder:some/where"
    assert space.search.trials == 5


def test_the_file_as_run_reads_back_the_same(parse):
    space = parse("search.trials=5", "space.low=[adam]", "training.schedule=cosine", "asha.grace_epochs=2")
    again = parse(text=space.to_yaml())
    for field in ("model", "data", "search", "asha", "resources", "training", "low", "high", "optimizers"):
        assert getattr(again, field) == getattr(space, field)
    assert "# A space to test with" in space.to_yaml()
    assert again.to_yaml() == space.to_yaml()


def test_without_overrides_the_text_is_the_file(parse, file):
    assert parse().to_yaml() == file


def test_shortened_lists_drop_entries_that_are_no_longer_named(parse):
    space = parse("space.low=sgd", "space.high=sgd", "space.controls=sgd")
    assert set(space.optimizers) == {"sgd"}
    assert "adam" not in space.to_yaml()
    assert parse(text=space.to_yaml()).optimizers == space.optimizers


def test_one_optimizer_for_every_layer(parse):
    space = parse("space.switch_layer=all", "space.high=null")
    assert space.single
    assert space.high == ()
    assert space.with_switch(["only"]) == space


# --- files and names


def test_unreadable_files(tmp_path: Path, vocabulary):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x89PNG\xff\xfe")
    large = tmp_path / "large.yaml"
    large.write_text("#" * 1_000_001)
    cases = {
        tmp_path / "none.yaml": "no such file",
        tmp_path: "is not a file; give the YAML file of a search space",
        binary: "is not a text file: byte 0 is not UTF-8",
        large: "is not a space file: 1,000,001 bytes, at most 1,000,000 are read",
    }
    for path, message in cases.items():
        with pytest.raises(InputError) as caught:
            load_space(path, vocabulary)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.skipif(sys.platform == "win32", reason="file modes mean something else there")
def test_a_path_that_cannot_be_entered(tmp_path: Path, vocabulary):
    inside = tmp_path / "file" / "space.yaml"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        load_space(inside, vocabulary)


def test_user_paths_come_as_given(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("# Mine\n")
    assert resolve_space("mine.yaml") == Path("mine.yaml")
    assert resolve_space("./mine.yaml") == Path("mine.yaml")
    with pytest.raises(InputError, match=r"--space other\.yaml: no such file"):
        resolve_space("other.yaml")


def test_names_are_looked_up_in_the_packaged_folder_first(tmp_path: Path, monkeypatch):
    package, checkout = tmp_path / "package", tmp_path / "checkout"
    for folder in (package, checkout):
        folder.mkdir()
    (package / "both.yaml").write_text("# Packaged\nmodel: {}\n")
    (checkout / "both.yaml").write_text("# Checked out\n")
    (checkout / "other.yaml").write_text("model: {}\n# not first\n")
    monkeypatch.setattr(loading, "space_folders", lambda: (package, checkout))
    assert list_spaces() == [
        ("both", "Packaged", package / "both.yaml"),
        ("other", "", checkout / "other.yaml"),
    ]
    assert resolve_space("both") == package / "both.yaml"
    (package / "papers").mkdir()
    (package / "papers" / "table.yaml").write_text("# Of a paper\n")
    assert ("papers/table", "Of a paper", package / "papers" / "table.yaml") in list_spaces()
    assert resolve_space("papers/table") == package / "papers" / "table.yaml"
    with pytest.raises(InputError, match=r"papers/tabel: no such file; .* \(did you mean 'papers/table'\?\)"):
        resolve_space("papers/tabel")
    with pytest.raises(InputError) as caught:
        resolve_space("bothh")
    assert str(caught.value) == (
        f"--space bothh: unknown space; did you mean 'both'? (looked in {package} and {checkout}; "
        "give a path to use a file of your own)"
    )


def test_constructing_tags_run_no_code(tmp_path: Path, vocabulary):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.yaml"
    path.write_text(
        f"model: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path '{marker}']\n"
    )
    with pytest.raises(InputError, match="has no tags"):
        load_space(path, vocabulary)
    assert not marker.exists()
