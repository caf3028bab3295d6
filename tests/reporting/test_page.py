import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from made_records import make_search, make_session, make_single, make_trial
from made_reports import LAYERS, chronicle_of, made_answer, rich_search

from tune_fusion.records import TrialState
from tune_fusion.reporting import settings_run
from tune_fusion.reporting.compare import Compared, seconds, warnings, write_comparison
from tune_fusion.reporting.figures.progress import best_so_far
from tune_fusion.reporting.page import make_sections, validation_words, write_report
from tune_fusion.runs import RunFolder

FIGURES = {
    "differences",
    "promises",
    "heat-map",
    "rates-low",
    "rates-high",
    "rates-single",
    "initial-norms",
    "importance-fusion",
    "importance-control",
    "parallel-coordinates",
    "learning-curves",
    "best-so-far",
    "states",
    "time",
    "amsgrad-share",
    "mean-norm",
    "rung-correlations",
    "early-choice",
}
TABLES = {"comparisons", "confirmed", "optimism", "bests", "troubles", "early-choices"}
_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: its ids, tags and text; fails where its tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.words, self.links, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "xlink:href", "src", "srcset", "action"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(folder, record, answer=None, content=None, **changes):
    """The page of this search, and the paths written."""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    paths = write_report(run, chronicle_of(record, **changes), answer, content)
    return Page(run.report.read_text(encoding="utf-8")), paths


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A page with everything in it, its folder, its text and the paths written."""
    folder = tmp_path_factory.mktemp("rich")
    run = RunFolder(folder)
    run.layers.write_text(json.dumps([{"name": name} for name in LAYERS]), encoding="utf-8")
    record = rich_search(notes=["a note with <tags>"])
    page, paths = written(
        folder, record, made_answer(record), {"command": "python -m tune_fusion.search --x"}
    )
    return folder, page, paths


def test_every_figure_and_table_is_there(rich):
    folder, page, paths = rich
    assert {name for name in page.ids if name.startswith("figure-")} == {f"figure-{name}" for name in FIGURES}
    assert {name for name in page.ids if name.startswith("table-")} == {f"table-{name}" for name in TABLES}
    assert page.tags.count("svg") == len(FIGURES)
    assert sorted(paths) == sorted(
        [folder / "report.html", *(folder / "figures" / f"{name}.png" for name in FIGURES)]
    )
    assert all(path.stat().st_size for path in paths)


def test_the_page_is_whole_and_needs_nothing_else(rich):
    folder, page, _ = rich
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|//cdn|@import|<script", text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_answer_comes_first(rich):
    _, page, _ = rich
    answer = made_answer(rich_search())
    assert page.text.index(answer.sentence) < page.text.index("Fusion minus control, seed by seed")
    assert answer.comparisons[0].verdict == "wins"
    assert "+2.000 points" in page.text
    assert "n = 5 paired seeds" in page.text


def test_the_tables_say_what_was_confirmed_and_how_much_the_search_promised_too_much(rich):
    _, page, _ = rich
    assert "0.8200 ± 0.0016 0.4800 ± 0.0000 0.8100 ± 0.0000" in page.text
    # 0.85 in the search: 0.83 on validation and 0.82 on test data with fresh seeds.
    assert "0.8500 0.8300 0.8200 +2.00 points +3.00 points" in page.text


def test_what_is_needed_to_repeat_the_search_is_there(rich):
    _, page, _ = rich
    for word in (
        "python -m tune_fusion.search --x",
        "asha: {grace_epochs: 1, reduction_factor: 3}",
        "d" * 64,
        "tune_fusion 0.1.0",
        "search seed 3",
        "confirmation seeds 101, 102, 103, 104, 105",
        "a note with <tags>",
        "1970-01-01 00:16:30",
        "RuntimeError: <b>bad</b> & worse",
    ):
        assert word in page.text


def test_layer_names_come_from_the_layer_map(rich):
    folder, _, _ = rich
    assert "1 blocks.1" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("trials", "status"),
    [
        ([], None),
        ([make_trial(0, [], TrialState.RUNNING)], None),
        ([make_trial(0, [0.5])], "completed"),
        ([make_single(0, [0.5])], "interrupted"),
        ([make_trial(0, [], TrialState.FAILED, reason="no")], "failed"),
        ([make_trial(0, [0.5], TrialState.RUNNING), make_trial(1, [0.25], TrialState.INTERRUPTED)], None),
        ([make_trial(0, [0.5], TrialState.DIVERGED), make_single(1, [0.25])], "completed"),
    ],
)
def test_any_search_has_a_report(tmp_path, trials, status):
    page, paths = written(tmp_path, make_search(*trials), status=status)
    assert {name for name in page.ids if name.startswith("figure-")} == {f"figure-{name}" for name in FIGURES}
    assert len(paths) == 1 + page.tags.count("svg")
    assert "Not confirmed yet" in page.text
    assert f"python -m tune_fusion.confirm {tmp_path.name} --storage {tmp_path.parent}" in page.text


@pytest.mark.parametrize("changes", [{"metric": "val_loss"}, {"fusions": False}])
def test_other_kinds_of_search_have_a_report(tmp_path, changes):
    metric = changes.get("metric", "val_accuracy")
    trials = [make_trial(n, [0.5, 0.1 * n], metric=metric) for n in range(4)]
    page, _ = written(tmp_path, make_search(*trials, make_single(4, [0.3], metric=metric), **changes))
    assert page.tags.count("svg")


def test_whatever_people_write_is_escaped(tmp_path):
    bad = '</pre><script>alert("1")</script>&'
    search = make_search(make_trial(0, [0.5], switch_layer_name=bad), notes=[bad])
    search.space = bad
    page, _ = written(tmp_path, search, space=f"# {bad}\nsearch: {{}}\n", commit=bad)
    assert "script" not in page.tags
    assert page.text.count('<script>alert("1")</script>') >= 4


def test_a_second_report_replaces_the_first_and_its_pictures(tmp_path):
    _, first = written(tmp_path, make_search(make_trial(0, [0.5])))
    assert tmp_path / "figures" / "states.png" in first
    _, second = written(tmp_path, make_search())
    assert sorted(tmp_path.rglob("*.png")) == []
    assert second == [tmp_path / "report.html"]
    assert not list(tmp_path.rglob(".*.part"))


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    (tmp_path / "journal.jsonl").write_text("whatever")
    (tmp_path / "layers.json").write_text("no JSON")
    written(tmp_path, make_search(make_trial(0, [0.5])))
    assert {path.name for path in tmp_path.iterdir()} == {
        "journal.jsonl",
        "layers.json",
        "report.html",
        "figures",
    }
    assert (tmp_path / "journal.jsonl").read_text() == "whatever"


def test_every_figure_says_its_n_or_why_it_is_not_there():
    search = rich_search()
    for record, answer in ((search, made_answer(search)), (make_search(), None)):
        for section in make_sections(chronicle_of(record), answer, LAYERS):
            for drawn in section.figures:
                assert "n = " in drawn.note if drawn.figure is not None else len(drawn.note) > 15


def test_the_validation_alone_is_no_verdict():
    search = make_search(make_trial(0, [0.75]), make_single(1, [0.5]))
    words = validation_words(search, {"data": {"validation_images": 75}})
    assert words.startswith(
        "By validation alone, the best fusion (adam|sgd @1) reaches 0.7500 and the best single optimizer "
        "(adam) 0.5000: +25.00 points of validation accuracy, one seed each on 75 images."
    )
    assert words.endswith("this is no verdict.")
    assert "no single optimizer has been measured" in validation_words(
        make_search(make_trial(0, [0.5])), None
    )


def test_rungs_and_seed_are_those_of_the_space_as_run():
    search = make_search(make_trial(0, [0.5], max_epochs=10))

    def session(text):
        return chronicle_of(search, space=text).sessions[0]

    assert settings_run.rungs(search, session("search: {}\n")) == (1, 4)
    assert settings_run.rungs(search, session("asha: {grace_epochs: 2, reduction_factor: 2}\n")) == (2, 4, 8)
    assert settings_run.rungs(search, session("search: {scheduler: none}\n")) == ()
    assert settings_run.rungs(make_search(), session("search: {}\n")) == ()
    assert settings_run.seed(session("search: {seed: 5}\n")) == 5
    assert settings_run.seed(session("model: {}\n")) == 0


def compared(name, *trials, answer=None, **changes):
    record = make_search(*trials, metric=changes.pop("metric", "val_accuracy"))
    record.name = name
    return Compared(chronicle_of(record, **changes), answer)


def test_searches_are_laid_side_by_side(tmp_path):
    record = rich_search()
    searches = [
        compared("one", *record.trials, answer=made_answer(record)),
        compared("two", make_trial(0, [0.5, 0.75]), make_single(1, [0.25])),
    ]
    paths = write_comparison(tmp_path, searches)
    assert [path.name for path in paths] == ["compare.html", "compare-epochs.png", "compare-seconds.png"]
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
    assert len(page.ids) == len(set(page.ids))
    assert searches[0].answer.sentence in page.text
    assert "two completed val_accuracy 2 of 8 3" in page.text
    assert "not confirmed" in page.text
    assert "Careful" not in page.text


def test_different_data_or_metrics_are_pointed_out(tmp_path):
    same = compared("one", make_trial(0, [0.5]))
    assert warnings([same, compared("two")]) == []
    (data,) = warnings([same, compared("two", data="e" * 64)])
    assert "different data" in data
    assert "one: dddd" in data
    assert "two: eeee" in data
    loss = compared("two", make_trial(0, [0.5], metric="val_loss"), metric="val_loss")
    (metric,) = warnings([same, loss])
    assert "different metrics" in metric
    page = Page(write_comparison(tmp_path, [same, loss])[0].read_text(encoding="utf-8"))
    assert metric in page.text
    assert "Different metrics share no axis: val_accuracy, val_loss." in page.text


def test_the_seconds_of_a_search_leave_its_pauses_out():
    # Begun at 990; epochs at 1001 and 1002; dead until a session at 2000; an epoch at 2010.
    trial = make_trial(0, [0.25, 0.5, 0.75], times=[1001.0, 1002.0, 2010.0], started=1000.0, ended=2010.0)
    chronicle = chronicle_of(make_search(trial))
    assert seconds(chronicle, best_so_far(chronicle.record)) == [11.0, 12.0, 1020.0]
    resumed = dataclasses.replace(chronicle, sessions=[*chronicle.sessions, make_session(started=2000.0)])
    assert seconds(resumed, best_so_far(resumed.record)) == [11.0, 12.0, 22.0]
