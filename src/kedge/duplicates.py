"""Duplicates: pictures of a gallery that show the same, found by perceptual hash, embedding and a look at them.

Two 64-bit hashes that differ in at most b bits agree in one of b + 1 parts of theirs (pigeonhole), so that only hashes
with an equal part are compared (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012).
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from kedge.errors import InputError

__all__ = ["DuplicateGroup", "check_near", "duplicate_groups", "near_pairs"]

Rows = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]

HASH_BITS, MOST_BITS = 64, 16
_BLOCK = 1 << 21
# Mean difference of two pictures of SEEN x SEEN pixels, of 255. A picture saved again in another size or format was
# within 6 of itself; others of its class whose hashes are near by chance were 40 and more apart.
SEEN, MOST_APART = 16, 20.0
# So many thumbnails are held at once.
LOOKED_AT = 4096


@dataclass(frozen=True)
class DuplicateGroup:
    """Pictures that show the same: ids, paths and labels in the gallery's order, two or more.

    kind: "exact" for equal content (of vectors under several ids; a gallery stores a picture's content once), "near"
    for the others. distance: no other's embedding lies farther from the first picture's, Euclidean.
    """

    kind: Literal["exact", "near"]
    ids: tuple[str, ...]
    paths: tuple[str | None, ...]
    labels: tuple[str | None, ...]
    distance: float


def check_near(bits: int, distance: float | None) -> None:
    """Raise InputError for what no two pictures can be near by."""
    if not 0 <= bits <= MOST_BITS:
        raise InputError(f"hashes may differ in 0 to {MOST_BITS} bits to be near, not {bits}")
    if distance is not None and not distance >= 0:
        raise InputError(f"the largest distance is a number from 0, not {distance!r}")


def near_pairs(hashes: npt.NDArray[np.int64], bits: int) -> Iterator[Pairs]:
    """Yield pairs (p, 2) of rows i < j whose hashes, (n,), differ in at most `bits` bits; each pair once or more often.

    Memory stays bounded, whatever the number of pairs.
    """
    check_near(bits, None)
    unsigned = hashes.view(np.uint64)
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for low, high in pairwise(edges):
        part = (unsigned >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order], prepend=part[order][:1] + np.uint64(1)))
        sizes = np.diff(starts, append=len(order))
        for pairs in _pairs_within(order, starts[sizes > 1], sizes[sizes > 1]):
            apart = np.bitwise_count(unsigned[pairs[:, 0]] ^ unsigned[pairs[:, 1]])
            near = pairs[apart <= bits]
            if len(near):
                yield np.sort(near, axis=1)


def _pairs_within(order: Rows, starts: Rows, sizes: Rows) -> Iterator[Pairs]:
    """Yield all pairs of rows within each run of `order`, in blocks."""
    # The row at each place is paired with those after it in its run.
    follow = np.concatenate([np.arange(size - 1, -1, -1) for size in sizes]) if len(sizes) else np.zeros(0, np.int64)
    places = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(starts, sizes, strict=True)] or [np.zeros(0, np.int64)]
    )
    ends = np.cumsum(follow)
    start = 0
    while start < len(places):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _BLOCK, side="right")))
        counts = follow[start:stop]
        first = np.repeat(places[start:stop], counts)
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        yield np.column_stack([order[first], order[first + step]])
        start = stop


def _nothing_shown(_: Sequence[str]) -> Mapping[str, bytes]:
    return {}


def duplicate_groups(
    ids: Sequence[str],
    paths: Sequence[str | None],
    labels: Sequence[str | None],
    contents: Sequence[str],
    hashes: Sequence[int | None],
    vectors: npt.NDArray[np.float32],
    *,
    bits: int,
    distance: float,
    thumbnails: Callable[[Sequence[str]], Mapping[str, bytes]] = _nothing_shown,
) -> list[DuplicateGroup]:
    """Return the groups of rows that duplicate each other, the largest first.

    Each row of a group duplicates its first: their contents are equal, or their hashes differ in at most `bits` bits,
    their embeddings, (n, d), lie within `distance`, and they look alike. A row without a hash is one only by its
    content. `thumbnails` returns JPEGs by id, where there are any: hashes are of greys and embeddings of classes, so
    that pictures of a class may be near by both and show other things.
    """
    check_near(bits, distance)
    hashed = np.flatnonzero([value is not None for value in hashes])
    known = np.asarray([value for value in hashes if value is not None], dtype=np.int64)
    joined = _Joined(len(ids))
    joined.add(_equal_contents(contents))
    # Many pictures may have one hash, blank ones above all: a hash is looked at once, its pictures after that.
    unique, first, inverse = np.unique(known, return_index=True, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse, minlength=len(unique)))[:-1])
    for rows in members:
        if len(rows) > 1:
            alike = hashed[rows]
            for close in _close(alike, alike, vectors, distance):
                joined.add(close)
    single = np.asarray([len(rows) == 1 for rows in members], dtype=np.bool_)
    for pairs in near_pairs(unique, bits) if len(unique) else ():
        plain = single[pairs].all(axis=1)
        ends = hashed[first[pairs[plain]]]
        joined.add(ends[_distances(vectors, ends) <= distance])
        for one, other in np.unique(pairs[~plain], axis=0):
            for close in _close(hashed[members[one]], hashed[members[other]], vectors, distance):
                joined.add(close)
    component = joined.components()
    order = np.argsort(component, kind="stable")
    sizes = np.bincount(component)
    ends = np.cumsum(sizes)
    hanging = [order[ends[number] - sizes[number] : ends[number]] for number in np.flatnonzero(sizes > 1)]
    look = _Look(ids, np.concatenate([np.zeros(0, np.int64), *hanging]), thumbnails)
    groups = []
    for rest in hanging:
        # Chains of near pairs can lead far from where they begin: what is left may be a group of its own.
        while len(rest) > 1:
            apart = _distances(vectors, np.column_stack([np.full(len(rest), rest[0]), rest]))
            equal = np.asarray([contents[row] == contents[rest[0]] for row in rest], dtype=np.bool_)
            own = equal | (_near(hashes, rest, bits) & (apart <= distance))
            own[own] = equal[own] | look.alike(rest[own])
            rows, far, rest = rest[own], apart[own].max(), rest[~own]
            if len(rows) > 1:
                groups.append(
                    DuplicateGroup(
                        "exact" if equal[own].all() else "near",
                        tuple(ids[row] for row in rows),
                        tuple(paths[row] for row in rows),
                        tuple(labels[row] for row in rows),
                        float(far),
                    )
                )
    return sorted(groups, key=lambda group: -len(group.ids))


class _Look:
    """What rows look like, by their thumbnails."""

    def __init__(
        self, ids: Sequence[str], rows: Rows, thumbnails: Callable[[Sequence[str]], Mapping[str, bytes]]
    ) -> None:
        self._place: dict[int, int] = {}
        seen: list[npt.NDArray[np.uint8]] = []
        for start in range(0, len(rows), LOOKED_AT):
            part = rows[start : start + LOOKED_AT].tolist()
            shown = thumbnails([ids[row] for row in part])
            for row in part:
                if ids[row] in shown:
                    self._place[row] = len(seen)
                    seen.append(_small(shown[ids[row]]))
        self._seen = np.stack(seen) if seen else np.zeros((0, SEEN, SEEN, 3), dtype=np.uint8)

    def alike(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Tell which rows look like the first; those without a thumbnail do, and all do where it has none."""
        alike = np.ones(len(rows), dtype=np.bool_)
        places = np.asarray([self._place.get(row, -1) for row in rows.tolist()])
        there = places >= 0
        if there[0]:
            apart = np.abs(self._seen[places[there]].astype(np.int16) - self._seen[places[0]])
            alike[there] = apart.mean(axis=(1, 2, 3)) <= MOST_APART
        return alike


def _small(jpeg: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as picture:
        small = picture.convert("RGB").resize((SEEN, SEEN), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8)


class _Joined:
    """Which of `count` rows hang together by pairs; of many pairs those that join nothing new are forgotten."""

    def __init__(self, count: int) -> None:
        self._count, self._pairs, self._held = count, [np.zeros((0, 2), dtype=np.int64)], 0

    def add(self, pairs: Pairs) -> None:
        self._pairs.append(pairs)
        self._held += len(pairs)
        if self._held > _BLOCK + 2 * self._count:
            component = self.components()
            order = np.argsort(component, kind="stable")
            same = component[order[1:]] == component[order[:-1]]
            self._pairs = [np.column_stack([order[:-1], order[1:]])[same]]
            self._held = len(self._pairs[0])

    def components(self) -> Rows:
        """Return for each row the number of what it hangs together with."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate(self._pairs)
        shape = (self._count, self._count)
        graph = coo_array((np.ones(len(pairs), dtype=np.bool_), (pairs[:, 0], pairs[:, 1])), shape=shape)
        numbers: Rows = connected_components(graph, directed=False)[1]
        return numbers


def _near(hashes: Sequence[int | None], rows: Rows, bits: int) -> npt.NDArray[np.bool_]:
    """Tell which rows' hashes differ from the first one's in at most so many bits; none does where there is no hash."""
    first = hashes[rows[0]]
    return np.asarray(
        [
            first is not None and other is not None and ((first ^ other) & (1 << HASH_BITS) - 1).bit_count() <= bits
            for other in (hashes[row] for row in rows)
        ],
        dtype=np.bool_,
    )


def _equal_contents(contents: Sequence[str]) -> Pairs:
    """Return pairs that chain the rows of equal content."""
    last: dict[str, int] = {}
    pairs = []
    for row, content in enumerate(contents):
        if content in last:
            pairs.append((last[content], row))
        last[content] = row
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _close(left: Rows, right: Rows, vectors: npt.NDArray[np.float32], distance: float) -> Iterator[Pairs]:
    """Yield the pairs i < j of two lists of rows whose embeddings lie within a distance, in blocks."""
    step = max(1, _BLOCK // max(1, len(right)))
    for start in range(0, len(left), step):
        part = left[start : start + step]
        pairs = np.column_stack([np.repeat(part, len(right)), np.tile(right, len(part))])
        if left is right:
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        yield pairs[_distances(vectors, pairs) <= distance]


def _distances(vectors: npt.NDArray[np.float32], pairs: Pairs) -> npt.NDArray[np.float32]:
    """Return the Euclidean distances of pairs of rows, (p,)."""
    found = np.empty(len(pairs), dtype=np.float32)
    step = max(1, _BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        apart = vectors[part[:, 0]] - vectors[part[:, 1]]
        found[start : start + step] = np.sqrt(np.vecdot(apart, apart))
    return found
