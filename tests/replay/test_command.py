import pytest
from made_tables import make_table, write_table

from tune_fusion.errors import InputError
from tune_fusion.replay.__main__ import _parser, main
from tune_fusion.replay.contenders import Contender
from tune_fusion.replay.judge import judge
from tune_fusion.space.settings import AshaSettings, SearchSettings

SEARCH = {"sampler": "random", "scheduler": "promotion", "defaults": "none"}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "made.jsonl.gz"
    made = make_table()
    write_table(path, made, made._others)
    return path


def test_a_contender_is_judged_on_a_table(table, capsys):
    words = [word for name, value in SEARCH.items() for word in (f"--{name}", value)] + ["--slots", "2"]
    assert main(["--table", str(table), *words, "--seeds", "5", "--epochs", "200", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "30 configurations, 120 epochs; best val_accuracy 0.8700; noise 0.00" in out
    found = judge(table, Contender("", SEARCH, AshaSettings().model_dump()), 2, range(5), 200)
    assert f"goal       after {found.quartiles()[1]:.0f} epochs (median)" in out
    assert f"{found.mean_regret(200):.4f} after 200 epochs (mean)" in out
    assert "spent      median 200 epochs in " in out


def test_it_replays_a_searchs_defaults_unless_told_otherwise(table):
    given = vars(_parser().parse(["--table", str(table)]))
    settings = SearchSettings().model_dump() | AshaSettings().model_dump()
    shared = settings.keys() & given.keys()
    assert shared == {
        *("sampler", "scheduler", "defaults", "stop", "grace_epochs", "reduction_factor", "compare")
    }
    assert {key: given[key] for key in shared} == {key: settings[key] for key in shared}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "tpee"], "--sampler tpee: did you mean 'tpe'?"),
        (["--scheduler", "promote"], "--scheduler promote: did you mean 'promotion'?"),
        (["--compare", "loss"], "--compare loss: did you mean 'val_loss'?"),
        (["--reduction-factor", "1"], "--reduction-factor 1: needs a whole number >= 2"),
    ],
)
def test_what_it_does_not_know_is_refused_with_the_nearest_word(words, message, table):
    with pytest.raises(InputError) as error:
        main(["--table", str(table), *words])
    assert str(error.value) == message


def test_a_table_of_ranges_has_no_grid(table):
    with pytest.raises(
        InputError, match=r"^--sampler grid: a grid needs finite choices, got the continuous range"
    ):
        main(["--table", str(table), "--sampler", "grid"])


def test_several_processes_give_what_one_gives(table, capsys):
    def said(workers):
        main(
            [
                "--table",
                str(table),
                "--sampler",
                "random",
                "--seeds",
                "4",
                "--epochs",
                "30",
                "--workers",
                workers,
            ]
        )
        return capsys.readouterr().out

    assert said("2") == said("1")
