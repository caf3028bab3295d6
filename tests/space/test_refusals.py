import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.errors import InputError
from tune_fusion.space.loading import parse_space


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serach.trials=3", "--set serach.trials: unknown key 'serach'; did you mean 'search'?"),
        ("search.trial=3", "--set search.trial: unknown key 'trial'; did you mean 'trials'?"),
        ("training.epoch=3", "--set training.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("space.lwo=adam", "--set space.lwo: unknown key 'lwo'; did you mean 'low'?"),
        ("search.trials=0", "--set search.trials: needs a whole number >= 1, got 0"),
        ("search.trials=many", "--set search.trials: needs a whole number >= 1, got 'many'"),
        ("search.trials=2.5", "--set search.trials: needs a whole number >= 1, got 2.5"),
        ("search.trials=true", "--set search.trials: needs a whole number >= 1, got true"),
        (
            "search.metric=val_acc",
            "--set search.metric: needs one of val_accuracy, val_macro_f1, val_loss, got 'val_acc'; "
            "did you mean 'val_accuracy'?",
        ),
        ("search.sampler=foo", "--set search.sampler: needs one of tpe, random, grid, got 'foo'"),
        ("search.seed=-1", "--set search.seed: needs a whole number >= 0 and < 4294967296, got -1"),
        (
            "training.schedule={choice: [cosine, constnt]}",
            "--set training.schedule: needs one of constant, cosine, step, got 'constnt' "
            "in {choice: ['cosine', 'constnt']}; did you mean 'constant'?",
        ),
        (
            "search.scheduler=3",
            "--set search.scheduler: needs one of asha, promotion, hyperband, curves, none, got 3",
        ),
        ("data.name=digit", "--set data.name: unknown data set 'digit'; did you mean 'digits'?"),
        ("data.name='folder:'", "--set data.name: folder: needs a path behind it, such as folder:my/images"),
        ("data.name=3", "--set data.name: needs text, got 3"),
        (
            "data.validation=1.5",
            "--set data.validation: needs a number > 0 and < 1 or a whole number >= 1, got 1.5",
        ),
        ("data.validation=.nan", "--set data.validation: numbers must be finite, got .nan"),
        ("data.on_corrupt=ignore", "--set data.on_corrupt: needs one of fail, skip, got 'ignore'"),
        ("data.mean=[.inf]", "--set data.mean: numbers must be finite, got [.inf]"),
        ("data.mean=[a]", "--set data.mean: needs a list of numbers or null, got ['a']"),
        ("resources.gpu=.inf", "--set resources.gpu: numbers must be finite, got .inf"),
        ("asha.reduction_factor=1", "--set asha.reduction_factor: needs a whole number >= 2, got 1"),
        ("training.epochs=0", "--set training.epochs: needs a whole number >= 1, got 0"),
        (
            "training.epochs={int: [0, 5]}",
            "--set training.epochs: needs a whole number >= 1, got 0 in {int: [0, 5]}",
        ),
        (
            "training.batch_size={log: [16, 64]}",
            "--set training.batch_size: needs a whole number >= 1, got 16.0 in {log: [16.0, 64.0]}",
        ),
        ("training.weight_decay=.inf", "--set training.weight_decay: numbers must be finite, got .inf"),
        ("training.weight_decay=-1", "--set training.weight_decay: needs a number >= 0 or null, got -1"),
        ("training.compile=1", "--set training.compile: needs true or false, got 1"),
        ("training.epochs.x=3", "--set training.epochs.x: training.epochs is 4, not a section"),
        ("training=5", "--set training: needs a section (KEY: VALUE), got 5"),
        ("model=null", "--set model: the section 'model' is missing"),
        ("space=null", "--set space: the section 'space' is missing"),
        ("space.low=[adan]", "--set space.low: space.low[0]: unknown optimizer 'adan'; did you mean 'adam'?"),
        ("space.low=adan", "--set space.low: unknown optimizer 'adan'; did you mean 'adam'?"),
        ("space.low=[]", "--set space.low: needs at least one optimizer, got []"),
        ("space.low=null", "--set space.low: is missing; give the optimizers of the low-level layers"),
        ("space.low=[3]", "--set space.low: space.low[0]: needs the name of an optimizer, got 3"),
        ("space.high=[sgd,sgd]", "--set space.high: space.high[1]: 'sgd' stands twice in ['sgd', 'sgd']"),
        ("space.high=null", "--set space.high: is missing; give the optimizers of the high-level layers"),
        (
            "space.switch_layer=all",
            "test.yaml:9: space.high: must be absent (null): switch_layer is all, so one "
            "optimizer trains every layer",
        ),
        (
            "space.switch_layer=null",
            "--set space.switch_layer: is missing; give a layer's index or name, a list, {int: "
            "[0, 6]} or all",
        ),
        (
            "space.switch_layer=-1",
            "--set space.switch_layer: needs layer indices from 0, layer names or all, got -1",
        ),
        (
            "space.switch_layer={float: [0, 2]}",
            "--set space.switch_layer: needs layer indices from 0, layer names or all, got {float: [0, 2]}",
        ),
        (
            "space.switch_layer=[0, 1.5]",
            "--set space.switch_layer: needs layer indices from 0, layer names or all, got [0, 1.5]",
        ),
        (
            "space.switch_layer=[0, 0]",
            "--set space.switch_layer: the choices must differ, 0 stands twice in [0, 0]",
        ),
        (
            "space.switch_layer=[]",
            "--set space.switch_layer: a choice needs a list of at least one value, got []",
        ),
        ("space.optimizers=3", "--set space.optimizers: needs a section (NAME: {...}), got 3"),
        (
            "space.optimizers.sgd=3",
            "--set space.optimizers.sgd: needs hyperparameters ({lr: ...}), got 3",
        ),
        (
            "space.optimizers.sgdd.lr=3",
            "--set space.optimizers.sgdd.lr: unknown optimizer 'sgdd'; did you mean 'sgd'?",
        ),
        (
            "space.optimizers.plain.lr=3",
            "--set space.optimizers.plain.lr: is named in none of low, high and controls; add it "
            "there or take it out",
        ),
        (
            "space.optimizers.sgd.momentun=0.9",
            "--set space.optimizers.sgd.momentun: sgd has no hyperparameter 'momentun'; did you "
            "mean 'momentum'?",
        ),
        (
            "space.optimizers.sgd.lr={log: [0.1, 0.001]}",
            "--set space.optimizers.sgd.lr: log range needs 0 < low < high, got [0.1, 0.001]",
        ),
        ("space.optimizers.sgd.lr=0", "--set space.optimizers.sgd.lr: needs 0 < lr, got 0"),
        (
            "space.optimizers.sgd.momentum={choice: [0.9, 1]}",
            "--set space.optimizers.sgd.momentum: needs 0 <= momentum < 1, got 1 in {choice: [0.9, 1]}",
        ),
        (
            "space.optimizers.hn_adam.lambda0={float: [2, 5]}",
            "--set space.optimizers.hn_adam.lambda0: needs 2 <= lambda0 <= 4, got 5.0 in {float: [2.0, 5.0]}",
        ),
        (
            "space.optimizers.adam.betas=[0.9, 1]",
            "--set space.optimizers.adam.betas: needs two numbers in [0, 1), got [0.9, 1.0]",
        ),
        ("nonsense", "--set nonsense: needs KEY=VALUE, such as search.trials=20"),
        ("=3", "--set =3: needs KEY=VALUE, such as search.trials=20"),
        ("a..b=3", "--set a..b=3: needs KEY=VALUE, such as search.trials=20"),
        (
            "search.seed=[1",
            "--set search.seed: the value cannot be read: expected ',' or ']', but got '<stream end>'",
        ),
        (
            "search.seed=&a 3",
            "--set search.seed: the value cannot be read: a space file has no anchors and aliases (& and *)",
        ),
    ],
)
def test_bad_overrides_are_named_with_rule_and_value(refuse, override, message):
    assert refuse(override) == message


# --- bad files

REST = "data: {name: digits}\nspace: {switch_layer: 0, low: adam, high: sgd}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "test.yaml: a space file has sections (model:, data:, space:), got null"),
        ("- 1\n- 2\n", "test.yaml: a space file has sections (model:, data:, space:), got [1, 2]"),
        ("hello", "test.yaml: a space file has sections (model:, data:, space:), got 'hello'"),
        (
            "model: {name: [a\n",
            "test.yaml:2: cannot be read: expected ',' or ']', but got '<stream end>' "
            "(while parsing a flow sequence that starts in line 1)",
        ),
        (
            "model: {name: a}\nmodel: {name: b}\n",
            "test.yaml:2: cannot be read: found duplicate key \"model\" with value \"{'name': 'b'}\" "
            "(original value: \"{'name': 'a'}\")",
        ),
        (
            "model: {name: a, name: b}\n",
            'test.yaml:1: cannot be read: found duplicate key "name" with value "b"',
        ),
        (
            "model: !!python/object/apply:os.system [ls]\n",
            "test.yaml:1: cannot be read: a space file has no tags "
            "(tag:yaml.org,2002:python/object/apply:os.system)",
        ),
        ("a: 1\nmodel: !env HOME\n", "test.yaml:2: cannot be read: a space file has no tags (!env)"),
        (
            "a: &x 1\nb: *x\n",
            "test.yaml:1: cannot be read: a space file has no anchors and aliases (& and *)",
        ),
        ("model:\n  <<: {name: a}\n", "test.yaml:2: cannot be read: a space file has no merge keys (<<)"),
        ("a: " + "[" * 3000, "test.yaml:1: cannot be read: nested more than 20 deep"),
        ("a: 1\n---\nb: 2\n", "test.yaml:2: cannot be read: but found another document"),
        ("a: \x00", "test.yaml: cannot be read: unacceptable character"),
        ("model: {}\n" + REST, "test.yaml:1: model: the section 'model' is missing"),
        ("model: {weights: w}\n" + REST, "test.yaml:1: model.name: is missing; it needs text"),
        ("model: lenet5\n" + REST, "test.yaml:1: model: needs a section (KEY: VALUE), got 'lenet5'"),
        ("model: {name: 2024-01-31x}\n7: x\n" + REST, "test.yaml:2: 7: unknown key '7'; known: model, data"),
        (
            "model: {name: 2024-01-31}\ndata: {name: 2024-01-31}\n" + REST.partition("\n")[2],
            "test.yaml:2: data.name: unknown data set '2024-01-31'; known: digits, mnist, "
            "cifar10, folder:PATH",
        ),
    ],
)
def test_bad_files_are_refused_with_their_line(refuse, text, message):
    assert refuse(text=text).startswith(message)


def test_every_mistake_is_reported_in_the_files_order(refuse):
    text = (
        "model: {name: lenet5}\ndata: {name: digits}\nspace:\n  switch_layer: 0\n  low:\n    "
        "- adam\n    - adan\n"
        "  high: sgd\n  optimizers:\n    sgd: {lr: {log: [0.1, 0.001]}}\ntraining: {epochs: 0}\n"
    )
    assert refuse("serach.trials=1", text=text).splitlines() == [
        "--set serach.trials: unknown key 'serach'; did you mean 'search'?",
        "test.yaml:7: space.low[1]: unknown optimizer 'adan'; did you mean 'adam'?",
        "test.yaml:10: space.optimizers.sgd.lr: log range needs 0 < low < high, got [0.1, 0.001]",
        "test.yaml:11: training.epochs: needs a whole number >= 1, got 0",
    ]


def test_at_most_ten_mistakes_are_listed(refuse):
    keys = "".join(f"key{index}: 1\n" for index in range(13))
    lines = refuse(text="model: {name: a}\n" + REST + keys).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 3 more"


def test_entries_that_no_list_names_are_mistakes(refuse, file):
    text = file.replace("  controls: [adam, hn_adam]", "  controls: [adam, sgd]").replace(
        "  optimizers:", "  optimizers:\n    hn_adam: {lr: 1e-3}"
    )
    assert refuse(text=text) == (
        "test.yaml:12: space.optimizers.hn_adam: is named in none of low, high and controls; "
        "add it there or take it out"
    )


def test_grid_refuses_every_continuous_range_that_would_be_drawn(refuse, parse):
    message = refuse("search.sampler=grid", "training.label_smoothing={float: [0, 0.1]}")
    assert [line.partition(": grid")[0] for line in message.splitlines()] == [
        "--set training.label_smoothing",
        "test.yaml:11: space.optimizers.hn_adam.lr",
        "test.yaml:11: space.optimizers.hn_adam.lambda0",
        "test.yaml:12: space.optimizers.sgd.lr",
        "test.yaml:13: space.optimizers.adam.lr",
    ]
    assert message.splitlines()[3].endswith(
        "grid needs finite choices, got {log: [0.001, 0.1]}; give {choice: [...]} or use the sampler tpe"
    )
    finite = parse(
        "search.sampler=grid",
        "space.optimizers={adam: {lr: 1e-3}, sgd: {lr: {choice: [0.1, 0.01]}}}",
        "space.controls=adam",
    )
    assert finite.search.sampler == "grid"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_never_crash(data, file, vocabulary):
    """Whatever happens to the text, the outcome is a space or one InputError."""
    start = data.draw(st.integers(0, len(file)))
    length = data.draw(st.integers(0, 12))
    inserted = data.draw(st.text("{}[]:,&*!<>|-#'\"\t\n 019aeλ.~%@`?", max_size=4))
    text = file[:start] + inserted + file[start + length :]
    with contextlib.suppress(InputError):
        parse_space(text, "test.yaml", vocabulary)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(["space.low", "space.optimizers.sgd", "training.epochs", "data.validation", "model"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["adam", "all", "x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["log", "int", "choice", "name", "lr"]), inner, max_size=2)
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_read_or_refused_never_crashes(parse, key, value):
    text = repr(value).replace("None", "null").replace("True", "true").replace("False", "false")
    text = text.replace("nan", ".nan").replace("inf", ".inf").replace("'", "")
    with contextlib.suppress(InputError):
        parse(f"{key}={text}")
