"""Which space a search goes on with, and whether it is still the same search."""

import re

import pytest
from made_records import make_session
from made_spaces import VOCABULARY
from simulated import LAYERS, SPACE, engine_for, make_space, recorded_run, session_of

from tune_fusion.errors import InputError
from tune_fusion.events import Chronicle, Closed, EpochEnded, Noted, SpaceAsRun
from tune_fusion.journal import Lines
from tune_fusion.runs import Past, RunFolder
from tune_fusion.space.loading import load_space
from tune_fusion.tuning.resume import SpaceSource, check_same_search, replay, resumed_source

OVERRIDES = ("training.batch_size=64", "search.trials=12")
EDIT = ("epochs: 9", "epochs: 5")


def past_of(folder, *events):
    return Past(RunFolder(folder), Lines(list(events), 0), Chronicle.replay(events))


@pytest.fixture
def origin(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"# Mine\n{SPACE}")
    return path


@pytest.fixture
def past(tmp_path, origin):
    """A search that was started with the file `origin` and two settings on top of it."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    space = load_space(origin, VOCABULARY, OVERRIDES)
    as_run = SpaceSource(str(origin), OVERRIDES, rehearse=False).recorded(space.name, space.to_yaml())
    (folder / "space.yaml").write_text(as_run.text)
    return past_of(folder, make_session(space=as_run, planned_trials=12))


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def space_of(source):
    return load_space(source.name_or_path, VOCABULARY, source.overrides).with_switch(LAYERS)


def session_from(source, name="mine", **changes):
    space = load_space(source.name_or_path, VOCABULARY, source.overrides)
    as_run = source.recorded(name, space.to_yaml())
    return make_session(**({"space": as_run, "planned_trials": space.search.trials} | changes))


def test_what_the_journal_keeps_of_a_space(origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = SpaceSource("mine.yaml", OVERRIDES, rehearse=True)
    # A name with a slash or an ending is a path; the journal has it whole.
    assert kept.recorded("mine", "text") == SpaceAsRun(
        name="mine", text="text", origin=str(origin), overrides=OVERRIDES, rehearse=True
    )
    shipped = SpaceSource("digits", (), rehearse=False).recorded("digits", "text")
    assert shipped.origin.endswith("search_spaces/digits.yaml")


def test_an_unchanged_search_goes_on_with_the_file_as_run(past):
    source = resumed_source(past, None, ())
    assert source == SpaceSource(str(past.folder.space), (), rehearse=False, as_run=past.session.space)
    session = session_from(source)
    assert session.space == past.session.space
    assert check_same_search(past, session, option="--resume first", force=False) == []


@pytest.mark.parametrize("which", ["origin", "as run"])
def test_comments_and_the_number_of_trials_are_no_change(past, origin, which):
    path = origin if which == "origin" else past.folder.space
    edit(path, "# Mine", "# Mine, and this is why:\n# because")
    edit(path, "trials: ", "trials: 1")
    source = resumed_source(past, None, ())
    assert source.as_run == past.session.space
    if which == "origin":
        assert check_same_search(past, session_from(source), option="--resume first", force=False) == []


def test_an_edited_file_as_run_is_the_space(past):
    edit(past.folder.space, *EDIT)
    source = resumed_source(past, None, ("search.seed=3",))
    assert source == SpaceSource(str(past.folder.space), ("search.seed=3",), rehearse=False)
    space = space_of(source)
    assert (space.training["epochs"].value, space.training["batch_size"].value) == (5, 64)
    session = session_from(source)
    assert session.space.origin == str(past.folder.space)
    with pytest.raises(InputError):
        check_same_search(past, session, option="--resume first", force=False)


def test_an_edited_origin_is_the_space_with_what_was_set_on_top(past, origin):
    edit(origin, *EDIT)
    source = resumed_source(past, None, ("search.seed=3",))
    assert source == SpaceSource(str(origin), (*OVERRIDES, "search.seed=3"), rehearse=False)
    space = space_of(source)
    assert (space.training["epochs"].value, space.training["batch_size"].value) == (5, 64)
    assert session_from(source).space.overrides == (*OVERRIDES, "search.seed=3")


def test_an_edit_of_what_was_set_on_top_anyway_changes_nothing(past, origin):
    edit(origin, "epochs: 9", "epochs: 9, batch_size: 16")
    assert resumed_source(past, None, ()).as_run is not None


def test_of_two_edited_files_the_one_as_run_counts(past, origin):
    edit(origin, *EDIT)
    edit(past.folder.space, "epochs: 9", "epochs: 4")
    assert resumed_source(past, None, ()).name_or_path == str(past.folder.space)


def test_an_origin_that_is_gone_is_not_missed(past, origin):
    origin.unlink()
    source = resumed_source(past, None, ())
    assert check_same_search(past, session_from(source), option="--resume first", force=False) == []


def test_a_file_as_run_that_is_gone_is_written_again(past):
    text = past.folder.space.read_text()
    past.folder.space.unlink()
    source = resumed_source(past, None, ())
    assert source.as_run == past.session.space
    assert past.folder.space.read_text() == text


def test_another_space_may_be_given(past, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(SPACE)
    source = resumed_source(past, str(other), ("search.seed=3",))
    assert source == SpaceSource(str(other), ("search.seed=3",), rehearse=False)
    with pytest.raises(InputError, match="batch_size"):
        check_same_search(past, session_from(source), option="--resume first", force=False)


def test_more_may_be_set_on_top_and_is_kept(past):
    source = resumed_source(past, None, ("search.trials=20",))
    session = session_from(source)
    assert session.space.overrides == (*OVERRIDES, "search.trials=20")
    assert session.space.origin == past.session.space.origin
    assert check_same_search(past, session, option="--resume first", force=False) == []
    changed = session_from(resumed_source(past, None, ("training.epochs=5",)))
    with pytest.raises(InputError, match="epochs: 5"):
        check_same_search(past, changed, option="--resume first", force=False)


def test_what_was_set_on_top_in_a_resumption_lasts(past):
    session = session_from(resumed_source(past, None, ("training.epochs=5",)))
    past.folder.space.write_text(session.space.text)
    later = past_of(past.folder.path, *past.lines.events, session)
    source = resumed_source(later, None, ())
    assert source.as_run == session.space
    assert space_of(source).training["epochs"].value == 5
    assert check_same_search(later, session_from(source), option="--resume first", force=False) == []


def test_a_rehearsal_is_the_small_space_and_has_no_origin_to_follow(tmp_path, origin):
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    small = SPACE.replace("epochs: 9", "epochs: 2")
    (folder / "space.yaml").write_text(small)
    as_run = SpaceAsRun(name="mine", text=small, origin=str(origin), overrides=(), rehearse=True)
    past = past_of(folder, make_session(space=as_run, planned_trials=40))
    source = resumed_source(past, None, ())
    # The file as run is small already: making it small again would change it.
    assert (source.name_or_path, source.rehearse) == (str(folder / "space.yaml"), False)
    assert session_from(source).space == as_run
    assert resumed_source(past, str(origin), ()).rehearse
    edit(folder / "space.yaml", "epochs: 2", "epochs: 3")
    assert not resumed_source(past, None, ()).rehearse


@pytest.mark.parametrize("text", ["search: 3\n", "search: [1]\n", "{}\n"])
def test_a_file_as_run_that_is_nonsense_is_a_changed_one(past, text):
    past.folder.space.write_text(text)
    assert resumed_source(past, None, ()) == SpaceSource(str(past.folder.space), (), rehearse=False)


def test_a_file_as_run_that_is_no_yaml(past):
    past.folder.space.write_text("a: [")
    with pytest.raises(InputError, match=r"space\.yaml:"):
        resumed_source(past, None, ())


def test_what_has_changed_is_shown_and_needs_force(past, origin):
    edit(origin, *EDIT)
    source = resumed_source(past, None, ())
    code = {"tune_fusion": "0.2.0", "torch": "2.11"}
    session = session_from(source, code=code, data="e" * 64)
    with pytest.raises(InputError) as refused:
        check_same_search(past, session, option="--resume first", force=False)
    lines = str(refused.value).splitlines()
    assert lines[0] == "--resume first: not what it was when it was started:"
    assert lines[1:3] == ["  --- space as run", f"  +++ space now ({origin})"]
    assert [line for line in lines if line.startswith(("  -t", "  +t"))] == [
        "  -training: {epochs: 9, batch_size: 64}",
        "  +training: {epochs: 5, batch_size: 64}",
    ]
    assert lines[-3:-1] == ["  torch none -> 2.11", "  tune_fusion 0.1.0 -> 0.2.0"]
    fingerprint = "dddddddddddddddd -> eeeeeeeeeeeeeeee"
    assert lines[-1].startswith(f"  data fingerprint {fingerprint}: other images, classes or split; ")
    assert "--force" in lines[-1]
    changes = check_same_search(past, session, option="--resume first", force=True)
    assert "\n".join(changes).splitlines() == [*lines[1:-1], lines[-1].partition(";")[0]]


def test_each_change_alone_is_noticed(past):
    source = resumed_source(past, None, ())
    for changes in ({"code": {}}, {"data": "e" * 64}):
        assert (
            len(check_same_search(past, session_from(source, **changes), option="--resume first", force=True))
            == 1
        )
    # The commit and the machine are told to people and decide nothing.
    elsewhere = session_from(source, commit="def", host="other", pid=1, tracking="http://x")
    assert check_same_search(past, elsewhere, option="--resume first", force=False) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_search_cannot_be_shortened(past, force):
    session = session_from(resumed_source(past, None, ("search.trials=11",)))
    with pytest.raises(InputError, match=r"^--trials 11: first was planned with 12 trials; .* not shortened"):
        check_same_search(past, session, option="--resume first", force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_search_cannot_change_what_it_looks_for(past, force):
    session = session_from(
        resumed_source(past, None, ("search.metric=val_loss",)), metric="val_loss", direction="min"
    )
    with pytest.raises(InputError, match=r"search\.metric was val_accuracy and is val_loss now"):
        check_same_search(past, session, option="--resume first", force=force)


def test_replaying_names_the_line_at_which_the_search_would_have_gone_otherwise(tmp_path):
    space = make_space(search__trials=8)
    events = recorded_run(space)
    index = next(i for i, e in enumerate(events) if isinstance(e, EpochEnded) and e.rung is not None)
    wrong = events[index].rung.model_copy(update={"kept": 7})
    events[index] = events[index].model_copy(update={"rung": wrong})
    past = past_of(tmp_path / "first", *events)
    with pytest.raises(InputError) as refused:
        replay(engine_for(space, events[0]), past, strict=True)
    message = str(refused.value)
    assert message.startswith(
        f"{tmp_path / 'first' / 'journal.jsonl'}:{index + 1}: the rung decides otherwise"
    )
    assert "--force" in message
    engine = engine_for(space, events[0])
    replay(engine, past, strict=False)
    assert engine.record == past.chronicle.record


def test_a_journal_that_does_not_hang_together_is_refused(tmp_path):
    space = make_space(search__trials=8)
    epoch = EpochEnded(trial=0, epoch=1, metrics={"val_accuracy": 0.5}, diverged=False, node="")
    session = session_of(space)
    past = Past(RunFolder(tmp_path), Lines([session, epoch], 0), Chronicle.begin(session))
    with pytest.raises(InputError, match=re.escape("journal.jsonl:2: ")):
        replay(engine_for(space, session), past, strict=True)


def test_what_was_decided_before_a_change_is_not_held_against_the_changed_space(tmp_path):
    before, after = make_space(search__trials=8), make_space(search__trials=8, asha__reduction_factor=2)
    events = recorded_run(before)
    resumed = session_of(after)
    past = past_of(tmp_path, *events, resumed, Noted(note="x"), Closed(status="interrupted"))
    engine = engine_for(after, events[0])
    replay(engine, past, strict=True)
    assert engine.record == past.chronicle.record
    # The same without the change in between is what it looks like: other decisions.
    with pytest.raises(InputError, match="the rung decides otherwise now"):
        replay(engine_for(after, events[0]), past_of(tmp_path, *events), strict=True)
