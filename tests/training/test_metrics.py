import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tune_fusion.training.metrics import macro_f1

pairs = st.integers(2, 12).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60
        ),
    )
)


@given(pairs)
@settings(deadline=None)
def test_macro_f1_equals_scikit_learn_where_classes_are_missing_too(case):
    classes, seen = case
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for true, predicted in seen:
        confusion[true, predicted] += 1
    true, predicted = zip(*seen, strict=True)
    expected = f1_score(true, predicted, average="macro", zero_division=0)
    assert macro_f1(confusion) == pytest.approx(expected, rel=1e-6)
