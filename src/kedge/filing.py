"""Filing: under which anchor a picture stands, and the two numbers that let exact search skip it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kedge.anchors import Anchors, squared_distances
from kedge.errors import InputError

__all__ = ["Filing", "file_vectors"]

_BLOCK_ROWS = 4096


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


def file_vectors(
    vectors: npt.NDArray[np.floating], anchors: Anchors, labels: Sequence[str | None] | None = None
) -> Filing:
    """File vectors, shape (n, d), under their nearest anchor, or under the anchors named by `labels`.

    A label without an anchor raises InputError. Distances are worked out in float64.
    """
    count = len(vectors)
    buckets = np.zeros(count, dtype=np.int64) if labels is None else _labelled(labels, anchors)
    rho, gap = np.zeros(count, dtype=np.float32), np.full(count, np.inf, dtype=np.float32)
    between = np.sqrt(squared_distances(anchors.vectors, anchors.vectors))  # (anchors, anchors)
    np.fill_diagonal(between, 0.0)
    for start in range(0, count, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        squared = squared_distances(vectors[rows], anchors.vectors)  # (block, anchors)
        if labels is None:
            buckets[rows] = squared.argmin(axis=1)
        own = np.take_along_axis(squared, buckets[rows, None], axis=1)
        apart = between[buckets[rows]]  # (block, anchors)
        # Nothing divides a picture's own anchor from itself, or from one that lies on it.
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = np.where(apart > 0, (squared - own) / (2.0 * apart), np.inf)
        rho[rows], gap[rows] = np.sqrt(own[:, 0]), gaps.min(axis=1)
    return Filing(buckets, rho, gap)


def _labelled(labels: Sequence[str | None], anchors: Anchors) -> npt.NDArray[np.int64]:
    rows = {name: row for row, name in enumerate(anchors.names)}
    strange = sorted({str(label) for label in labels if label not in rows})
    if strange:
        shown = ", ".join(f"'{label}'" for label in strange[:5])
        raise InputError(
            f"no anchor is called {shown}{' and others' if len(strange) > 5 else ''}; the model has "
            f"{len(rows)} ({', '.join(anchors.names[:5])}{', …' if len(rows) > 5 else ''}): "
            f"file by nearest, or train a model on these classes"
        )
    return np.asarray([rows[str(label)] for label in labels], dtype=np.int64)
