"""A search on the cluster, from the README's command to the pages on which one looks at it."""

import json
import re
import time
from urllib.parse import quote

import pytest
from browser import browser
from browser import missing as no_browser
from evidence import check_store, lines
from stack import PRIVATE, TRIALS, WORKERS, Job, commands

pytestmark = pytest.mark.cluster

UPLOAD_BYTES = 4 * 2**20
"""More than all of the package and its tests would be, less than one file of data."""


@pytest.fixture(scope="module")
def job(stack):
    """The README's search, with fewer trials."""
    submitted = Job(stack.type(f"{commands('ray job submit')[0]} --trials {TRIALS}"))
    assert submitted.end() == 0, submitted.text
    return submitted


@pytest.fixture(scope="module")
def window(stack, tmp_path_factory):
    if no_browser():
        pytest.skip(no_browser())
    with stack.client.inside(), browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wait_for(window, text, seconds=120):
    """Wait until the page shows this."""
    deadline = time.monotonic() + seconds
    while text not in (shown := window.run("return document.body.innerText")):
        assert time.monotonic() < deadline, shown
        time.sleep(0.5)
    return shown


def test_the_job_says_plain_lines_and_ends_with_the_summary(job):
    said = job.text.partition("Running entrypoint for job ")[2]
    ended = re.findall(r"(?m)^\[(\d+)/16\] trial \d+ \w+: val_accuracy ", said)
    assert ended == [str(count) for count in range(1, TRIALS + 1)]
    summary = said.partition("[16/16]")[2]
    assert re.search(r"\n\nfirst completed: .* of 16 trials in ", summary)
    assert "\nresult     /runs/first/result.json\n" in summary
    assert "\nMLflow UI  http://mlflow:5000\n" in summary
    assert summary.rstrip().splitlines()[-2].endswith(f"Job '{job.id}' succeeded")
    assert "Traceback" not in said


def test_the_trials_spread_over_both_workers(stack, job):
    nodes = {line["node"].split(":")[0] for line in lines(stack.folder("first")) if "node" in line}
    assert nodes == set(WORKERS)


def key_of(stack):
    """What the search's run in MLflow, and the names of its trials' there, begin with."""
    return lines(stack.folder("first"))[0]["key"]


def test_mlflow_holds_one_parent_and_its_children(stack, job):
    check_store(stack.rows, stack.folder("first"))
    tagged = "select run_uuid from tags where key = 'tune_fusion.key' and value = ?"
    ((parent,),) = stack.rows(tagged, key_of(stack))
    nested = "select run_uuid from tags where key = 'mlflow.parentRunId' and value = ?"
    assert len(stack.rows(nested, parent)) == TRIALS
    result = json.loads((stack.folder("first") / "result.json").read_text())
    assert result["mlflow"]["url"].endswith(parent)


def test_its_artifacts_went_through_mlflows_server(stack, job):
    stored = {path.name for path in (stack.ground.folder / "volumes" / "mlartifacts").rglob("*.*")}
    assert {"space.yaml", "result.json", "report.html"} <= stored


def test_neither_data_nor_runs_nor_secrets_are_uploaded(stack, job):
    # One a life of the head, all of the same checkout.
    packages = (stack.host("head").temporary / "ray").glob(
        "session_2*/runtime_resources/working_dir_files/_ray_pkg_*[!k]"
    )
    folder = max(packages, key=lambda path: path.stat().st_mtime)
    uploaded = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {"tune_fusion/search.py", "search_spaces/digits.yaml"} <= uploaded.keys()
    assert not uploaded.keys() & {*PRIVATE, "docker/.env"}
    assert all((stack.checkout / name).exists() for name in PRIVATE)
    assert sum(path.stat().st_size for path in uploaded.values()) < UPLOAD_BYTES
    secrets = [secret.encode() for secret in stack.secrets.values()]
    assert not [name for name, path in uploaded.items() if any(s in path.read_bytes() for s in secrets)]


def test_mlflows_page_lists_the_trials(stack, job, window):
    trials = "select name from runs join tags using (run_uuid) where key = 'tune_fusion.key' and value like ?"
    names = [name for (name,) in stack.rows(trials, f"{key_of(stack)}-%")]
    assert len(names) == TRIALS
    chosen = quote(f"tags.`tune_fusion.key` LIKE '{key_of(stack)}%'")
    page = f"http://127.0.0.1:5000/#/experiments/1/runs?searchFilter={chosen}"
    window.open(page, 1280, 1400, **stack.login())
    wait_for(window, f"{TRIALS + 1} matching runs")
    window.run("document.querySelector('.ag-row button').click()")  # the parent's children
    wait_for(window, names[0])
    shown = wait_for(window, names[-1])
    assert [name for name in [*names, "first"] if name not in shown] == []


def test_the_dashboard_shows_the_job_and_asks_for_the_token_before(stack, job, window):
    page = f"http://127.0.0.1:8265/#/jobs/{job.id}"
    window.open(page, 1280)
    shown = wait_for(window, "oken")
    assert "val_accuracy" not in shown
    window.open("about:blank", 1280)
    window.open(page, 1280, Authorization=f"Bearer {stack.secrets['RAY_AUTH_TOKEN']}")
    shown = wait_for(window, "[1/16] trial ")
    assert "SUCCEEDED" in shown
