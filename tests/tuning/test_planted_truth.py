"""Search and confirmation, with real training, on tasks of which the truth is known by construction.

*The planted task.* The images' rows hold independent evidence (`planted`), and each row has a layer of its
own, whose gain alone says what an optimizer's rate is worth there (`planted.RowByRow`): layers 0 to 3 have
the gain 0.01, layers 4 and 5 the gain 1. The space allows Adam the rates 0.6 and 1.2, SGD 0.3 and 0.6, in
114 steps of 32 images. What matters to the logits, V, then moves

- in layers 0-3 under Adam by 0.006 or 0.012 a step: Adam's usual rates, for weights that should become about
  0.5;
- in layers 0-3 under SGD by 0.3e-4 or 0.6e-4 times its gradient, which is below 1 in the mean: by less than
  0.007 in the whole training. The evidence of the layer's row is as good as ignored;
- in layers 4-5 under SGD by 0.3 or 0.6 times its gradient: logistic regression at a usual rate;
- in layers 4-5 under Adam by up to 0.6 or 1.2 a step, whatever the gradient's size. Gradients that are
  nothing but noise still move a weight by about 2 rates in ten steps (an average over ten batches turns
  slowly), and the difference of two logits, a sum over 2 x 18 values of size 1, by 2 x 0.6 x 6 = 7 or more.
  All evidence that row 4 holds about two classes is 5.4 +- 3.3. It never settles, and it drowns what the
  other layers say.

Rows 3 and 4, which hold most of the evidence, therefore want Adam and SGD. Their layers are neighbours: one
switch layer parts them, 3, and there one pair gives each its own, Adam low and SGD high, at any of the
rates. Every other configuration, single optimizers included, trains row 3 by SGD or row 4 by Adam. What does
the former cannot exceed Bayes' rule without row 3, which is a number (`test_the_planted_cell_is_best`).

*The task on which fusion cannot help.* A network with four layers, and two optimizers that are one: Adam
with rates of 0.0198 to 0.02, and AdamW without weight decay, which is Adam, with rates of 0.02 to 0.0202. A
fusion of the two is a single optimizer, but for a rate that differs between its halves by at most two
percent. Halving the rate of all layers moves the mean accuracy by less than a point, so that two percent
move it by hundredths. But at such a rate these few steps are so sensitive that two rates of the range differ
by a point in either direction, with each seed anew. Both arms have the same number of epochs to search with,
so that whichever comes out ahead does so by chance.
"""

import copy
import dataclasses
import shutil
import statistics
from collections import Counter, defaultdict

import pytest
import torch
from in_process import confirm, make_bench, search
from made_spaces import VOCABULARY
from planted import GAINS, PLANTED_SWITCH, SIDE, RowByRow, bayes_accuracy, make_task, networks
from torch import nn

from tune_fusion.models import build
from tune_fusion.space.loading import parse_space

pytestmark = pytest.mark.slow

# The untuned fusion is SGD low and Adam high at layer 2: nothing of the truth is given away.
PLANTED = """
model: {name: planted}
data: {name: 'folder:of the task'}
training: {epochs: 6, batch_size: 32}
space:
  switch_layer: {int: [0, 4]}
  low: [sgd, adam]
  high: [adam, sgd]
  optimizers:
    adam: {lr: {choice: [0.6, 1.2]}}
    sgd: {lr: {choice: [0.3, 0.6]}}
  controls: [sgd, adam]
search: {trials: 40, scheduler: asha, defaults: trained}
asha: {reduction_factor: 3, compare: metric}
"""
NULL = """
model: {name: tower}
data: {name: 'folder:of the task'}
training: {epochs: 6, batch_size: 32}
space:
  switch_layer: {int: [0, 2]}
  low: [adam, adamw]
  high: [adamw, adam]
  optimizers:
    adam: {lr: {log: [0.0198, 0.02]}}
    adamw: {lr: {log: [0.02, 0.0202]}, weight_decay: 0.0}
  controls: [adam, adamw]
search: {trials: 24, scheduler: asha, defaults: trained}
asha: {reduction_factor: 3, compare: metric}
"""
EVERYTHING = ("search.sampler=grid", "search.scheduler=none", "search.trials=1000")
TOP, SEEDS, REPETITIONS = 3, 5, 20
TRUTH = (PLANTED_SWITCH, "adam", "sgd")


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory):
    """The made networks are known by name, images are cached apart, and torch has one thread."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ZOO", networks())
        patch.setenv("TUNE_FUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("planted") / "images", seed=0)


def space_of(text, task, *overrides, seed=0):
    space = parse_space(text, "made.yaml", VOCABULARY, [f"search.seed={seed}", *overrides])
    space = dataclasses.replace(space, data=task.settings)
    return space.with_switch([layer.name for layer in make_bench(space, seed).layers])


def searched_and_confirmed(space, folder):
    """The record of the search, and the answer of its confirmation."""
    try:
        record = search(space, folder / "search")
        return record, confirm(space, record, folder / "confirmation", top=TOP, seeds=SEEDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cell(parameters):
    """Switch layer and pair of optimizers, without the rates."""
    low = parameters["low.optimizer"]
    return parameters["switch_layer"], low, parameters.get("high.optimizer", low)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_gain_is_nothing_but_another_rate(optimizer):
    random = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, SIDE, SIDE, dtype=torch.float64, generator=random)
    labels = torch.arange(64) % 4
    scaled, plain = RowByRow(4, 3).double(), RowByRow(4, 3, gains=(1.0,) * SIDE).double()
    rows = list(zip(GAINS, scaled.children(), plain.children(), strict=True))
    for gain, ours, theirs in rows:
        theirs.load_state_dict({name: gain * value for name, value in ours.state_dict().items()})
    before = copy.deepcopy(plain)

    def made(layer, gain):
        if optimizer == "sgd":
            return torch.optim.SGD(layer.parameters(), lr=0.3 * gain**2)
        return torch.optim.Adam(layer.parameters(), lr=0.6 * gain, eps=1e-12 / gain)

    steppers = [made(ours, 1.0) for _, ours, _ in rows] + [made(theirs, gain) for gain, _, theirs in rows]
    for _ in range(10):
        for model in (scaled, plain):
            model.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
        for stepper in steppers:
            stepper.step()
    for (gain, ours, theirs), start in zip(rows, before.children(), strict=True):
        torch.testing.assert_close(gain * ours.weight, theirs.weight, rtol=1e-6, atol=1e-12)
        moved = (theirs.weight - start.weight).abs().max()
        assert moved > (0.01 if optimizer == "adam" or gain == 1 else 0)
        assert moved < 1e-3 or optimizer == "adam" or gain == 1


def test_the_planted_cell_is_best(task, tmp_path):
    measured, cells = defaultdict(list), defaultdict(list)
    for seed in (11, 12, 13):
        space = space_of(PLANTED, task, *EVERYTHING, seed=seed)
        for trial in search(space, tmp_path / str(seed), test=True).trials:
            configuration = (cell(trial.parameters), repr(trial.configuration))
            measured[configuration].append(trial.epochs[-1]["test_accuracy"])
    # Twelve unequal pairs of optimizer and rate at each of five switch layers, and four single optimizers.
    assert sorted(map(len, measured.values())) == [3] * 64
    for (name, _), values in measured.items():
        cells[name].append(statistics.mean(values))
    for name, means in sorted(cells.items(), key=lambda item: -max(item[1])):
        print(*name, " ".join(f"{mean:.3f}" for mean in sorted(means)))
    planted = min(cells.pop(TRUTH))
    assert planted > max(map(max, cells.values())) + 0.05
    # Whoever trains row 3 by SGD as good as ignores it, and could not do better.
    split = make_bench(space, 0).heldout.split
    best, bound = (bayes_accuracy(task, split, without=rows) for rows in ([], [PLANTED_SWITCH]))
    print(f"Bayes' rule {best:.3f}, without row {PLANTED_SWITCH} {bound:.3f}")
    assert bound + 0.03 < planted < best + 0.01


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_search_and_confirmation_find_the_planted_truth(task, tmp_path, seed):
    _, found = searched_and_confirmed(space_of(PLANTED, task, seed=seed), tmp_path / "run")
    print(found.sentence)
    fusion, first = found.finalist(found.fusion), found.comparisons[0]
    assert fusion is not None
    assert cell(fusion.parameters) == TRUTH
    assert (first.metric, first.verdict) == ("test_accuracy", "wins")
    assert len(first.differences) == SEEDS
    assert first.low > 0.05


def test_a_fusion_of_one_optimizer_with_itself_is_that_optimizer(tmp_path):
    task = make_task(tmp_path / "images", seed=0)
    equal = [f"space.optimizers.{name}.lr=0.02" for name in ("adam", "adamw")]
    trials = search(space_of(NULL, task, *equal, *EVERYTHING), tmp_path / "run").trials
    # One pair in either direction at each of three switch layers, and the two single optimizers.
    assert len(trials) == 8
    assert len({repr([epoch["val_loss"] for epoch in trial.epochs]) for trial in trials}) == 1


def test_no_fusion_wins_where_none_can_help(tmp_path):
    verdicts, claims, spreads = [], 0, []
    for number in range(REPETITIONS):
        made = make_task(tmp_path / f"images{number}", seed=1000 + number)
        space = space_of(NULL, made, seed=1000 * number)
        record, found = searched_and_confirmed(space, tmp_path / "run")
        plain = record.value(record.best_fusion()) - record.value(record.best_control())
        first = found.comparisons[0]
        interval = f"{first.mean:+.4f} [{first.low:+.4f}, {first.high:+.4f}]"
        print(f"{number:2d}: search {plain:+.4f}, confirmed {interval} {first.verdict}")
        assert len(first.differences) == SEEDS
        claims += plain > 0
        verdicts.append(first.verdict)
        spreads.append(statistics.stdev(first.differences.values()))
    print(f"{claims} fusions ahead in the search; confirmed: {Counter(verdicts)}")
    # There is chance enough to be fooled by, and the search alone is.
    assert min(spreads) > 0.001
    assert statistics.median(spreads) > 0.005
    assert claims >= 4
    assert verdicts.count("wins") <= 1
