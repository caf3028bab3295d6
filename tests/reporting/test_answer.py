"""The answer: who is compared, how they are paired, what is said, and that it survives its file."""

import dataclasses
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.reporting.answer import (
    Answer,
    Finalist,
    SeedRun,
    answer,
    compare,
    matching_test_metric,
)
from tune_fusion.reporting.wording import difference_text, p_text

CONTROL = (0.80, 0.81, 0.79, 0.80, 0.82)
MIXED = (0.004, 0.001, 0.007, -0.002, 0.005)


def make_finalist(trial, tests, *, single=False, validations=None, search_value=0.9, seeds=None, **changes):
    """A finalist with these test accuracies by seed (None: not measured), its loss and F1 following them."""
    validations = tests if validations is None else validations
    runs = []
    for seed, test, validation in zip(seeds or range(1, len(tests) + 1), tests, validations, strict=True):
        values = {} if validation is None else {"val_accuracy": validation, "val_loss": 1 - validation}
        if test is not None:
            values |= {"test_accuracy": test, "test_loss": 1 - test, "test_macro_f1": test / 2}
        runs.append(SeedRun(seed, "diverged" if test is None else "completed", 10, 9, values))
    fields = {
        "arm": "control" if single else "fusion",
        "origin": "sampled",
        "single": single,
        "label": "adam" if single else "adam|sgd @3",
        "switch_layer_name": "all" if single else "conv3",
        "configuration": {"switch_layer": 3, "low": {"optimizer": "adam", "betas": (0.9, 0.99)}},
        "parameters": {"switch_layer": 3, "low.optimizer": "adam", "low.betas": (0.9, 0.99)},
    } | changes
    return Finalist(trial=trial, search_value=search_value, runs=tuple(runs), **fields)


def make_pair(differences, control=CONTROL):
    """A control with these test accuracies, and a fusion that differs so much from it, seed by seed."""
    tests = [base + d for base, d in zip(control, differences, strict=False)]
    return make_finalist(0, tests), make_finalist(1, control[: len(tests)], single=True)


def answered(*finalists, metric="val_accuracy", **options):
    return answer("made", metric, "min" if metric == "val_loss" else "max", finalists, 10_000, **options)


# --- who is compared ------------------------------------------------------------------------------


def test_the_best_of_each_kind_is_chosen_by_validation_and_never_by_test():
    better_on_test = make_finalist(0, [0.9] * 5, validations=[0.6] * 5)
    chosen = make_finalist(2, [0.5] * 5, validations=[0.7] * 5)
    control = make_finalist(5, [0.5] * 5, single=True)
    found = answered(better_on_test, chosen, control)
    assert (found.fusion, found.control) == (2, 5)
    assert found.comparisons[0].fusion == 2


def test_the_choice_does_not_see_the_search_s_own_values():
    optimistic = make_finalist(0, [0.6] * 5, search_value=0.99)
    honest = make_finalist(1, [0.7] * 5, search_value=0.71)
    assert answered(optimistic, honest).fusion == 1


def test_a_loss_is_chosen_small_and_compared_first():
    small, large = make_finalist(0, [0.9] * 5), make_finalist(1, [0.7] * 5)
    control = make_finalist(2, [0.8] * 5, single=True)
    found = answered(large, small, control, metric="val_loss")
    assert found.fusion == 0
    assert [c.metric for c in found.comparisons] == ["test_loss", "test_accuracy", "test_macro_f1"]
    assert found.comparisons[0].mean == pytest.approx(-0.1)
    assert found.comparisons[0].verdict == "wins"
    assert "test loss -0.1000 nats" in found.sentence


def test_ties_go_to_the_finalist_that_is_named_first():
    # Inherited trials have negative numbers, the first of them -1: numbers do not say who is the earlier one.
    assert answered(make_finalist(-1, [0.7] * 5), make_finalist(-2, [0.7] * 5)).fusion == -1
    assert answered(make_finalist(3, [0.7] * 5), make_finalist(4, [0.7] * 5)).fusion == 3


def test_what_could_not_be_tested_does_not_choose():
    half = make_finalist(0, [0.95, 0.95, 0.95, 0.95, None], single=True)
    runs = tuple(replace(run, values=dict(run.values) | {"val_accuracy": 0.1}) for run in half.runs[4:])
    half = replace(half, runs=(*half.runs[:4], *runs))
    other = make_finalist(1, [0.85, 0.85, 0.85, 0.85, None], single=True)
    assert answered(half, other, make_finalist(2, [0.7] * 5)).control == 0


def test_there_is_no_verdict_while_a_better_one_was_left_out():
    lucky = make_finalist(0, [0.95, 0.95, 0.95, 0.95, None], single=True, label="sgd")
    whole = make_finalist(1, [0.6] * 5, single=True, label="adam")
    found = answered(make_finalist(2, [0.9] * 5), lucky, whole)
    assert found.control == 1
    assert {comparison.verdict for comparison in found.comparisons} == {"open"}
    assert found.sentence.startswith(
        "No verdict yet, as sgd (trial 0) looks better on the seeds that it has; "
    )
    worse = make_finalist(0, [0.5, 0.5, 0.5, 0.5, None], single=True, label="sgd")
    assert answered(make_finalist(2, [0.9] * 5), worse, whole).comparisons[0].verdict == "wins"


def test_there_is_no_verdict_while_runs_are_missing():
    found = answered(make_finalist(0, [0.9] * 5), make_finalist(1, [0.6] * 5, single=True), complete=False)
    assert found.comparisons[0].verdict == "open"
    assert found.sentence.startswith("No verdict yet, as runs are missing; so far the best fusion ")


def test_a_verdict_needs_both_the_interval_and_the_permutation_test():
    fusion = make_finalist(0, [0.6, 0.6, 0.6, 0.6, 0.499])
    control = make_finalist(1, [0.5] * 5, single=True)
    comparison = answered(fusion, control).comparisons[0]
    assert comparison.p_value > comparison.smallest_p
    assert comparison.verdict == "open"


def test_the_noise_of_the_test_images_is_told():
    found = answered(make_finalist(0, [0.9] * 5), make_finalist(1, [0.6] * 5, single=True))
    expected = 196 * math.sqrt((0.9 * 0.1 + 0.6 * 0.4) / found.test_images)
    assert f"on these {found.test_images} test images" in found.notes[-1]
    assert f"±{expected:.2f} points" in found.notes[-1]


def test_without_fusions_the_arms_are_compared():
    ours = make_finalist(0, [0.9] * 5, single=True, arm="fusion", label="hn_adam")
    rival = make_finalist(1, [0.8] * 5, single=True, arm="control", label="adam")
    found = answered(ours, rival, fusions=False)
    assert (found.fusion, found.control) == (0, 1)
    assert "the best searched optimizer (hn_adam) wins over the best control (adam)" in found.sentence


def test_a_single_optimizer_found_by_the_fusion_arm_is_a_control():
    found_there = make_finalist(0, [0.9] * 5, single=True, arm="fusion")
    control = make_finalist(1, [0.8] * 5, single=True)
    fusion = make_finalist(2, [0.7] * 5)
    assert answered(found_there, control, fusion).control == 0


def test_a_finalist_that_lost_a_seed_is_left_out_while_another_has_all():
    lucky = make_finalist(0, [0.95, 0.95, 0.95, 0.95, None])
    whole = make_finalist(1, [0.8] * 5, label="radam|sgd @2")
    control = make_finalist(2, [0.7] * 5, single=True)
    found = answered(lucky, whole, control)
    assert found.fusion == 1
    assert found.notes[:2] == (
        "adam|sgd @3 (trial 0) was left out of the choice: "
        "only 4 of its 5 seeds were measured, others have 5",
        "adam|sgd @3 (trial 0): 1 of 5 runs diverged; what was measured of them is their best epoch before",
    )


def test_where_all_of_a_kind_lost_seeds_those_with_most_are_compared_on_what_is_left():
    most = make_finalist(0, [0.8, None, 0.8, 0.8, 0.8])
    fewer = make_finalist(1, [0.95, None, 0.95, None, 0.95])
    control = make_finalist(2, [0.7] * 5, single=True)
    found = answered(most, fewer, control)
    assert found.fusion == 0
    assert list(found.comparisons[0].differences) == [1, 3, 4, 5]


# --- pairing --------------------------------------------------------------------------------------


def test_differences_are_between_runs_of_the_same_seed():
    fusion, control = make_pair(MIXED)
    order = random.Random(0)
    shuffled = [
        dataclasses.replace(f, runs=tuple(order.sample(f.runs, len(f.runs)))) for f in (fusion, control)
    ]
    assert compare(*shuffled, "test_accuracy") == compare(fusion, control, "test_accuracy")
    assert list(compare(*shuffled, "test_accuracy").differences.values()) == pytest.approx(MIXED)


def test_exchanged_seeds_change_the_pairs():
    fusion, control = make_pair((0.01,) * 5)
    exchanged = make_finalist(0, [0.81, 0.82, 0.80, 0.81, 0.83], seeds=[5, 4, 3, 2, 1])
    assert set(
        map(round, [1e6 * d for d in compare(exchanged, control, "test_accuracy").differences.values()])
    ) != {10_000}
    assert compare(fusion, control, "test_accuracy").low == pytest.approx(0.01)


def test_a_missing_seed_drops_that_pair_alone():
    fusion, control = make_pair(MIXED)
    without = dataclasses.replace(control, runs=control.runs[:2] + control.runs[3:])
    differences = compare(fusion, without, "test_accuracy").differences
    assert list(differences) == [1, 2, 4, 5]
    whole = compare(fusion, control, "test_accuracy").differences
    assert all(differences[seed] == whole[seed] for seed in differences)


def test_two_runs_of_one_seed_are_refused():
    with pytest.raises(ValueError, match="two runs of one seed"):
        make_finalist(0, [0.5, 0.6], seeds=[1, 1])


# --- what is said ---------------------------------------------------------------------------------


def test_a_clear_win():
    found = answered(*make_pair((0.004, 0.002, 0.007, 0.003, 0.005)))
    comparison = found.comparisons[0]
    assert comparison.verdict == "wins"
    assert comparison.mean == pytest.approx(0.0042)
    assert comparison.p_value == comparison.smallest_p == 0.0625
    assert found.sentence.startswith(
        "On the test images the best fusion (adam|sgd @3) wins over the best single optimizer (adam): "
        "test accuracy +0.42 points [+0."
    )
    assert found.sentence.endswith(
        "95 % interval of 5 paired seeds, permutation p = 0.062, the lowest that so few seeds can give."
    )


def test_a_clear_loss_is_a_win_with_the_sides_exchanged():
    found = answered(*make_pair((-0.004, -0.002, -0.007, -0.003, -0.005)))
    assert [c.verdict for c in found.comparisons] == ["loses"] * 3
    assert (
        "(adam|sgd @3) loses to the best single optimizer (adam): test accuracy -0.42 points [-0."
        in found.sentence
    )


def test_an_open_question_says_how_many_seeds_would_tell():
    found = answered(*make_pair(MIXED))
    comparison = found.comparisons[0]
    assert comparison.verdict == "open"
    assert comparison.low < 0 < comparison.high
    assert comparison.seeds_needed > 5
    assert found.sentence.startswith("On the test images no difference can be told between the best fusion")
    assert (
        f"about {comparison.seeds_needed} seeds in all would tell a difference of this size."
        in found.sentence
    )


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ((0.01, -0.0099, 0.01, -0.01, 0.0), "even 1,000 seeds would hardly tell a difference of this size"),
        ((0.0,) * 5, "no number of seeds tells a difference of zero"),
        ((0.01,), "one paired seed and therefore no interval; at least 5 seeds are needed to tell one"),
        (
            (0.01, 0.012, 0.011, 0.013),
            "fewer than 5 seeds decide nothing, and about 5 seeds in all would tell",
        ),
    ],
)
def test_open_questions_with_little_to_go_on(differences, words):
    found = answered(*make_pair(differences))
    assert found.comparisons[0].verdict == "open"
    assert words in found.sentence


def test_one_seed_has_a_difference_and_no_interval():
    comparison = answered(*make_pair((0.01,))).comparisons[0]
    assert (comparison.low, comparison.high, comparison.seeds_needed) == (None, None, None)
    assert comparison.p_value == comparison.smallest_p == 1.0


def test_equal_differences_are_a_point():
    fusion, control = make_finalist(0, [0.75] * 5), make_finalist(1, [0.5] * 5, single=True)
    comparison = compare(fusion, control, "test_accuracy")
    assert comparison.low == comparison.high == comparison.mean == 0.25
    assert comparison.verdict == "wins"


@pytest.mark.parametrize(
    ("finalists", "sentence"),
    [
        (
            [make_finalist(0, [0.8] * 5)],
            "Nothing can be said: no single optimizer was confirmed on the test images.",
        ),
        (
            [make_finalist(0, [0.8], single=True)],
            "Nothing can be said: no fusion was confirmed on the test images.",
        ),
        ([], "Nothing can be said: no fusion and no single optimizer was confirmed on the test images."),
        (
            [make_finalist(0, [None, None]), make_finalist(1, [0.8, 0.8], single=True)],
            "Nothing can be said: no fusion was confirmed on the test images.",
        ),
        (
            [make_finalist(0, [0.8, None]), make_finalist(1, [None, 0.8], single=True)],
            "Nothing can be said of the best fusion (adam|sgd @3) and the best single optimizer (adam): "
            "they share no measured seed.",
        ),
    ],
)
def test_a_missing_side_is_said(finalists, sentence):
    found = answered(*finalists)
    assert found.sentence == sentence
    assert found.comparisons == ()


def test_numbers_in_words():
    fusion, control = make_pair((0.01,) * 5)
    assert difference_text(compare(fusion, control, "test_macro_f1")) == "+0.50 points [+0.50, +0.50]"
    assert difference_text(compare(fusion, control, "test_loss")) == "-0.0100 nats [-0.0100, -0.0100]"
    assert [p_text(p) for p in (0.0625, 0.5, 3e-5)] == ["0.062", "0.5", "< 0.0001"]


# --- one finalist ---------------------------------------------------------------------------------


def test_a_finalist_s_numbers_are_over_the_seeds_that_have_them():
    finalist = make_finalist(0, [0.8, 0.9, None], validations=[0.85, 0.95, 0.2], search_value=0.96)
    assert finalist.n("test_accuracy") == 2
    assert finalist.mean("test_accuracy") == pytest.approx(0.85)
    assert finalist.sd("test_accuracy") == pytest.approx(0.05 * 2**0.5)
    assert finalist.mean("nothing") is None
    assert finalist.optimism("test_accuracy") == pytest.approx(0.11)
    assert finalist.optimism("val_accuracy") == pytest.approx(0.96 - 2.0 / 3)
    assert finalist.optimism("nothing") is None


def test_optimism_of_a_loss_is_positive_where_the_search_promised_too_little_loss():
    assert make_finalist(0, [0.8, 0.9], search_value=0.1).optimism("test_loss") == pytest.approx(0.05)


def test_numbers_that_are_not_finite_are_not_measured():
    run = SeedRun(
        1, "diverged", 3, 2, {"val_loss": float("nan"), "test_loss": float("inf"), "val_accuracy": 0.5}
    )
    assert run.values == {"val_accuracy": 0.5}


def test_the_test_metric_of_a_kind():
    assert [matching_test_metric(m) for m in ("val_accuracy", "val_macro_f1", "val_loss")] == [
        "test_accuracy",
        "test_macro_f1",
        "test_loss",
    ]


# --- the file -------------------------------------------------------------------------------------

ACCURACIES = st.lists(st.none() | st.floats(0, 1), min_size=5, max_size=5)


@settings(deadline=None, max_examples=20)
@given(ACCURACIES, ACCURACIES)
def test_an_answer_survives_its_file(ours, theirs):
    found = answered(make_finalist(0, ours), make_finalist(1, theirs, single=True))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Answer.from_dict(json.loads(text)) == found


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-1000, 1000).map(lambda whole: whole / 10_000), min_size=1, max_size=5))
def test_exchanging_the_sides_negates_everything(differences):
    fusion, control = make_pair(differences)
    there, back = compare(fusion, control, "test_accuracy"), compare(control, fusion, "test_accuracy")
    assert back.mean == pytest.approx(-there.mean)
    assert back.p_value == there.p_value
    assert back.verdict == {"wins": "loses", "loses": "wins", "open": "open"}[there.verdict]
    if there.low is not None:
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-9)
