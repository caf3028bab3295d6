"""The GPU's benchmark, on the CPU, with settings that take seconds: what runs rarely must run then."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    for name in ("gpu", "data", "optimizers", "measuring"):
        sys.modules.pop(name)


def test_every_figure_is_measured(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path))  # set anew by the benchmark, put back after it
    monkeypatch.delenv("TUNE_FUSION_BENCH_JPEGS", raising=False)
    plan = gpu.Plan(
        torch.device("cpu"),
        models=("test_efficientnet", "test_vit"),
        image_size=32,
        photographs=40,
        batch_size=8,
        compile=False,
        step_rounds=2,
        training_steps=2,
        rounds=2,
        small_images=80,
        workers=0,
    )
    figures = list(gpu.figures_of(plan))
    assert all(figure.value > 0 for figure in figures)
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names)) == 2 * (8 + 4) + 3
    assert sum(figure.target == 1.15 for figure in figures) == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py: torch finds no GPU, so there is nothing to measure\n"
