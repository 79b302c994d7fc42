"""TwoStageIndex: vectors filed under anchors, held in memory and searched in two stages, or exactly.

Stage one takes the distances from a query to the anchors, stage two those to the vectors filed under the nearest ones.
Exact search visits the buckets best first, and leaves out what three lower bounds show to be too far (docs/method.md):
the radius, the half-space between two anchors, and the least such gap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from kedge.anchors import nearest_anchors, squared_distances
from kedge.errors import InputError

__all__ = ["Neighbours", "TwoStageIndex"]

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Order = Literal["distance", "bucket"]

# Numbers in a block of approximate distances, and in the list of candidates of a block of queries.
BLOCK_PAIRS, BLOCK_CANDIDATES = 1 << 22, 1 << 22
GALLERY_BLOCK = 16_384
# Anchors closer than this, relative to the largest norm, give no half-space bound: their gap would magnify rounding.
LEAST_ANCHOR_DISTANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What a search found, best first.

    ids (queries, k): rows of the vectors given, -1 where fewer exist. distances (queries, k): Euclidean, inf there.
    scanned (queries,): vectors that the query was compared with. probed: the anchors looked under, nearest first.
    """

    ids: Rows
    distances: Vectors
    scanned: Rows
    probed: tuple[Rows, ...]
    size: int

    @property
    def scanned_share(self) -> float:
        """Mean share of the vectors that a query was compared with."""
        return float(self.scanned.mean() / self.size) if self.size and len(self.scanned) else 0.0


class _Found:
    """The k best so far of each query."""

    def __init__(self, queries: int, k: int) -> None:
        self.queries, self.k = queries, k
        self.worst: Vectors = np.full(queries, np.inf, dtype=np.float32)
        self._query: list[Rows] = [np.zeros(0, dtype=np.int64)]
        self._row: list[Rows] = [np.zeros(0, dtype=np.int64)]
        self._distance: list[Vectors] = [np.zeros(0, dtype=np.float32)]
        self._rank: list[Rows] = [np.zeros(0, dtype=np.int64)]

    def add(self, query: Rows, row: Rows, distance: Vectors, ranks: Rows | None = None) -> None:
        """Take candidates; those of a lower rank come before all of a higher one."""
        self._query.append(query)
        self._row.append(row)
        self._distance.append(distance)
        self._rank.append(np.zeros(len(query), dtype=np.int64) if ranks is None else ranks)

    def settle(self) -> None:
        """Keep the k best of each query: by rank, then distance, then row."""
        query, row, rank = np.concatenate(self._query), np.concatenate(self._row), np.concatenate(self._rank)
        distance = np.concatenate(self._distance)
        order = np.lexsort((row, distance, rank, query))
        sorted_query = query[order]
        position = np.arange(len(order)) - np.searchsorted(sorted_query, sorted_query)
        kept = order[position < self.k]
        self._query, self._row, self._distance, self._rank = [query[kept]], [row[kept]], [distance[kept]], [rank[kept]]
        last = order[position == self.k - 1]
        self.worst[query[last]] = distance[last]

    def neighbours(self, scanned: Rows, probed: tuple[Rows, ...], size: int) -> Neighbours:
        """Return what `settle` has kept."""
        (query,), (row,), (distance,) = self._query, self._row, self._distance
        ids = np.full((self.queries, self.k), -1, dtype=np.int64)
        distances = np.full((self.queries, self.k), np.inf, dtype=np.float32)
        position = np.arange(len(query)) - np.searchsorted(query, query)
        ids[query, position], distances[query, position] = row, distance
        return Neighbours(ids, distances, scanned, probed, size)


class TwoStageIndex:
    """Vectors (n, d) float32 filed under anchors (t, d): `buckets` (n,) says under which, None: the nearest.

    Beside the vectors it holds for each one its row, its distance to its anchor and its least gap, 16 bytes, and where
    t <= d / 2 its gap to every anchor, 4 t bytes. Raises InputError for shapes that do not fit and numbers that are not
    finite.
    """

    def __init__(self, vectors: npt.ArrayLike, anchors: npt.ArrayLike, buckets: npt.ArrayLike | None = None) -> None:
        given, points = _finite(vectors, "vectors"), _finite(anchors, "anchors")
        if given.shape[1] != points.shape[1]:
            raise InputError(f"vectors have {given.shape[1]} dimensions, anchors {points.shape[1]}")
        if not len(points):
            raise InputError("at least one anchor is needed")
        filed = nearest_anchors(given, points) if buckets is None else np.asarray(buckets, dtype=np.int64)
        if filed.shape != (len(given),) or (len(filed) and not 0 <= filed.min() <= filed.max() < len(points)):
            raise InputError(f"buckets must be {len(given)} numbers from 0 to {len(points) - 1}")
        self._anchors = points
        rho = np.concatenate(
            [np.zeros(0), *(_lengths(given[rows] - points[filed[rows]]) for rows in _blocks(len(given)))]
        )
        order = np.lexsort((rho, filed))
        self._rows: Rows = order.astype(np.int64)
        self._vectors: Vectors = np.ascontiguousarray(given[order])
        self._rho = rho[order].astype(np.float32)
        self._starts: Rows = np.searchsorted(filed[order], np.arange(len(points) + 1)).astype(np.int64)
        self._squares = np.concatenate(
            [np.zeros(0, dtype=np.float32), *(_squares(self._vectors[rows]) for rows in _blocks(len(given)))]
        )
        self._largest = float(np.sqrt(max(self._squares.max(initial=0), _squares(points).max())))
        self._bucket_radii()
        self._bucket_gaps(filed[order])

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._anchors.shape[1])

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        probes: int | Literal["exact"] = 1,
        *,
        allowed: Mask | None = None,
        fill: bool = False,
        order: Order = "distance",
    ) -> Neighbours:
        """Return the k nearest vectors filed under the `probes` nearest anchors of each query, shape (queries, d).

        "exact" returns the k nearest of all. allowed (n,) restricts the vectors. fill goes on to the next anchors until
        k are found or none are left. order="bucket" ranks the nearest anchor's vectors before those of the next.
        """
        near = self._check(queries, k, allowed)
        if order not in ("distance", "bucket"):
            raise InputError(f"order is 'distance' or 'bucket', not {order!r}")
        usable = None if allowed is None else allowed[self._rows]
        if probes == "exact":
            if order == "bucket":
                raise InputError("exact search ranks by distance: take order 'distance', or a number of probes")
            return self._search_exact(near, k, usable)
        if not isinstance(probes, int | np.integer) or isinstance(probes, bool) or probes < 1:
            raise InputError(f"probes is a number of anchors, 1 or more, or 'exact', not {probes!r}")
        return self._search_probed(near, k, int(probes), usable, fill, order)

    def search_exhaustive(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> Neighbours:
        """Return the k nearest vectors of each query, shape (queries, d), by looking at all."""
        near = self._check(queries, k, allowed)
        usable = None if allowed is None else allowed[self._rows]
        found = _Found(len(near), k)
        for start in range(0, len(self), GALLERY_BLOCK):
            stop = min(start + GALLERY_BLOCK, len(self))
            for rows in _blocks(len(near), max(1, BLOCK_PAIRS // (stop - start))):
                found.add(*self._candidates(near, np.arange(rows.start, rows.stop), start, stop, k, usable, found))
            found.settle()
        looked_at = len(self) if usable is None else int(usable.sum())
        scanned = np.full(len(near), looked_at, dtype=np.int64)
        return found.neighbours(scanned, (np.zeros(0, dtype=np.int64),) * len(near), len(self))

    # Stage two, over buckets

    def _search_probed(
        self, near: Vectors, k: int, probes: int, usable: Mask | None, fill: bool, order: Order
    ) -> Neighbours:
        sizes = self._sizes(usable)
        parts = []
        for rows in _blocks(len(near), max(1, BLOCK_CANDIDATES // (min(probes, len(sizes)) * k))):
            ranked = np.argsort(squared_distances(near[rows], self._anchors), axis=1, kind="stable")
            counts = np.full(len(ranked), min(probes, len(sizes)), dtype=np.int64)
            if fill:
                # As many anchors as hold k vectors, or all that there are.
                held = np.cumsum(sizes[ranked], axis=1)
                needed = (held < np.minimum(k, held[:, -1:])).sum(axis=1) + 1
                counts = np.maximum(counts, np.minimum(needed, len(sizes)))
            parts.append(self._probe(near[rows], ranked, counts, k, usable, by_bucket=order == "bucket"))
        return _joined(parts, k, len(self))

    def _probe(
        self, near: Vectors, ranked: Rows, counts: Rows, k: int, usable: Mask | None, *, by_bucket: bool
    ) -> Neighbours:
        """Search the first `counts` buckets of each query; queries that share a bucket are one matrix product."""
        place = np.arange(ranked.shape[1]) < counts[:, None]
        asking, rank = np.nonzero(place)
        asked = ranked[place]
        by_asked = np.argsort(asked, kind="stable")
        asking, rank, asked = asking[by_asked], rank[by_asked], asked[by_asked]
        found = _Found(len(near), k)
        edges = np.flatnonzero(np.diff(asked, prepend=-1, append=-1))
        ranks = np.zeros(len(near), dtype=np.int64)
        for first, last in pairwise(edges.tolist()):
            start, stop = self._starts[asked[first]], self._starts[asked[first] + 1]
            if start == stop:
                continue
            for part in _blocks(int(last - first), max(1, BLOCK_PAIRS // int(stop - start))):
                pairs = slice(first + part.start, first + part.stop)
                candidates = self._candidates(
                    near, asking[pairs], int(start), int(stop), k, usable, None if by_bucket else found
                )
                ranks[asking[pairs]] = rank[pairs]
                found.add(*candidates, ranks=ranks[candidates[0]] if by_bucket else None)
        found.settle()
        scanned = np.zeros(len(near), dtype=np.int64)
        np.add.at(scanned, asking, self._sizes(usable)[asked])
        probed = tuple(row[:count] for row, count in zip(ranked, counts, strict=True))
        return found.neighbours(scanned, probed, len(self))

    def _candidates(
        self,
        near: Vectors,
        asking: Rows,
        start: int,
        stop: int,
        k: int,
        usable: Mask | None,
        found: "_Found | None",
    ) -> tuple[Rows, Rows, Vectors]:
        """Return (query, row, distance) of all pairs that can be among the k nearest of places start..stop.

        A matrix product preselects. With u = 2^-24, A its squared distance, T the true one and C that of `_distances`:
        |A - T| <= E = 2 (d + 8) u (|q| + |x|)^2, and |C - T| <= 3 s T with s = (d + 4) u. Let a be the k-th least A
        of a query. Then k places have C <= (a + E)(1 + 3 s), and what has a C as small has A <= (a + E)(1 + 8 s) + E.
        """
        places = np.arange(start, stop) if usable is None else start + np.flatnonzero(usable[start:stop])
        block = self._vectors[start:stop] if usable is None else self._vectors[places]
        if len(places) > k:
            queries = near[asking]
            squares = _squares(queries)
            approximate = queries @ block.T
            approximate *= -2.0
            approximate += squares[:, None]
            approximate += self._squares[places]
            unit = 2.0**-24
            error = 2 * (self.dim + 8) * unit * (np.sqrt(squares.astype(np.float64)) + self._largest) ** 2
            least = np.partition(approximate, k - 1, axis=1)[:, k - 1].astype(np.float64)
            limit = (np.maximum(least, 0) + error) * (1 + 8 * (self.dim + 4) * unit) + error
            if found is not None:
                known = found.worst[asking].astype(np.float64) ** 2
                limit = np.minimum(limit, known * (1 + 8 * (self.dim + 4) * unit) + error)
            row, column = np.nonzero(approximate <= limit[:, None].astype(np.float32) * np.float32(1 + 1e-6))
            query, place = asking[row], places[column]
        else:
            query, place = np.repeat(asking, len(places)), np.tile(places, len(asking))
        return query, self._rows[place], _distances(near, query, self._vectors, place)

    # Exact search

    def _search_exact(self, near: Vectors, k: int, usable: Mask | None) -> Neighbours:
        ids = np.full((len(near), k), -1, dtype=np.int64)
        distances = np.full((len(near), k), np.inf, dtype=np.float32)
        scanned = np.zeros(len(near), dtype=np.int64)
        probed = []
        for rows in _blocks(len(near), 1024):
            squared = squared_distances(near[rows], self._anchors)
            for row, to_anchors in enumerate(squared, start=rows.start):
                best, rho, scanned[row], visited = self._exact(near[row : row + 1], to_anchors, k, usable)
                ids[row, : len(best)], distances[row, : len(best)] = best, rho
                probed.append(visited)
        return Neighbours(ids, distances, scanned, tuple(probed), len(self))

    def _exact(
        self, query: Vectors, squared: npt.NDArray[np.float64], k: int, usable: Mask | None
    ) -> tuple[Rows, Vectors, int, Rows]:
        """Return (rows, distances, number scanned, buckets visited) of one query's exact k nearest."""
        to_anchors = np.sqrt(squared)
        own = int(squared.argmin())
        # Half-space between the query's nearest anchor and each other: minus infinity where it says nothing.
        separate = self._separate[own]
        offset = np.where(separate, (squared - squared[own]) * self._half_over[own], -np.inf)
        bounds = np.maximum(to_anchors - self._farthest, self._closest - to_anchors)
        bounds[separate] = np.maximum(bounds[separate], offset[separate] + self._least_pair[own, separate])
        bounds[own] = -np.inf  # its own bucket first, so that the rest meets a small limit
        slack = self._slack(query)
        spread = 1 + 4 * (self.dim + 4) * 2.0**-24
        best_rows, best = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        scanned, visited = 0, []
        for bucket in np.argsort(bounds, kind="stable"):
            # What lies beyond this has a computed distance above the k-th best: see `_slack`.
            limit = float(best[-1]) * spread + slack if len(best) == k else np.inf
            if bounds[bucket] > limit:
                break
            places = self._reachable(int(bucket), own, to_anchors[bucket], offset[bucket], limit, usable)
            if not len(places):
                continue
            visited.append(bucket)
            scanned += len(places)
            found = _distances(query, np.zeros(len(places), dtype=np.int64), self._vectors, places)
            if np.isfinite(limit):
                nearer = found <= best[-1]
                places, found = places[nearer], found[nearer]
            elif len(found) > k:
                nearer = found <= np.partition(found, k - 1)[k - 1]
                places, found = places[nearer], found[nearer]
            rows, values = np.concatenate([best_rows, self._rows[places]]), np.concatenate([best, found])
            first = np.lexsort((rows, values))[:k]
            best_rows, best = rows[first], values[first]
        buckets = np.array(visited, dtype=np.int64)
        return best_rows, best, scanned, buckets[np.argsort(to_anchors[buckets], kind="stable")]

    def _reachable(
        self, bucket: int, own: int, to_anchor: float, offset: float, limit: float, usable: Mask | None
    ) -> Rows:
        """Return the places of a bucket that the bounds do not rule out."""
        start, stop = self._starts[bucket], self._starts[bucket + 1]
        if np.isfinite(limit):
            first, last = np.searchsorted(self._rho[start:stop], (to_anchor - limit, to_anchor + limit))
            start, stop = start + first, start + min(last + 1, stop - start)
        if np.isfinite(limit) and np.isfinite(offset):
            gaps = self._gap[start:stop] if self._pairs is None else self._pairs[own, start:stop]
            keep = gaps <= limit - offset
            if usable is not None:
                keep &= usable[start:stop]
            return start + np.flatnonzero(keep)
        return np.arange(start, stop) if usable is None else start + np.flatnonzero(usable[start:stop])

    def _slack(self, query: Vectors) -> float:
        """Return how far rounding can move a bound or a distance, beyond what is relative to the distance.

        Squared distances to anchors come from float64 products: off by e = 2 (d + 4) 2^-53 (|q| + |c|)^2, so a distance
        is off by sqrt(e), and a half-space by 2 e / |c_i - c_j|, once for the query and once for the vector. Stored
        radii are rounded to float32, off by 2^-24 of themselves; stored gaps are rounded down. A computed distance is
        off by s = (d + 4) 2^-24 of itself. So a vector whose computed bound is above tau (1 + 4 s) + slack has a true
        distance above tau (1 + 3 s), and a computed one above tau.
        """
        reach = float(np.linalg.norm(query.astype(np.float64))) + self._largest
        error = 2 * (self.dim + 4) * 2.0**-53 * reach**2
        nearest = LEAST_ANCHOR_DISTANCE * max(self._largest, 1e-300)
        return float(2 * np.sqrt(error) + 4 * error / nearest + 2.0**-22 * reach)

    # What is worked out once

    def _bucket_radii(self) -> None:
        """Least and largest radius of each bucket; an empty one is out of reach."""
        filled = self._starts[1:] > self._starts[:-1]
        self._closest = np.full(len(self._anchors), np.inf)
        self._farthest = np.full(len(self._anchors), -np.inf)
        self._closest[filled] = self._rho[self._starts[:-1][filled]]
        self._farthest[filled] = self._rho[self._starts[1:][filled] - 1]

    def _bucket_gaps(self, filed: Rows) -> None:
        """Gap of x to anchor i: (||x - c_i||^2 - ||x - c_j||^2) / (2 ||c_i - c_j||), j the anchor x is filed under."""
        count = len(self._anchors)
        between = np.sqrt(squared_distances(self._anchors, self._anchors))
        self._separate = between > LEAST_ANCHOR_DISTANCE * max(self._largest, 1e-300)
        np.fill_diagonal(self._separate, False)
        self._half_over = np.divide(0.5, between, out=np.zeros_like(between), where=self._separate)
        self._gap = np.empty(len(self), dtype=np.float32)
        self._pairs = np.empty((count, len(self)), dtype=np.float32) if count <= self.dim / 2 else None
        # Row i, column j: the least gap to anchor i in bucket j.
        self._least_pair = np.full((count, count), np.inf)
        for rows in _blocks(len(self), max(1, BLOCK_PAIRS // count)):
            squared = squared_distances(self._vectors[rows], self._anchors)
            own = filed[rows]
            gaps = (squared - squared[np.arange(len(own)), own, None]) * self._half_over[own]
            gaps[~self._separate[own]] = np.inf
            self._gap[rows] = _rounded_down(gaps.min(axis=1))
            if self._pairs is not None:
                self._pairs[:, rows] = _rounded_down(gaps).T
            firsts = np.flatnonzero(np.diff(own, prepend=-1))
            if len(firsts):
                least = np.minimum.reduceat(gaps, firsts, axis=0)
                np.minimum.at(self._least_pair.T, own[firsts], least)

    def _sizes(self, usable: Mask | None) -> Rows:
        if usable is None:
            return np.diff(self._starts)
        return np.diff(np.concatenate([[0], np.cumsum(usable)])[self._starts])

    def _check(self, queries: npt.ArrayLike, k: int, allowed: Mask | None) -> Vectors:
        near = _finite(queries, "queries")
        if near.shape[1] != self.dim:
            raise InputError(f"queries have {near.shape[1]} dimensions, the index {self.dim}")
        if not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is the number of neighbours wanted, 1 or more, not {k!r}")
        if allowed is not None and (allowed.shape != (len(self),) or allowed.dtype != np.bool_):
            raise InputError(f"allowed must be {len(self)} booleans, one for each vector")
        return near


def _distances(queries: Vectors, query: Rows, vectors: Vectors, place: Rows) -> Vectors:
    """Return the Euclidean distances of pairs, float32, by differences: the one place where they come from.

    A pair's value does not depend on the others, so that every way to search gives the same.
    """
    distances = np.empty(len(place), dtype=np.float32)
    for pairs in _blocks(len(place), max(1, BLOCK_PAIRS // max(1, vectors.shape[1]))):
        distances[pairs] = _lengths(vectors[place[pairs]] - queries[query[pairs]])
    return distances


def _lengths(differences: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    lengths: npt.NDArray[np.floating] = np.sqrt(np.einsum("nd,nd->n", differences, differences))
    return lengths


def _squares(vectors: Vectors) -> Vectors:
    return np.einsum("nd,nd->n", vectors, vectors)


def _rounded_down(values: npt.NDArray[np.float64]) -> Vectors:
    """Return float32 numbers that are not above the given ones."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def _blocks(count: int, size: int = GALLERY_BLOCK) -> Iterator[slice]:
    """Yield slices that cover 0..count, `size` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _joined(parts: list[Neighbours], k: int, size: int) -> Neighbours:
    """Return the results of blocks of queries as one."""
    return Neighbours(
        np.concatenate([np.zeros((0, k), dtype=np.int64), *(part.ids for part in parts)]),
        np.concatenate([np.zeros((0, k), dtype=np.float32), *(part.distances for part in parts)]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.scanned for part in parts)]),
        tuple(probed for part in parts for probed in part.probed),
        size,
    )


def _finite(values: npt.ArrayLike, what: str) -> Vectors:
    found = np.ascontiguousarray(values, dtype=np.float32)
    if found.ndim != 2:
        raise InputError(f"{what} must have shape (n, d), not {found.shape}")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise InputError(f"{what}: row {row} is not finite")
    return found
