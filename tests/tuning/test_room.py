import re

import pytest
import torch
from simulated import make_space
from small_disk import small_disk
from torch import nn

from tune_fusion.errors import InputError
from tune_fusion.optim.registry import OPTIMIZERS, get
from tune_fusion.runs import RunFolder
from tune_fusion.space.settings import DataSettings, ModelSettings
from tune_fusion.training.workbench import Workbench
from tune_fusion.tuning.promotion import WAITING
from tune_fusion.tuning.room import check_room, needed_bytes, no_room, with_files

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def bench():
    return Workbench(ModelSettings(name="lenet5"), DataSettings(name="digits"), 0, torch.device("cpu"))


def test_what_is_needed_grows_with_the_slots_and_the_model(bench):
    model = sum(value.numel() * value.element_size() for value in bench.model.state_dict().values())
    assert model > 4 * 50_000
    one, two, three = (needed_bytes(bench, slots) for slots in (1, 2, 3))
    assert two - one == three - two == 13 * model
    assert one == 13 * model + 3 * model + 8 * MEGABYTE


def test_a_disk_with_room(bench, tmp_path):
    check_room(tmp_path / "runs" / "first", bench, 2)


def test_a_disk_without_room_is_refused_with_what_is_needed_and_what_there_is(bench, tmp_path):
    with small_disk(tmp_path / "disk", 4096) as disk:
        folder = disk / "a" / "runs" / "first"
        needed = f"{needed_bytes(bench, 2) / MEGABYTE:,.0f} MB"
        expected = (
            f"--storage {folder.parent}: checkpoints and weights of 2 trials at once need {needed}, "
            "4 MB are free there"
        )
        with pytest.raises(InputError, match=re.escape(expected)):
            check_room(folder, bench, 2)
        assert list(disk.iterdir()) == []


def test_what_a_search_has_written_already_has_its_room(bench, tmp_path):
    needed = needed_bytes(bench, 1)
    with small_disk(tmp_path / "disk", needed // 1024 + 64) as disk:
        run = RunFolder(disk / "first")
        for path in (run.checkpoint_folder(3) / "epoch-0002.pt", run.weights(3)):
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(MEGABYTE))
        check_room(run.path, bench, 1)
        full = OSError(28, "No space left on device")
        assert f"needs {needed / MEGABYTE - 2:,.0f} MB more there" in no_room(full, run.path, bench, 1)
        with pytest.raises(InputError, match="make room"):
            check_room(disk / "second", bench, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_keeps_more_than_a_checkpoint_is_thought_to_hold(name):
    # A checkpoint is reckoned as four times the model: its weights and three values a parameter.
    model = nn.Linear(64, 64, bias=False)
    optimizer = get(name).build(model.parameters())
    model(torch.ones(1, 64)).square().sum().backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.numel() > 1)
    assert kept <= 3 * model.weight.nbytes


def test_a_disk_that_filled_up_says_where_and_how_much(bench, tmp_path):
    with small_disk(tmp_path / "disk", 1024) as disk:
        text = no_room(OSError(28, "No space left on device"), disk / "first", bench, 1)
    needed = f"{needed_bytes(bench, 1) / MEGABYTE:,.0f} MB"
    assert text == (
        f"{disk / 'first'}: No space left on device; the search needs {needed} more there, 1 MB are free"
    )


def test_an_error_without_a_reason_of_the_system_is_shown_as_it_is(bench, tmp_path):
    assert no_room(OSError("the disk is gone"), tmp_path, bench, 1).startswith(
        f"{tmp_path}: the disk is gone;"
    )


def test_trials_that_wait_at_a_rung_need_room_too():
    space = make_space(training__epochs=9)
    assert with_files(space, 3) == 3
    waiting = make_space(training__epochs=9, search__scheduler="promotion")
    # Two arms with rungs after 1 and 3 epochs; a search of 40 trials has no more than those.
    assert with_files(waiting, 3) == 3 + 2 * 2 * WAITING
    assert with_files(waiting, 20) == 40
    assert with_files(waiting, 64) == 64
