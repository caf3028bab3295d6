"""A search on Ray whose epochs last `SLEEPING_SECONDS` and take next to no processor time.

The command line is that of ``python -m tune_fusion.search``, and so is everything but the length of an epoch:
what it trains (a few images) is padded by sleep, so that two cores stand for as many slots as are wanted.
"""

import os
import time

from tune_fusion import commands
from tune_fusion.search import main
from tune_fusion.tuning import bridge
from tune_fusion.tuning.trainable import FusionTrial

SECONDS = float(os.environ["SLEEPING_SECONDS"])


class SleepingTrial(FusionTrial):
    """As its parent, until the epoch has lasted `SECONDS`."""

    def _run_epoch(self, trainer):
        ends = time.perf_counter() + SECONDS
        epoch = super()._run_epoch(trainer)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return epoch


if __name__ == "__main__":
    bridge.FusionTrial = SleepingTrial
    commands.run("search", main)
