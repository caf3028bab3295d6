from typing import get_args

import pytest
from made_tables import make_table, write_table

from tune_fusion.errors import InputError
from tune_fusion.replay.__main__ import _parser, main
from tune_fusion.replay.contenders import REPLAY_ONLY, Contender
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


def test_a_search_ends_with_its_last_trial(table, capsys):
    words = ["--sampler", "random", "--defaults", "none", "--scheduler", "none", "--workers", "1"]
    assert main(["--table", str(table), *words, "--trials", "6", "--seeds", "3"]) == 0
    assert "spent      median 24 epochs in " in capsys.readouterr().out


def test_it_replays_a_searchs_defaults_unless_told_otherwise(table):
    given = vars(_parser().parse(["--table", str(table)]))
    settings = SearchSettings().model_dump() | AshaSettings().model_dump()
    shared = (settings.keys() & given.keys()) - {"trials"}
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
        (
            ["--slots", "1000000"],
            "--slots 1000000: each would have less than one of --epochs 300; at most 300",
        ),
        (
            ["--grace-epochs", "4"],
            "--grace-epochs 4: the trials of --table TABLE have 4 epochs; at most 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(words, message, table):
    with pytest.raises(InputError) as error:
        main(["--table", str(table), *words])
    assert str(error.value).replace(str(table), "TABLE") == message


def test_its_help_has_every_word(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in ("sampler", "scheduler", "defaults", "stop"):
        for word in (*get_args(SearchSettings.model_fields[name].annotation), *REPLAY_ONLY.get(name, ())):
            assert word in said
    assert all(word in said for word in get_args(AshaSettings.model_fields["compare"].annotation))


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
