"""Retrieval figures, from which pictures are relevant in rank order.

Everywhere `relevance` is (queries, ranks) bool, best rank first, and `relevant` (queries,) says how many relevant
pictures the gallery holds. A search that returned less than others has False from there on: the rest is missed.
"""

import numpy as np
import numpy.typing as npt

from kedge.distances import squared_distances

__all__ = ["average_precision", "hit_at", "interpolated_precision", "leave_one_out_map", "precision_at"]

Mask = npt.NDArray[np.bool_]
Figures = npt.NDArray[np.float64]


def average_precision(relevance: Mask, relevant: npt.NDArray[np.int64]) -> Figures:
    """Return the AP of each query, shape (queries,); NaN where the gallery holds no relevant picture.

    AP = sum over ranks r of relevant pictures of precision@r, divided by the number of relevant pictures there are.
    """
    # As np.nonzero, in a seventh of its time.
    query, place = np.divmod(np.flatnonzero(relevance), relevance.shape[1])
    # Entries come query by query: the i-th of a query has i relevant pictures up to it.
    counts = np.bincount(query, minlength=len(relevance))
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    hits = np.arange(1, len(query) + 1) - firsts
    sums = np.bincount(query, weights=hits / (place + 1), minlength=len(relevance))
    found_precision: Figures = np.full(len(relevance), np.nan)
    np.divide(sums, relevant, out=found_precision, where=relevant > 0)
    return found_precision


def precision_at(relevance: Mask, k: int) -> Figures:
    """Return the share of relevant pictures among the first k, shape (queries,); always divided by k."""
    return np.asarray(relevance[:, :k].sum(axis=1) / k)


def hit_at(relevance: Mask, k: int) -> Figures:
    """Return 1 for each query with a relevant picture among the first k, else 0; the mean over queries is R@k."""
    return np.asarray(relevance[:, :k].any(axis=1), dtype=np.float64)


def interpolated_precision(relevance: Mask, relevant: npt.NDArray[np.int64], levels: Figures) -> Figures:
    """Return each query's best precision at or beyond each recall level, shape (queries, levels)."""
    curves = np.zeros((len(relevance), len(levels)))
    for row, (found, count) in enumerate(zip(relevance, relevant, strict=True)):
        if not count:
            curves[row] = np.nan
            continue
        ranks = np.flatnonzero(found) + 1
        precision = np.arange(1, len(ranks) + 1) / ranks
        best_from = np.maximum.accumulate(precision[::-1])[::-1]
        # The least number of relevant pictures that makes up the recall; 1e-9 forgives 0.07 * 100 = 7.000000000000001.
        needed = np.maximum(1, np.ceil(levels * count - 1e-9)).astype(np.int64)
        reached = needed <= len(best_from)
        curves[row, reached] = best_from[needed[reached] - 1]
    return curves


def leave_one_out_map(vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Return the mAP by L2 of vectors (n, d) searched among themselves, each left out of its own ranking.

    NaN when no class has two pictures. Builds the n x n matrix: for thousands, not for millions.
    """
    distances = squared_distances(vectors, vectors)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
    relevance = labels[order] == labels[:, None]
    found = average_precision(relevance, relevance.sum(axis=1))
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")
