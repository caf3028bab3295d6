import numpy as np
import pytest
from made_spaces import VOCABULARY
from made_tables import LAYERS, control, fusion, make_run, make_space, make_table, write_table

from tune_fusion.errors import InputError
from tune_fusion.replay.table import Table


def test_a_recorded_configuration_stands_for_itself():
    table = make_table()
    for run in table.runs:
        assert table.nearest(run.arm, run.configuration) is run


@pytest.mark.parametrize(
    ("rate", "switch", "expected"),
    [(2e-4, 0, (1e-4, 0)), (5e-4, 1, (1e-3, 0)), (9e-3, 2, (1e-2, 3)), (1e-3, 3, (1e-3, 3))],
)
def test_between_them_the_nearest_of_the_same_optimizers_stands(rate, switch, expected):
    found = make_table().nearest("fusion", fusion(switch, "adam", rate, "sgd", 0.1)).configuration
    assert (found["low"]["lr"], found["switch_layer"]) == expected
    assert (found["low"]["optimizer"], found["high"]["optimizer"]) == ("adam", "sgd")


def test_a_pair_that_was_never_recorded_has_no_neighbour():
    space = make_space()
    table = Table(space, LAYERS, [make_run(control("adam", 1e-3), 0.5)])
    with pytest.raises(InputError, match="no control of sgd"):
        table.nearest("control", control("sgd", 0.1))


def test_value_is_the_best_epoch_and_a_run_that_diverged_at_once_is_the_worst():
    run = make_run(control("adam", 1e-3), 0.5, 0.7, 0.6)
    assert run.value("val_accuracy", 1.0) == 0.7
    assert run.value("val_accuracy", 1.0, 1) == 0.5
    assert run.value("val_loss", -1.0) == pytest.approx(0.3)
    assert make_run(control("adam", 1e-3), diverged=True).value("val_accuracy", 1.0) == -np.inf


def test_noise_is_that_of_the_good_half_without_what_all_seeds_share():
    values = [0.5, 0.6, 0.8, 0.82, 0.84, 0.86]
    shifts = [0.3, -0.3, 0.02, 0.04, 0.02, 0.04]
    runs = []
    for index, (value, shift) in enumerate(zip(values, shifts, strict=True)):
        configuration = control("adam", 1e-4 * (index + 1))
        runs += [make_run(configuration, value), make_run(configuration, value + shift, seed=1)]
    table = Table(make_space(), LAYERS, runs)
    # The good ones differ by 0.04, 0.02 and 0.04, whatever the first two do.
    assert table.noise == pytest.approx(np.std([0.04, 0.02, 0.04], ddof=1))
    assert len(table.runs) == 6


def test_errors_of_neighbours_leave_the_run_itself_out():
    runs = [make_run(control("adam", lr), value) for lr, value in ((1e-4, 0.5), (2e-4, 0.6), (1e-2, 0.9))]
    errors = Table(make_space(), LAYERS, runs).neighbour_errors()
    assert list(np.round(errors, 6)) == [0.1, -0.1, -0.3]


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    table = make_table()
    diverged = make_run(control("adam", 5e-3), 0.4, diverged=True)
    write_table(tmp_path / "made.jsonl.gz", table, [diverged])
    read = Table.load(tmp_path / "made.jsonl.gz", VOCABULARY)
    assert read.runs == [*table.runs, diverged]
    assert read.best == table.best
    assert read.space.switch_layer == table.space.switch_layer
    assert read.grid_epochs == 4 * len(table.runs) + 2


@pytest.mark.parametrize("content", [b"no gzip", b""])
def test_anything_else_is_refused_by_its_name(content, tmp_path):
    path = tmp_path / "other.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.jsonl\.gz"):
        Table.load(path, VOCABULARY)
