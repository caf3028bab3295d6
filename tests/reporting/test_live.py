import io
import re
import time
from collections import Counter

import pytest
from made_records import make_search, make_single, make_trial
from rich.console import Console

from tune_fusion.records import TrialState
from tune_fusion.reporting import live
from tune_fusion.reporting.live import (
    LiveTable,
    PlainProgress,
    Waiting,
    estimated_seconds_left,
    progress,
    status_lines,
    trial_cells,
)

ONE_OF_EACH = tuple(
    make_trial(number, [0.1 * (number + 1)], state) for number, state in enumerate(TrialState)
)
COLUMNS = ["trial", "switch layer", "low", "low rates", "high", "high rates", "epoch", "best", "state"]


def trial_table(search, rows, width=200):
    return live.trial_table(search, rows, width)


def console(width=200, height=24):
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, _environ={}
    )


def drawn(renderable, width=200):
    output = console(width)
    output.print(renderable)
    return output.file.getvalue()


def body(table, width=200):
    """The cells of the rows below the header."""
    lines = [line for line in drawn(table, width).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_has_every_column_and_every_state():
    text = drawn(trial_table(make_search(*ONE_OF_EACH), 10))
    header = next(line for line in text.splitlines() if line.startswith("┃"))
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == COLUMNS
    assert "made: val_accuracy, 8 trials" in text
    for state in TrialState:
        assert state.value in text


def test_a_row_says_everything_of_a_trial():
    trial = make_trial(7, [0.5, 0.75, 0.25])
    trial.parameters |= {"low.lambda0": 2.5}
    row = ["7", "1 conv2", "adam", "lr 1.2e-03 Λ0 2.50", "sgd", "lr 3.0e-02", "3/10", "0.7500", "completed"]
    assert body(trial_table(make_search(trial), 4)) == [row]


def test_a_single_optimizer_leaves_the_high_cells_empty():
    cells = trial_cells(make_search(), make_single(0))
    assert list(cells) == COLUMNS
    assert (cells["switch layer"], cells["high"], cells["high rates"]) == ("all", "", "")
    assert (cells["epoch"], cells["best"]) == ("0/10", "-")


def test_an_optimizer_at_its_default_rate_shows_none():
    parameters = {"switch_layer": 0, "low.optimizer": "msvag", "high.optimizer": "hn_adam", "high.lambda0": 3}
    cells = trial_cells(make_search(), make_trial(0, parameters=parameters))
    assert (cells["low rates"], cells["high rates"]) == ("", "Λ0 3.00")


def test_running_trials_come_first_then_the_best_of_the_ended_and_no_more_than_asked_for():
    search = make_search(
        make_trial(0, [0.5]),
        make_trial(1, [0.9], TrialState.STOPPED),
        make_trial(2, [0.1], TrialState.RUNNING),
        make_trial(3),
        make_trial(4, [0.5]),
        make_trial(5, [], TrialState.RUNNING),
    )
    numbers = [int(row[0]) for row in body(trial_table(search, 10))]
    assert numbers == [2, 5, 1, 0, 4, 3]
    for rows in range(7):
        assert [int(row[0]) for row in body(trial_table(search, rows))] == numbers[:rows]


def test_a_loss_is_best_where_it_is_lowest():
    trials = [make_trial(n, values, metric="val_loss") for n, values in enumerate([[2.0], [3.0, 0.5], [1.0]])]
    search = make_search(*trials, metric="val_loss")
    assert [(row[0], row[7]) for row in body(trial_table(search, 9))] == [
        ("1", "0.5000"),
        ("2", "1.0000"),
        ("0", "2.0000"),
    ]
    assert "best so far: trial 1, val_loss 0.5000" in status_lines(search, 2000.0)[2].plain


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("trials", [(), ONE_OF_EACH], ids=["no trial", "every state"])
def test_no_line_is_wider_than_the_terminal(width, trials):
    search = make_search(*trials)
    for renderable in (trial_table(search, 10, width), *status_lines(search, 2000.0)):
        assert all(len(line) <= width for line in drawn(renderable, width).splitlines())


@pytest.mark.parametrize("width", [128, 140, 200])
def test_a_wide_terminal_shows_every_cell_in_full(width):
    longest = {
        "switch_layer": 3,
        "low.optimizer": "hn_adam_root",
        "low.lr": 1e-3,
        "low.lambda0": 2.5,
        "high.optimizer": "hn_adam_root",
        "high.lr": 1e-2,
        "high.lambda0": 4.0,
    }
    trial = make_trial(47, [0.98], parameters=longest, switch_layer_name="blocks.3")
    assert "…" not in drawn(trial_table(make_search(trial), 9, width), width)


def test_the_lines_below_the_table():
    now = 1100.0
    lines = [line.plain for line in status_lines(make_search(*ONE_OF_EACH), now)]
    assert lines[0] == ("1 running, 1 completed, 1 stopped, 1 diverged, 1 failed, 1 interrupted of 8")
    assert lines[1] == "fusion: 6 trials, 6 epochs, best 0.6000"
    assert lines[2] == (
        "best so far: trial 5, val_accuracy 0.6000: switch 1 conv2 | low adam lr 1.2e-03 | "
        "high sgd lr 3.0e-02"
    )
    # Four trials have ended in the 100 s since the first started; the interrupted one is among those left.
    ends = time.strftime("%H:%M:%S", time.localtime(now + 100))
    assert lines[3] == f"elapsed 1:50, about 1:40 left, ends near {ends}"


def test_the_lines_of_a_search_without_a_result():
    assert [line.plain for line in status_lines(make_search(), 991.0)] == [
        "starting of 8",
        "elapsed 0:01",
    ]
    single = make_search(make_single(0, [0.5]))
    assert status_lines(single, 1000.0)[2].plain.endswith("switch all | low adam lr 1.0e-03")


def test_time_in_which_the_search_did_not_run_does_not_count():
    search = make_search(*(make_trial(n, [0.5]) for n in range(2)), paused_seconds=1000.0)
    assert status_lines(search, 2020.0)[-1].plain.startswith("elapsed 0:30, about 1:00 left")


@pytest.mark.parametrize(
    ("elapsed", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (100_000, "27:46:40")],
)
def test_durations(elapsed, shown):
    assert status_lines(make_search(), 990.0 + elapsed)[-1].plain == f"elapsed {shown}"


def test_the_estimate_waits_for_two_trials_and_is_never_negative():
    ended = [make_trial(n, [0.5]) for n in range(4)]
    assert estimated_seconds_left(make_search(), 1000.0) is None
    assert estimated_seconds_left(make_search(ended[0]), 1010.0) is None
    assert estimated_seconds_left(make_search(*ended[:2]), 1020.0) == pytest.approx(60.0)
    assert estimated_seconds_left(make_search(*ended, planned=4), 1040.0) == 0
    assert estimated_seconds_left(make_search(*ended, planned=3), 1040.0) == 0


def test_the_live_table_leaves_its_last_state_on_the_terminal():
    search = make_search()
    output = console(width=140)
    with LiveTable(search, output) as view:
        trial = make_trial(0, [], TrialState.RUNNING)
        search.trials.append(trial)
        view.trial_started(trial)
        trial.epochs.append({"val_accuracy": 0.625})
        view.epoch_ended(trial)
        trial.state = TrialState.COMPLETED
        view.trial_ended(trial)
    last = output.file.getvalue().rsplit("┏", 1)[1]
    assert "0.6250" in last
    assert "completed" in last
    assert "1 completed of 8" in last


@pytest.mark.parametrize("height", [5, 16, 40])
def test_the_live_table_fits_the_height_of_the_terminal(height):
    search = make_search(*(make_trial(n, [0.5]) for n in range(60)), planned=60)
    output = console(width=200, height=height)
    with LiveTable(search, output):
        pass
    rows = re.findall(r"completed +│", output.file.getvalue().rsplit("┏", 1)[1])
    assert len(rows) == max(4, height - 12)


def test_plain_progress_prints_one_line_for_each_trial_that_ends(capsys):
    search = make_search(
        make_single(0, [0.5, 0.75]),
        make_trial(1, [0.25], TrialState.STOPPED),
        make_trial(2, [], TrialState.FAILED, reason="RuntimeError: no"),
        make_trial(3, [0.5], TrialState.RUNNING),
    )
    with PlainProgress(search) as view:
        view.trial_started(search.trials[3])
        view.epoch_ended(search.trials[3])
        assert capsys.readouterr().out == ""
        for trial in search.trials[:3]:
            view.trial_ended(trial)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "[3/8] trial 0 completed: val_accuracy 0.7500 epoch 2/10 | switch all | low adam lr 1.0e-03",
        "[3/8] trial 1 stopped: val_accuracy 0.2500 epoch 1/10 | switch 1 conv2 | low adam lr 1.2e-03"
        " | high sgd lr 3.0e-02",
        "[3/8] trial 2 failed: val_accuracy - epoch 0/10 | switch 1 conv2 | low adam lr 1.2e-03"
        " | high sgd lr 3.0e-02 | RuntimeError: no",
    ]


def test_the_view_follows_standard_output(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(progress(make_search()), PlainProgress)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert isinstance(progress(make_search()), LiveTable)


def test_waiting_says_nothing_in_a_pipe(capsys):
    with Waiting("reading the data") as waiting:
        waiting.stop()
        waiting.stop()
    assert capsys.readouterr().out == ""


def test_waiting_shows_its_text_on_a_terminal_until_stopped(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    output = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", output)
    with Waiting("reading the data") as waiting:
        waiting.stop()
    assert "reading the data" in output.getvalue()
    # The line is erased and the cursor shown again.
    assert output.getvalue().rindex("\x1b[2K") > output.getvalue().rindex("reading the data")
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")


def test_every_state_has_a_colour_of_its_own():
    table = trial_table(make_search(*ONE_OF_EACH), 10)
    styles = Counter(row.style for row in table.rows)
    assert len(styles) == len(TrialState)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_terminal_keeps_what_matters(width):
    names = {
        "low.optimizer": "hn_adam_root",
        "high.optimizer": "hn_adam_root",
        "low.lr": 1e-3,
        "high.lr": 1e-3,
    }
    parameters = {"switch_layer": 3, **names}
    trial = make_trial(
        47, [0.5, 0.98, 0.9], TrialState.INTERRUPTED, parameters=parameters, switch_layer_name="blocks.3"
    )
    text = drawn(trial_table(make_search(trial), 9, width), width)
    for word in ("47", "3/10", "0.9800", "interrupted", "hn_adam", "3 block"):
        assert word in text


def test_the_text_of_a_trial_has_everything_that_may_differ():
    parameters = {
        "switch_layer": 1,
        "low.optimizer": "adam",
        "low.lr": 1e-3,
        "low.betas": (0.9, 0.99),
        "high.optimizer": "sgd",
        "high.lr": 0.03,
        "high.momentum": 0.9,
        "training.batch_size": 32,
        "training.epochs": 10,
    }
    trial = make_trial(0, [0.5], parameters=parameters)
    search = make_search(trial)
    search.searched_training = ("batch_size",)
    assert live.trial_text(search, trial) == (
        "switch 1 conv2 | low adam lr 1.0e-03 betas [0.9, 0.99] | high sgd lr 3.0e-02 momentum 0.9 | "
        "batch_size 32"
    )
