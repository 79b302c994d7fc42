"""The bounds of exact search against the distances that they bound, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.bounds import BucketBounds, slack
from kedge.distances import squared_distances
from kedge.filing import file_vectors
from kedge.keys import Points
from tests.test_search import KINDS, vectors_of


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), by_label=st.booleans(), near=st.booleans())
def test_no_bound_is_above_the_distance_that_it_bounds(kind, seed, by_label, near):
    vectors, queries, points = vectors_of(kind, seed, count=80, dim=8, anchors=6)
    if near:
        points[1] = points[0] + 1e-4 * np.abs(points[0]).max()
    random = np.random.default_rng(seed)
    filing = file_vectors(vectors, points, random.integers(0, 6, 80) if by_label else None)
    order = np.argsort(filing.anchors, kind="stable")
    starts = np.searchsorted(filing.anchors[order], np.arange(7))
    bounds = BucketBounds.of(filing.rho[order], filing.gap[order], starts, points)
    squared = squared_distances(queries, points)
    least = bounds.least_distances(squared, squared.argmin(axis=1))
    largest = max(np.linalg.norm(each.astype(np.float64), axis=1).max() for each in (vectors, points))
    room = slack(Points.of(queries).squared_norms, Points.of(points), float(largest))
    apart = np.sqrt(((queries[:, None].astype(np.float64) - vectors.astype(np.float64)) ** 2).sum(axis=2))
    for bucket in np.unique(filing.anchors):
        assert (least[:, bucket] <= apart[:, filing.anchors == bucket].min(axis=1) + room).all()


def test_a_bucket_bound_is_the_larger_of_both():
    # rho is in [1, 2] about (0, 0), and the least gap 3; the other anchor, the query's own, is at (10, 0).
    rho, gap, starts = np.float32([1, 2]), np.float32([3, 4]), np.array([0, 2, 2])
    bounds = BucketBounds.of(rho, gap, starts, np.float32([[0, 0], [10, 0]]))
    for at, expected in ((11.0, 9.0), (6.0, 4.0)):  # by the radius: 11 - 2; by the plane: (36 - 16) / 20 + 3, and 6 - 2
        squared = np.array([[at**2, (10 - at) ** 2]])
        assert bounds.least_distances(squared, np.array([1]))[0, 0] == pytest.approx(expected)
    # Nearer to the anchor than any of its bucket: half of the way to the first.
    assert bounds.least_distances(np.array([[0.25, 90.25]]), np.array([0]))[0, 0] == pytest.approx(0.5)


def test_the_plane_bounds_where_it_is_the_larger():
    # Along the plane the radius says nothing: rho 5 at a query 5 away, and the gap puts the bucket 4 beyond the plane.
    bounds = BucketBounds.of(np.float32([5]), np.float32([4]), np.array([0, 1, 1]), np.float32([[0, 0], [10, 0]]))
    squared = np.array([[26.0, 26.0]])  # at (5, 1)
    assert bounds.least_distances(squared, np.array([1]))[0, 0] == pytest.approx(4.0)
