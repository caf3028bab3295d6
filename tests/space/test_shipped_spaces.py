"""Every space file that ships, and the package's real words, against the loader."""

from pathlib import Path

import pytest
from optuna.trial import FixedTrial

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.reporting.published_tables import load_table
from tune_fusion.space.effective import effective_key, is_single
from tune_fusion.space.loading import list_spaces, load_space, parse_space, resolve_space
from tune_fusion.space.sampling import default_parameters, draw, grid_parameters
from tune_fusion.space.vocabulary import Vocabulary

WORDS = Vocabulary(OPTIMIZERS, DATA_SETS)
SHIPPED = (
    "digits",
    "effnet",
    "effnet_lite",
    "fashion_cnn",
    "fashion_mnist",
    "folder",
    "hn_adam_cifar10",
    "hn_adam_mnist",
    "mnist",
    "papers/hn_adam_cifar10",
    "papers/hn_adam_mnist",
    "papers/hn_adam_remark1_alexnet",
    "papers/hn_adam_remark1_lenet5",
    "papers/hn_adam_remark1_resnet",
    "papers/hn_adam_remark3",
    "papers/table2_effnet",
    "papers/table2_vit",
    "papers/table3_effnet",
    "papers/table3_vit",
    "vit",
)
PAPERS = [name for name in SHIPPED if name.startswith("papers/")]


def test_the_shipped_spaces_are_listed_with_a_description():
    listed = list_spaces()
    assert tuple(name for name, _, _ in listed) == SHIPPED
    assert all(20 < len(description) <= 110 for _, description, _ in listed)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_load_without_a_change(name):
    path = resolve_space(name)
    space = load_space(path, WORDS)
    assert space.name == Path(name).name
    assert space.to_yaml() == Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("arm", ["fusion", "control"])
def test_shipped_spaces_have_defaults_that_can_be_drawn(name, arm):
    space = load_space(resolve_space(name), WORDS)
    defaults = default_parameters(space, arm)
    assert len(defaults) == (
        len(space.controls) if arm == "control" else len(space.low) if space.single else 1
    )
    for answers in defaults:
        drawn = draw(space, arm, FixedTrial(answers))
        for choice in filter(None, (drawn.low, drawn.high)):
            OPTIMIZERS[choice.name].check(choice.settings)


@pytest.mark.parametrize("name", SHIPPED)
def test_switch_layers_of_shipped_spaces_exist_in_their_models(name):
    build = pytest.importorskip("tune_fusion.models.build")
    layers = pytest.importorskip("tune_fusion.models.layers")
    space = load_space(resolve_space(name), WORDS)
    space.with_switch([layer.name for layer in layers.layer_map(build.build_on_meta(space.model.name))])


def test_the_papers_split_and_settings_of_hn_adam():
    for name in ("hn_adam_mnist", "hn_adam_cifar10"):
        space = load_space(resolve_space(name), WORDS)
        assert space.single
        assert (space.data.limit, space.data.validation) == (40000, 10000)
        drawn = draw(space, "fusion", FixedTrial(default_parameters(space, "fusion")[0]))
        assert drawn.low.settings["betas"] == (0.9, 0.99)
        assert drawn.training.batch_size == 128


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_s_space_is_its_table_row_for_row_and_nothing_is_stopped(name):
    space = load_space(resolve_space(name), WORDS)
    drawn = [
        draw(space, arm, FixedTrial(answers))
        for arm in ("fusion", "control")
        for answers in grid_parameters(space, arm)
    ]
    keys = {effective_key(configuration, WORDS): configuration for configuration in drawn}
    assert len(keys) == space.search.trials
    assert (space.search.sampler, space.search.scheduler) == ("grid", "none")
    block = published_block(space)
    tried = {
        (
            c.low.name,
            None if is_single(c, WORDS) else c.high.name,
            "all" if is_single(c, WORDS) else c.switch_layer,
        )
        for c in keys.values()
    }
    wanted = {(row.low, row.high, row.switch) for row in block.rows if row.id != "evgo"}
    assert wanted <= tried
    controls = {(control, None, "all") for control in space.controls}
    assert tried <= wanted | controls


def published_block(space):
    """The part of the published table that a space of the papers is for."""
    table = load_table(TABLES[space.name])
    (block,) = (
        block
        for block in table.blocks
        if space.model.name.startswith(block.models)
        and (space.data.name in block.data_sets or block.data_family == "imagenet")
    )
    return block


TABLES = {
    "hn_adam_cifar10": "hn_adam_cifar10",
    "hn_adam_mnist": "hn_adam_mnist",
    "hn_adam_remark1_alexnet": "remark1",
    "hn_adam_remark1_lenet5": "remark1",
    "hn_adam_remark1_resnet": "remark1",
    "hn_adam_remark3": "remark3",
    "table2_effnet": "table2",
    "table2_vit": "table2",
    "table3_effnet": "table3",
    "table3_vit": "table3",
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_s_space_names_the_command_that_compares(name):
    text = resolve_space(name).read_text(encoding="utf-8")
    assert f"python -m tune_fusion.report NAME --paper {TABLES[Path(name).name]}\n" in text


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_registry_ranges_are_in_the_grammar_and_obey_their_rules(name):
    text = f"model: {{name: m}}\ndata: {{name: digits}}\nspace: {{switch_layer: all, low: {name}}}\n"
    space = parse_space(text, "registry.yaml", WORDS)
    assert space.optimizers[name].keys() == OPTIMIZERS[name].search.keys()
    assert len(default_parameters(space, "fusion")) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_registry_defaults_obey_their_own_rules(name):
    for key, hyperparameter in OPTIMIZERS[name].hyperparameters.items():
        assert hyperparameter.check(hyperparameter.default), key


def test_narrowed_on_the_command_line():
    overrides = ["space.low=[adam,sgd]", "data.limit=6000", "search.trials=12", "training.epochs=3"]
    space = load_space(resolve_space("fashion_mnist"), WORDS, overrides)
    assert space.low == ("adam", "sgd")
    assert space.data.limit == 6000


def test_a_grid_over_a_shipped_space():
    overrides = [
        "search.sampler=grid",
        "space.low=[adam]",
        "space.high=[sgd]",
        "space.controls=null",
        "space.optimizers={adam: {lr: {choice: [1e-3, 1e-2]}}, sgd: {lr: 0.1}}",
    ]
    space = load_space(resolve_space("digits"), WORDS, overrides)
    assert len(list(grid_parameters(space, "fusion"))) == 4 * 2
