"""Anchors: the named vectors that pictures are hauled to in training and filed under in search."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kedge.atomic_write import write_atomically
from kedge.distances import squared_distances, unit_length
from kedge.errors import InputError, ModelError

__all__ = ["Anchors", "expand_queries", "nearest_anchors"]

Vectors = npt.NDArray[np.float32]

_BLOCK_BYTES = 64 << 20
# Power of the cosines that weigh anchors in query expansion; odd, so that it keeps their sign.
EXPANSION = 9


def nearest_anchors(vectors: npt.NDArray[np.floating], anchors: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return for each vector the row of its nearest anchor, shape (n,); the first of equals. Works in blocks."""
    nearest = np.empty(len(vectors), dtype=np.int64)
    block = max(1, _BLOCK_BYTES // (8 * (len(anchors) + vectors.shape[1])))
    for start in range(0, len(vectors), block):
        nearest[start : start + block] = squared_distances(vectors[start : start + block], anchors).argmin(axis=1)
    return nearest


@dataclass(frozen=True, eq=False)
class Anchors:
    """Class names and their vectors; row i of `vectors`, shape (classes, d) float32, belongs to `names[i]`."""

    names: tuple[str, ...]
    vectors: Vectors

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.names) != len(self.vectors):
            raise InputError(f"{len(self.names)} anchor names were given with vectors of shape {self.vectors.shape}")
        if len(set(self.names)) != len(self.names):
            raise InputError("two anchors have the same name")
        if not np.isfinite(self.vectors).all():
            raise InputError("an anchor is not finite")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each name."""
        return {name: row for row, name in enumerate(self.names)}

    def unit(self) -> Self:
        """Return the same anchors with every vector made unit length."""
        return type(self)(self.names, unit_length(self.vectors))

    @classmethod
    def from_means(
        cls, names: Sequence[str], vectors: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
    ) -> Self:
        """Return the mean of each class's vectors as its anchor; vectors (n, d), labels (n,) in 0..len(names)-1.

        Raises InputError for a class without vectors.
        """
        means = np.zeros((len(names), vectors.shape[1]), dtype=np.float64)
        np.add.at(means, labels, vectors.astype(np.float64))
        counts = np.bincount(labels, minlength=len(names))
        if (counts == 0).any():
            empty = names[int(np.argmin(counts))]
            raise InputError(f"class '{empty}' has no picture, so its anchor cannot be set: leave the class out")
        return cls(tuple(names), (means / counts[:, None]).astype(np.float32))

    def nearest(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Return for each vector, shape (n, d), the row of its nearest anchor, shape (n,)."""
        return nearest_anchors(vectors, self.vectors)

    def save(self, path: Path) -> None:
        """Write the vectors to a safetensors file, in one step; the names stand in the model's `kedge.json`."""
        # Not by `save_file`, which lets nobody but its owner read the file.
        write_atomically(path, save({"vectors": np.ascontiguousarray(self.vectors)}))

    @classmethod
    def load(cls, path: Path, names: Sequence[str]) -> Self:
        """Read the vectors that `save` wrote; `names` are the model's class names, in the same order.

        Vectors beyond the names are left out: a class is added by its vector first, and then by its name. Raises
        ModelError for a file that cannot be read.
        """
        try:
            vectors = load(path.read_bytes())["vectors"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"{path} cannot be read as anchors ({error}): train or export the model again") from error
        return cls(tuple(names), vectors[: len(names)].astype(np.float32))


def expand_queries(queries: npt.NDArray[np.floating], anchors: npt.NDArray[np.floating]) -> Vectors:
    """Return queries (n, d) turned to the anchors (t, d) that they lie near, of the same norms, to compare by cosine.

    Anchors and queries are made unit length. With c the anchors' mean, u(x) the unit vector along x - c and
    cos_j = u(q) . u(a_j), a query is turned to sum_j cos_j^9 u(a_j). This is alpha-weighted query expansion (Radenović
    et al., arXiv:1711.02512) with class anchors in the place of the pictures found first: one search does. What all
    anchors have in common is taken off, or it would be all that the powers leave.
    """
    points = unit_length(anchors).astype(np.float64)
    centre = points.mean(axis=0)
    points = unit_length(points - centre).astype(np.float64)
    asked = unit_length(queries).astype(np.float64)
    turned = unit_length((unit_length(asked - centre) @ points.T) ** EXPANSION @ points)
    # A single anchor says nothing, nor do several to a query that lies at their centre.
    lost = ~turned.any(axis=1)
    turned[lost] = asked[lost]
    return (turned * np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
