"""MemoryIndex: the two-stage search of a gallery whose vectors are held in memory; `DiskIndex` does without."""

import re

import numpy as np
import numpy.typing as npt

from kedge.anchors import Anchors
from kedge.hits import Found
from kedge.pictures_table import PicturesTable
from kedge.search import Order, Probes, TwoStageIndex

__all__ = ["MemoryIndex"]

_SAID = ["id", "path", "label", "anchor"]
# Filters whose matches are kept, a byte a picture each; and words of those that may match others the next time.
_FILTERS_KEPT = 16
_CHANGING = re.compile(r"\b(now|random|uuid|today|current_\w+)\b", re.IGNORECASE)


class MemoryIndex:
    """One version of a table in memory."""

    def __init__(self, table: PicturesTable, anchors: Anchors, *, half: bool) -> None:
        rows = table.read([*_SAID, "rho", "gap"], row_ids=True)
        filed = rows["anchor"].combine_chunks().dictionary_encode()
        by_code = np.asarray([anchors.rows[name] for name in filed.dictionary.to_pylist()], dtype=np.int64)
        self._index = TwoStageIndex(
            table.embeddings(),
            anchors.vectors,
            by_code[np.asarray(filed.indices)] if len(rows) else np.zeros(0, dtype=np.int64),
            # Of the vectors as they were filed: rounded ones have others, which the index works out.
            rho=None if half else rows["rho"].to_numpy(),
            gap=None if half else rows["gap"].to_numpy(),
            dtype=np.float16 if half else np.float32,
        )
        self.total, self._table = len(rows), table
        # Row i of the index is row i of these.
        self._said = rows.select(_SAID).combine_chunks()
        self._row_ids = rows["_rowid"].to_numpy()
        self._by_row_id = np.argsort(self._row_ids, kind="stable")
        self._matches: dict[str, npt.NDArray[np.bool_]] = {}

    def search(
        self, queries: npt.NDArray[np.float32], k: int, probes: Probes, *, where: str | None, order: Order
    ) -> list[Found]:
        """Return what each query, (queries, d), finds."""
        allowed = None if where is None else self._matching(where)
        if not self.total or not len(queries) or (allowed is not None and not allowed.any()):
            return [Found.nothing(self._said)] * len(queries)
        near = self._index.search(queries, min(k, self.total), probes, allowed=allowed, fill=True, order=order)
        return [
            Found(self._said.take(ids[ids >= 0]), distances[ids >= 0], probed, int(scanned))
            for ids, distances, probed, scanned in zip(near.ids, near.distances, near.probed, near.scanned, strict=True)
        ]

    def _matching(self, where: str) -> npt.NDArray[np.bool_]:
        """Say of each row whether it matches the filter; a filter asked for again is not worked out again."""
        if where in self._matches:
            return self._matches[where]
        matches = np.zeros(self.total, dtype=np.bool_)
        row_ids = self._table.row_ids(where)
        matches[self._by_row_id[np.searchsorted(self._row_ids, row_ids, sorter=self._by_row_id)]] = True
        if not _CHANGING.search(where):
            if len(self._matches) == _FILTERS_KEPT:
                del self._matches[next(iter(self._matches))]
            self._matches[where] = matches
        return matches
