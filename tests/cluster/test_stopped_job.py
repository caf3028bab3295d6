"""``ray job stop`` and what comes after it, as the README has it."""

import json

import pytest
from evidence import check_order, check_same, check_store, decided
from stack import commands

pytestmark = pytest.mark.cluster


def status(stack, job):
    code, content = stack.ask(f"http://127.0.0.1:8265/api/jobs/{job.id}", token=True)
    assert code == 200
    answer = json.loads(content)
    return answer["status"], answer["message"]


def test_a_stopped_job_ends_in_order_and_goes_on_to_the_same_answer(stack, search, undisturbed):
    folder = stack.folder("stopped")
    job = stack.submit(*search, "--name", "stopped")
    job.until(lambda: decided(folder) >= 9)
    (stop,) = commands("ray job stop")
    stopping = stack.type(stop.replace("JOB", job.id))
    out, _ = stopping.communicate(timeout=60)
    assert stopping.returncode == 0, out
    assert "was stopped" in out
    job.end()
    assert status(stack, job)[0] == "STOPPED"
    # It had the time for its last words.
    assert "stopped interrupted: " in job.text
    assert "go on with " in job.text
    assert "Traceback" not in job.text.partition("Running entrypoint")[2].partition("WebSocket")[0]
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    # MLflow has 8 s to take the rest; a slow one is told of.
    if "deliver it later with: " not in job.text:
        assert stack.rows("select status from runs where name = ?", "stopped") == [("KILLED",)]
    again = stack.resume("stopped")
    assert again.end() == 0, again.text
    assert status(stack, again) == ("SUCCEEDED", "Job finished successfully.")
    check_same(folder, undisturbed)
    check_order(folder, 16, at_once=1)
    check_store(stack.rows, folder)


def test_a_job_fails_where_its_search_does(stack):
    job = stack.submit("--space", "digitz")
    assert job.end() == 1
    assert "digitz" in job.text
    state, message = status(stack, job)
    assert state == "FAILED"
    assert "exit code 2" in message
