"""TwoStageIndex: vectors filed under anchors, held in memory and searched in two stages, or exactly.

Stage one takes the distances from a query to the anchors, stage two those to the vectors filed under the nearest ones.
Exact search leaves out what lower bounds show to be too far (docs/method.md): whole buckets by their radii and by the
half-space between two anchors, single vectors by their projection onto the space that the anchors span.

A squared distance is worked out in float64 and rounded to float32; equal ones go by row. Products in float32 only
preselect, by a limit that their rounding error cannot cross. So every way to search gives the same answer. Candidates
are kept as keys: int64 numbers, the bits of the squared distance above the row, which sort as both do.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from kedge.anchors import nearest_anchors, squared_distances
from kedge.errors import InputError
from kedge.filing import LEAST_DIVIDED, dividing_planes, file_vectors

__all__ = ["Neighbours", "TwoStageIndex"]

Floats = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Order = Literal["distance", "bucket"]

# Numbers in a block of distances, and in the candidates of a block of queries.
BLOCK_PAIRS, BLOCK_CANDIDATES = 1 << 22, 1 << 24
GALLERY_BLOCK = 16_384
# A single query takes the product in float64 of so many numbers: it is done before a selection would be.
FEW_NUMBERS = 1 << 17
# So few usable vectors are all compared at once, rather than bucket by bucket.
FEW_USABLE = 16_384
# Dimensions of the projection that exact search rules out single vectors by.
SKETCH_DIM = 16
# Half the step of float32 and of float64, relative to the number.
UNIT, UNIT64 = 2.0**-24, 2.0**-53
# Squared distances below this, relative to the squared norms, lose too much in a product: they are worked out again.
CANCELLING = 1e-3
# The key of no row: above all others.
NO_ROW = 0xFFFFFFFF
NO_KEY = (0x7F800000 << 32) | NO_ROW


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


@dataclass(frozen=True, eq=False)
class _Queries:
    """Queries (n, d) in both precisions, their squared norms, and how far a product in float32 can be off."""

    single: Vectors
    double: Doubles
    squares: Doubles
    error: Doubles

    @classmethod
    def of(cls, vectors: Vectors, largest: float = 0.0) -> Self:
        """Take queries for vectors whose norms are at most `largest`; error is that of ||x||^2 - 2 q.x."""
        double = vectors.astype(np.float64)
        squares = _squares(double)
        return cls(vectors, double, squares, 2 * (vectors.shape[1] + 8) * UNIT * (np.sqrt(squares) + largest) ** 2)

    def __len__(self) -> int:
        return len(self.single)

    def __getitem__(self, rows: slice | Rows) -> Self:
        return type(self)(self.single[rows], self.double[rows], self.squares[rows], self.error[rows])


@dataclass(frozen=True, eq=False)
class _Usable:
    """The vectors that a search may return: all of them, or some places in ascending order."""

    places: Rows | None
    starts: Rows
    sizes: Rows
    """How many there are in each bucket."""

    def bucket(self, bucket: int) -> slice | Rows:
        """Return the usable places of one bucket."""
        start, stop = int(self.starts[bucket]), int(self.starts[bucket + 1])
        return slice(start, stop) if self.places is None else self.places[start:stop]


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Of each bucket: least and largest distance to its anchor, and the least gap to another (see `Filing`)."""

    closest: Doubles
    farthest: Doubles
    least_gap: Doubles
    half_over: Doubles


@dataclass(frozen=True, eq=False)
class _Sketch:
    """Points of r + 1 numbers whose distances are never above those of the vectors.

    The first r numbers are the vector's projection onto the directions in which the anchors differ most, the last one
    is the length of what remains.
    """

    centre: Doubles
    directions: Doubles
    columns: Vectors
    """A point y of each vector, as (-2 y, ||y||^2), in a column each: one product with long rows, (r + 2, n), gives all
    squared distances, in a third of the time that short rows take."""

    @classmethod
    def of(cls, parts: Iterable[Floats], count: int, centre: Doubles, directions: Doubles) -> Self:
        """Work out the points of vectors that come in parts, `count` in all."""
        columns = np.empty((directions.shape[1] + 2, count), dtype=np.float32)
        start = 0
        for part in parts:
            points = cls.project(part, centre, directions)
            columns[:-1, start : start + len(points)] = -2 * points.T
            columns[-1, start : start + len(points)] = _squares(points)
            start += len(points)
        return cls(centre, directions, columns)

    def squared_distances(self, query: Doubles, places: slice | Rows) -> Vectors:
        """Return the squared distances of one query's point, (1, d), to those of some places."""
        (point,) = self.project(query, self.centre, self.directions)
        squared: Vectors = np.append(point, np.float32(1)) @ self.columns[:, places]
        squared += point @ point
        return squared

    @staticmethod
    def project(vectors: Floats, centre: Doubles, directions: Doubles) -> Vectors:
        apart = vectors.astype(np.float64) - centre
        along = apart @ directions
        beside = np.sqrt(np.maximum(_squares(apart) - _squares(along), 0.0))
        return np.column_stack([along, beside]).astype(np.float32)


class TwoStageIndex:
    """Vectors (n, d) float32 or float16 filed under anchors (t, d): `buckets` (n,) says under which, None: the nearest.

    Vectors may also come as an iterator over parts of them, then with their buckets; they are held once, as `dtype`.
    It holds the vectors, 16 bytes more for each, and from the first exact search on another 4 (r + 2) for the
    projection onto r = min(16, t - 1, d / 4) dimensions. Vectors in float16 take half the memory, and are what is
    searched, exactly. rho and gap (n,), as filing worked them out (`kedge.filing`), save working them out again for
    exact search. Raises InputError for shapes that do not fit and numbers that are not finite.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike | Iterable[Floats],
        anchors: npt.ArrayLike,
        buckets: npt.ArrayLike | None = None,
        *,
        rho: Vectors | None = None,
        gap: Vectors | None = None,
        dtype: type[np.float32 | np.float16] | None = None,
    ) -> None:
        points = _matrix(anchors, "anchors", np.float32)
        _check_finite(points, "anchors")
        if not len(points):
            raise InputError("at least one anchor is needed")
        parts: Iterable[Floats]
        if isinstance(vectors, Iterator):
            if buckets is None:
                raise InputError("vectors that come in parts must come with their buckets")
            parts = vectors
        else:
            kind = dtype or (np.float16 if getattr(vectors, "dtype", None) == np.float16 else np.float32)
            whole = _matrix(cast("npt.ArrayLike", vectors), "vectors", kind)
            if whole.shape[1] != points.shape[1]:
                raise InputError(f"vectors have {whole.shape[1]} dimensions, anchors {points.shape[1]}")
            _check_finite(whole, "vectors")
            dtype, parts = kind, [whole]
            buckets = nearest_anchors(whole, points) if buckets is None else buckets
            if np.shape(buckets) != (len(whole),):
                raise InputError(f"buckets must be {len(whole)} numbers from 0 to {len(points) - 1}")
        filed = np.asarray(buckets, dtype=np.int64)
        if len(filed) and not 0 <= filed.min() <= filed.max() < len(points):
            raise InputError(f"buckets must be {len(filed)} numbers from 0 to {len(points) - 1}")
        self._anchors = _Queries.of(points)
        self._anchor_squares = self._anchors.squares.astype(np.float32)
        self._rows: Rows = np.argsort(filed, kind="stable")
        self._starts: Rows = np.searchsorted(filed[self._rows], np.arange(len(points) + 1)).astype(np.int64)
        self._all = _Usable(None, self._starts, np.diff(self._starts))
        self._vectors = np.empty((len(filed), points.shape[1]), dtype=dtype or np.float32)
        self._take(parts)
        self._squares = np.empty(len(filed), dtype=np.float64)
        for part in _blocks(len(filed), 256):
            self._squares[part] = _squares(self._vectors[part].astype(np.float64))
        self._largest = float(np.sqrt(max(self._squares.max(initial=0), self._anchors.squares.max())))
        self._filing = None if rho is None or gap is None else (rho[self._rows], gap[self._rows])

    def _take(self, parts: Iterable[Floats]) -> None:
        """Put each vector into its place, a part of them at a time: they are held once."""
        place = np.empty_like(self._rows)
        place[self._rows] = np.arange(len(place))
        start = 0
        for part in parts:
            stop = start + len(part)
            if stop > len(place) or part.shape[1:] != (self.dim,):
                raise InputError(f"{len(place)} vectors of {self.dim} dimensions were expected, not {part.shape}")
            self._vectors[place[start:stop]] = part
            start = stop
        if start < len(place):
            raise InputError(f"{len(place)} buckets were given with {start} vectors: give one for each")

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that the index holds, its projection included once there is one."""
        held = [self._rows, self._vectors, self._squares, *(self._filing or ())]
        sketch = self.__dict__.get("_sketch")
        return sum(part.nbytes for part in (*held, *((sketch.columns,) if sketch else ())))

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
        near, usable = self._checked(queries, k, allowed)
        if order not in ("distance", "bucket"):
            raise InputError(f"order is 'distance' or 'bucket', not {order!r}")
        if probes == "exact":
            if order == "bucket":
                raise InputError("exact search ranks by distance: take order 'distance', or a number of probes")
            return self._search_exact(near, k, usable)
        if not isinstance(probes, int | np.integer) or isinstance(probes, bool) or probes < 1:
            raise InputError(f"probes is a number of anchors, 1 or more, or 'exact', not {probes!r}")
        return self._search_probed(near, k, min(int(probes), len(self._anchors)), usable, fill, order)

    def search_exhaustive(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> Neighbours:
        """Return the k nearest vectors of each query, shape (queries, d), by looking at all."""
        near, usable = self._checked(queries, k, allowed)
        places = slice(0, len(self)) if usable.places is None else usable.places
        keys = self._nearest_among(near, places, k)
        scanned = np.full(len(near), usable.starts[-1], dtype=np.int64)
        return self._neighbours(keys, scanned, [np.zeros(0, dtype=np.int64)] * len(near))

    # Stage one, over anchors

    def _ranked_anchors(self, near: _Queries, count: int) -> Rows:
        """Return the `count` nearest anchors of each query, nearest first, shape (queries, count).

        A product in float32 ranks them; where two of them are too close for it, float64 does.
        """
        if count * 8 > len(self._anchors):
            return self._sorted_anchors(near)[:, :count]
        approximate = near.single @ self._anchors.single.T
        approximate *= -2.0
        approximate += self._anchor_squares
        twice = 2.0 * near.error[:, None]
        if count == 1:
            ranked = approximate.argmin(axis=1)[:, None]
            close = approximate <= approximate.min(axis=1)[:, None] + twice.astype(np.float32)
            # Counting by query takes longer, and is seldom needed.
            several = int(np.count_nonzero(close)) > len(near)
            unsure = np.sum(close, axis=1) > 1 if several else np.zeros(len(near), dtype=np.bool_)
        else:
            some = np.argpartition(approximate, count, axis=1)[:, : count + 1]
            values = np.take_along_axis(approximate, some, axis=1)
            by_value = np.argsort(values, axis=1)
            ranked = np.take_along_axis(some, by_value, axis=1)[:, :count]
            unsure = (np.diff(np.take_along_axis(values, by_value, axis=1), axis=1) <= twice).any(axis=1)
        if unsure.any():
            ranked[unsure] = self._sorted_anchors(near[np.flatnonzero(unsure)])[:, :count]
        return ranked

    def _sorted_anchors(self, near: _Queries) -> Rows:
        return np.argsort(squared_distances(near.double, self._anchors.double), axis=1, kind="stable")

    # Stage two, over buckets

    def _search_probed(
        self, near: _Queries, k: int, probes: int, usable: _Usable, fill: bool, order: Order
    ) -> Neighbours:
        sizes = usable.sizes
        keys = np.empty((len(near), k), dtype=np.int64)
        scanned = np.empty(len(near), dtype=np.int64)
        probed: list[Rows] = []
        few = usable.places is not None and len(usable.places) <= FEW_USABLE
        one_by_one = order == "distance" and (few or len(near) == 1)
        # A block of queries holds its distances to the anchors, and k candidates a bucket.
        for rows in _blocks(len(near), max(1, BLOCK_CANDIDATES // max(probes * k, len(sizes)))):
            part = near[rows] if len(near) > 1 else near
            ranked, counts = self._ranked_anchors(part, probes), np.full(len(part), probes)
            if fill:
                ranked, counts = self._filled(part, ranked, counts, k, sizes)
            probed += [row[:count] for row, count in zip(ranked, counts, strict=True)]
            if one_by_one:
                for at in range(rows.start, rows.stop):
                    places = self._places(usable, probed[at])
                    keys[at] = self._nearest_among(near[at : at + 1] if len(near) > 1 else near, places, k)[0]
                    scanned[at] = _count(places)
                continue
            scanned[rows] = np.where(np.arange(ranked.shape[1]) < counts[:, None], sizes[ranked], 0).sum(axis=1)
            keys[rows] = self._probe(part, ranked, counts, k, usable, by_bucket=order == "bucket")
        return self._neighbours(keys, scanned, probed)

    def _filled(self, near: _Queries, ranked: Rows, counts: Rows, k: int, sizes: Rows) -> tuple[Rows, Rows]:
        """Return anchors by nearness, and how many to probe: more where the buckets of a query hold fewer than k."""
        short = np.flatnonzero(sizes[ranked].sum(axis=1) < k)
        if not len(short):
            return ranked, counts
        by_nearness = self._sorted_anchors(near[short])
        held = np.cumsum(sizes[by_nearness], axis=1)
        # As many anchors as hold k vectors, or all that there are.
        needed = (held < np.minimum(k, held[:, -1:])).sum(axis=1) + 1
        counts = counts.copy()
        counts[short] = np.maximum(counts[short], needed)
        wide = np.zeros((len(near), int(counts.max())), dtype=np.int64)
        wide[:, : ranked.shape[1]] = ranked
        wide[short] = by_nearness[:, : wide.shape[1]]
        return wide, counts

    def _probe(self, near: _Queries, ranked: Rows, counts: Rows, k: int, usable: _Usable, *, by_bucket: bool) -> Keys:
        """Search the first `counts` buckets of each query; queries that share a bucket are one matrix product."""
        wide = ranked.shape[1]
        keys = np.full((len(near), wide, k), NO_KEY, dtype=np.int64)
        asking, rank = np.nonzero(np.arange(wide) < counts[:, None])
        asked = ranked[asking, rank]
        by_asked = np.argsort(asked, kind="stable")
        asking, rank, asked = asking[by_asked], rank[by_asked], asked[by_asked]
        for first, last in pairwise(np.flatnonzero(np.diff(asked, prepend=-1, append=-1)).tolist()):
            places = usable.bucket(int(asked[first]))
            rows = asking[first:last]
            keys[rows, rank[first:last]] = self._nearest_among(near[rows], places, k)
        if wide == 1:
            return keys[:, 0]
        merged = keys.reshape(len(near), wide * k)
        if by_bucket:
            # Each bucket's are in order already: those that there are move up.
            first_come = np.argsort(merged == NO_KEY, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(merged, first_come, axis=1)
        return _least(merged, k)

    # Distances

    def _nearest_among(self, near: _Queries, places: slice | Rows, k: int) -> Keys:
        """Return the keys of the k nearest of some places, ascending, shape (queries, k)."""
        count = _count(places)
        keys = np.full((len(near), k), NO_KEY, dtype=np.int64)
        if len(near) == 1 and count * self.dim > FEW_NUMBERS:
            keys[0] = self._nearest_of_one(near, places, k)
            return keys
        for part in _blocks(count):
            held = _part_of(places, part)
            doubles, squares, rows = self._vectors[held].astype(np.float64), self._squares[held], self._rows[held]
            for some in _blocks(len(near), max(1, BLOCK_PAIRS // len(rows))):
                found = _least(_keys(near[some], doubles, squares, rows), k)
                keys[some] = found if part.start == 0 else _least(np.concatenate([keys[some], found], axis=1), k)
        return keys

    def _nearest_of_one(self, near: _Queries, places: slice | Rows, k: int) -> Keys:
        """Return the keys of one query's k nearest of some places, ascending, shape (k,).

        A product in float32 selects. With T a squared distance, A what the product gives for it and E its error,
        |A - T| <= E. Let a be the k-th least A. Then k places have T <= a + E, and one that ranks among them, its T
        being rounded to float32, has A <= (a + E)(1 + 4 UNIT) + E.
        """
        count = _count(places)
        query, square = near.single[0], float(near.squares[0])
        error = float(near.error[0])
        best = np.full(k, NO_KEY, dtype=np.int64)
        for part in _blocks(count):
            held = _part_of(places, part)
            chosen = held
            if part.stop - part.start > k:
                approximate = self._vectors[held].astype(np.float32, copy=False) @ query
                squared = self._squares[held] - 2.0 * approximate
                limit = float(np.partition(squared, k - 1)[k - 1]) + square + error
                limit = min(limit, float(_squared_of(best[-1]))) * (1 + 4 * UNIT) + error - square
                at = np.flatnonzero(squared <= limit)
                chosen = at + held.start if isinstance(held, slice) else held[at]
            found = _keys(near, self._vectors[chosen].astype(np.float64), self._squares[chosen], self._rows[chosen])[0]
            best = _least(found if count <= GALLERY_BLOCK else np.concatenate([best, found]), k)
        return best

    def _places(self, usable: _Usable, anchors: Rows) -> slice | Rows:
        """Return the usable places of several buckets."""
        if len(anchors) == 1:
            return usable.bucket(int(anchors[0]))
        places = _ranges(usable.starts, anchors)
        return places if usable.places is None else usable.places[places]

    def _neighbours(self, keys: Keys, scanned: Rows, probed: list[Rows]) -> Neighbours:
        ids = keys & NO_ROW
        ids[ids == NO_ROW] = -1
        return Neighbours(ids, np.sqrt(_squared_of(keys)), scanned, tuple(probed), len(self))

    # Exact search

    def _search_exact(self, near: _Queries, k: int, usable: _Usable) -> Neighbours:
        keys = np.empty((len(near), k), dtype=np.int64)
        scanned = np.empty(len(near), dtype=np.int64)
        probed: list[Rows] = []
        sizes = usable.sizes
        for rows in _blocks(len(near), max(1, BLOCK_CANDIDATES // max(k, 4 * len(sizes)))):
            part = near[rows]
            squared = squared_distances(part.double, self._anchors.double)
            own = squared.argmin(axis=1)
            # The own bucket, or as many as hold k vectors, gives a limit that the others are held against.
            ranked, counts = self._filled(part, own[:, None], np.ones(len(part), dtype=np.int64), k, sizes)
            keys[rows] = self._probe(part, ranked, counts, k, usable, by_bucket=False)
            seen = np.zeros(squared.shape, dtype=np.bool_)
            searched = np.where(np.arange(ranked.shape[1]) < counts[:, None], ranked, own[:, None])
            np.put_along_axis(seen, searched, values=True, axis=1)
            limit = self._limit(keys[rows][:, -1], part.squares)
            within = self._bucket_bounds(squared, own) <= limit[:, None]
            scanned[rows] = seen @ sizes
            for row, at in enumerate(range(rows.start, rows.stop)):
                visited = np.flatnonzero(seen[row] & (sizes > 0))
                more = within[row] & ~seen[row] & (sizes > 0)
                if more.any():
                    keys[at], compared = self._finish(part[row : row + 1], more, usable, k, keys[at])
                    scanned[at] += len(compared)
                    visited = np.union1d(visited, np.searchsorted(self._starts, compared, side="right") - 1)
                probed.append(visited[np.argsort(squared[row, visited], kind="stable")])
        return self._neighbours(keys, scanned, probed)

    def _bucket_bounds(self, squared: Doubles, own: Rows) -> Doubles:
        """Return what no vector of a bucket is nearer than, shape (queries, anchors); may be negative."""
        bounds = self._bounds
        to_anchors = np.sqrt(squared)
        radius = np.maximum(to_anchors - bounds.farthest, bounds.closest - to_anchors)
        half_over = bounds.half_over[own]
        plane = (squared - np.take_along_axis(squared, own[:, None], axis=1)) * half_over + bounds.least_gap
        # Where no plane divides the two anchors, the gap says nothing.
        plane[half_over == 0] = -np.inf
        return np.maximum(radius, plane, out=plane)

    def _finish(self, near: _Queries, buckets: Mask, usable: _Usable, k: int, best: Keys) -> tuple[Keys, Rows]:
        """Return the k best of one query's keys and of more buckets, (anchors,), and the places it was compared with.

        Only those are compared whose projections are near enough, and the most promising first: they bring the limit
        down for the rest.
        """
        sketch = self._sketch
        # Where many of them are to be looked at, gathering them would take longer than looking at all.
        whole = usable.places is None and 16 * int(usable.sizes[buckets].sum()) > len(self)
        places = slice(0, len(self)) if whole else self._places(usable, np.flatnonzero(buckets))
        bounds = sketch.squared_distances(near.double, places)
        error = 2 * (len(sketch.columns) + 8) * UNIT * (2 * (float(np.sqrt(near.squares[0])) + self._largest)) ** 2

        def within(of: Vectors) -> Rows:
            return np.flatnonzero(of <= float(self._limit(best[-1:], near.squares)[0]) ** 2 + error)

        chosen = within(bounds)
        if whole:
            chosen = chosen[buckets[np.searchsorted(self._starts, chosen, side="right") - 1]]
        rounds = [chosen]
        if len(chosen) > 2 * k:
            by_bound = chosen[np.argpartition(bounds[chosen], k - 1)]
            rounds = [by_bound[:k], by_bound[k:]]
        compared = []
        for chosen in rounds:
            chosen = chosen[within(bounds[chosen])]
            at = chosen + places.start if isinstance(places, slice) else places[chosen]
            compared.append(at)
            best = _least(np.concatenate([best, self._nearest_of_one(near, at, k)]), k)
        return best, np.concatenate(compared)

    def _limit(self, worst: Keys, squares: Doubles) -> Doubles:
        """Return the distance beyond which a bound rules out, by each query's worst key."""
        limit: Doubles = np.sqrt(_squared_of(worst).astype(np.float64)) * (1 + 4 * UNIT) + self._slack(squares)
        return limit

    def _slack(self, squares: Doubles) -> Doubles:
        """Return how far rounding can move a bound, in distance, for queries of these squared norms.

        Squared distances to anchors come from float64 products: off by e = 2 (d + 4) 2^-53 (|q| + |c|)^2, so a distance
        is off by sqrt(e), and a half-space by 2 e / |c_i - c_j|, once for the query and once for the vector. Radii,
        gaps and projections are stored in float32, off by 2^-24 of numbers no larger than the reach.
        """
        reach = np.sqrt(squares) + self._largest
        error = 2 * (self.dim + 4) * UNIT64 * reach**2
        least = LEAST_DIVIDED * float(np.sqrt(self._anchors.squares.max())) or np.inf  # all zero: no planes
        return 2 * np.sqrt(error) + 4 * error / least + 16 * UNIT * reach

    # What is worked out once, for exact search

    @cached_property
    def _bounds(self) -> _Bounds:
        if self._filing is None:
            filed = np.repeat(np.arange(len(self._anchors)), np.diff(self._starts))
            filing = file_vectors(self._vectors, self._anchors.single, filed)
            self._filing = filing.rho, filing.gap
        rho, gap = self._filing
        self._filing = None
        count = len(self._anchors)
        closest, farthest, least = np.full(count, np.inf), np.full(count, -np.inf), np.full(count, np.inf)
        filled = np.flatnonzero(np.diff(self._starts))
        if len(filled):
            firsts = self._starts[filled]
            closest[filled] = np.minimum.reduceat(rho, firsts)
            farthest[filled] = np.maximum.reduceat(rho, firsts)
            least[filled] = np.minimum.reduceat(gap, firsts)
        return _Bounds(closest, farthest, least, dividing_planes(self._anchors.single))

    @cached_property
    def _sketch(self) -> _Sketch:
        from scipy.linalg import eigh

        centre = self._anchors.double.mean(axis=0)
        apart = self._anchors.double - centre
        most = max(0, min(SKETCH_DIM, len(self._anchors) - 1, self.dim // 4))
        if most:
            spread = apart.T @ apart
            _, directions = eigh(spread, subset_by_index=(self.dim - most, self.dim - 1))
        else:
            directions = np.zeros((self.dim, 0))
        return _Sketch.of((self._vectors[part] for part in _blocks(len(self))), len(self), centre, directions)

    # What is given

    def _checked(self, queries: npt.ArrayLike, k: int, allowed: Mask | None) -> tuple[_Queries, _Usable]:
        near = _matrix(queries, "queries", np.float32)
        if near.shape[1] != self.dim:
            raise InputError(f"queries have {near.shape[1]} dimensions, the index {self.dim}")
        _check_finite(near, "queries")
        if not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is the number of neighbours wanted, 1 or more, not {k!r}")
        if allowed is None:
            return _Queries.of(near, self._largest), self._all
        if allowed.shape != (len(self),) or allowed.dtype != np.bool_:
            raise InputError(f"allowed must be {len(self)} booleans, one for each vector")
        places = np.flatnonzero(allowed[self._rows])
        starts = np.searchsorted(places, self._starts).astype(np.int64)
        return _Queries.of(near, self._largest), _Usable(places, starts, np.diff(starts))


def _count(places: slice | Rows) -> int:
    return int(places.stop - places.start) if isinstance(places, slice) else len(places)


def _part_of(places: slice | Rows, part: slice) -> slice | Rows:
    """Return some of the places, by their position among them."""
    return slice(places.start + part.start, places.start + part.stop) if isinstance(places, slice) else places[part]


def _keys(near: _Queries, vectors: Doubles, squares: Doubles, rows: Rows) -> Keys:
    """Return the keys of all pairs of queries and vectors, (n, d) with their squares and rows, shape (queries, n)."""
    squared = near.double @ vectors.T
    squared *= -2.0
    squared += squares
    squared += near.squares[:, None]
    # Only queries that lie this near to anything are looked at pair by pair.
    largest = squares.max(initial=0.0)
    some: Iterable[int] = ()
    if squared.min(initial=np.inf) <= CANCELLING * (near.squares.max(initial=0.0) + largest):
        some = np.flatnonzero(squared.min(axis=1) <= CANCELLING * (near.squares + largest))
    for row in some:
        close = np.flatnonzero(squared[row] <= CANCELLING * (near.squares[row] + squares))
        squared[row, close] = _squares(vectors[close] - near.double[row])
    keys = np.empty(squared.shape, dtype=np.int64)
    high = 1 if sys.byteorder == "little" else 0
    keys.view(np.float32)[:, high::2] = squared
    keys.view(np.uint32)[:, 1 - high :: 2] = rows
    return keys


def _least(keys: Keys, k: int) -> Keys:
    """Return the k least keys, ascending, along the last axis; NO_KEY where there are fewer."""
    count = keys.shape[-1]
    if count < k:
        keys = np.concatenate([keys, np.full((*keys.shape[:-1], k - count), NO_KEY, dtype=np.int64)], axis=-1)
    elif count > k:
        keys = np.partition(keys, k - 1, axis=-1)[..., :k]
    return np.sort(keys, axis=-1)


def _squared_of(keys: Any) -> npt.NDArray[np.float32]:
    """Return the squared distances in keys."""
    return (np.asarray(keys) >> 32).astype(np.int32).view(np.float32)


def _squares(vectors: Floats) -> npt.NDArray[Any]:
    return np.vecdot(vectors, vectors)


def _ranges(starts: Rows, buckets: Rows) -> Rows:
    """Return the numbers starts[b]..starts[b + 1] of all buckets, in one array."""
    sizes = starts[buckets + 1] - starts[buckets]
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts[buckets] - (ends - sizes), sizes)


def _blocks(count: int, size: int = 0) -> Iterator[slice]:
    """Yield slices that cover 0..count, `size` at a time, GALLERY_BLOCK if none is given."""
    for start in range(0, count, size or GALLERY_BLOCK):
        yield slice(start, min(start + (size or GALLERY_BLOCK), count))


def _matrix(values: npt.ArrayLike, what: str, kind: type[np.floating]) -> npt.NDArray[Any]:
    found = np.ascontiguousarray(values, dtype=kind)
    if found.ndim != 2:
        raise InputError(f"{what} must have shape (n, d), not {found.shape}")
    return found


def _check_finite(vectors: Floats, what: str) -> None:
    for rows in _blocks(len(vectors)):
        finite = np.isfinite(vectors[rows])
        if not finite.all():
            raise InputError(f"{what}: row {rows.start + int(np.argmin(finite)) // vectors.shape[1]} is not finite")
