"""Calibration: how far from its nearest anchor a picture of a known class lies, by pictures held out of training."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from kedge.anchors import nearest_anchors

__all__ = ["KNOWN_PERCENT", "Calibration", "nearest_anchor_distances"]

# A query is called known when it lies as near to an anchor as so many percent of the held-out pictures do.
KNOWN_PERCENT = 95


@dataclass(frozen=True)
class Calibration:
    """Quantiles 0, 0.01, ..., 1 of the Euclidean distance from a held-out picture to its nearest anchor.

    Of 101 pictures and fewer, all of these distances, in order.
    """

    quantiles: tuple[float, ...]

    @classmethod
    def fit(cls, vectors: npt.NDArray[np.floating], anchors: npt.NDArray[np.floating]) -> Self | None:
        """Return that of embeddings (n, d) under anchors (t, d), both as they are searched with; None for no picture.

        Quantiles are those of observed distances (the next higher one), so that the share kept is never too small.
        """
        if not len(vectors):
            return None
        distances = np.sort(nearest_anchor_distances(vectors, anchors))
        if len(distances) > 101:
            # In whole numbers: 0.95 x 220 in floating point lies above 209.
            distances = distances[-(-np.arange(101) * (len(distances) - 1) // 100)]
        return cls(tuple(distances.tolist()))

    def percentiles(self, distances: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Return how many percent of the held-out pictures lie nearer to an anchor, for distances (n,)."""
        rank = np.searchsorted(np.asarray(self.quantiles), distances, side="left")
        return 100.0 * rank / len(self.quantiles)

    @property
    def reach(self) -> float:
        """The distance from their nearest anchor within which KNOWN_PERCENT of the held-out pictures lie, or more."""
        return self.quantiles[-(-KNOWN_PERCENT * (len(self.quantiles) - 1) // 100)]

    def known(self, distances: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Say of each distance to the nearest anchor, (n,), whether it is one that pictures of known classes have."""
        return np.asarray(distances) <= self.reach


def nearest_anchor_distances(
    vectors: npt.NDArray[np.floating], anchors: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the Euclidean distance of each vector, (n, d), to its nearest anchor, (t, d)."""
    apart = vectors.astype(np.float64) - anchors[nearest_anchors(vectors, anchors)]
    return np.sqrt(np.vecdot(apart, apart))
