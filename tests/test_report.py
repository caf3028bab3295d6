import json
import subprocess
import sys

import pytest
from made_records import make_session

from tune_fusion import report
from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.events import Closed, EpochEnded, Suggested
from tune_fusion.journal import Journal
from tune_fusion.records import TrialState
from tune_fusion.reporting.answer import Finalist, SeedRun, answer

CONFIGURATIONS = (
    {"switch_layer": 1, "low": {"optimizer": "adam", "lr": 0.001}, "high": {"optimizer": "sgd", "lr": 0.05}},
    {"switch_layer": "all", "low": {"optimizer": "adam", "lr": 0.001}, "high": None},
)


def write_search(output, name, *, closed=True, **changes):
    """The folder of a search of one fusion and one control, as its journal alone tells it."""
    folder = output / name
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    journal.append(make_session(search=name, **changes))
    for number, configuration in enumerate(CONFIGURATIONS):
        single = configuration["high"] is None
        suggested = Suggested(
            arm="control" if single else "fusion",
            origin="sampled",
            parameters={},
            configuration=configuration,
            key=str(number),
            trial=number,
            switch_layer_name="all" if single else "conv2",
            single=single,
        )
        journal.append(suggested)
        for epoch in (1, 2):
            ended = EpochEnded(
                trial=number,
                epoch=epoch,
                metrics={"val_accuracy": 0.25 * epoch + 0.1 * number},
                diverged=False,
                node="host:1",
                ends=TrialState.COMPLETED if epoch == 2 and closed else None,
            )
            journal.append(ended)
    if closed:
        journal.append(Closed(status="completed"))
    journal.close()
    return folder


def write_answer(folder):
    sides = [
        Finalist(n, arm, "sampled", arm == "control", label, "conv2", {}, {}, 0.6, runs)
        for n, (arm, label) in enumerate((("fusion", "adam|sgd @1"), ("control", "adam")))
        for runs in [
            tuple(
                SeedRun(
                    s, "completed", 2, 2, {"val_accuracy": 0.5, "test_accuracy": 0.5 + 0.01 * s * (1 - n)}
                )
                for s in range(1, 6)
            )
        ]
    ]
    found = answer(folder.name, "val_accuracy", "max", sides, 100)
    (folder / "confirmation").mkdir()
    (folder / "confirmation" / "confirmation.json").write_text(json.dumps({"answer": found.to_dict()}))
    return found


def test_a_report_is_written_and_its_place_is_said(tmp_path, capsys):
    folder = write_search(tmp_path, "first")
    before = (folder / "journal.jsonl").read_bytes()
    assert report.main(["first", "--storage", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"report     {folder / 'report.html'}" in out
    assert "not confirmed yet" in out
    assert (folder / "journal.jsonl").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"journal.jsonl", "report.html", "figures"}


def test_a_search_that_still_runs_can_be_reported(tmp_path):
    folder = write_search(tmp_path, "open", closed=False)
    with (folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"n":99,"event"')  # the line that is being written
    assert report.main(["open", "--storage", str(tmp_path)]) == 0
    assert "running" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_confirmed_search_has_its_answer(tmp_path, capsys):
    folder = write_search(tmp_path, "first")
    found = write_answer(folder)
    assert report.main(["first", "--storage", str(tmp_path)]) == 0
    assert found.sentence in capsys.readouterr().out
    assert found.comparisons[0].verdict == "wins"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"answer": {"name": "first"}}'])
def test_a_damaged_answer_is_no_missing_one(tmp_path, content):
    folder = write_search(tmp_path, "first")
    (folder / "confirmation").mkdir()
    (folder / "confirmation" / "confirmation.json").write_text(content)
    with pytest.raises(InputError, match=r"confirmation\.json: holds no answer that can be read"):
        report.main(["first", "--storage", str(tmp_path)])
    assert not (folder / "report.html").exists()


def test_searches_are_compared(tmp_path, capsys):
    for name, data in (("first", "d" * 64), ("second", "d" * 64), ("other", "e" * 64)):
        write_search(tmp_path, name, data=data)
    assert report.main(["first", "--compare", "second", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"comparison {tmp_path / 'compare.html'}\n"
    assert report.main(["--compare", "first", "other", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("careful: These searches have different data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frist"], "NAME frist: .* did you mean 'first'"),
        (["--compare", "first", "thrid"], "--compare thrid: .* holds no search of that name"),
        (["first", "--paper", "table9"], "table9"),
    ],
)
def test_what_is_unknown_is_refused(tmp_path, arguments, message):
    write_search(tmp_path, "first")
    with pytest.raises(InputError, match=message):
        report.main([*arguments, "--storage", str(tmp_path)])
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs the NAME of a search"),
        (["--compare", "first"], "argument --compare: needs two searches or more"),
        (["first", "--compare", "first"], "argument --compare: needs two searches or more"),
        (["--paper", "table2"], "needs the NAME of a search"),
        (["first", "--papers", "x"], "did you mean '--paper'?"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    folder = write_search(tmp_path, "first")
    (folder / "figures").write_text("in the way")
    with pytest.raises(TuneFusionError, match=r"first: the report cannot be written: .*figures"):
        report.main(["first", "--storage", str(tmp_path)])


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from tune_fusion import report\n"
        "try: report.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'pandas', 'scipy', 'optuna', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--compare" in done.stdout
