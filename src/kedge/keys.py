"""Keys: a squared distance and a row in one number, and the distances between queries and vectors that go into it.

A squared distance is worked out in float64 and rounded to float32; equal ones go by row. A key is an int64 number, the
bits of the squared distance above the row: keys sort as both do.
"""

import sys
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = [
    "MOST_ROWS",
    "NO_KEY",
    "UNIT",
    "Keys",
    "Points",
    "keys_of",
    "keys_of_pairs",
    "least_keys",
    "rows_of",
    "squared_norms",
    "squared_of",
]

Keys = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

# Half the step of float32, relative to the number.
UNIT = 2.0**-24
# Squared distances below this, relative to the largest squared norms, lose too much in a product.
CANCELLING = 1e-3
# Which half of a key the squared distance is.
HIGH = 1 if sys.byteorder == "little" else 0
# Rows are told by 31 bits. The key of no row is above all others: infinity, and -1.
MOST_ROWS = 1 << 31
NO_KEY = (0x7F800000 << 32) | 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Points:
    """Queries or anchors (n, d) in both precisions, with their squared norms.

    error: how far ||x||^2 - 2 q.x can be off in float32. cancelling: squared distances from here down lose too much in
    a product, even in float64, and are worked out again.
    """

    single: npt.NDArray[np.float32]
    double: Doubles
    squared_norms: Doubles
    error: Doubles
    cancelling: Doubles

    @classmethod
    def of(cls, vectors: npt.NDArray[np.float32], largest: float = 0.0) -> Self:
        """Take queries for vectors whose norms are at most `largest`."""
        double = vectors.astype(np.float64)
        norms = squared_norms(double)
        error = 2 * (vectors.shape[1] + 8) * UNIT * (np.sqrt(norms) + largest) ** 2
        return cls(vectors, double, norms, error, CANCELLING * (norms + largest**2))

    def __len__(self) -> int:
        return len(self.single)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Self:
        doubles = (self.double, self.squared_norms, self.error, self.cancelling)
        return type(self)(self.single[rows], *(part[rows] for part in doubles))


def keys_of_pairs(queries: Points, vectors: Doubles, norms: Doubles, rows: npt.NDArray[np.int64]) -> Keys:
    """Return the keys of all pairs of queries and vectors, (n, d) with their norms and rows, shape (queries, n)."""
    squared = queries.double @ vectors.T
    squared *= -2.0
    squared += norms
    squared += queries.squared_norms[:, None]
    # Only queries that lie this near to anything are looked at pair by pair.
    for row in np.flatnonzero(squared.min(axis=1, initial=np.inf) <= queries.cancelling):
        close = np.flatnonzero(squared[row] <= queries.cancelling[row])
        squared[row, close] = squared_norms(vectors[close] - queries.double[row])
    return keys_of(squared, rows)


def keys_of(squared: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]) -> Keys:
    """Return the keys of squared distances (..., n) to rows (n,), the same shape."""
    keys = np.empty(squared.shape, dtype=np.int64)
    keys.view(np.float32)[..., HIGH::2] = squared
    keys.view(np.int32)[..., 1 - HIGH :: 2] = rows
    return keys


def least_keys(keys: Keys, k: int) -> Keys:
    """Return the k least keys, ascending, along the last axis; NO_KEY where there are fewer."""
    count = keys.shape[-1]
    if count < k:
        keys = np.concatenate([keys, np.full((*keys.shape[:-1], k - count), NO_KEY, dtype=np.int64)], axis=-1)
    elif count > k:
        keys = np.partition(keys, k - 1, axis=-1)[..., :k]
    return np.sort(keys, axis=-1)


def squared_of(keys: Keys) -> npt.NDArray[np.float32]:
    """Return the squared distances in keys, along the last axis."""
    return np.ascontiguousarray(keys).view(np.float32)[..., HIGH::2]


def rows_of(keys: Keys) -> npt.NDArray[np.int64]:
    """Return the rows in keys, along the last axis; -1 for no row."""
    return np.ascontiguousarray(keys).view(np.int32)[..., 1 - HIGH :: 2].astype(np.int64)


def squared_norms(vectors: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
    """Return squared norms, shape (n,)."""
    return np.vecdot(vectors, vectors)
