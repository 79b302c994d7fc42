"""TwoStageIndex: vectors filed under anchors, held in memory and searched in two stages, or exactly.

Stage one takes the distances from a query to the anchors, stage two those to the vectors filed under the nearest ones.
Exact search leaves out what lower bounds show to be too far (`kedge.bounds`).

Products in float32 only preselect, by a limit that their rounding error cannot cross; squared distances in float64
decide (`kedge.keys`). So every way to search gives the same answer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from kedge.anchors import nearest_anchors
from kedge.bounds import BucketBounds, Sketch, slack
from kedge.distances import squared_distances
from kedge.errors import InputError
from kedge.filing import file_vectors
from kedge.keys import (
    MOST_ROWS,
    NO_KEY,
    UNIT,
    Keys,
    Points,
    keys_of_pairs,
    least_keys,
    rows_of,
    squared_norms,
    squared_of,
)

__all__ = ["Neighbours", "Order", "Probes", "TwoStageIndex", "check_search"]

Floats = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Probes = int | Literal["exact"]
Order = Literal["distance", "bucket"]

# Numbers in a block of distances, and in the candidates of a block of queries.
BLOCK_PAIRS, BLOCK_CANDIDATES = 1 << 22, 1 << 24
GALLERY_BLOCK = 16_384
# A single query takes the product in float64 of so many numbers: it is done before a selection would be.
FEW_NUMBERS = 1 << 17
# So few usable vectors are all compared at once, rather than bucket by bucket.
FEW_USABLE = 16_384


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


class TwoStageIndex:
    """Vectors (n, d) float32 or float16 filed under anchors (t, d): `buckets` (n,) says under which, None: the nearest.

    Vectors may also come as an iterator over parts of them, then with their buckets; they are held once, as `dtype`.
    It holds the vectors, 16 bytes more for each, and from the first exact search on another 4 (r + 2) for the
    projection onto r = min(24, t - 1, d / 4) dimensions. Vectors in float16 take half the memory, and are what is
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
        if len(filed) >= MOST_ROWS:
            raise InputError(f"{len(filed)} vectors were given: an index holds fewer than {MOST_ROWS}")
        self._anchors = Points.of(points)
        # What a product with a query gives the squared distances to anchors from, less the query's square.
        self._anchors_turned = np.ascontiguousarray(-2.0 * self._anchors.single).T
        self._anchor_norms = self._anchors.squared_norms.astype(np.float32)
        self._rows: Rows = np.argsort(filed, kind="stable")
        self._starts: Rows = np.searchsorted(filed[self._rows], np.arange(len(points) + 1)).astype(np.int64)
        self._all = _Usable(None, self._starts, np.diff(self._starts))
        self._vectors = np.empty((len(filed), points.shape[1]), dtype=dtype or np.float32)
        self._take(parts)
        self._squared_norms = np.empty(len(filed), dtype=np.float64)
        for part in _blocks(len(filed), 256):
            self._squared_norms[part] = squared_norms(self._vectors[part].astype(np.float64))
        self._largest = float(np.sqrt(max(self._squared_norms.max(initial=0), self._anchors.squared_norms.max())))
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
        held = [self._rows, self._vectors, self._squared_norms, *(self._filing or ())]
        sketch = self.__dict__.get("_sketch")
        return sum(part.nbytes for part in (*held, *((sketch.columns,) if sketch else ())))

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        probes: Probes = 1,
        *,
        allowed: Mask | None = None,
        fill: bool = False,
        order: Order = "distance",
    ) -> Neighbours:
        """Return the k nearest vectors filed under the `probes` nearest anchors of each query, shape (queries, d).

        "exact" returns the k nearest of all. allowed (n,) restricts the vectors. fill goes on to the next anchors until
        k are found or none are left. order="bucket" ranks the nearest anchor's vectors before those of the next. Raises
        InputError for a search that cannot be done, and for numbers that are not finite.
        """
        check_search(k, probes, order)
        points, usable = self._checked(queries, allowed)
        if probes == "exact":
            return self._search_exact(points, k, usable)
        return self._search_probed(points, k, min(int(probes), len(self._anchors)), usable, fill, order)

    def search_exhaustive(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> Neighbours:
        """Return the k nearest vectors of each query, shape (queries, d), by looking at all; see `search`."""
        check_search(k)
        points, usable = self._checked(queries, allowed)
        places = slice(0, len(self)) if usable.places is None else usable.places
        keys = self._nearest_among(points, places, k)
        scanned = np.full(len(points), usable.starts[-1], dtype=np.int64)
        return self._neighbours(keys, scanned, [np.zeros(0, dtype=np.int64)] * len(points))

    # Stage one, over anchors

    def _ranked_anchors(self, queries: Points, count: int) -> Rows:
        """Return the `count` nearest anchors of each query, nearest first, shape (queries, count).

        A product in float32 ranks them; where two of them are too close for it, float64 does.
        """
        if count * 8 > len(self._anchors):
            return self._sorted_anchors(queries)[:, :count]
        approximate = queries.single @ self._anchors_turned
        approximate += self._anchor_norms
        twice = 2.0 * queries.error[:, None]
        if count == 1:
            ranked = approximate.argmin(axis=1)[:, None]
            close = approximate <= approximate.min(axis=1, keepdims=True) + twice.astype(np.float32)
            # Counting by query takes longer, and is seldom needed.
            if np.count_nonzero(close) == len(queries):
                return ranked
            unsure = np.sum(close, axis=1) > 1
        else:
            some = np.argpartition(approximate, count, axis=1)[:, : count + 1]
            values = np.take_along_axis(approximate, some, axis=1)
            by_value = np.argsort(values, axis=1)
            ranked = np.take_along_axis(some, by_value, axis=1)[:, :count]
            unsure = (np.diff(np.take_along_axis(values, by_value, axis=1), axis=1) <= twice).any(axis=1)
        if unsure.any():
            ranked[unsure] = self._sorted_anchors(queries[np.flatnonzero(unsure)])[:, :count]
        return ranked

    def _sorted_anchors(self, queries: Points) -> Rows:
        return np.argsort(squared_distances(queries.double, self._anchors.double), axis=1, kind="stable")

    # Stage two, over buckets

    def _search_probed(
        self, queries: Points, k: int, probes: int, usable: _Usable, fill: bool, order: Order
    ) -> Neighbours:
        sizes = usable.sizes
        if len(queries) == 1 and order == "distance":
            ranked = self._ranked_anchors(queries, probes)
            if fill:
                ranked, _ = self._filled(queries, ranked, np.full(1, probes), k, sizes)
            places = self._places(usable, ranked[0])
            return self._neighbours(self._nearest_among(queries, places, k), np.array([_count(places)]), [ranked[0]])
        keys = np.empty((len(queries), k), dtype=np.int64)
        scanned = np.empty(len(queries), dtype=np.int64)
        probed: list[Rows] = []
        one_by_one = order == "distance" and usable.places is not None and len(usable.places) <= FEW_USABLE
        # A block of queries holds its distances to the anchors, and k candidates a bucket.
        for rows in _blocks(len(queries), max(1, BLOCK_CANDIDATES // max(probes * k, len(sizes)))):
            part = queries[rows]
            ranked, counts = self._ranked_anchors(part, probes), np.full(len(part), probes)
            if fill:
                ranked, counts = self._filled(part, ranked, counts, k, sizes)
            probed += [row[:count] for row, count in zip(ranked, counts, strict=True)]
            if one_by_one:
                for at in range(rows.start, rows.stop):
                    places = self._places(usable, probed[at])
                    keys[at] = self._nearest_among(queries[at : at + 1], places, k)[0]
                    scanned[at] = _count(places)
                continue
            scanned[rows] = np.where(np.arange(ranked.shape[1]) < counts[:, None], sizes[ranked], 0).sum(axis=1)
            keys[rows] = self._probe(part, ranked, counts, k, usable, by_bucket=order == "bucket")
        return self._neighbours(keys, scanned, probed)

    def _filled(self, queries: Points, ranked: Rows, counts: Rows, k: int, sizes: Rows) -> tuple[Rows, Rows]:
        """Return anchors by nearness, and how many to probe: more where the buckets of a query hold fewer than k."""
        short = np.flatnonzero(sizes[ranked].sum(axis=1) < k)
        if not len(short):
            return ranked, counts
        by_nearness = self._sorted_anchors(queries[short])
        held = np.cumsum(sizes[by_nearness], axis=1)
        # As many anchors as hold k vectors, or all that there are.
        needed = (held < np.minimum(k, held[:, -1:])).sum(axis=1) + 1
        counts = counts.copy()
        counts[short] = np.maximum(counts[short], needed)
        wide = np.zeros((len(queries), int(counts.max())), dtype=np.int64)
        wide[:, : ranked.shape[1]] = ranked
        wide[short] = by_nearness[:, : wide.shape[1]]
        return wide, counts

    def _probe(self, queries: Points, ranked: Rows, counts: Rows, k: int, usable: _Usable, *, by_bucket: bool) -> Keys:
        """Search the first `counts` buckets of each query; queries that share a bucket are one matrix product."""
        wide = ranked.shape[1]
        if len(queries) == 1 and not by_bucket:
            return self._nearest_among(queries, self._places(usable, ranked[0, : counts[0]]), k)
        at_once = max(1, BLOCK_CANDIDATES // (wide * k))
        if len(queries) > at_once:
            # Filling goes on to more anchors than were asked for, to many where k is large.
            parts = [
                self._probe(queries[rows], ranked[rows], counts[rows], k, usable, by_bucket=by_bucket)
                for rows in _blocks(len(queries), at_once)
            ]
            return np.concatenate(parts)
        keys = np.full((len(queries), wide, k), NO_KEY, dtype=np.int64)
        asking, rank = np.nonzero(np.arange(wide) < counts[:, None])
        asked = ranked[asking, rank]
        by_asked = np.argsort(asked, kind="stable")
        asking, rank, asked = asking[by_asked], rank[by_asked], asked[by_asked]
        for first, last in pairwise(np.flatnonzero(np.diff(asked, prepend=-1, append=-1)).tolist()):
            places = usable.bucket(int(asked[first]))
            rows = asking[first:last]
            keys[rows, rank[first:last]] = self._nearest_among(queries[rows], places, k)
        if wide == 1:
            return keys[:, 0]
        merged = keys.reshape(len(queries), wide * k)
        if by_bucket:
            # Each bucket's are in order already: those that there are move up.
            first_come = np.argsort(merged == NO_KEY, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(merged, first_come, axis=1)
        return least_keys(merged, k)

    # Distances

    def _nearest_among(self, queries: Points, places: slice | Rows, k: int) -> Keys:
        """Return the keys of the k nearest of some places, ascending, shape (queries, k)."""
        count = _count(places)
        if len(queries) == 1 and count > 2 * k and count * self.dim > FEW_NUMBERS:
            return self._nearest_of_one(queries, places, k)[None]
        keys = np.full((len(queries), k), NO_KEY, dtype=np.int64)
        for part in _blocks(count):
            held = _part_of(places, part)
            doubles, norms, rows = self._vectors[held].astype(np.float64), self._squared_norms[held], self._rows[held]
            for some in _blocks(len(queries), max(1, BLOCK_PAIRS // len(rows))):
                found = least_keys(keys_of_pairs(queries[some], doubles, norms, rows), k)
                keys[some] = found if part.start == 0 else least_keys(np.concatenate([keys[some], found], axis=1), k)
        return keys

    def _nearest_of_one(self, queries: Points, places: slice | Rows, k: int) -> Keys:
        """Return the keys of one query's k nearest of some places, ascending, shape (k,).

        A product in float32 selects. With T a squared distance, A what the product gives for it and E its error,
        |A - T| <= E. Let a be the k-th least A. Then k places have T <= a + E, and one that ranks among them, its T
        being rounded to float32, has A <= (a + E)(1 + 4 UNIT) + E.
        """
        count = _count(places)
        query, square, error = queries.single[0], float(queries.squared_norms[0]), float(queries.error[0])
        best, worst = np.full(k, NO_KEY, dtype=np.int64), np.inf
        for part in _blocks(count):
            held = _part_of(places, part)
            chosen = held
            if part.stop - part.start > k:
                approximate = self._vectors[held].astype(np.float32, copy=False) @ query
                squared = self._squared_norms[held] - 2.0 * approximate
                limit = float(np.partition(squared, k - 1)[k - 1]) + square + error
                limit = min(limit, worst) * (1 + 4 * UNIT) + error - square
                at = np.flatnonzero(squared <= limit)
                chosen = at + held.start if isinstance(held, slice) else held[at]
            found = keys_of_pairs(
                queries, self._vectors[chosen].astype(np.float64), self._squared_norms[chosen], self._rows[chosen]
            )[0]
            best = least_keys(np.concatenate([best, found]) if part.start else found, k)
            if part.stop < count:
                worst = float(squared_of(best)[-1])
        return best

    def _places(self, usable: _Usable, anchors: Rows) -> slice | Rows:
        """Return the usable places of several buckets."""
        if len(anchors) == 1:
            return usable.bucket(int(anchors[0]))
        places = _ranges(usable.starts, anchors)
        return places if usable.places is None else usable.places[places]

    def _neighbours(self, keys: Keys, scanned: Rows, probed: list[Rows]) -> Neighbours:
        return Neighbours(rows_of(keys), np.sqrt(squared_of(keys)), scanned, tuple(probed), len(self))

    # Exact search

    def _search_exact(self, queries: Points, k: int, usable: _Usable) -> Neighbours:
        keys = np.empty((len(queries), k), dtype=np.int64)
        scanned = np.empty(len(queries), dtype=np.int64)
        probed: list[Rows] = []
        sizes = usable.sizes
        for rows in _blocks(len(queries), max(1, BLOCK_CANDIDATES // max(k, 4 * len(sizes)))):
            part = queries[rows]
            squared = squared_distances(part.double, self._anchors.double)
            own = squared.argmin(axis=1)
            # The own bucket, or as many as hold k vectors, gives a limit that the others are held against.
            ranked, counts = self._filled(part, own[:, None], np.ones(len(part), dtype=np.int64), k, sizes)
            keys[rows] = self._probe(part, ranked, counts, k, usable, by_bucket=False)
            slacks = slack(part.squared_norms, self._anchors, self._largest)
            limit = _limit(keys[rows][:, -1], slacks)
            within = self._bounds.least_distances(squared, own) <= limit[:, None]
            for row, at in enumerate(range(rows.start, rows.stop)):
                seen = np.zeros(len(sizes), dtype=np.bool_)
                seen[ranked[row, : counts[row]]] = True
                scanned[at] = sizes[seen].sum()
                more = within[row] & ~seen & (sizes > 0)
                if more.any():
                    one = part[row : row + 1] if len(part) > 1 else part
                    keys[at], compared = self._finish(one, more, np.flatnonzero(seen), usable, keys[at], slacks[row])
                    scanned[at] += len(compared)
                    seen[np.searchsorted(self._starts, compared, side="right") - 1] = True
                visited = np.flatnonzero(seen & (sizes > 0))
                probed.append(visited[np.argsort(squared[row, visited], kind="stable")])
        return self._neighbours(keys, scanned, probed)

    def _finish(
        self, queries: Points, buckets: Mask, seen: Rows, usable: _Usable, best: Keys, slack: float
    ) -> tuple[Keys, Rows]:
        """Return the best of one query's keys and of more buckets, (anchors,), and the places it was compared with.

        Only those are compared whose projections are near enough, and the most promising first: they bring the limit
        down for the rest.
        """
        k, sketch = len(best), self._sketch
        # Where many of them are to be looked at, gathering them would take longer than looking at all.
        whole = usable.places is None and 16 * int(usable.sizes[buckets].sum()) > len(self)
        places = slice(0, len(self)) if whole else self._places(usable, np.flatnonzero(buckets))
        bounds, square = sketch.squared_distances(queries.double, places)
        if whole:
            for bucket in seen:
                bounds[usable.bucket(int(bucket))] = np.nan  # within no limit: they were compared already
        error = sketch.error(float(np.sqrt(queries.squared_norms[0])) + self._largest)

        def within(of: Vectors) -> Rows:
            limit = float(_limit(best[-1:], slack)[0]) ** 2 + error - square
            return np.flatnonzero(of <= limit)

        chosen = within(bounds)
        rounds = [chosen]
        if len(chosen) > 2 * k:
            by_bound = chosen[np.argpartition(bounds[chosen], k - 1)]
            rounds = [by_bound[:k], by_bound[k:]]
        compared = []
        for chosen in rounds:
            chosen = chosen[within(bounds[chosen])]
            at = chosen + places.start if isinstance(places, slice) else places[chosen]
            compared.append(at)
            best = least_keys(np.concatenate([best, self._nearest_of_one(queries, at, k)]), k)
        return best, np.concatenate(compared)

    @cached_property
    def _bounds(self) -> BucketBounds:
        if self._filing is None:
            filed = np.repeat(np.arange(len(self._anchors)), self._all.sizes)
            filing = file_vectors(self._vectors, self._anchors.single, filed)
            self._filing = filing.rho, filing.gap
        rho, gap = self._filing
        self._filing = None
        return BucketBounds.of(rho, gap, self._starts, self._anchors.single)

    @cached_property
    def _sketch(self) -> Sketch:
        return Sketch.of((self._vectors[part] for part in _blocks(len(self))), len(self), self._anchors.double)

    # What is given

    def _checked(self, queries: npt.ArrayLike, allowed: Mask | None) -> tuple[Points, _Usable]:
        given = _matrix(queries, "queries", np.float32)
        if given.shape[1] != self.dim:
            raise InputError(f"queries have {given.shape[1]} dimensions, the index {self.dim}")
        points = Points.of(given, self._largest)
        if not np.isfinite(points.squared_norms).all():
            _check_finite(given, "queries")
        if allowed is None:
            return points, self._all
        if allowed.shape != (len(self),) or allowed.dtype != np.bool_:
            raise InputError(f"allowed must be {len(self)} booleans, one for each vector")
        places = np.flatnonzero(allowed[self._rows])
        starts = np.searchsorted(places, self._starts).astype(np.int64)
        return points, _Usable(places, starts, np.diff(starts))


def check_search(k: int, probes: Probes = "exact", order: Order = "distance") -> None:
    """Raise InputError for a search that cannot be done."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k is the number of neighbours wanted, 1 or more, not {k!r}")
    if probes != "exact" and (not isinstance(probes, int | np.integer) or isinstance(probes, bool) or probes < 1):
        raise InputError(f"probes is a number of anchors, 1 or more, or 'exact', not {probes!r}")
    if order not in ("distance", "bucket"):
        raise InputError(f"order is 'distance' or 'bucket', not {order!r}")
    if order == "bucket" and probes == "exact":
        raise InputError("exact search ranks by distance: take order 'distance', or a number of probes")


def _limit(worst: Keys, slack: float | Doubles) -> Doubles:
    """Return the distance beyond which a bound rules out, by queries' worst keys and what rounding can add."""
    limit: Doubles = np.sqrt(squared_of(worst).astype(np.float64)) * (1 + 4 * UNIT) + slack
    return limit


def _count(places: slice | Rows) -> int:
    return int(places.stop - places.start) if isinstance(places, slice) else len(places)


def _part_of(places: slice | Rows, part: slice) -> slice | Rows:
    """Return some of the places, by their position among them."""
    return slice(places.start + part.start, places.start + part.stop) if isinstance(places, slice) else places[part]


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
