import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_single

from tune_fusion.space.configuration import Configuration
from tune_fusion.tuning.listed import ListedRun, ListedStudy

ADAM = Configuration.from_dict(make_single(0).configuration)


def listed(pairs):
    return [ListedRun(trial, ADAM, "sampled", seed) for trial, seed in pairs]


def asked(study):
    found = []
    while (suggestion := study.ask()) is not None:
        found.append((suggestion.parameters["trial"], suggestion.seed))
    return found


@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 9)), unique=True), st.integers(0, 20))
def test_every_run_is_suggested_once_in_order_however_often_it_is_taken_up(pairs, known):
    first = ListedStudy(listed(pairs))
    before = [first.ask() for _ in range(min(known, len(pairs)))]
    second = ListedStudy(listed([*pairs, (10, 0), (10, 1)]))
    for suggestion in before:
        again = second.repeat(suggestion.parameters, suggestion.configuration, suggestion.origin)
        assert again == suggestion
    assert asked(second) == [*pairs[len(before) :], (10, 0), (10, 1)]


def test_what_is_not_in_the_list_is_not_repeated():
    study = ListedStudy(listed([(0, 1)]))
    with pytest.raises(ValueError, match="trial 0 with seed 2 is not to be run"):
        study.repeat({"trial": 0, "seed": 2}, ADAM, "sampled")
    other = Configuration.from_dict({"switch_layer": "all", "low": {"optimizer": "sgd"}, "high": None})
    with pytest.raises(ValueError, match="trial 0 with seed 1 is not to be run"):
        study.repeat({"trial": 0, "seed": 1}, other, "sampled")
    assert asked(study) == [(0, 1)]
