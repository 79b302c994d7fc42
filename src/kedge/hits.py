"""Hits: what a search of a gallery found."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Found", "Hit", "SearchResult"]


@dataclass(frozen=True)
class Hit:
    """A picture that a search found: `rank` counts from 1, `distance` is Euclidean, it is filed under `anchor`."""

    rank: int
    id: str
    path: str | None
    label: str | None
    distance: float
    anchor: str


@dataclass(frozen=True)
class SearchResult:
    """What one query found, best first; `probed` names the anchors looked under, nearest first.

    `scanned_share` is the share of the gallery's pictures that the query was compared with. `percentile` says how many
    percent of the model's held-out pictures lie nearer to an anchor than the query does; `known` is False when it lies
    farther than 95 % of them. Both are None for a model without such pictures.
    """

    query: str
    hits: tuple[Hit, ...]
    probed: tuple[str, ...]
    scanned_share: float
    known: bool | None = None
    percentile: float | None = None

    def distances(self) -> list[str]:
        """Return the hits' distances for a table, all to as many decimals as tell those apart that differ.

        Four figures of the largest, and up to two more.
        """
        values = [hit.distance for hit in self.hits]
        largest = max((value for value in values if math.isfinite(value)), default=0.0)
        if largest and not 1e-4 < largest < 1e6:
            return [f"{value:.4g}" for value in values]
        least = min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest else 3
        for decimals in range(least, least + 3):
            said = [f"{value:.{decimals}f}" for value in values]
            if len({*said}) == len({*values}):
                break
        return said


@dataclass(frozen=True, eq=False)
class Found:
    """What an engine found for one query, best first.

    said: rows (id, path, label, anchor); distances: Euclidean. `probed` are the anchors looked under, nearest first;
    `scanned` counts the pictures filed there that may be hits.
    """

    said: pa.Table
    distances: npt.NDArray[np.float32]
    probed: npt.NDArray[np.int64]
    scanned: int

    @classmethod
    def nothing(cls, said: pa.Table) -> "Found":
        """Return what is found where there is no picture, with the columns of `said`."""
        return cls(said.slice(0, 0), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64), 0)
