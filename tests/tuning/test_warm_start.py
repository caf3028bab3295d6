"""What a search that starts with the results of an earlier one knows, runs and refuses."""

import dataclasses
import json

import pytest
from made_spaces import VOCABULARY
from simulated import (
    FINITE,
    SPACE,
    asked_and_told,
    engine_for,
    make_space,
    metrics,
    recorded_run,
    replayed,
    run,
    session_of,
    state,
    troubled,
)

from tune_fusion.errors import InputError
from tune_fusion.events import Chronicle, Inherited, Suggested
from tune_fusion.journal import Journal
from tune_fusion.records import TrialState
from tune_fusion.reporting.results import result
from tune_fusion.runs import RunFolder
from tune_fusion.search import main
from tune_fusion.space.configuration import Configuration
from tune_fusion.tuning.arms import make_arms
from tune_fusion.tuning.kept_files import FileKeeper, best_trials
from tune_fusion.tuning.preflight import Request
from tune_fusion.tuning.warm_start import (
    Conditions,
    Earlier,
    check_alike,
    copy_weights,
    find_earlier,
    inherit,
)

TEACHING = {TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED}
EARLIER = make_space(SPACE, search__trials=36)


def write_search(output, name, events):
    folder = output / name
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    for event in events:
        journal.append(event)
    journal.close()


@pytest.fixture
def output(tmp_path):
    """The folder of all searches, in which ``first`` has had every kind of trouble."""
    write_search(tmp_path / "runs", "first", recorded_run(EARLIER, epoch=troubled))
    return tmp_path / "runs"


@pytest.fixture
def earlier(output):
    return find_earlier(Request(storage=output, warm_start="first"), "made")


def warm(earlier, text=SPACE, **changes):
    """The engine of a new search that knows `earlier`, and all of its events."""
    space = make_space(text, **changes)
    events = [session_of(space)]
    engine = engine_for(space, events[0])
    events += inherit(engine, earlier)
    engine.write = events.append
    engine.begin()
    return engine, events


def earlier_of(space, epoch=troubled):
    """What a search of `space` found."""
    record = Chronicle.replay(recorded_run(space, epoch=epoch)).record
    trials = tuple(t for t in record.trials if t.state in TEACHING or t.infeasible)
    return Earlier("first", (Conditions(space.to_yaml(), record.metric, "d" * 64),), trials, None)


def test_the_trials_that_ended_with_a_result_are_known(earlier, output):
    record = Chronicle.replay(recorded_run(EARLIER, epoch=troubled)).record
    left_out = [t for t in record.trials if t.state not in TEACHING and not t.infeasible]
    assert left_out
    assert len(earlier.trials) == len(record.trials) - len(left_out)
    assert {t.state for t in earlier.trials} == TEACHING | {TrialState.FAILED}
    engine, events = warm(earlier)
    known = engine.record.inherited
    assert [event.event for event in events[1:]] == ["inherited"] * len(earlier.trials)
    assert [t.number for t in known] == [-1 - n for n in range(len(known))]
    for trial, before in zip(known, earlier.trials, strict=True):
        assert (trial.source, trial.source_trial) == ("first", before.number)
        assert trial.title == f"trial {before.number} of first"
        for name in ("arm", "origin", "state", "epochs", "reason", "infeasible", "parameters", "single"):
            assert getattr(trial, name) == getattr(before, name)
        assert trial.switch_layer_name == before.switch_layer_name
    assert engine.record.trials == []
    assert engine.record.counts() == {}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_suggestions_are_those_of_a_study_that_was_told_the_same_by_hand(earlier, sampler):
    engine, _ = warm(earlier, search__sampler=sampler, search__trials=6)
    space = make_space(search__sampler=sampler, search__trials=6)
    for by_hand, arm in zip(make_arms(space), engine.arms, strict=True):
        study = by_hand.study
        for trial in earlier.trials:
            if trial.arm == arm.name:
                parameters = {
                    key: value
                    for event in recorded_run(EARLIER, epoch=troubled)
                    if isinstance(event, Suggested) and event.trial == trial.number
                    for key, value in event.parameters.items()
                }
                configuration = Configuration.from_dict(trial.configuration)
                suggestion = study.repeat(parameters, configuration, trial.origin)
                study.tell(suggestion, trial, engine.record.value(trial), "val_accuracy")
        assert asked_and_told(study) == asked_and_told(arm.study)
        assert len(study.optuna_trials) > 5
        for _ in range(4):
            mine, its = study.ask(), arm.study.ask()
            assert (mine.parameters, mine.origin) == (its.parameters, its.origin)


def test_nothing_is_run_again_and_the_untuned_defaults_are_known(earlier):
    engine, events = warm(earlier, search__trials=20)
    record = run(engine)
    assert len(record.trials) == 20
    keys = [event.key for event in events if isinstance(event, Inherited)]
    own = [event.key for event in events if isinstance(event, Suggested) and event.trial is not None]
    assert len(set(keys + own)) == len(keys) + len(own)
    assert {t.origin for t in record.trials} == {"sampled"}
    assert record.untuned("fusion").source == record.untuned("control").source == "first"


def test_a_grid_runs_exactly_the_points_that_the_earlier_search_has_not():
    half = earlier_of(make_space(FINITE, search__trials=7), epoch=ok)
    engine, _ = warm(half, FINITE)
    record = run(engine, ok)
    whole = run(engine_for(make_space(FINITE), session_of(make_space(FINITE))), ok)
    assert len(record.inherited) == 7
    assert len(record.trials) == len(whole.trials) - 7 == 8
    configurations = [json.dumps(t.configuration, sort_keys=True) for t in record.known]
    assert set(configurations) == {json.dumps(t.configuration, sort_keys=True) for t in whole.trials}
    assert record.notes == []
    # In another order than the grid's: a point in its middle is not taken for its first.
    backwards = dataclasses.replace(half, trials=half.trials[4:])
    again = run(warm(backwards, FINITE)[0], ok)
    assert len(again.inherited) + len(again.trials) == 15


def ok(engine, trial):
    return engine.report(trial.number, metrics(0.5 + trial.number / 100), node="host:1")


def test_a_suggestion_that_is_known_is_a_duplicate_and_is_told_again():
    known = earlier_of(make_space(FINITE, search__sampler="tpe", search__trials=30), epoch=ok)
    engine, events = warm(known, FINITE, search__sampler="random", search__trials=5)
    record = run(engine, ok)
    duplicates = [event for event in events if isinstance(event, Suggested) and event.trial is None]
    assert len(duplicates) == record.duplicates > 0
    of_earlier = [event for event in duplicates if event.duplicate_of < 0]
    assert of_earlier
    told = engine.arms[0].study.optuna_trials
    for position, event in enumerate(e for e in events if isinstance(e, Suggested | Inherited)):
        if event in of_earlier:
            assert told[position].value == record.value(record.trial(event.duplicate_of))


def test_the_best_may_be_an_earlier_trial():
    known = earlier_of(EARLIER)
    engine, _ = warm(known, search__trials=6)
    record = run(engine, lambda engine, trial: engine.report(trial.number, metrics(0.01), node="host:1"))
    assert len(record.trials) == 6
    best = record.best()
    assert (best.source, best.number < 0) == ("first", True)
    assert record.value(best) == max(
        t.epochs[-1]["val_accuracy"] for t in known.trials if t.state == "completed"
    )
    assert record.trial(best.number) is best
    content = result(record, "completed", {})
    assert content["best"]["source"] == {"search": "first", "trial": best.source_trial}
    assert (content["trials"], content["inherited"]) == (6, len(known.trials))
    assert content["epochs"] == sum(len(t.epochs) for t in record.trials)


def test_an_own_trial_that_is_better_is_the_best():
    engine, _ = warm(earlier_of(EARLIER), search__trials=3)
    record = run(engine, lambda engine, trial: engine.report(trial.number, metrics(0.99), node="host:1"))
    assert (record.best().number, record.best().source) == (0, "")


def test_earlier_trials_count_at_no_rung_and_in_no_share():
    engine, _ = warm(earlier_of(EARLIER))
    assert [(a.started, a.running, a.epochs, a.scheduler.values) for a in engine.arms] == [
        (a.started, a.running, a.epochs, a.scheduler.values) for a in make_arms(make_space())
    ]


def test_the_journal_alone_brings_the_engine_back(earlier, output, tmp_path):
    engine, events = warm(earlier, search__trials=6)
    run(engine, troubled)
    (output / "first" / "journal.jsonl").unlink()
    assert state(replayed(events, make_space(search__trials=6))) == state(engine)


@pytest.mark.parametrize("change", [{"key": "0" * 16}, {"parameters": {}}, {"arm": "control"}])
def test_an_event_that_means_something_else_now_is_refused(earlier, change):
    _, events = warm(earlier)
    event = next(e for e in events if isinstance(e, Inherited) and e.arm == "fusion").model_copy(
        update=change
    )
    with pytest.raises(ValueError, match=r"means something else|does not allow"):
        replayed([events[0], event], make_space())


def test_what_a_changed_space_does_not_contain_stays_known_but_teaches_nothing(earlier):
    engine, events = warm(earlier)
    narrow = make_space(space__optimizers="{adam: {lr: {log: [0.5, 0.6]}}, sgd: {lr: {log: [1e-4, 1e-0]}}}")
    again = replayed(events, narrow, strict=False)
    assert [t.source_trial for t in again.record.inherited] == [t.number for t in earlier.trials]
    assert len(again.arms[0].study.optuna_trials) < len(engine.arms[0].study.optuna_trials)
    # The changed space's own untuned default is tried.
    assert again.suggest().origin == "default"
    assert again.record.best().source == "first"


def test_the_earlier_search_of_an_earlier_search_is_still_named(earlier, output):
    engine, events = warm(earlier, search__trials=6)
    run(engine)
    write_search(output, "second", events)
    third, _ = warm(find_earlier(Request(storage=output, warm_start="second"), "made"))
    assert {t.source for t in third.record.inherited} == {"first", "second"}
    sources = [(t.source, t.source_trial) for t in third.record.inherited]
    assert sources == [("first", t.number) for t in earlier.trials] + [
        ("second", t.number) for t in engine.record.trials
    ]


def test_the_weights_of_the_best_come_along_and_go_when_they_are_beaten(earlier, output):
    source, folder = RunFolder(output / "first"), RunFolder(output / "new")
    folder.path.mkdir()
    for trial in earlier.trials[:6]:
        source.weights(trial.number).parent.mkdir(exist_ok=True)
        source.weights(trial.number).write_text(f"weights of {trial.number}")
    engine, _ = warm(earlier, search__trials=3)
    copy_weights(engine, earlier, folder)
    copied = [t for t in engine.record.inherited if folder.weights(t.number).exists()]
    assert [t.source_trial for t in copied] == [t.number for t in earlier.trials[:6]]
    assert all(folder.weights(t.number).read_text() == f"weights of {t.source_trial}" for t in copied)
    keeper = FileKeeper(engine.record, folder, best_trials)
    keeper.tidy()
    wanted = {t.number for t in copied} & best_trials(engine.record)
    assert {t.number for t in copied if folder.weights(t.number).exists()} == wanted
    engine.listeners = [keeper]
    run(engine, lambda engine, trial: engine.report(trial.number, metrics(0.99), node="host:1"))
    left = {t.number for t in copied if folder.weights(t.number).exists()}
    assert left == {t.number for t in copied} & best_trials(engine.record)


@pytest.mark.parametrize(
    ("changes", "data", "difference"),
    [
        ({"training__epochs": 5}, "d", ["-training.epochs: 9", "+training.epochs: 5"]),
        ({"training__batch_size": "{choice: [32, 64]}"}, "d", ["+training.batch_size: {choice: [32, 64]}"]),
        ({"model__name": "alexnet"}, "d", ["-model.name: 'lenet5'", "+model.name: 'alexnet'"]),
        ({"data__limit": 300}, "d", ["-data.limit: null", "+data.limit: 300"]),
        ({"search__metric": "val_loss"}, "d", ["-search.metric: val_accuracy", "+search.metric: val_loss"]),
        ({}, "e", ["-data fingerprint: dddddddddddddddd", "+data fingerprint: eeeeeeeeeeeeeeee"]),
    ],
)
def test_results_that_mean_something_else_are_refused_with_the_difference(earlier, changes, data, difference):
    with pytest.raises(InputError) as refusal:
        check_alike(earlier, make_space(**changes), data * 64, VOCABULARY)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert lines[0] == ("--warm-start first: its results are of another model, data, training or metric:")
    assert [line for line in lines if line[0] in "+-" and line[1] not in "+-"][
        -len(difference) :
    ] == difference


def test_another_way_to_search_the_same_is_no_difference(earlier):
    changes = {"search__trials": 3, "search__sampler": "random", "asha__grace_epochs": 2, "resources__cpu": 2}
    # Where the images lie is no difference, either.
    check_alike(earlier, make_space(**changes, data__root="/elsewhere"), "d" * 64, VOCABULARY)
    wider = "{adam: {lr: {log: [1e-6, 1]}}, sgd: {lr: {log: [1e-4, 1e-0]}}}"
    engine, _ = warm(earlier, space__optimizers=wider, space__switch_layer="[0, 1, 2, 3]")
    assert len(engine.record.inherited) == len(earlier.trials)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"space__switch_layer": "[0, 2]"}, "switch_layer: [13] is not among"),
        ({"space__high": "[sgd]"}, "high.optimizer: 'adam' would be 'sgd'"),
        ({"space__controls": "[]"}, "the space has no control arm"),
        (
            {"space__optimizers": "{adam: {lr: {log: [0.5, 0.6]}}, sgd: {lr: {log: [1e-4, 1e-0]}}}"},
            r"low.adam.lr: 0.\d+ is not in \[0.5, 0.6\]",
        ),
        (
            {"space__optimizers": "{adam: {lr: 0.5}, sgd: {lr: {log: [1e-4, 1e-0]}}}"},
            r"low.lr: 0.\d+ would be 0.5",
        ),
    ],
)
def test_a_space_that_does_not_contain_the_trials_is_refused(earlier, changes, reason):
    space = make_space(**changes)
    with pytest.raises(InputError, match=rf"(?s)--warm-start first: this space does not contain .*{reason}"):
        inherit(engine_for(space, session_of(space)), earlier)


def test_what_was_open_may_be_fixed_where_the_value_is_the_same():
    text = SPACE.replace("adam: {lr: {log: [1e-5, 1e-1]}}", "adam: {lr: {choice: [1e-3, 1e-2]}}")
    known = earlier_of(make_space(text, search__trials=12))
    kept = [
        t
        for t in known.trials
        if all(
            s.get("lr") == 1e-3
            for s in (t.configuration["low"], t.configuration["high"] or {})
            if s.get("optimizer") == "adam"
        )
    ]
    assert 0 < len(kept) < len(known.trials)
    engine, _ = warm(
        dataclasses.replace(known, trials=tuple(kept)), text.replace("{choice: [1e-3, 1e-2]}", "1e-3")
    )
    assert len(engine.record.inherited) == len(kept)


def test_where_nothing_is_found_or_nothing_has_ended(output, tmp_path):
    store = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(InputError, match=r"there is neither a search in .*runs .* nor, in sqlite.*none.db"):
        find_earlier(Request(storage=output, tracking_uri=store, warm_start="other"), "made")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(InputError, match=r"--warm-start '../x': a name starts with"):
        find_earlier(Request(storage=output, warm_start="../x"), "made")
    write_search(output, "empty", [session_of(EARLIER)])
    with pytest.raises(InputError, match="--warm-start empty: has no trial that has ended with a result"):
        find_earlier(Request(storage=output, warm_start="empty"), "made")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "second"], "--warm-start does not go with --resume"),
        (["--space", "digits", "--dry-run"], "--warm-start does not go with --dry-run"),
    ],
)
def test_options_that_do_not_go_with_it(words, message):
    with pytest.raises(InputError, match=message):
        main([*words, "--warm-start", "first"])
