"""Rankings: the pictures of a gallery in the order of their squared distances to a query."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kedge.keys import keys_of
from kedge.runtime import has_gpu

__all__ = ["nearest_first", "nearest_first_by_torch", "rank"]


def rank(squared: npt.NDArray[np.float32], pool: ThreadPoolExecutor) -> Iterable[npt.NDArray[np.int64]]:
    """Return for each query, of squared distances (queries, n), the places by rank, as `nearest_first` does."""
    return nearest_first_by_torch(squared, "cuda") if has_gpu() else pool.map(nearest_first, squared)


def nearest_first(squared: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the places of squared distances (n,) by rank: ties by place, NaN last, as a stable argsort.

    Keys take less than half of its time: NumPy sorts numbers faster than the places of numbers.
    """
    # A sign, even that of a zero or NaN, would put a key before all others.
    keys = keys_of(np.abs(squared), np.arange(len(squared)))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def nearest_first_by_torch(squared: npt.NDArray[np.float32], device: str) -> npt.NDArray[np.int64]:
    """Return the same for many queries, (queries, n) of either: a GPU sorts millions while a core sorts thousands."""
    import torch

    order: npt.NDArray[np.int64] = (
        torch.from_numpy(np.abs(squared)).to(device).argsort(dim=1, stable=True).cpu().numpy()
    )
    return order
