import json

import pytest
from browser import browser, missing
from made_reports import LAYERS, chronicle_of, made_answer, rich_search

from tune_fusion.reporting.compare import Compared, write_comparison
from tune_fusion.reporting.page import write_report
from tune_fusion.runs import RunFolder

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")

# Every figure's box, and whether its text reaches beyond it.
FIGURES = """
return [...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const out = [...svg.querySelectorAll('text')].filter(text => {
    const t = text.getBoundingClientRect();
    const wide = t.left < box.left - 1 || t.right > box.right + 1;
    return wide || t.top < box.top - 1 || t.bottom > box.bottom + 1;
  });
  return [svg.closest('figure').id, box.width, box.height, out.map(text => text.textContent)];
});
"""
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
COLUMNS = "return getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a search, and a comparison, with the number of their figures."""
    folder = tmp_path_factory.mktemp("runs") / "rich"
    folder.mkdir()
    run = RunFolder(folder)
    run.layers.write_text(json.dumps([{"name": name} for name in LAYERS]), encoding="utf-8")
    record = rich_search()
    chronicle, answer = (
        chronicle_of(record, space="# " + "a long line " * 40 + "\nsearch: {}\n"),
        made_answer(record),
    )
    report = write_report(run, chronicle, answer, {"command": "python -m tune_fusion.search " + "x" * 300})
    comparison = write_comparison(folder.parent, [Compared(chronicle, answer), Compared(chronicle, None)])
    return {"report": (report[0], len(report) - 1), "comparison": (comparison[0], len(comparison) - 1)}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_fits_and_every_figure_is_drawn(window, pages, name, width):
    path, count = pages[name]
    window.open(path.as_uri(), width)
    assert window.errors() == []
    scroll_width, inner_width = window.run(WIDTHS)
    assert inner_width == width
    assert scroll_width <= inner_width
    figures = window.run(FIGURES)
    assert len(figures) == count > 0
    for figure, wide, high, outside in figures:
        assert wide > 250, figure
        assert high > 100, figure
        assert outside == [], figure
    assert window.run(COLUMNS) == (1 if width == 390 else 2)


def test_the_console_is_heard(window, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>throw new Error('seen')</script>", encoding="utf-8")
    window.open(page.as_uri(), 390)
    assert any("seen" in line for line in window.errors())
