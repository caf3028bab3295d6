import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_fusion.data import splits
from tune_fusion.errors import InputError
from tune_fusion.space.settings import DataSettings

class_counts = st.lists(st.integers(3, 60), min_size=2, max_size=8)


def shuffled_labels(counts: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(len(labels)).permutation(labels)


def data(**values: object) -> DataSettings:
    return DataSettings.model_validate({"name": "digits", **values})


@given(class_counts, st.data())
def test_allocation_sums_up_within_what_each_class_has(counts, drawn):
    leave = drawn.draw(st.integers(0, 2))
    array = np.asarray(counts)
    total = drawn.draw(st.integers(len(counts), sum(counts) - leave * len(counts)))
    given_ = splits.allocate(array, total, leave=leave)
    assert given_.sum() == total
    assert (given_ >= 1).all()
    assert (given_ <= array - leave).all()
    shares = array * total / array.sum()
    if (shares >= 1).all() and (array - shares >= leave).all():
        assert (np.abs(given_ - shares) < 1).all()


def test_a_rare_class_keeps_one_image_at_the_others_expense():
    assert splits.allocate(np.array([1000, 3, 3]), 5).tolist() == [3, 1, 1]


@settings(max_examples=60)
@given(class_counts, st.floats(0.05, 0.6), st.integers(0, 2**32 - 1))
def test_train_and_validation_are_disjoint_cover_all_and_depend_on_the_seed_alone(counts, fraction, seed):
    labels = shuffled_labels(counts)
    chosen = splits.select(data(validation=fraction), labels, None, classes=len(counts), seed=seed)
    both = np.concatenate([chosen.train, chosen.validation])
    assert sorted(both) == list(range(len(labels)))
    assert len(chosen.validation) == max(round(len(labels) * fraction), len(counts))
    for part in (chosen.train, chosen.validation):
        assert set(labels[part]) == set(range(len(counts)))
    again = splits.select(data(validation=fraction), labels, None, classes=len(counts), seed=seed)
    assert np.array_equal(again.train, chosen.train)


@settings(max_examples=60)
@given(class_counts, st.integers(0, 2**32 - 1), st.data())
def test_limit_takes_a_stratified_part_of_the_same_split(counts, seed, drawn):
    labels = shuffled_labels(counts)
    whole = splits.select(data(validation=0.25), labels, None, classes=len(counts), seed=seed)
    limit = drawn.draw(st.integers(len(counts), len(labels)))
    part = splits.select(data(validation=0.25, limit=limit), labels, None, classes=len(counts), seed=seed)
    assert set(part.train) <= set(whole.train)
    assert set(part.validation) <= set(whole.validation)
    assert len(part.train) == min(limit, len(whole.train))
    ratio = len(part.train) / len(whole.train)
    assert len(part.validation) == max(round(len(whole.validation) * ratio), len(counts))
    shares = np.bincount(labels[whole.train]) * ratio
    if (shares >= 1).all():
        assert (np.abs(np.bincount(labels[part.train]) - shares) < 1).all()


@pytest.mark.parametrize("given_validation", [None, 60])
@pytest.mark.parametrize("validation", [0.1, 0.5, 12, 60])
@pytest.mark.parametrize("limit", [None, 4, 50, 10_000])
def test_sizes_announced_are_the_sizes_had(given_validation, validation, limit):
    labels = shuffled_labels([40, 30, 20, 10])
    given_labels = None if given_validation is None else shuffled_labels([15, 15, 15, 15])
    wanted = data(validation=validation, limit=limit)
    announced = splits.part_sizes(wanted, classes=4, images=100, given_validation=given_validation)
    had = splits.select(wanted, labels, given_labels, classes=4, seed=3)
    assert announced == (len(had.train), len(had.validation))


def test_a_number_of_validation_images_does_not_shrink_with_the_limit():
    assert splits.part_sizes(data(validation=30, limit=10), classes=2, images=100, given_validation=None) == (
        10,
        30,
    )


def test_a_fraction_leaves_given_validation_images_alone_until_a_limit_shrinks_them():
    sizes = [
        splits.part_sizes(data(limit=limit), classes=2, images=100, given_validation=40)
        for limit in (None, 50)
    ]
    assert sizes == [(100, 40), (50, 20)]


def test_other_seeds_give_other_validation_images_and_the_same_test_images():
    labels = shuffled_labels([50, 50])
    parts = [splits.select(data(), labels, None, classes=2, seed=seed).validation for seed in range(4)]
    assert len({tuple(part) for part in parts}) == 4
    assert np.array_equal(splits.hold_out(labels, 2, 0.2), splits.hold_out(labels, 2, 0.2))


def test_the_split_of_a_seed_never_changes():
    labels = np.tile(np.arange(2), 10)
    assert splits.hold_out(labels, 2, 0.2).tolist() == [
        0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 19
    ]  # fmt: skip
    assert splits.select(data(validation=0.2), labels, None, classes=2, seed=7).validation.tolist() == [
        0, 7, 15, 18
    ]  # fmt: skip


@given(class_counts, st.floats(0.01, 0.3))
def test_the_test_part_takes_from_every_class_and_leaves_two_images(counts, fraction):
    labels = shuffled_labels(counts)
    kept = np.bincount(labels[splits.hold_out(labels, len(counts), fraction)], minlength=len(counts))
    assert (kept >= 2).all()
    assert (kept < counts).all()


@pytest.mark.parametrize(
    ("values", "given_validation", "message"),
    [
        ({"validation": 3}, None, r"data.validation=3 cannot hold one image of each of the 4 classes: use"),
        ({"validation": 97}, None, r"data.validation=97 asks for 97 images, but the data set has 96"),
        ({"validation": 0.99}, None, r"data.validation=0.99 asks for 99 images"),
        ({"validation": 41}, 40, r"data.validation=41 asks for 41 images, .* has 40 validation images of"),
        ({"limit": 3}, None, r"data.limit=3 cannot hold one image of each of the 4 classes: use"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(values, given_validation, message):
    with pytest.raises(InputError, match=message):
        splits.part_sizes(data(**values), classes=4, images=100, given_validation=given_validation)


def test_a_test_part_that_leaves_too_little():
    with pytest.raises(
        InputError, match=r"data.test=0.9 of 20 images leaves 2 for training and validation, but 2"
    ):
        splits.hold_out(shuffled_labels([10, 10]), 2, 0.9)
