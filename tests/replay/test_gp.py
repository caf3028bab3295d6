import numpy as np
from made_spaces import VOCABULARY
from made_tables import make_space, make_table

from tune_fusion.replay import gp
from tune_fusion.replay.contenders import Contender
from tune_fusion.space.sampling import draw
from tune_fusion.tuning.study import Repeating


def searched(sampler, seed, budget=120):
    contender = Contender("", {"sampler": sampler, "scheduler": "promotion", "defaults": "none"})
    return contender.run(make_table(), VOCABULARY, 2, budget, seed)


def test_it_finds_no_worse_configurations_than_chance():
    model, chance = (
        [searched(sampler, seed).returned[-1] for seed in range(10)] for sampler in ("gp", "random")
    )
    assert np.mean(model) >= np.mean(chance)


def test_the_same_seed_gives_the_same_search_whatever_else_is_random():
    first = searched("gp", 3, 60)
    np.random.seed(7)
    assert searched("gp", 3, 60) == first


def test_nothing_is_modelled_before_some_trials_have_ended():
    study = gp.ModelStudy(make_space(), "control", "max")
    while (suggestion := study.ask()).origin == "default":
        pass
    assert gp.propose(study._space, "control", study._known(), 0, 1.0) is None
    assert suggestion.configuration.high is None


def test_estimated_ends_rank_trials_by_what_longer_ones_gained():
    class Told:
        def __init__(self, *values):
            self.intermediate_values = dict(enumerate(values, 1))

    # Longer trials gained 0.2 in the second epoch: 0.5 after one would be 0.7, and is better than 0.65.
    scores, epochs = gp._scores([Told(0.4, 0.6), Told(0.45, 0.65), Told(0.5), Told(0.1, float("nan"))], 1.0)
    assert list(np.argsort(scores)) == [3, 0, 1, 2]
    assert list(epochs) == [1.0, 1.0, 0.5, 0.5]


def test_a_changed_configuration_stays_in_the_space():
    space, rng = make_space(), np.random.default_rng(0)
    for _ in range(200):
        params = gp._answers(space, "fusion", rng, {})
        changed = gp._changed(space, "fusion", rng, params)
        rate = draw(space, "fusion", Repeating(changed)).low.settings["lr"]
        low, high = (1e-4, 1e-2) if changed["low.optimizer"] == "adam" else (1e-2, 1.0)
        assert low <= rate <= high
