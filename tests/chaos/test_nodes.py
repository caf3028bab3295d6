"""Nodes of a cluster that come, go, or do not see what the others see."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from evidence import check_mlflow, lines_so_far
from running import ASHA, QUICK, descendants, ray_cluster, ray_node, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SEARCH = ["--space", "digits", "--epochs", 8, *QUICK, *ASHA, "--set", "search.scheduler=none"]


def elsewhere(name, *hidden):
    """Words that start a process as if on another machine: with a name, and without these folders' files."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "-u", "true"], check=False).returncode:
        pytest.skip("a machine of its own needs root and unshare")
    mounts = "".join(f"mount -t tmpfs tmpfs '{folder}' && " for folder in hidden)
    return [unshare, "-m", "-u", "sh", "-c", f'hostname {name} && {mounts}exec "$0" "$@"']


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def hosts(folder):
    """The machines that have trained epochs so far."""
    return {line["node"].partition(":")[0] for line in lines_so_far(folder) if line["event"] == "epoch"}


def test_a_folder_that_a_node_does_not_share_is_refused_before_anything_is_written(
    searches, tmp_path, shared, image_folder
):
    photos = image_folder(classes=2, images=10, side=32)
    with (
        ray_cluster(1) as (_, address),
        ray_node(address, 1, "127.0.0.2", before=elsewhere("blind", shared, photos)),
    ):
        options = [*SEARCH, "--trials", 4, "--address", address, "--name", "refused"]
        for storage in (shared / "runs", shared):
            code, out, err = searches.run(tmp_path, *options, "--storage", storage, RAY_AUTH_MODE="disabled")
            assert (code, out) == (2, "")
            assert f"--storage {storage}: not every node of the cluster has what the driver on" in err
            assert f"blind (127.0.0.2) does not share the folder {shared}: what the driver wrote" in err
            assert err.count("\n") == 1
        images = ["--set", f"data.name=folder:{photos}", "--set", "data.image_size=32"]
        code, out, err = searches.run(
            tmp_path, *SEARCH, *images, "--trials", 4, "--address", address, RAY_AUTH_MODE="disabled"
        )
        assert (code, out) == (2, "")
        assert f"blind (127.0.0.2) lacks the data folder {photos}" in err
    assert list(shared.iterdir()) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_nodes_that_join_are_used_and_those_that_are_lost_cost_nothing(searches, tmp_path, shared):
    folder = shared / "first"
    with ray_cluster(1) as (_, address):
        process = searches.start(
            tmp_path,
            *(*SEARCH, "--trials", 40, "--address", address, "--name", "first", "--storage", shared),
            RAY_AUTH_MODE="disabled",
        )
        wait_until(lambda: folder.exists() and hosts(folder), process=process)
        with (
            ray_node(address, 1, "127.0.0.2", before=elsewhere("blind", shared)),
            ray_node(address, 1, "127.0.0.3", before=elsewhere("helper")) as helper,
        ):
            wait_until(lambda: "helper" in hosts(folder), process=process)
            for each in [*descendants(helper), helper]:
                each.kill()
            _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
    assert "blind" not in hosts(folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["counts"] == {"completed": 40}
    (note,) = (note for note in result["notes"] if "blind" in note)
    assert note.startswith("no trial runs on blind (127.0.0.2), which joined the cluster: it does not share")
    lost = [line for line in lines_so_far(folder) if line["event"] == "lost"]
    assert lost
    assert not any(line["ends"] for line in lost)
    assert len(lost) <= 2, lost
    epochs = [(line["trial"], line["epoch"]) for line in lines_so_far(folder) if line["event"] == "epoch"]
    assert sorted(epochs) == [(trial, epoch) for trial in range(40) for epoch in range(1, 9)]
    check_mlflow(tmp_path / "mlflow.db", folder)


WAITING = "waiting up to 60 s for room for 2 trials of 1 CPUs and 0 GPUs each; the cluster has"


def test_a_cluster_is_given_time_to_grow(searches, tmp_path):
    with ray_cluster(0) as (_, address):
        options = [*SEARCH, "--trials", 4, "--address", address, "--concurrent", 2]
        code, out, err = searches.run(tmp_path, *options, "--wait-for-resources", 2, RAY_AUTH_MODE="disabled")
        assert (code, out) == (2, "")
        refusal = (
            "resources: one trial asks for 1 CPUs and 0 GPUs, and no node has them after 2 s of waiting "
        )
        assert f"{refusal}(--wait-for-resources): " in err
        assert not (tmp_path / "runs").exists()

        options += ["--wait-for-resources", 60]
        process = searches.start(tmp_path, *options, RAY_AUTH_MODE="disabled")
        assert process.stderr.readline().startswith(WAITING)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (
            130,
            "tune_fusion.search: interrupted before anything was written\n",
        )
        assert time.monotonic() - began < 8

        process = searches.start(tmp_path, *options, "--name", "grown", RAY_AUTH_MODE="disabled")
        assert process.stderr.readline().startswith(WAITING)
        with ray_node(address, 2, "127.0.0.2", before=elsewhere("grown")):
            _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    folder = tmp_path / "runs" / "grown"
    assert hosts(folder) == {"grown"}
    assert json.loads((folder / "result.json").read_text())["counts"] == {"completed": 4}


def test_trials_run_on_nodes_with_the_accelerator_that_they_want(searches, tmp_path):
    with (
        ray_cluster(2) as (_, address),
        ray_node(address, 2, "127.0.0.2", before=elsewhere("fast"), resources='{"accelerator_type:H100": 1}'),
    ):
        options = [*SEARCH, "--trials", 6, "--address", address]
        code, out, err = searches.run(
            tmp_path, *options, "--set", "resources.accelerator=A100", RAY_AUTH_MODE="disabled"
        )
        assert (code, out) == (2, "")
        assert "resources.accelerator: no node has 'A100'; " in err
        assert "fast: 2 CPUs, 0 GPUs, H100" in err
        options += ["--set", "resources.accelerator=H100", "--name", "fast"]
        code, _, err = searches.run(tmp_path, *options, RAY_AUTH_MODE="disabled")
        assert (code, err) == (0, "")
    assert hosts(tmp_path / "runs" / "fast") == {"fast"}
