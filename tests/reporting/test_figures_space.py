import math

import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.reporting.figures.importance import (
    coordinates,
    importance,
    importances,
    parallel_coordinates,
)
from tune_fusion.reporting.figures.space import (
    Cell,
    cells,
    heat_map,
    initial_norms,
    is_pair,
    points,
    rates,
)


def pair(number, value, switch, low="adam", high="sgd", state=TrialState.COMPLETED, **more):
    parameters = {
        "switch_layer": switch,
        "low.optimizer": low,
        "low.lr": 1e-3,
        "high.optimizer": high,
        "high.lr": 1e-2,
    } | {key.replace("__", "."): item for key, item in more.items()}
    return make_trial(number, [value], state, parameters=parameters, switch_layer_name=f"conv{switch + 1}")


def test_each_cell_has_the_best_the_median_and_the_count():
    search = make_search(
        pair(0, 0.5, 1),
        pair(1, 0.75, 1),
        pair(2, 0.625, 1, state=TrialState.STOPPED),
        pair(3, 0.875, 3, "sgd", "adam"),
        pair(4, 0.99, 1, state=TrialState.DIVERGED),
        make_single(5, [0.95]),
        make_trial(6, [], TrialState.FAILED),
    )
    assert cells(search) == {
        (1, "adam|sgd"): Cell(0.75, 0.625, 3),
        (3, "sgd|adam"): Cell(0.875, 0.875, 1),
    }


def test_the_best_loss_is_the_lowest():
    trials = [
        make_trial(number, [value], metric="val_loss", switch_layer_name="conv2")
        for number, value in enumerate((0.5, 0.25, 1.0))
    ]
    assert cells(make_search(*trials, metric="val_loss")) == {(1, "adam|sgd"): Cell(0.25, 0.5, 3)}


def test_inherited_trials_are_in_the_map():
    search = make_search(pair(0, 0.5, 1), inherited=[pair(-1, 0.75, 1)])
    assert cells(search) == {(1, "adam|sgd"): Cell(0.75, 0.625, 2)}


def test_the_map_has_a_row_for_every_layer_between_with_its_name():
    drawn = heat_map(make_search(pair(0, 0.5, 1), pair(1, 0.75, 3)), ["a", "b", "c", "d"])
    labels = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()]
    assert labels == ["1 b", "2 c", "3 d"]
    assert drawn.note.startswith("n = 2 trials in 2 cells")
    without_map = heat_map(make_search(pair(0, 0.5, 1)), [])
    assert [label.get_text() for label in without_map.figure.axes[0].get_yticklabels()] == ["1 conv2"]


def test_many_pairs_make_a_wide_map():
    names = ("adam", "sgd", "adamw", "radam", "nadam")
    search = make_search(*(pair(n, 0.5, 1, low, "sgd") for n, low in enumerate(names)))
    drawn = heat_map(search, [])
    assert drawn.wide
    assert drawn.figure.get_figwidth() > 5


def test_points_are_those_of_their_half():
    search = make_search(
        pair(0, 0.5, 1, low__lambda0=2.5, low="hn_adam"),
        pair(1, 0.75, 1, high__lambda0=3.5, high="hn_adam", state=TrialState.STOPPED),
        make_single(2, [0.625]),
    )
    (low,) = points(search, "low", "lambda0", lambda _: True)
    assert (low.x, low.value, low.optimizer, low.arm, low.completed) == (2.5, 0.5, "hn_adam", "fusion", True)
    (high,) = points(search, "high", "lambda0", lambda _: True)
    assert (high.x, high.value, high.completed) == (3.5, 0.75, False)
    singles = points(search, "low", "lr", lambda trial: not is_pair(trial))
    assert [(point.x, point.arm) for point in singles] == [(1e-3, "control")]


def test_a_figure_says_its_n_and_how_many_diverged():
    search = make_search(pair(0, 0.5, 1), pair(1, 0.5, 1), pair(2, 0.5, 1, state=TrialState.DIVERGED))
    assert rates(search, "low").note == (
        "n = 2 trials; hollow: not trained to the end; crosses: 1 trial that diverged."
    )
    assert rates(search, "all").figure is None


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda s: heat_map(s, []), "No trial of two optimizers has finished an epoch."),
        (initial_norms, "No trial with HN_Adam and its own Λ0 has finished an epoch."),
        (lambda s: rates(s, "high"), "No trial with the learning rate of a high half of a pair has finished"),
        (lambda s: importance(s, "fusion"), "Too few trials: n = 0, and PED-ANOVA needs 10."),
        (parallel_coordinates, "It takes two pairs of optimizers that were measured: n = 0."),
    ],
)
def test_without_data_a_figure_says_why(draw, reason):
    drawn = draw(make_search(make_trial(0, [], TrialState.FAILED)))
    assert drawn.figure is None
    assert drawn.note.startswith(reason)


def test_a_search_without_a_switch_layer_says_so():
    drawn = heat_map(make_search(make_single(0, [0.5]), fusions=False), [])
    assert drawn.note == "This search has no switch layer: it compares single optimizers."


def many(count, value):
    return make_search(
        *(
            pair(n, value(n), n % 3, low=("adam", "hn_adam")[n % 2], low__lr=10 ** (-4 + 3 * n / count))
            for n in range(count)
        )
    )


def test_the_parameter_that_decides_is_the_most_important():
    found = importances(many(60, lambda n: 1 - abs(n - 30) / 60), "fusion")
    assert next(iter(found)) == "low.lr"
    assert found["low.lr"] > 0.5
    assert math.isclose(sum(found.values()), 1)
    # What never differed has no importance to speak of.
    assert set(found) == {"low.lr", "low.optimizer", "switch_layer"}


def test_an_optimizer_that_decides_is_the_most_important():
    found = importances(many(60, lambda n: 0.9 + n * 1e-6 if n % 2 else 0.1 + n * 1e-6), "fusion")
    assert next(iter(found)) in ("low.optimizer", "low.lr")
    assert found["low.optimizer"] > found["switch_layer"]


def test_losses_turn_the_ranking_around():
    def of(metric):
        trials = [
            make_trial(
                n,
                [n / 60],
                metric=metric,
                parameters={"switch_layer": n % 2, "low.optimizer": "adam", "low.lr": 1e-4 * 1.1**n},
            )
            for n in range(60)
        ]
        return importances(make_search(*trials, metric=metric), "fusion")

    assert next(iter(of("val_loss"))) == next(iter(of("val_accuracy"))) == "low.lr"


def test_few_or_equal_trials_have_no_importances():
    assert importances(many(9, lambda n: n / 9), "fusion") == {}
    alike = make_search(*(pair(n, n / 12, 1) for n in range(12)))
    assert importance(alike, "fusion").note == "No parameter differed between the n = 12 trials."


def test_coordinates_run_from_0_to_1():
    trials = [
        pair(0, 0.5, 0, low__lr=1e-4),
        pair(1, 0.6, 1, "sgd", low__lr=1e-3),
        pair(2, 1.0, 4, low__lr=1e-2),
    ]
    switch, low, rate, high, _, value = coordinates(make_search(*trials), trials)
    assert (switch.label, switch.places) == ("switch layer", [0.0, 0.25, 1.0])
    assert switch.ticks == [(0.0, "0"), (0.25, "1"), (1.0, "4")]
    assert (low.places, low.ticks) == ([0.0, 1.0, 0.0], [(0.0, "adam"), (1.0, "sgd")])
    assert rate.places == pytest.approx([0.0, 0.5, 1.0])
    assert (high.places, high.ticks) == ([0.5, 0.5, 0.5], [(0.5, "sgd")])
    assert value.places == pytest.approx([0.0, 0.2, 1.0])
