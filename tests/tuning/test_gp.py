import numpy as np
from simulated import make_engine as engine_of
from simulated import make_space, quality, run

from tune_fusion.space.sampling import draw
from tune_fusion.tuning import gp
from tune_fusion.tuning.study import Study

GP = {"search__sampler": "gp", "search__scheduler": "none", "training__epochs": 2, "search__control_share": 0}


def test_it_finds_better_configurations_than_chance():
    def best(sampler, seed):
        record = run(engine_of(**{**GP, "search__sampler": sampler, "search__seed": seed}))
        return record.value(record.best())

    model, chance = ([best(sampler, seed) for seed in range(8)] for sampler in ("gp", "random"))
    assert np.mean(model) > np.mean(chance) + 0.01
    assert np.min(model) > np.min(chance)


def test_the_same_history_and_seed_give_the_same_suggestion_whatever_else_is_random():
    def trials():
        return [trial.configuration for trial in run(engine_of(**GP, search__trials=15)).trials]

    first = trials()
    np.random.seed(7)
    assert trials() == first
    assert len({str(configuration) for configuration in first}) == 15


def test_nothing_is_modelled_before_some_trials_have_ended():
    study = Study(make_space(**GP), "fusion", "max")
    assert gp.propose(study._space, "fusion", study._known(), 0, 1.0) is None


def test_estimated_ends_rank_trials_by_what_longer_ones_gained():
    class Told:
        def __init__(self, *values):
            self.intermediate_values = dict(enumerate(values, 1))

    # Longer trials gained 0.2 in the second epoch: 0.5 after one would be 0.7, and is better than 0.65.
    scores, epochs = gp._scores([Told(0.4, 0.6), Told(0.45, 0.65), Told(0.5), Told(0.1, float("nan"))], 1.0)
    assert list(np.argsort(scores)) == [3, 0, 1, 2]
    assert list(epochs) == [1.0, 1.0, 0.5, 0.5]


def test_one_changed_configuration_stays_in_the_space():
    space, rng = make_space(**GP), np.random.default_rng(0)
    for _ in range(200):
        params = gp._answers(space, "fusion", rng, {})
        changed = gp._changed(space, "fusion", rng, params)
        configuration = draw(space, "fusion", gp._Drawing(rng, changed))
        assert 1e-5 <= configuration.low.settings["lr"] <= 1
        assert 0 <= quality(configuration.to_dict(), 1) <= 1
