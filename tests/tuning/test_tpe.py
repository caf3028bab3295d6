"""The sampler draws what Optuna's own draws, from the trials that it was handed and no others."""

import math
import random
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tune_fusion.tuning.tpe import TpeSampler

LEARNT = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


class OptunasOwn(optuna.samplers.TPESampler):
    """Looks into the study; of a running trial it is told what a repeated one can know, too."""

    def __init__(self, known, seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=seed, multivariate=True, group=True, constant_liar=True)

    def _get_params(self, trial, study):
        return trial.params


def draw(trial):
    """What a fusion asks for: parameters of every kind, most of them for one optimizer only."""
    trial.suggest_int("switch_layer", 0, 3)
    for half, names in (("low", ["adam", "sgd", "hn_adam"]), ("high", ["sgd", "adam"])):
        name = trial.suggest_categorical(f"{half}.optimizer", names)
        trial.suggest_float(f"{half}.{name}.lr", 1e-4, 0.3, log=True)
        if name == "sgd":
            trial.suggest_categorical("momentum", [0.0, 0.9])
        if name == "hn_adam":
            trial.suggest_float(f"{half}.lambda0", 2, 4)


def known(study):
    return study.get_trials(deepcopy=False, states=LEARNT)


def end(study, trial, chooser):
    """Tell one of the ways in which a trial ends; few values, so that trials tie."""
    kind, value = chooser.choices(["complete", "stopped", "diverged", "failed"], [3, 5, 1, 1])[0], 0.0
    if kind == "complete":
        study.tell(trial, chooser.choice([0.0, 0.25, 0.5, chooser.random()]))
    elif kind == "failed":
        study.tell(trial, state=TrialState.FAIL)
    else:
        for epoch in range(1, chooser.choice([2, 4])):
            value = math.nan if kind == "diverged" else chooser.choice([0.25, chooser.random()])
            trial.report(value, epoch)
        if kind == "diverged":
            trial.set_constraint("loss is finite", 1.0)
        study.tell(trial, state=TrialState.PRUNED)


def history(make, count, seed, direction, slots):
    """What is drawn, one sampler a suggestion, while so many trials run side by side."""
    study, chooser, running, drawn = optuna.create_study(direction=direction), random.Random(seed), [], []
    for number in range(count):
        study.sampler = make(known(study), number)
        trial = study.ask()
        draw(trial)
        running.append(trial)
        drawn.append(trial.params)
        if len(running) == slots:
            end(study, running.pop(chooser.randrange(slots)), chooser)
    return study, drawn


@settings(derandomize=True, deadline=None, max_examples=8)
@given(seed=st.integers(0, 999), slots=st.integers(1, 6), direction=st.sampled_from(["maximize", "minimize"]))
def test_it_draws_what_optunas_own_draws(seed, slots, direction):
    arguments = (40, seed, direction, slots)
    assert history(TpeSampler, *arguments)[1] == history(OptunasOwn, *arguments)[1]


@pytest.mark.parametrize("before", [5, 40], ids=["at random", "by a model"])
def test_what_is_told_after_it_was_made_changes_nothing(before):
    drawn = []
    for more in (0, 25):
        study, _ = history(TpeSampler, before, 1, "maximize", 3)
        sampler = TpeSampler(known(study), 7)
        for number in range(more):
            study.sampler = optuna.samplers.RandomSampler(seed=number)
            trial = study.ask()
            draw(trial)
            study.tell(trial, 1.0)
        study.sampler = sampler
        trial = study.ask()
        draw(trial)
        drawn.append(trial.params)
    assert drawn[0] == drawn[1]
