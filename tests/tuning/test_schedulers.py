"""The schedulers beside `Asha` and `Promotion`, and when a search stops itself."""

from collections import Counter

import pytest
from simulated import make_engine, make_space, metrics, run

from tune_fusion.records import TrialState
from tune_fusion.space.settings import AshaSettings
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.asha import Asha
from tune_fusion.tuning.curves import Curves
from tune_fusion.tuning.hyperband import Hyperband
from tune_fusion.tuning.promotion import Promotion

SETTINGS = AshaSettings(grace_epochs=1, reduction_factor=3)


@pytest.mark.parametrize(
    ("name", "kind"), [("asha", Asha), ("none", Asha), ("promotion", Promotion), ("curves", Curves)]
)
def test_the_space_names_the_scheduler(name, kind):
    arms = make_arms(make_space(search__scheduler=name))
    assert {type(arm.scheduler) for arm in arms} == {kind}


def test_rungs_compare_by_the_loss_where_the_space_says_so():
    engine = make_engine(search__control_share=0, search__defaults="none", asha__compare="val_loss")
    first, second = engine.suggest(), None
    assert engine.report(first.number, {"val_accuracy": 0.5, "val_loss": 1.0})
    engine.set_aside(first.number)
    engine.slots = lambda: 2
    engine.suggest()
    second = engine.suggest()
    # More accurate, but the loss is larger.
    assert not engine.report(second.number, {"val_accuracy": 0.9, "val_loss": 1.1})
    assert engine.record.best().number == second.number


def test_hyperband_deals_trials_to_brackets_that_begin_later_and_later():
    rule = Hyperband(SETTINGS, 10, "max")
    first = Counter(
        next(epoch for epoch in range(1, 10) if rule.judge(trial, epoch, 0.5) is not None)
        for trial in range(300)
    )
    assert set(first) == {1, 3, 9}
    assert first[1] > first[3] > first[9] > 0
    # Trials of one bracket are compared with each other alone.
    early = [trial for trial in range(20) if rule.judge(trial, 1, 0.5) is not None]
    late = next(trial for trial in range(20) if trial not in early)
    for trial in early[:3]:
        rule.tell(trial, 1, 0.9)
    assert rule.judge(early[3], 1, 0.5).seen == 4
    assert rule.judge(late, 1, 0.5) is None
    assert rule.values[1] == dict.fromkeys(early[:3], 0.9)


def test_curves_end_what_nothing_seen_so_far_would_bring_to_the_best():
    rule = Curves(SETTINGS, 4, "max")
    for trial in range(3):
        for epoch, value in enumerate([0.5, 0.6, 0.65 + 0.01 * trial], 1):
            rule.tell(trial, epoch, value)
    # From epoch 1 on others gained 0.15 to 0.17, and the best has 0.67.
    assert rule.judge(3, 1, 0.52).goes_on
    assert not rule.judge(3, 1, 0.45).goes_on
    assert rule.judge(3, 1, 0.45).cutoff == pytest.approx(0.67 - 0.16 - 0.01)


def test_curves_judge_nothing_before_three_trials_have_shown_how_it_goes_on():
    rule = Curves(SETTINGS, 4, "min")
    for trial in range(2):
        for epoch, value in enumerate([1.0, 0.5, 0.2], 1):
            rule.tell(trial, epoch, value)
    assert rule.judge(2, 1, 9.0).goes_on


def test_a_search_stops_itself_when_half_of_it_has_brought_nothing():
    engine = make_engine(search__stop="auto", search__trials=1000, training__epochs=3)
    record = run(engine)
    assert len(record.trials) < 1000
    for arm in engine.arms:
        assert arm.epochs - arm.improved >= max(9, arm.improved)
    (note,) = (note for note in record.notes if "search.stop" in note)
    assert note.startswith(
        f"search.stop: auto started nothing new after trial {len(record.trials) - 1}: epochs"
    )
    assert all(trial.state is not TrialState.RUNNING for trial in record.trials)


def test_a_search_that_is_not_to_stop_itself_runs_every_trial():
    engine = make_engine(search__trials=30, training__epochs=3)
    while (trial := engine.suggest()) is not None:
        engine.report(trial.number, metrics(0.5))
        while engine.is_open(trial.number):
            engine.report(trial.number, metrics(0.5))
    assert len(engine.record.trials) == 30
