"""The search as Ray's and MLflow's documentation write it: what a practitioner starts with.

A function trainable, OptunaSearch, ASHAScheduler and MLflowLoggerCallback, each as in its page of the
documentation ("Using MLflow with Tune", "Running Tune experiments with Optuna"), with the defaults they have
there. Nothing is checkpointed, so that a comparison counts against us.
"""

import functools
import json
import os

import workload
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch


def trainable(config, content):
    for metrics in workload.epochs(content, config):
        tune.report(metrics)


def main():
    content = workload.settings(__doc__)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    metric = {"metric": content["search"]["metric"], "mode": "max"}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, content=content), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            num_samples=content["search"]["trials"],
            max_concurrent_trials=content["slots"],
            search_alg=OptunaSearch(
                functools.partial(workload.suggest, space=content["space"]),
                seed=content["search"]["seed"],
                **metric,
            ),
            scheduler=ASHAScheduler(
                max_t=content["training"]["epochs"],
                grace_period=content["asha"]["grace_epochs"],
                reduction_factor=content["asha"]["reduction_factor"],
                **metric,
            ),
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(content["folder"] / "ray"),
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=content["store"], experiment_name="search", save_artifact=True
                )
            ],
        ),
    )
    frames = [result.metrics_dataframe for result in tuner.fit()]
    result = {
        "trials": len(frames),
        "epochs": sum(len(frame) for frame in frames),
        "best": max(frame[metric["metric"]].max() for frame in frames),
        "work_seconds": sum(frame["seconds"].sum() for frame in frames),
    }
    (content["folder"] / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
