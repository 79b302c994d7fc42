"""Filing against the formulas, one picture and one anchor at a time in float64."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.anchors import Anchors, nearest_anchors
from kedge.errors import InputError
from kedge.filing import file_vectors, labelled_buckets


@given(seed=st.integers(0, 10_000), count=st.integers(0, 8), classes=st.integers(1, 5), labelled=st.booleans())
def test_rho_and_gap_are_what_their_formulas_say(seed, count, classes, labelled):
    draw = np.random.default_rng(seed)
    points, vectors = draw.normal(size=(classes, 3)).astype(np.float32), draw.normal(size=(count, 3)).astype(np.float32)
    anchors = Anchors(tuple(f"class {row}" for row in range(classes)), points)
    labels = [f"class {row}" for row in draw.integers(0, classes, size=count)] if labelled else None
    filing = file_vectors(vectors, points, labelled_buckets(labels, anchors) if labels is not None else None)
    for row, vector in enumerate(vectors.astype(np.float64)):
        distances = [float(np.linalg.norm(vector - point)) for point in points.astype(np.float64)]
        own = int(labels[row].split()[1]) if labels is not None else distances.index(min(distances))
        assert filing.anchors[row] == own
        assert filing.rho[row] == pytest.approx(distances[own], rel=1e-5)
        gaps = [
            (distances[other] ** 2 - distances[own] ** 2) / (2 * np.linalg.norm(points[other] - points[own]))
            for other in range(classes)
            if other != own
        ]
        least = min(gaps, default=np.inf)
        # Never too large; too small by no more than rounding in float32 explains.
        assert filing.gap[row] <= least + 1e-7 * abs(least) if gaps else filing.gap[row] == np.inf
        slack = 1e-4 * max(distances) ** 2 / min((np.linalg.norm(a - b) for a, b in combinations(points, 2)), default=1)
        assert filing.gap[row] >= least - slack or not gaps


def test_by_hand():
    anchors = Anchors(("left", "right", "right too"), np.asarray([[-1, 0], [3, 0], [3, 0]], dtype=np.float32))
    filing = file_vectors(np.asarray([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32), anchors.vectors)
    assert filing.anchors.tolist() == [0, 1]
    assert filing.rho.tolist() == [1, 4]
    # The plane between them stands at 1: the first lies 1 before it, the second 2 beyond. Equal anchors have no plane.
    assert filing.gap == pytest.approx([1, 2], rel=1e-4)
    assert (filing.gap <= [1, 2]).all()
    labelled = file_vectors(np.asarray([[0.0, 0.0]]), anchors.vectors, labelled_buckets(["right"], anchors))
    assert labelled.gap == pytest.approx([-1], rel=1e-4)


def test_labels_without_an_anchor_are_named():
    anchors = Anchors(("cat", "dog"), np.eye(2, dtype=np.float32))
    with pytest.raises(InputError, match=r"no anchor is called 'bird', 'fish'; the model has 2 \(cat, dog\)"):
        labelled_buckets(["fish", "cat", "bird"], anchors)


def test_vectors_between_anchors_that_float32_cannot_tell_apart_are_filed_by_float64():
    random = np.random.default_rng(0)
    points = (random.normal(size=(60, 8)) * 1e-3 + 100).astype(np.float32)
    vectors = (random.normal(size=(300, 8)) * 1e-3 + 100).astype(np.float32)
    apart = ((vectors[:, None].astype(np.float64) - points) ** 2).sum(axis=2)
    assert file_vectors(vectors, points).anchors.tolist() == apart.argmin(axis=1).tolist()


def test_equally_near_anchors_are_told_apart_in_every_block(monkeypatch):
    monkeypatch.setattr("kedge.filing._BLOCK_PAIRS", 64)
    random = np.random.default_rng(0)
    points, vectors = (random.integers(-1, 2, size=(count, 4)).astype(np.float32) for count in (12, 300))
    assert file_vectors(vectors, points).anchors.tolist() == nearest_anchors(vectors, points).tolist()
