"""Ray Tune's own release test of its bookkeeping, sized by options: trials that only sleep and report.

As in Ray's ``release/tune_tests/scalability_tests``: function trainables, a random configuration each, no
searcher, no scheduler, no logger of experiments.
"""

import argparse
import json
import time

import ray
from ray import tune

parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
parser.add_argument("--address", required=True)
parser.add_argument("--trials", type=int, required=True)
parser.add_argument("--results", type=int, default=1, help="of each trial")
parser.add_argument("--seconds", type=float, default=1.0, help="from one result to the next")
parser.add_argument("--at-once", type=int, required=True, help="trials")
parser.add_argument("--folder", required=True)
options = parser.parse_args()


def sleeping(config):
    for number in range(config["results"]):
        time.sleep(config["seconds"])
        tune.report({"value": config["value"] * (number + 1)})


ray.init(address=options.address, log_to_driver=False)
started = time.perf_counter()
results = tune.Tuner(
    sleeping,
    param_space={
        "value": tune.uniform(0, 1),
        "results": options.results,
        "seconds": options.seconds,
    },
    tune_config=tune.TuneConfig(
        num_samples=options.trials, max_concurrent_trials=options.at_once, reuse_actors=True
    ),
    run_config=tune.RunConfig(storage_path=options.folder, name="sleeping", verbose=0),
).fit()
seconds = time.perf_counter() - started
assert len(results) == options.trials
assert not results.errors
print(json.dumps({"seconds": seconds}))
