"""The probe of trials that share a GPU; skipped where there is none."""

import pytest
import torch

from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.probe import Layout, Task, probe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TASK = Task(
    ModelSettings(name="lenet5"),
    DataSettings(name="digits", validation=200),
    0,
    Configuration(1, OptimizerChoice("adam"), OptimizerChoice("sgd"), TrainingSettings(batch_size=64)),
    gpu=True,
)


def test_trials_share_the_gpu_and_their_contexts_are_counted():
    found = probe(TASK, 2, lambda fits: [Layout(1, 2), Layout(min(2, fits), 1)])
    assert found.device == "cuda"
    assert all(speed.images_per_second > 0 for speed in found.speeds)
    # A CUDA context alone takes more than 100 MB.
    assert found.gpu.trial > 100 * 2**20
    assert found.fits == min(found.host.trials, found.gpu.trials)


def test_nothing_of_the_probe_stays_on_the_gpu():
    before = torch.cuda.mem_get_info()[0]
    probe(TASK, 1, lambda fits: [Layout(1, 1)])
    assert torch.cuda.mem_get_info()[0] == pytest.approx(before, rel=0.01)
