"""Distances: between vectors, and the lengths that they go by."""

import numpy as np
import numpy.typing as npt

__all__ = ["all_the_same", "squared_distances", "unit_length"]


def squared_distances(queries: npt.NDArray[np.floating], points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return squared Euclidean distances, shape (queries, points), float64.

    Worked out as ||q||^2 + ||x||^2 - 2 q.x in float64, where cancellation costs nothing that float32 inputs could show
    (in float32 the same formula reorders close neighbours).
    """
    left, right = queries.astype(np.float64, copy=False), points.astype(np.float64, copy=False)
    squared = np.einsum("qd,qd->q", left, left)[:, None] + np.einsum("nd,nd->n", right, right)[None, :]
    squared -= 2.0 * (left @ right.T)
    return np.maximum(squared, 0.0, out=squared)


def unit_length(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return vectors, shape (n, d), divided by their norms; a zero vector stays zero."""
    # Squares of half precision end at 65,504.
    vectors = vectors.astype(np.promote_types(vectors.dtype, np.float32), copy=False)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def all_the_same(vectors: npt.NDArray[np.floating]) -> bool:
    """Tell whether vectors, (n, d), differ by no more than rounding, relative to the largest number in them."""
    return bool(vectors.std(axis=0).max() <= 1e-6 * np.abs(vectors).max())
