import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_fusion.space.domain import (
    Choice,
    Constant,
    DomainError,
    FloatRange,
    IntRange,
    as_value,
    extremes,
    largest,
    nearest,
    parse_choice,
    parse_domain,
    same_value,
    shown,
    written,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | finite | st.text(max_size=5)
pairs = st.tuples(finite, finite)
ordered = st.tuples(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3)).map(sorted).filter(lambda p: p[0] < p[1])
domains = st.one_of(
    st.builds(Constant, scalars | pairs),
    ordered.map(lambda p: FloatRange(*p)),
    ordered.map(lambda p: FloatRange(*p, log=True)),
    st.tuples(st.integers(-5, 5), st.integers(1, 9)).map(lambda p: IntRange(p[0], p[0] + p[1])),
    st.lists(scalars | pairs, min_size=1, max_size=4, unique_by=lambda v: (isinstance(v, bool), v)).map(
        lambda values: Choice(tuple(values))
    ),
)


@pytest.mark.parametrize(
    ("content", "domain"),
    [
        (3, Constant(3)),
        ("fast", Constant("fast")),
        (None, Constant(None)),
        ([0.9, 1], Constant((0.9, 1.0))),
        ({"log": [0.001, 1]}, FloatRange(0.001, 1.0, log=True)),
        ({"float": [-1, 1]}, FloatRange(-1.0, 1.0)),
        ({"int": [0, 6]}, IntRange(0, 6)),
        ({"choice": [1, "a", [0.9, 0.99]]}, Choice((1, "a", (0.9, 0.99)))),
        ({"choice": [1, True, 0, False]}, Choice((1, True, 0, False))),
    ],
)
def test_grammar(content, domain):
    assert parse_domain(content) == domain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"log": [0.1, 0.001]}, "log range needs 0 < low < high, got [0.1, 0.001]"),
        ({"log": [0, 1]}, "log range needs 0 < low < high, got [0, 1]"),
        ({"log": [-1, 1]}, "log range needs 0 < low < high, got [-1, 1]"),
        ({"log": [1e-3, math.inf]}, "log range needs 0 < low < high, got [0.001, .inf]"),
        ({"float": [0, math.nan]}, "float range needs low < high, got [0, .nan]"),
        ({"float": [2, 2]}, "float range needs low < high, got [2, 2]"),
        ({"float": [True, 2]}, "float range needs low < high, got [true, 2]"),
        ({"float": 2}, "float range needs low < high, got 2"),
        ({"float": ["a", "b"]}, "float range needs low < high, got ['a', 'b']"),
        ({"float": "ab"}, "float range needs low < high, got 'ab'"),
        ({"float": [1, 2, 3]}, "float range needs low < high, got [1, 2, 3]"),
        ({"int": [0, 1.5]}, "int range needs whole numbers low < high, got [0, 1.5]"),
        ({"int": [3, 1]}, "int range needs whole numbers low < high, got [3, 1]"),
        ({"choice": []}, "a choice needs a list of at least one value, got []"),
        ({"choice": "ab"}, "a choice needs a list of at least one value, got 'ab'"),
        ({"choice": [1, 2, 1.0]}, "the choices must differ, 1.0 stands twice in [1, 2, 1.0]"),
        ({"choice": [{"a": 1}]}, "needs a plain value, a list of numbers or a range, got {a: 1}"),
        ({"lgo": [1, 2]}, "unknown kind of range 'lgo'; did you mean 'log'?"),
        ({}, "a range is one of {log|float|int|choice: [...]}, got {}"),
        ({"int": [0, 1], "log": [1, 2]}, "a range is one of {log|float|int|choice: [...]}, got {int: [0, 1]"),
        (math.nan, "numbers must be finite, got .nan"),
        (-math.inf, "numbers must be finite, got -.inf"),
        ([], "needs a plain value, a list of numbers or a range, got []"),
        ([1, math.nan], "needs a plain value, a list of numbers or a range, got [1, .nan]"),
        ([[1]], "needs a plain value, a list of numbers or a range, got [[1]]"),
    ],
)
def test_refusals_state_rule_and_value(content, message):
    with pytest.raises(DomainError) as caught:
        parse_domain(content)
    assert str(caught.value).startswith(message)


@given(domains)
def test_written_domains_read_back(domain):
    assert parse_domain(written(domain)) == domain


@given(domains, scalars | pairs)
def test_nearest_is_a_member(domain, wanted):
    value = nearest(domain, wanted)
    if isinstance(domain, FloatRange | IntRange):
        assert domain.low <= value <= domain.high
    else:
        assert any(same_value(value, member) for member in extremes(domain))


@pytest.mark.parametrize(
    ("domain", "wanted", "value"),
    [
        (FloatRange(0.0, 1.0), 0.25, 0.25),
        (FloatRange(0.0, 1.0), 3, 1.0),
        (FloatRange(1e-4, 1e-2, log=True), 1e-5, 1e-4),
        (FloatRange(1e-4, 1e-2, log=True), None, pytest.approx(1e-3)),
        (FloatRange(0.0, 1.0), None, 0.5),
        (IntRange(0, 6), 9, 6),
        (IntRange(0, 6), None, 3),
        (Choice((0.0, 0.9)), 0.8, 0.9),
        (Choice(("a", "b")), "b", "b"),
        (Choice(("a", "b")), "c", "a"),
        (Choice((True, False)), False, False),
        (Choice((1, True)), True, True),
        (Choice(((0.9, 0.99), (0.9, 0.999))), (0.9, 0.998), (0.9, 0.999)),
        (Constant(7), 3, 7),
    ],
)
def test_nearest(domain, wanted, value):
    assert nearest(domain, wanted) == value


def test_nearest_tells_true_from_one():
    assert nearest(Choice((1, True)), True) is True


def test_middle_of_a_wide_range_does_not_overflow():
    assert nearest(FloatRange(1e-300, 1e300, log=True), None) == pytest.approx(1.0)
    assert math.isfinite(nearest(FloatRange(-1.7e308, 1.7e308), None))


def test_largest():
    assert largest(Constant(10)) == 10
    assert largest(IntRange(2, 8)) == 8
    assert largest(Choice((5, 20, 10))) == 20


def test_choice_from_a_bare_list():
    assert parse_choice([0, "head", "all"]) == Choice((0, "head", "all"))


@pytest.mark.parametrize("value", [object(), b"x", {1}])
def test_values_are_plain(value):
    with pytest.raises(DomainError):
        as_value(value)


def test_shown_is_one_short_line():
    assert shown({"a": [1, None, True, "x"]}) == "{a: [1, null, true, 'x']}"
    assert shown("line\nbreak") == r"'line\nbreak'"
    assert len(shown(list(range(1000)))) == 100
