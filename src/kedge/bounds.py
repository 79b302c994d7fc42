"""Bounds: what tells exact search that a bucket, or a single vector, is too far to be among the nearest.

Whole buckets are ruled out by their radii and by the half-space between two anchors, single vectors by their projection
onto the space that the anchors span (docs/method.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from kedge.filing import LEAST_DIVIDED, dividing_planes
from kedge.keys import UNIT, Points, squared_norms

__all__ = ["BucketBounds", "Sketch", "slack"]

Floats = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Dimensions of the projection.
SKETCH_DIM = 24
# Half the step of float64, relative to the number.
UNIT64 = 2.0**-53


@dataclass(frozen=True, eq=False)
class BucketBounds:
    """Of each bucket: least and largest distance to its anchor, and the least gap to another (see `Filing`)."""

    closest: Doubles
    farthest: Doubles
    least_gap: Doubles
    half_over: Doubles

    @classmethod
    def of(cls, rho: Vectors, gap: Vectors, starts: Rows, anchors: Vectors) -> Self:
        """Take the numbers of vectors sorted by bucket, (n,); bucket b is starts[b]..starts[b + 1]."""
        count = len(anchors)
        closest, farthest, least = np.full(count, np.inf), np.full(count, -np.inf), np.full(count, np.inf)
        filled = np.flatnonzero(np.diff(starts))
        if len(filled):
            firsts = starts[filled]
            closest[filled] = np.minimum.reduceat(rho, firsts)
            farthest[filled] = np.maximum.reduceat(rho, firsts)
            least[filled] = np.minimum.reduceat(gap, firsts)
        return cls(closest, farthest, least, dividing_planes(anchors))

    def least_distances(self, squared: Doubles, own: Rows) -> Doubles:
        """Return what no vector of a bucket is nearer than, shape (queries, anchors); may be negative.

        squared (queries, anchors): squared distances to the anchors; own (queries,): the nearest one.
        """
        to_anchors = np.sqrt(squared)
        radius = np.maximum(to_anchors - self.farthest, self.closest - to_anchors)
        half_over = self.half_over[own]
        plane = (squared - np.take_along_axis(squared, own[:, None], axis=1)) * half_over + self.least_gap
        # Where no plane divides the two anchors, the gap says nothing.
        plane[half_over == 0] = -np.inf
        return np.maximum(radius, plane, out=plane)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Points of r + 1 numbers whose distances are never above those of the vectors.

    The first r numbers are the vector's projection onto the directions in which the anchors differ most, the last one
    is the length of what remains.
    """

    centre: Doubles
    directions: Doubles
    columns: Vectors
    """A point y of each vector, as (-2 y, ||y||^2), in a column each: one product with long rows, (r + 2, n), gives all
    squared distances, in a third of the time that short rows take."""

    @classmethod
    def of(cls, parts: Iterable[Floats], count: int, anchors: Doubles) -> Self:
        """Work out the points of vectors that come in parts, `count` in all, by anchors (t, d)."""
        centre, directions = _spread_most(anchors)
        columns = np.empty((directions.shape[1] + 2, count), dtype=np.float32)
        start = 0
        for part in parts:
            points = cls._project(part, centre, directions)
            columns[:-1, start : start + len(points)] = -2 * points.T
            columns[-1, start : start + len(points)] = squared_norms(points)
            start += len(points)
        return cls(centre, directions, columns)

    def squared_distances(self, query: Doubles, places: slice | Rows) -> tuple[Vectors, float]:
        """Return squared distances of one query's point p, (1, d), to those of some places, less ||p||^2, and ||p||^2.

        It comes off a limit instead: that is one number, these are as many as there are places.
        """
        (point,) = self._project(query, self.centre, self.directions)
        beyond: Vectors = np.append(point, np.float32(1)) @ self.columns[:, places]
        return beyond, float(point @ point)

    def error(self, reach: float) -> float:
        """Return how far a squared distance can be off for a query and vectors whose norms add up to `reach`."""
        return 2 * (len(self.columns) + 8) * UNIT * (2 * reach) ** 2

    @staticmethod
    def _project(vectors: Floats, centre: Doubles, directions: Doubles) -> Vectors:
        apart = vectors.astype(np.float64) - centre
        along = apart @ directions
        beside = np.sqrt(np.maximum(squared_norms(apart) - squared_norms(along), 0.0))
        return np.column_stack([along, beside]).astype(np.float32)


def _spread_most(anchors: Doubles) -> tuple[Doubles, Doubles]:
    """Return the centre of anchors (t, d) and the directions in which they differ most, (d,) and (d, r)."""
    from scipy.linalg import eigh

    count, dim = anchors.shape
    centre = anchors.mean(axis=0)
    most = max(0, min(SKETCH_DIM, count - 1, dim // 4))
    if not most:
        return centre, np.zeros((dim, 0))
    apart = anchors - centre
    _, directions = eigh(apart.T @ apart, subset_by_index=(dim - most, dim - 1))
    return centre, directions


def slack(squares: Doubles, anchors: Points, largest: float) -> Doubles:
    """Return how far rounding can move a bound, in distance, for queries of these squared norms, shape (queries,).

    Squared distances to anchors come from float64 products: off by e = 2 (d + 4) 2^-53 (|q| + |c|)^2, so a distance is
    off by sqrt(e), and a half-space by 2 e / |c_i - c_j|, once for the query and once for the vector. Radii, gaps and
    projections are stored in float32, off by 2^-24 of numbers no larger than the reach. largest: no norm is above it.
    """
    reach = np.sqrt(squares) + largest
    error = 2 * (anchors.double.shape[1] + 4) * UNIT64 * reach**2
    least = LEAST_DIVIDED * float(np.sqrt(anchors.squared_norms.max())) or np.inf  # all zero: no planes
    return 2 * np.sqrt(error) + 4 * error / least + 16 * UNIT * reach
