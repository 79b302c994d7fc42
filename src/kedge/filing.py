"""Filing: under which anchor a vector stands, and the two numbers that let exact search skip its bucket."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kedge.anchors import Anchors, nearest_anchors
from kedge.distances import squared_distances
from kedge.errors import InputError

__all__ = ["LEAST_DIVIDED", "Filing", "dividing_planes", "file_vectors", "labelled_buckets"]

_BLOCK_PAIRS = 1 << 22
# Anchors closer than this, relative to the largest norm, have no plane between them: a gap would magnify rounding.
LEAST_DIVIDED = 1e-3


@dataclass(frozen=True, eq=False)
class Filing:
    """Where n vectors stand, each array of shape (n,): `anchors` row of the anchor, `rho`, `gap` (float32).

    rho is the Euclidean distance to that anchor c_j. gap is the least over the other anchors c_i of
    (||x - c_i||^2 - ||x - c_j||^2) / (2 ||c_i - c_j||): how far x lies on the own side of the nearest dividing plane;
    negative when x is filed elsewhere than under its nearest anchor, infinite when there is no other anchor.
    """

    anchors: npt.NDArray[np.int64]
    rho: npt.NDArray[np.float32]
    gap: npt.NDArray[np.float32]


def dividing_planes(anchors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return 1 / (2 ||c_i - c_j||) for anchors (t, d), shape (t, t); 0 where no plane divides the two."""
    between = np.sqrt(squared_distances(anchors, anchors))
    np.fill_diagonal(between, 0.0)
    least = LEAST_DIVIDED * float(np.linalg.norm(anchors, axis=1).max(initial=0.0))
    return np.divide(0.5, between, out=np.zeros_like(between), where=between > least)


def file_vectors(
    vectors: npt.NDArray[np.floating],
    anchors: npt.NDArray[np.floating],
    buckets: npt.NDArray[np.int64] | None = None,
) -> Filing:
    """File vectors, shape (n, d), under their nearest anchor, (t, d), or under the anchors numbered by `buckets`.

    Products in float32 rank the anchors, float64 those that they cannot tell apart. A gap is never too large: what
    rounding may have added is taken off.
    """
    count, dim = vectors.shape
    filed = np.zeros(count, dtype=np.int64) if buckets is None else buckets
    rho, gap = np.zeros(count, dtype=np.float32), np.full(count, np.inf, dtype=np.float32)
    points = anchors.astype(np.float64)
    squares = np.vecdot(points, points)
    half_over = dividing_planes(anchors).astype(np.float32)
    undivided = np.argwhere(half_over == 0)
    undivided = undivided[undivided[:, 0] != undivided[:, 1]]  # besides an anchor and itself
    turned, shift = (-2.0 * points.T).astype(np.float32), squares.astype(np.float32)
    block = max(1, _BLOCK_PAIRS // (len(anchors) + dim))
    for start in range(0, count, block):
        rows = slice(start, start + block)
        part = vectors[rows].astype(np.float32, copy=False)
        nearness = part @ turned  # squared distances less the vectors' own squares, (block, anchors)
        nearness += shift
        reach = np.sqrt(np.vecdot(part, part)) + np.float32(np.sqrt(squares.max()))
        error = np.float32(4 * (dim + 8) * 2.0**-24) * reach**2
        if buckets is None:
            filed[rows] = nearness.argmin(axis=1)
            close = nearness <= (nearness.min(axis=1) + error)[:, None]
            if np.count_nonzero(close) > len(part):
                unsure = np.flatnonzero(close.sum(axis=1) > 1)
                filed[start + unsure] = nearest_anchors(part[unsure], anchors)
        at, own = np.arange(len(part)), filed[rows]
        nearness -= (nearness[at, own] + error)[:, None]
        nearness *= half_over[own]
        nearness[at, own] = np.inf
        for first, other in undivided:
            nearness[own == first, other] = np.inf
        gap[rows] = nearness.min(axis=1)
        apart = part.astype(np.float64) - points[own]
        rho[rows] = np.sqrt(np.vecdot(apart, apart))
    return Filing(filed, rho, gap)


def labelled_buckets(labels: Sequence[str | None], anchors: Anchors) -> npt.NDArray[np.int64]:
    """Return the row of the anchor that each label names, shape (n,); InputError for a label without an anchor."""
    strange = sorted({str(label) for label in labels if label not in anchors.rows})
    if strange:
        shown = ", ".join(f"'{label}'" for label in strange[:5])
        raise InputError(
            f"no anchor is called {shown}{' and others' if len(strange) > 5 else ''}; the model has "
            f"{len(anchors)} ({', '.join(anchors.names[:5])}{', …' if len(anchors) > 5 else ''}): "
            f"file by nearest, or train a model on these classes"
        )
    return np.asarray([anchors.rows[str(label)] for label in labels], dtype=np.int64)
