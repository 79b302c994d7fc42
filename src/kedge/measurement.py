"""Measurement: how well vectors retrieve, by every way to search, in blocks of bounded memory.

The definitions of all figures stand in docs/method.md.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt

from kedge.anchors import Anchors, nearest_anchors
from kedge.cores import own_cores
from kedge.distances import squared_distances, unit_length
from kedge.errors import InputError
from kedge.figures import Confusion, FiledBy, Report, SearchFigures
from kedge.metrics import average_precision, hit_at, interpolated_precision, precision_at
from kedge.model import Distance
from kedge.ranking import rank
from kedge.search import Probes, TwoStageIndex, check_search

__all__ = ["DEFAULT_PROBES", "check_probes", "evaluate_vectors", "exhaustive_scores"]

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

DEFAULT_PROBES: tuple[Probes, ...] = (1, 2, 5, "exact")
PRECISION_AT, RECALL_AT = (20, 100), (1, 5, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
# Share scanned and time are those of a search for so many hits, by at most so many queries, spread over all: queries
# lie sorted by class, and the first ones would stand for a class or two.
TIMED_K, MOST_TIMED = 100, 200
CONFUSED_K = 20
# Pairs of queries and gallery pictures ranked at once, of 6 bytes each and 2 more for each way that looks at them; the
# figures take more for those that are relevant.
BLOCK_PAIRS = 6_700_000
GALLERY_BLOCK = 4096


def evaluate_vectors(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    anchors: Anchors,
    *,
    classes: Sequence[str],
    distance: Distance,
    dataset: str = "",
    probes: Sequence[Probes] = DEFAULT_PROBES,
    leave_one_out: bool = False,
) -> Report:
    """Measure raw vectors, (queries, d) and (gallery, d), with labels that number `classes`.

    Every mode is measured by L2 and by cosine (vectors and anchors made unit length). leave_one_out: queries and
    gallery are the same rows, and each query is left out of its own ranking. Memory beyond the inputs stays below 1 GB.
    Raises InputError for vectors and labels that do not fit together, and numbers that are not finite.
    """
    check_probes(probes)
    if distance not in get_args(Distance):
        raise InputError(f"the distance is 'l2' or 'cosine', not {distance!r}")
    with np.errstate(over="ignore"):
        queries, gallery = np.asarray(queries, dtype=np.float32), np.asarray(gallery, dtype=np.float32)
    _check_vectors(queries, gallery, anchors, leave_one_out)
    query_labels = _checked_labels(query_labels, len(queries), classes, "query_labels")
    gallery_labels = _checked_labels(gallery_labels, len(gallery), classes, "gallery_labels")
    search: list[SearchFigures] = []
    per_class: dict[str, float | None] = {}
    confusions: dict[str, Confusion] = {}
    curve: tuple[float, ...] = ()
    for measure in ("l2", "cosine"):
        scale = unit_length if measure == "cosine" else np.asarray
        setting = _Setting(scale(queries), query_labels, scale(gallery), gallery_labels, leave_one_out)
        ways = _ways(setting, anchors.unit() if measure == "cosine" else anchors, classes, measure, probes)
        ranked = _rank(setting, ways, curves=measure == distance)
        search += [
            _figures(way, totals, *_timed(way, setting)) for way, totals in zip(ways, ranked.totals, strict=True)
        ]
        if measure == distance:
            per_class = _by_class(ranked.totals[0]["map"], query_labels, classes)
            confusions = _confusions(setting, ways[0].index, classes)
            curve = tuple(float(value) for value in ranked.curve)
    return Report(
        dataset=dataset,
        queries=len(queries),
        gallery=len(gallery),
        classes=len(classes),
        dim=int(gallery.shape[1]),
        distance=distance,
        search=tuple(search),
        per_class=per_class,
        confusions=confusions,
        queries_without_relevant=int((setting.relevant() == 0).sum()),
        precision_recall=curve,
    )


def exhaustive_scores(
    queries: Vectors, query_labels: Labels, gallery: Vectors, gallery_labels: Labels, distance: Distance
) -> tuple[float, float]:
    """Return the mAP and R@1 of exhaustive search alone; raw vectors (queries, d) and (gallery, d), labels (n,)."""
    scale = unit_length if distance == "cosine" else np.asarray
    setting = _Setting(scale(queries), query_labels, scale(gallery), gallery_labels, leave_one_out=False)
    relevant = setting.relevant()
    precisions, firsts = np.empty(len(queries)), np.empty(len(queries))
    for rows, (relevance,) in _ranked_blocks(setting):
        precisions[rows], firsts[rows] = average_precision(relevance, relevant[rows]), hit_at(relevance, 1)
    return _mean(precisions), _mean(np.where(relevant > 0, firsts, np.nan))


@dataclass(frozen=True, eq=False)
class _Setting:
    """Queries and gallery by one distance."""

    queries: Vectors
    query_labels: Labels
    gallery: Vectors
    gallery_labels: Labels
    leave_one_out: bool

    def relevant(self) -> Labels:
        """Return how many relevant pictures the gallery holds for each query."""
        most = int(max(self.query_labels.max(initial=0), self.gallery_labels.max(initial=0))) + 1
        return np.bincount(self.gallery_labels, minlength=most)[self.query_labels] - int(self.leave_one_out)


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to search: `buckets` says under which anchor each picture is filed."""

    distance: Distance
    filed_by: FiledBy | None
    probes: Probes | None
    buckets: Labels
    anchors: Vectors
    index: TwoStageIndex

    def probed(self, queries: Vectors) -> Mask:
        """Return which buckets the search looks into for each query, shape (queries, anchors)."""
        nearest = np.argsort(squared_distances(queries, self.anchors), axis=1, kind="stable")[:, : self.probes]
        probed = np.zeros((len(queries), len(self.anchors)), dtype=np.bool_)
        np.put_along_axis(probed, nearest, True, axis=1)
        return probed


@dataclass(frozen=True, eq=False)
class _Ranked:
    totals: list[dict[str, Values]]
    curve: Values


def _ways(
    setting: _Setting, anchors: Anchors, classes: Sequence[str], distance: Distance, probes: Sequence[Probes]
) -> list[_Way]:
    """Return every way to search by one distance: exhaustive, filed by nearest, and by label where all have anchors."""
    probes = [count if count == "exact" else int(count) for count in probes]
    gallery, gallery_labels, points = setting.gallery, setting.gallery_labels, anchors.vectors
    nearest = nearest_anchors(gallery, points)
    index = TwoStageIndex(gallery, points, nearest)
    ways = [_Way(distance, None, None, nearest, points, index)]
    ways += [_Way(distance, "nearest", count, nearest, points, index) for count in probes]
    rows = anchors.rows
    if all(classes[label] in rows for label in np.unique(gallery_labels)):
        by_class = np.array([rows.get(name, -1) for name in classes], dtype=np.int64)
        labelled = by_class[gallery_labels]
        index = TwoStageIndex(gallery, points, labelled)
        ways += [_Way(distance, "label", count, labelled, points, index) for count in probes]
    return ways


def _rank(setting: _Setting, ways: Sequence[_Way], *, curves: bool) -> _Ranked:
    """Rank the whole gallery once for each query, and take every way's figures from that one order."""
    relevant = setting.relevant()
    truncated = [way for way in ways if isinstance(way.probes, int)]
    parts: list[list[dict[str, Values]]] = [[] for _ in range(1 + len(truncated))]
    curve = np.zeros(len(RECALL_LEVELS))
    for rows, relevances in _ranked_blocks(setting, truncated):
        for part, relevance in zip(parts, relevances, strict=True):
            part.append(_by_query(relevance, relevant[rows]))
        if curves:
            curve += np.nansum(interpolated_precision(relevances[0], relevant[rows], RECALL_LEVELS), axis=0)
    whole, *others = ({name: np.concatenate([block[name] for block in part]) for name in part[0]} for part in parts)
    # Exact search finds what the exhaustive one does.
    totals_of = dict(zip(truncated, others, strict=True))
    return _Ranked([totals_of.get(way, whole) for way in ways], curve / max(1, int((relevant > 0).sum())))


def _by_query(relevance: Mask, relevant: Labels) -> dict[str, Values]:
    """Return every figure of each query by name, shape (queries,); NaN where the gallery holds no relevant picture."""
    figures = {"map": average_precision(relevance, relevant)}
    figures |= {f"p{k}": precision_at(relevance, k) for k in PRECISION_AT}
    figures |= {f"r{k}": hit_at(relevance, k) for k in RECALL_AT}
    return {name: np.where(relevant > 0, values, np.nan) for name, values in figures.items()}


def _ranked_blocks(setting: _Setting, ways: Sequence[_Way] = ()) -> Iterator[tuple[slice, list[Mask]]]:
    """Yield (rows of queries, [relevance by rank of exhaustive search, and of each truncated way]), block by block."""
    first_of = _first_equal(setting.gallery)
    size = max(1, BLOCK_PAIRS // max(1, len(setting.gallery)))
    # Sorting leaves other threads free to run.
    with ThreadPoolExecutor(own_cores()) as pool:
        for start in range(0, len(setting.queries), size):
            rows = slice(start, min(start + size, len(setting.queries)))
            queries = setting.queries[rows]
            orders = rank(_distances(queries, setting.gallery, first_of), pool)
            probed = [way.probed(queries) for way in ways]
            found = pool.map(partial(_relevance, setting, ways), range(rows.start, rows.stop), orders, *probed)
            yield rows, [_padded(rankings) for rankings in zip(*found, strict=True)]


def _distances(queries: Vectors, gallery: Vectors, first_of: Labels) -> Vectors:
    """Return squared distances, shape (queries, gallery); equal pictures, by `first_of`, have the same."""
    distances = np.empty((len(queries), len(gallery)), dtype=np.float32)
    for start in range(0, len(gallery), GALLERY_BLOCK):
        part = slice(start, start + GALLERY_BLOCK)
        distances[:, part] = squared_distances(queries, gallery[part])
    # A product rounds equal columns differently, by their place; equal pictures must tie, by gallery order.
    again = np.flatnonzero(first_of != np.arange(len(gallery)))
    distances[:, again] = distances[:, first_of[again]]
    return distances


def _relevance(setting: _Setting, ways: Sequence[_Way], row: int, order: Labels, *probed: Mask) -> list[Mask]:
    """Return which pictures are relevant to a query by rank, of all, and of those that each truncated way returns."""
    if setting.leave_one_out:
        order = order[order != row]
    # Looked up in order, a mask of the gallery stays in the cache; labels take eight times as much.
    whole = (setting.gallery_labels == setting.query_labels[row])[order]
    return [whole, *(whole[own[way.buckets][order]] for way, own in zip(ways, probed, strict=True))]


def _padded(rankings: Sequence[Mask]) -> Mask:
    """Return rankings, shape (ranks,) each, as rows of one array, filled up with False."""
    padded = np.zeros((len(rankings), max(map(len, rankings))), dtype=np.bool_)
    for row, ranking in zip(padded, rankings, strict=True):
        row[: len(ranking)] = ranking
    return padded


def _first_equal(vectors: Vectors) -> Labels:
    """Return for each row the first row that equals it, shape (n,)."""
    rows = np.ascontiguousarray(vectors + np.float32(0))  # -0 becomes 0
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _timed(way: _Way, setting: _Setting) -> tuple[float, float]:
    """Return (share of the gallery scanned, milliseconds a query) of a search for TIMED_K, one batch of queries."""
    count = len(setting.queries)
    queries = setting.queries[np.linspace(0, count - 1, min(count, MOST_TIMED)).astype(np.int64)]
    arguments = () if way.probes is None else (way.probes,)
    search = way.index.search_exhaustive if way.probes is None else way.index.search
    # What is worked out once, at the first query that needs it: not each one does.
    search(queries, TIMED_K, *arguments)
    started = time.perf_counter()
    found = search(queries, TIMED_K, *arguments)
    return found.scanned_share, 1000 * (time.perf_counter() - started) / len(queries)


def _figures(
    way: _Way, totals: dict[str, npt.NDArray[np.float64]], scanned_share: float, milliseconds: float
) -> SearchFigures:
    return SearchFigures(
        mode="exhaustive" if way.probes is None else "two-stage",
        distance=way.distance,
        filed_by=way.filed_by,
        probes=way.probes,
        map=_mean(totals["map"]),
        precision_at={str(k): _mean(totals[f"p{k}"]) for k in PRECISION_AT},
        recall_at={str(k): _mean(totals[f"r{k}"]) for k in RECALL_AT},
        scanned_share=scanned_share,
        milliseconds_per_query=milliseconds,
    )


def _by_class(values: npt.NDArray[np.float64], labels: Labels, classes: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for number, name in enumerate(classes):
        own = values[labels == number]
        found[name] = _mean(own) if np.isfinite(own).any() else None
    return found


def _confusions(setting: _Setting, index: TwoStageIndex, classes: Sequence[str]) -> dict[str, Confusion]:
    """Return by class which other one is most among the first hits of its queries, where there is any."""
    hits = index.search_exhaustive(setting.queries, CONFUSED_K + int(setting.leave_one_out)).ids
    there = hits >= 0
    if setting.leave_one_out:
        there &= hits != np.arange(len(hits))[:, None]
        there &= np.cumsum(there, axis=1) <= CONFUSED_K
    found: dict[str, Confusion] = {}
    for number in np.unique(setting.query_labels):
        own = setting.query_labels == number
        counts = np.bincount(setting.gallery_labels[hits[own][there[own]]], minlength=len(classes))
        total, counts[number] = counts.sum(), 0
        other = int(counts.argmax())
        if counts[other]:
            found[classes[number]] = Confusion(classes[other], float(counts[other] / total))
    return found


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean over queries that have a relevant picture; 0 when none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def check_probes(probes: Sequence[Probes]) -> None:
    """Raise InputError for a number of probes that no search takes."""
    for count in probes:
        check_search(1, count)


def _check_vectors(queries: Vectors, gallery: Vectors, anchors: Anchors, leave_one_out: bool) -> None:
    for what, vectors in (("queries", queries), ("the gallery", gallery)):
        if vectors.ndim != 2:
            raise InputError(f"{what} of shape {vectors.shape} were given: expected (pictures, dimensions)")
    if not len(queries) or not len(gallery):
        raise InputError(f"{len(queries)} queries and a gallery of {len(gallery)} were given: both need pictures")
    if not queries.shape[1] == gallery.shape[1] == anchors.dim:
        raise InputError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}, the anchors {anchors.dim}"
        )
    for what, vectors in (("queries", queries), ("the gallery", gallery)):
        # Of a sum: the vectors may be many, and it is finite only if all are.
        if not np.isfinite(np.sum(vectors, dtype=np.float64)):
            raise InputError(f"{what} hold numbers that are not finite: leave those vectors out")
    if leave_one_out and not np.array_equal(queries, gallery):
        raise InputError("leave_one_out takes queries and gallery that are the same rows, and these differ")


def _checked_labels(given: npt.ArrayLike, count: int, classes: Sequence[str], what: str) -> Labels:
    labels = np.asarray(given)
    if labels.shape != (count,):
        raise InputError(f"{what} has shape {labels.shape}: there must be one label for each of the {count} vectors")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what} must be whole numbers that number the classes, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= len(classes):
        wrong = labels[(labels < 0) | (labels >= len(classes))][0]
        raise InputError(f"{what} holds {wrong}: {len(classes)} classes were named, so labels go to {len(classes) - 1}")
    return labels.astype(np.int64)
