"""Calibration against counts by hand and against a slow loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.calibration import KNOWN_PERCENT, Calibration, nearest_anchor_distances


def on_a_line(distances):
    """Vectors at these distances from an anchor at 0; the other anchor is far."""
    vectors = np.zeros((len(distances), 2), dtype=np.float32)
    vectors[:, 0] = distances
    return vectors, np.array([[0, 0], [1000, 0]], dtype=np.float32)


def test_by_hand():
    calibration = Calibration.fit(*on_a_line(np.arange(101)))
    assert calibration.quantiles == tuple(range(101))
    assert calibration.percentiles(np.array([0, 0.5, 50, 99.5, 100, 400])).tolist() == [
        100 * nearer / 101 for nearer in (0, 1, 50, 100, 100, 101)
    ]
    assert calibration.known(np.array([0, 95, 95.1, 400])).tolist() == [True, True, False, False]


@given(seed=st.integers(0, 1000), count=st.integers(1, 300))
def test_the_promised_share_of_held_out_pictures_is_known(seed, count):
    random = np.random.default_rng(seed)
    vectors, anchors = random.normal(size=(count, 4)).astype(np.float32), random.normal(size=(3, 4)).astype(np.float32)
    distances = [min(float(np.linalg.norm(vector - anchor)) for anchor in anchors) for vector in vectors]
    assert nearest_anchor_distances(vectors, anchors) == pytest.approx(distances, rel=1e-5)
    calibration = Calibration.fit(vectors, anchors)
    known = calibration.known(nearest_anchor_distances(vectors, anchors))
    assert 100 * known.sum() >= KNOWN_PERCENT * count
    assert known.sum() <= np.ceil(KNOWN_PERCENT * (count - 1) / 100) + 1
    assert calibration.reach == max(nearest_anchor_distances(vectors, anchors)[known])


def test_nothing_held_out_calibrates_nothing():
    assert Calibration.fit(*on_a_line([])) is None


@pytest.mark.parametrize(("count", "apart"), [(1, 0), (2, 0), (5, 0), (101, 0), (102, 1), (1000, 1)])
def test_percentiles_count_the_held_out_pictures(count, apart):
    """Exactly for 101 of them and fewer, else within a percent."""
    distances = np.random.default_rng(count).random(count)
    asked = np.append(np.linspace(0, 1, 50), distances[: count // 2])
    nearer = [100 * np.mean(distances < each) for each in asked]
    calibration = Calibration.fit(*on_a_line(distances.astype(np.float64)))
    assert calibration.percentiles(asked.astype(np.float32).astype(np.float64)) == pytest.approx(
        nearer, abs=apart + 1e-9
    )


def test_of_many_held_out_pictures_the_hundredths_are_kept():
    calibration = Calibration.fit(*on_a_line(np.arange(1000) / 4))
    assert len(calibration.quantiles) == 101
    assert (calibration.quantiles[0], calibration.quantiles[-1]) == (0, 249.75)
