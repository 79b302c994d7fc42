"""DiskIndex: the two-stage search of a gallery that stays on disk, through Lance's index with the anchors as centroids.

Memory holds the anchors, how many pictures stand under each, and a cache of bounded size. Lance finds candidates among
the pictures filed under the probed anchors, indexed or not; the distances that rank them are worked out as in memory.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kedge.anchors import Anchors
from kedge.distances import squared_distances
from kedge.hits import Found
from kedge.pictures_table import PicturesTable, matrix
from kedge.search import Order, Probes

__all__ = ["DiskIndex"]

Rows = npt.NDArray[np.int64]

# Candidates beyond k that Lance is asked for: its float32 order may differ from ours among the last.
_SPARE = 16
# Partitions beyond the probed ones, where Lance ranks two anchors the other way round.
_SPARE_PROBES = 4


class DiskIndex:
    """Searches one table; it makes the index on disk when there is none yet."""

    def __init__(self, table: PicturesTable, anchors: Anchors) -> None:
        self._table, self._anchors = table, anchors
        table.index_embeddings(anchors.vectors)
        # Lance's index files by nearest only: pictures filed by label are found by their anchor alone.
        self._by_nearest = table.count("filed_by = 'label'") == 0
        self.total = table.count()

    def search(
        self, queries: npt.NDArray[np.float32], k: int, probes: Probes, *, where: str | None, order: Order
    ) -> list[Found]:
        """Return what each query, (queries, d), finds: as `MemoryIndex.search` does."""
        if not self.total or not len(queries) or not self._table.count(where):
            return [Found.nothing(self._table.find("id", [], ("id", "path", "label", "anchor")))] * len(queries)
        sizes, k = self._sizes(where), min(k, self.total)
        ranked = np.argsort(squared_distances(queries, self._anchors.vectors), axis=1, kind="stable")
        return [
            self._one(query, by_nearness, sizes, k, probes, where, order)
            for query, by_nearness in zip(queries, ranked, strict=True)
        ]

    def _one(
        self,
        query: npt.NDArray[np.float32],
        by_nearness: Rows,
        sizes: Rows,
        k: int,
        probes: Probes,
        where: str | None,
        order: Order,
    ) -> Found:
        held = np.cumsum(sizes[by_nearness])
        if probes == "exact":
            # No bound is kept on disk: all are compared.
            probed = by_nearness[sizes[by_nearness] > 0]
        else:
            needed = int((held < min(k, int(held[-1]))).sum()) + 1
            probed = by_nearness[: max(min(probes, len(by_nearness)), needed)]
        # Buckets in their order are asked for one by one, all of them else.
        groups = [probed] if order == "distance" else [probed[at : at + 1] for at in range(len(probed))]
        said: list[pa.Table] = []
        distances: list[npt.NDArray[np.float32]] = []
        nearest = 0
        for group in groups:
            missing = k - sum(len(rows) for rows in said)
            if missing < 1:
                break
            nearest += len(group)  # so many anchors lie no farther than the last of the group
            partitions = nearest + _SPARE_PROBES if self._by_nearest and probes != "exact" else None
            found, values = self._nearest(query, group, missing, where, partitions)
            if partitions is not None and len(found) < min(missing, int(sizes[group].sum())):
                # What lies as near to two anchors Lance may hold in the other's partition.
                found, values = self._nearest(query, group, missing, where, None)
            said.append(found)
            distances.append(values)
        return Found(pa.concat_tables(said), np.concatenate(distances), probed, int(sizes[probed].sum()))

    def _nearest(
        self, query: npt.NDArray[np.float32], anchors: Rows, k: int, where: str | None, partitions: int | None
    ) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        """Return the k nearest rows under some anchors, from the partitions nearest the query, None: from all."""
        every = len(anchors) == len(self._anchors)
        rows = self._table.nearest(
            query,
            k + _SPARE,
            anchors=None if every else [self._anchors.names[anchor] for anchor in anchors],
            where=where,
            probes=None if every or partitions is None else min(partitions, len(self._anchors)),
        )
        apart = matrix(rows["embedding"]).astype(np.float64) - query
        squared = np.vecdot(apart, apart).astype(np.float32)
        best = np.lexsort((rows["_rowid"].to_numpy(), squared))[:k]
        return rows.select(["id", "path", "label", "anchor"]).take(best), np.sqrt(squared[best])

    def _sizes(self, where: str | None) -> Rows:
        """Return how many pictures that may be hits stand under each anchor."""
        counts = self._table.count_by("anchor", where)
        return np.asarray([counts.get(name, 0) for name in self._anchors.names], dtype=np.int64)
