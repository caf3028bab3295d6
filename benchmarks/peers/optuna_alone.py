"""The search with Optuna alone: two processes on one study, as its page on parallel optimization writes it.

JournalStorage, TPESampler, SuccessiveHalvingPruner (Optuna's ASHA) and MaxTrialsCallback; every trial is an
MLflow run on SQLite. Nothing is checkpointed, so that a comparison counts against us.
"""

import json
import multiprocessing

import mlflow
import optuna
import workload
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def objective(trial, content):
    workload.suggest(trial, content["space"])
    seconds = 0.0
    with mlflow.start_run(run_name=f"trial {trial.number}"):
        mlflow.log_params(trial.params)
        for metrics in workload.epochs(content, trial.params):
            mlflow.log_metrics(metrics, step=metrics["epoch"])
            seconds += metrics["seconds"]
            trial.set_user_attr("seconds", seconds)
            trial.report(metrics["val_accuracy"], metrics["epoch"])
            if metrics["epoch"] < content["training"]["epochs"] and trial.should_prune():
                raise optuna.TrialPruned
    return metrics["val_accuracy"]


def study_of(content, seed):
    """The study that all processes share."""
    return optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(content["folder"] / "journal.log"))),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=content["asha"]["grace_epochs"], reduction_factor=content["asha"]["reduction_factor"]
        ),
    )


def work(content, rank):
    mlflow.set_tracking_uri(content["store"])
    mlflow.set_experiment("search")
    trials = content["search"]["trials"]
    # Each of the others still has a trial to end when the study is stopped.
    study_of(content, content["search"]["seed"] + rank).optimize(
        lambda trial: objective(trial, content),
        n_trials=trials,
        callbacks=[MaxTrialsCallback(trials - content["slots"] + 1, states=ENDED)],
    )


def main():
    content = workload.settings(__doc__)
    mlflow.set_tracking_uri(content["store"])
    mlflow.set_experiment("search")
    study = study_of(content, content["search"]["seed"])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(content, rank)) for rank in range(content["slots"])]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ended = [trial for trial in study.trials if trial.state in ENDED]
    result = {
        "trials": len(ended),
        "epochs": sum(len(trial.intermediate_values) for trial in ended),
        "best": max(max(trial.intermediate_values.values()) for trial in ended),
        "work_seconds": sum(trial.user_attrs["seconds"] for trial in ended),
    }
    (content["folder"] / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
