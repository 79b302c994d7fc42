"""Rankings: the pictures of a gallery in the order of their squared distances to a query."""

import os

import numpy as np
import numpy.typing as npt

from kedge.keys import keys_of

__all__ = ["nearest_first", "ranking_threads"]


def nearest_first(squared: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the places of squared distances (n,) by rank: ties by place, NaN last, as a stable argsort.

    Keys take less than half of its time: NumPy sorts numbers faster than the places of numbers.
    """
    # A sign, even that of a zero or NaN, would put a key before all others.
    keys = keys_of(np.abs(squared), np.arange(len(squared)))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def ranking_threads() -> int:
    """Return how many queries to rank at once: sorting leaves other threads free to run."""
    # Whoever runs several processes side by side says by this how many threads each may take.
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1
