import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.reporting.figures.style import Drawn, new_figure, optimizer_styles, png, spread, svg


def drawn(name):
    figure, axes = new_figure()
    axes.plot([1, 2], [3, 4], "o-", clip_on=True)
    return Drawn(name, "A title", figure, "n = 2")


def test_labels_stay_where_there_is_room():
    assert spread([1.0, 5.0], 1.0, 0.0, 10.0) == [1.0, 5.0]


def test_labels_that_overlap_move_apart_evenly():
    assert spread([5.0, 5.0], 1.0, 0.0, 10.0) == [4.5, 5.5]
    assert spread([10.0, 10.0], 1.0, 0.0, 10.0) == [9.0, 10.0]


def test_too_many_labels_share_the_room():
    assert spread([3.0, 1.0, 2.0], 5.0, 0.0, 4.0) == [4.0, 0.0, 2.0]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_labels_keep_their_order_distance_and_limits(wanted):
    placed = spread(wanted, 0.5, -10.0, 10.0)
    ordered = sorted(zip(wanted, placed, strict=True))
    assert all(-10 - 1e-9 <= place <= 10 + 1e-9 for place in placed)
    assert all(b[1] - a[1] > -1e-9 for a, b in itertools.pairwise(ordered))
    ranked = sorted(placed)
    assert all(b - a >= 0.5 - 1e-9 for a, b in itertools.pairwise(ranked))


def test_two_figures_in_one_page_share_no_id():
    first, second = svg(drawn("one")), svg(drawn("two"))
    ids = [set(re.findall(r'\sid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_every_reference_within_a_figure_has_its_target():
    text = svg(drawn("one"))
    wanted = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert wanted
    assert wanted == set(re.findall(r'\sid="([^"]+)"', text))


def test_a_figure_needs_nothing_from_elsewhere_and_has_no_size_of_its_own():
    text = svg(drawn("one"))
    assert "http" not in text
    opening = text[: text.index(">")]
    assert opening.startswith("<svg ")
    assert "viewBox=" in opening
    assert not re.search(r'\s(width|height)="', opening)


def test_the_same_figure_is_the_same_text():
    assert svg(drawn("one")) == svg(drawn("one"))


def test_a_picture_is_a_png():
    assert png(drawn("one")).startswith(b"\x89PNG\r\n\x1a\n")


def test_optimizers_have_one_colour_and_marker_each():
    styles = optimizer_styles(["sgd", "adam", "sgd"])
    assert list(styles) == ["adam", "sgd"]
    assert styles == optimizer_styles(["adam", "sgd"])
    assert styles["adam"] != styles["sgd"]
