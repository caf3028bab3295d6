"""What several folders of tests use: small image folders, and Ray settings that leave nothing behind."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Searches

# So that what these modules assert is told as what a test asserts.
pytest.register_assert_rewrite("evidence", "kernel_contract")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def signals_as_before():
    """Take back what a command that runs in this process does to signals: children would inherit it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def image_folder(tmp_path):
    """Makes PATH/CLASS/*.png of random noise: `image_folder(classes=3, images=4)`."""

    def make(classes=3, images=12, side=16, name="photos") -> Path:
        random = np.random.default_rng(0)
        root = tmp_path / name
        for label in range(classes):
            folder = root / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        return root

    return make


@pytest.fixture(scope="module")
def searches():
    """Starts searches as processes (`running.Searches`); what still runs is ended with the tests."""
    running = Searches()
    yield running
    running.close()
