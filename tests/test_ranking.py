"""Ranking against NumPy's stable argsort."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.ranking import nearest_first, nearest_first_by_torch

FEW = [0.0, -0.0, 1e-45, 1e-38, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.0, 3e38, np.inf, np.nan, -np.nan]
distances = st.one_of(st.sampled_from(FEW), st.floats(0, width=32))


@settings(max_examples=300, deadline=None)
@given(st.lists(distances, max_size=60))
def test_nearest_come_first_and_ties_by_place(squared):
    squared = np.array(squared, dtype=np.float32)
    expected = np.argsort(squared, kind="stable").tolist()
    assert nearest_first(squared).tolist() == expected
    # As on a GPU, which no test has.
    assert nearest_first_by_torch(np.stack([squared, squared[::-1]]), "cpu")[0].tolist() == expected


def test_ten_thousands_with_ties_are_in_order():
    random = np.random.default_rng(0)
    for squared in (random.random(70_000), random.integers(0, 50, 70_000), np.zeros(70_000)):
        squared = squared.astype(np.float32)
        np.testing.assert_array_equal(nearest_first(squared), np.argsort(squared, kind="stable"))


def test_distances_are_left_as_they_were():
    squared = np.array([3, 1, 2], dtype=np.float32)
    nearest_first(squared)
    assert squared.tolist() == [3, 1, 2]
