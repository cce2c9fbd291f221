"""Counts by true and predicted class."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from balora.evaluation.confusion import confusion


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_confusion_counts_pairs(pairs):
    expected = np.zeros((4, 4), dtype=int)
    for true, predicted in pairs:
        expected[true, predicted] += 1
    logits = np.eye(4)[[predicted for _, predicted in pairs]]
    assert confusion(logits, np.array([true for true, _ in pairs]), 4).tolist() == expected.tolist()
