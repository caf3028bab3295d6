import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.records import TrialState
from tune_fusion.reporting.figures import hn_adam
from tune_fusion.reporting.figures.progress import (
    TimeSpent,
    best_by_epochs,
    best_so_far,
    learning_curves,
    state_counts,
    states,
    time,
    time_spent,
)
from tune_fusion.reporting.figures.trust import (
    EarlyChoice,
    RungCorrelation,
    correlations,
    early_choices,
    early_regret,
    rung_correlations,
)


def steps(search, arm=None):
    return [(step.epochs, step.value) for step in best_so_far(search, arm)]


def test_the_best_so_far_follows_the_order_in_which_epochs_ended():
    search = make_search(
        make_trial(0, [0.25, 0.75], times=[10.0, 30.0]),
        make_trial(1, [0.5, 0.625], times=[20.0, 40.0]),
        make_single(2, [0.875], times=[15.0]),
    )
    assert steps(search, "fusion") == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 0.75)]
    assert steps(search, "control") == [(1, 0.875)]
    assert steps(search) == [(1, 0.25), (2, 0.875), (3, 0.875), (4, 0.875), (5, 0.875)]


def test_diverged_trials_spend_epochs_and_give_no_value():
    search = make_search(
        make_trial(0, [0.99], TrialState.DIVERGED, times=[10.0]), make_trial(1, [0.5], times=[20.0])
    )
    assert steps(search) == [(2, 0.5)]


def test_the_best_loss_so_far_falls():
    trials = [make_trial(n, [v], metric="val_loss", times=[n]) for n, v in enumerate((0.5, 0.75, 0.25))]
    assert steps(make_search(*trials, metric="val_loss")) == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_the_figures_of_progress_state_their_n():
    search = make_search(
        make_trial(0, [0.25, 0.75]),
        make_single(1, [0.5], TrialState.STOPPED),
        make_trial(2, [], TrialState.FAILED),
    )
    assert best_by_epochs(search).note == "n = 3 epochs: fusion 2, control 1."
    assert learning_curves(search, (1, 3)).note.startswith(
        "n = 2 trials of 3; ASHA compares after epoch 1, 3."
    )
    assert learning_curves(search, ()).note.startswith("n = 2 trials of 3; no rungs.")
    assert states(search).note == "n = 3 of 8 planned trials."


def test_the_leader_of_the_curves_is_a_trial_of_the_search_itself():
    search = make_search(make_trial(0, [0.5]), inherited=[make_trial(-1, [0.9])])
    drawn = learning_curves(search, ())
    assert [text.get_text() for text in drawn.figure.axes[0].texts] == ["adam|sgd @1"]
    assert len(drawn.figure.axes[0].lines) == 1


def test_states_are_counted_by_arm():
    search = make_search(
        make_trial(0, [0.5]),
        make_trial(1, [0.5], TrialState.STOPPED),
        make_trial(2, [0.5], TrialState.STOPPED),
        make_single(3, [0.5]),
    )
    assert state_counts(search) == {
        "fusion": {TrialState.COMPLETED: 1, TrialState.STOPPED: 2},
        "control": {TrialState.COMPLETED: 1},
    }


def test_the_time_of_all_slots_is_training_evaluation_and_rest():
    search = make_search(
        make_trial(0, [0.5, 0.6], started=1000.0, ended=1010.0),
        make_single(1, [0.5], started=1005.0, ended=1012.0),
        make_trial(2, [0.5], started=1012.0, ended=1015.0),  # takes the slot that is free at that moment
    )
    # 990 to 1020 on two slots; each epoch trains 0.5 s and evaluates 0.25 s.
    assert time_spent(search, 1020.0) == TimeSpent(
        slots=2,
        wall=30.0,
        training={"fusion": 1.5, "control": 0.5},
        evaluation={"fusion": 0.75, "control": 0.25},
        rest=57.0,
    )
    assert time(search, 1020.0).note == "30 s of wall time x 2 slots = 60 s; n = 3 trials."


def test_pauses_are_no_time_of_the_search():
    search = make_search(make_trial(0, [0.5]), paused_seconds=20.0)
    assert time_spent(search, 1020.0).wall == 10.0


@pytest.mark.parametrize(
    "draw",
    [
        best_by_epochs,
        lambda s: learning_curves(s, (1,)),
        lambda s: time(s, 1020.0),
        early_regret,
        lambda s: hn_adam.statistics(s, "mean_lambda", []),
    ],
)
def test_without_an_epoch_a_figure_says_so(draw):
    drawn = draw(make_search(make_trial(0, [], TrialState.FAILED)))
    assert drawn.figure is None
    assert "has finished an epoch" in drawn.note


def finished_search():
    return make_search(
        make_trial(0, [0.1, 0.5, 0.9]),
        make_trial(1, [0.2, 0.4, 0.6]),
        make_trial(2, [0.3, 0.6, 0.7]),
        make_trial(3, [0.4], TrialState.STOPPED),
        make_single(4, [0.5, 0.5, 0.5]),
    )


def test_rungs_are_correlated_with_the_end_by_hand():
    # Ranks at rung 1: 1, 2, 3; at rung 2: 2, 1, 3; in the end 3, 1, 2. rho = 1 - 6 sum(d^2) / (n (n^2 - 1)).
    assert rung_correlations(finished_search(), (1, 2)) == [
        RungCorrelation("fusion", 1, 3, pytest.approx(1 - 6 * 6 / 24)),
        RungCorrelation("fusion", 2, 3, pytest.approx(1 - 6 * 2 / 24)),
        RungCorrelation("control", 1, 1, None),
        RungCorrelation("control", 2, 1, None),
    ]


def test_constant_values_have_no_correlation():
    search = make_search(*(make_trial(n, [0.5, 0.1 * n]) for n in range(4)))
    assert rung_correlations(search, (1,)) == [RungCorrelation("fusion", 1, 4, None)]
    assert "n = 4 finished" in correlations(search, (1,)).note


def test_no_rungs_no_correlation():
    assert correlations(finished_search(), ()).note == "There are no rungs: nothing is stopped early."


def test_what_stopping_early_would_have_chosen():
    assert early_choices(finished_search()) == [
        EarlyChoice(1, 5, 4, 0.5, 0.5, pytest.approx(0.4)),
        EarlyChoice(2, 4, 2, 0.6, 0.7, pytest.approx(0.2)),
        EarlyChoice(3, 4, 0, 0.9, 0.9, 0.0),
    ]


def test_how_a_stopped_choice_would_have_ended_is_unknown():
    search = make_search(make_trial(0, [0.5, 0.6]), make_trial(1, [0.7], TrialState.STOPPED))
    assert early_choices(search) == [
        EarlyChoice(1, 2, 1, 0.7, None, None),
        EarlyChoice(2, 1, 0, 0.6, 0.6, 0.0),
    ]


def test_losses_are_chosen_low():
    trials = [make_trial(0, [0.5, 0.1], metric="val_loss"), make_trial(1, [0.4, 0.3], metric="val_loss")]
    assert early_choices(make_search(*trials, metric="val_loss")) == [
        EarlyChoice(1, 2, 1, 0.4, 0.3, pytest.approx(0.2)),
        EarlyChoice(2, 2, 0, 0.1, 0.1, 0.0),
    ]


def with_norms(number, value, **norms):
    epochs = [{"val_accuracy": value} | {key.replace("__", "."): v for key, v in norms.items()}] * 2
    return make_trial(number, epochs=epochs)


def test_the_best_trial_with_hn_adam_is_shown_layer_by_layer():
    layers = {"layer_00__mean_lambda": 2.5, "layer_10__mean_lambda": 3.5, "low__mean_lambda": 3.0}
    search = make_search(
        with_norms(0, 0.5, **layers), with_norms(1, 0.4, low__mean_lambda=2.0), make_trial(2, [0.9])
    )
    trial = hn_adam.best_trial(search)
    assert trial.number == 0
    assert hn_adam.lines(trial, "mean_lambda", ["stem"]) == [
        ("0 stem", [(1, 2.5), (2, 2.5)]),
        ("layer 10", [(1, 3.5), (2, 3.5)]),
    ]
    assert "n = 2 epochs, 2 lines" in hn_adam.statistics(search, "mean_lambda", ["stem"]).note


def test_without_layers_the_halves_are_shown():
    trial = with_norms(0, 0.5, low__mean_lambda=2.0, high__mean_lambda=3.0)
    assert hn_adam.lines(trial, "mean_lambda", []) == [
        ("low half", [(1, 2.0), (2, 2.0)]),
        ("high half", [(1, 3.0), (2, 3.0)]),
    ]


def test_many_layers_have_a_legend():
    norms = {f"layer_{index:02d}__mean_lambda": 2 + index / 10 for index in range(14)}
    drawn = hn_adam.statistics(make_search(with_norms(0, 0.5, **norms)), "mean_lambda", [])
    assert len(drawn.figure.legends[0].get_texts()) == 14
