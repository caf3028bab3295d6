import pytest
from simulated import SPACE, healthy, make_engine, make_space, metrics, recorded_run, run

from tune_fusion.events import Chronicle, GivenUp, Promoted, RungDecision
from tune_fusion.records import TrialState
from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.promotion import WAITING, Promotion

SETTINGS = AshaSettings(grace_epochs=1, reduction_factor=3)
PAUSING = {"search__scheduler": "promotion", "search__defaults": "none", "training__epochs": 10}


def reach(rule, epoch, values):
    for trial, value in values.items():
        rule.tell(trial, epoch, value)


def test_a_third_of_a_rung_is_promoted_the_best_first():
    rule = Promotion(SETTINGS, 10, "max")
    reach(rule, 1, {0: 0.1, 1: 0.2})
    assert rule.promote([0, 1]) is None
    reach(rule, 1, {2: 0.3, 3: 0.9, 4: 0.5, 5: 0.4})
    assert rule.promote([0, 1, 2, 3, 4, 5]) == 3
    assert rule.promote([0, 1, 2, 4, 5]) == 4
    # Two of six: the third is not promoted, whoever waits.
    assert rule.promote([0, 1, 2, 5]) is None


def test_higher_rungs_come_first_and_one_that_went_on_counts_where_it_was():
    rule = Promotion(SETTINGS, 10, "max")
    reach(rule, 1, dict.fromkeys(range(9), 0.5) | {8: 0.6})
    reach(rule, 3, {0: 0.7, 1: 0.8, 2: 0.75})
    assert rule.promote([0, 1, 2, 8]) == 1
    # Trial 0 waits at the second rung: it is not promoted from the first one again.
    assert rule.promote([0, 2, 8]) == 8
    assert rule.promote([0, 2]) is None


@pytest.mark.parametrize("direction", ["max", "min"])
def test_smaller_losses_are_better_and_ties_go_to_the_earlier(direction):
    rule, sign = Promotion(SETTINGS, 10, direction), 1 if direction == "max" else -1
    reach(rule, 1, {0: sign * 0.5, 1: sign * 0.7, 2: sign * 0.7})
    assert rule.promote([0, 1, 2]) == 1
    assert rule.values == {1: {0: sign * 0.5, 1: sign * 0.7, 2: sign * 0.7}, 3: {}, 9: {}}


def test_a_decision_says_the_trials_place_and_that_it_waits():
    rule = Promotion(SETTINGS, 10, "max")
    reach(rule, 1, dict(enumerate([0.5, 0.4, 0.6, 0.55, 0.7])))
    assert rule.judge(5, 1, 0.65) == RungDecision(seen=6, kept=2, cutoff=0.65, goes_on=False)
    assert rule.judge(5, 2, 0.65) is None


def test_a_search_trains_few_to_the_end_and_none_of_the_others_is_left_open():
    record = run(make_engine(slots=3, **PAUSING))
    assert len(record.trials) == 40
    states = {trial.number: trial.state for trial in record.trials}
    assert set(states.values()) == {TrialState.COMPLETED, TrialState.STOPPED}
    # Of each arm the best was trained to its end, whatever its rungs had room for.
    for arm in ("fusion", "control"):
        assert record.best(arm=arm).state is TrialState.COMPLETED
    assert {len(trial.epochs) for trial in record.trials} <= {1, 3, 9, 10}
    assert 20 <= sum(len(trial.epochs) == 1 for trial in record.trials) <= 30


def test_the_first_trials_do_not_train_on_for_want_of_others():
    engine = make_engine(search__control_share=0, **PAUSING)
    first = engine.suggest()
    assert not engine.report(first.number, metrics(0.5))
    second = engine.suggest()
    assert (first.number, second.number) == (0, 1)
    assert not engine.report(1, metrics(0.6))
    third = engine.suggest()
    assert not engine.report(third.number, metrics(0.4))
    assert engine.suggest().number == 1


def test_a_promoted_trial_goes_on_where_it_stood():
    engine = make_engine(search__control_share=0, **PAUSING)
    for value in (0.5, 0.6, 0.4):
        engine.report(engine.suggest().number, metrics(value))
    trial = engine.suggest()
    assert (trial.number, len(trial.epochs)) == (1, 1)
    assert engine.report(1, metrics(0.65))
    assert not engine.report(1, metrics(0.7))
    assert engine.suggest().number == 3


def test_what_waits_counts_at_the_rung_for_the_study_and_costs_its_arm_nothing():
    engine = make_engine(search__control_share=0, **PAUSING)
    engine.report(engine.suggest().number, metrics(0.5))
    (arm,) = engine.arms
    assert (arm.running, arm.spent) == (0, 1)
    (known,) = arm.study._known()
    assert (known.state.name, known.intermediate_values) == ("PRUNED", {1: 0.5})


def test_defaults_are_judged_or_trained_or_left_out_as_the_space_says():
    def epochs(defaults):
        record = run(make_engine(**{**PAUSING, "search__defaults": defaults}))
        return {len(trial.epochs) for trial in record.trials if trial.origin == "default"}

    assert epochs("trained") == {10}
    assert epochs("none") == set()
    assert 1 in epochs("judged")


def test_promotions_are_events_and_a_trial_that_was_given_up_says_why():
    events = recorded_run(make_space(SPACE, search__trials=12, **PAUSING), slots=2, epoch=healthy)
    promoted = [event for event in events if isinstance(event, Promoted)]
    assert any(event.to_end for event in promoted)
    record = Chronicle.replay(events).record
    for event in events:
        if isinstance(event, GivenUp):
            trial = record.trials[event.trial]
            assert (trial.state, trial.reason) == (
                TrialState.STOPPED,
                f"not promoted beyond rung {len(trial.epochs)}",
            )


def test_no_more_than_a_few_wait_at_a_rung_the_best_of_them():
    rule = Promotion(SETTINGS, 10, "max")
    reach(rule, 1, {trial: trial / 100 for trial in range(20)})
    reach(rule, 3, {18: 0.9, 19: 0.8})
    assert rule.surplus(range(20)) == list(reversed(range(18 - WAITING)))
    engine = make_engine(search__control_share=0, **PAUSING)
    for number in range(40):
        trial = engine.suggest()
        while engine.report(trial.number, metrics(0.5 - number / 1000)):
            pass
        assert sum(engine.is_paused(other.number) for other in engine.record.trials) <= 3 * WAITING
    assert TrialState.STOPPED in {trial.state for trial in engine.record.trials}
