"""Anchors: nearest, means, unit length, and distances that keep float32's precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.anchors import Anchors, expand_queries, nearest_anchors
from kedge.distances import squared_distances, unit_length
from kedge.errors import InputError, ModelError


def test_means_worked_by_hand():
    vectors = np.array([[1, 0], [3, 0], [0, 5]], dtype=np.float32)
    anchors = Anchors.from_means(["cat", "dog"], vectors, np.array([0, 0, 1]))
    assert anchors.vectors.tolist() == [[2, 0], [0, 5]]
    assert anchors.unit().vectors.tolist() == [[1, 0], [0, 1]]
    assert anchors.nearest(np.array([[0.0, 4.0], [9.0, 1.0]])).tolist() == [1, 0]


def test_class_without_pictures_is_named():
    with pytest.raises(InputError, match="dog"):
        Anchors.from_means(["cat", "dog"], np.ones((1, 2), dtype=np.float32), np.array([0]))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), anchors=st.integers(2, 9), dim=st.integers(2, 5), seed=st.integers(0, 99))
def test_distances_and_nearest_equal_a_slow_loop(count, anchors, dim, seed):
    random = np.random.default_rng(seed)
    vectors, points = random.normal(size=(count, dim)), random.normal(size=(anchors, dim))
    slow = [[sum((a - b) ** 2 for a, b in zip(v, p, strict=True)) for p in points] for v in vectors]
    assert np.allclose(squared_distances(vectors, points), slow)
    assert nearest_anchors(vectors, points).tolist() == np.argmin(slow, axis=1).tolist()


def test_distances_far_from_the_origin_keep_close_neighbours_apart():
    points = (np.array([[0.0], [0.25], [0.5]]) + 4096).astype(np.float32)
    assert squared_distances(points[:1], points).tolist() == [[0.0, 0.0625, 0.25]]


def test_zero_vector_stays_zero():
    assert unit_length(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0, 0, 0]]


def test_expansion_by_hand():
    # Anchors at 0, 120 and 240 degrees about their centre; the query, at 20, has cosines 0.9397, -0.1736 and -0.7660.
    angles = np.radians([0, 120, 240, 20])
    points = np.column_stack([np.cos(angles), np.sin(angles)])
    x, y = 0.57138 + 0.5 * 0.09084, 0.86603 * 0.09084
    assert np.allclose(expand_queries(5 * points[3:], points[:3]), 5 * np.array([[x, y]]) / np.hypot(x, y), atol=1e-4)
    # What anchors share is taken off; a single one leaves the query as it is.
    assert np.allclose(expand_queries(np.array([[0.6, 0.8]]), np.eye(2)), np.array([[-1, 1]]) / 2**0.5)
    assert np.allclose(expand_queries(np.array([[0.6, 0.8]]), np.eye(2)[:1]), [[0.6, 0.8]])


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), anchors=st.integers(2, 9), dim=st.integers(2, 5), seed=st.integers(0, 99))
def test_expansion_equals_a_slow_loop(count, anchors, dim, seed):
    random = np.random.default_rng(seed)
    queries, points = (unit_length(random.normal(size=(size, dim))) for size in (count, anchors))
    for query, found in zip(queries.astype(float), expand_queries(queries, points), strict=True):
        centre = points.astype(float).mean(axis=0)
        apart = [(point - centre) / np.linalg.norm(point - centre) for point in points.astype(float)]
        asked = (query - centre) / np.linalg.norm(query - centre)
        total = sum((asked @ point) ** 9 * point for point in apart)
        assert np.allclose(found, total / np.linalg.norm(total), atol=1e-3)


def test_saved_and_loaded(tmp_path):
    anchors = Anchors(("a", "b"), np.array([[1, 2], [3, 4]], dtype=np.float32))
    anchors.save(tmp_path / "anchors.safetensors")
    again = Anchors.load(tmp_path / "anchors.safetensors", anchors.names)
    assert again.names == anchors.names
    assert again.vectors.tolist() == anchors.vectors.tolist()
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        Anchors.load(tmp_path / "broken.safetensors", anchors.names)


@pytest.mark.parametrize(
    ("names", "vectors"),
    [(("a",), np.zeros((2, 3))), (("a", "a"), np.zeros((2, 3))), (("a", "b"), np.array([[np.nan], [0]]))],
)
def test_impossible_anchors_are_refused(names, vectors):
    with pytest.raises(InputError):
        Anchors(names, vectors.astype(np.float32))
