"""The two-stage index against the exhaustive search, and that against a slow float64 loop."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.errors import InputError
from kedge.filing import file_vectors
from kedge.search import TwoStageIndex

KINDS = ["random", "clustered", "duplicated", "integers", "far from the origin", "one line"]


def vectors_of(kind, seed, count=120, queries=7, dim=6, anchors=5):
    """Return (vectors, queries, anchors) of a kind that is awkward in its own way."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(anchors, dim)) * 3
    if kind == "random":
        vectors, near = random.normal(size=(count, dim)), random.normal(size=(queries, dim))
    elif kind == "clustered":
        vectors = points[random.integers(0, anchors, count)] + 0.05 * random.normal(size=(count, dim))
        near = points[random.integers(0, anchors, queries)] + 0.05 * random.normal(size=(queries, dim))
    elif kind == "duplicated":
        vectors = random.normal(size=(4, dim))[random.integers(0, 4, count)]
        near = vectors[random.integers(0, count, queries)]
    elif kind == "integers":
        vectors, near = random.integers(-1, 2, size=(count, dim)), random.integers(-1, 2, size=(queries, dim))
        points = random.integers(-1, 2, size=(anchors, dim))
    elif kind == "far from the origin":
        vectors, near = random.normal(size=(count, dim)) + 1000, random.normal(size=(queries, dim)) + 1000
        points = points + 1000
    else:
        line = random.normal(size=dim)
        vectors, near, points = (random.normal(size=(size, 1)) * line for size in (count, queries, anchors))
    return vectors.astype(np.float32), near.astype(np.float32), points.astype(np.float32)


def same_up_to_ties(found, expected):
    """Distances are equal to the bit; where the rows differ, so must only equally distant ones."""
    assert np.array_equal(found.distances, expected.distances)
    for row in range(len(found.ids)):
        differ = found.ids[row] != expected.ids[row]
        assert np.array_equal(found.distances[row][differ], expected.distances[row][differ])
        ids = found.ids[row][found.ids[row] >= 0]
        assert len(set(ids.tolist())) == len(ids)


arrangement = {
    "kind": st.sampled_from(KINDS),
    "seed": st.integers(0, 10_000),
    "k": st.sampled_from([1, 3, 10, 200]),
    "dim": st.sampled_from([1, 2, 6, 16, 33]),
    "anchors": st.sampled_from([1, 2, 5, 8]),
    "by_label": st.booleans(),
    "masked": st.booleans(),
}


@settings(max_examples=250, deadline=None)
@given(**arrangement)
def test_exact_equals_exhaustive(kind, seed, k, dim, anchors, by_label, masked):
    vectors, queries, points = vectors_of(kind, seed, dim=dim, anchors=anchors)
    random = np.random.default_rng(seed)
    buckets = random.integers(0, anchors, len(vectors)) if by_label else None
    allowed = random.random(len(vectors)) < 0.3 if masked else None
    index = TwoStageIndex(vectors, points, buckets)
    expected = index.search_exhaustive(queries, k, allowed=allowed)
    found = index.search(queries, k, "exact", allowed=allowed)
    same_up_to_ties(found, expected)
    assert (found.scanned <= expected.scanned).all()


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), k=st.sampled_from([1, 5, 150]), masked=st.booleans())
def test_exhaustive_equals_a_slow_loop(kind, seed, k, masked):
    vectors, queries, points = vectors_of(kind, seed)
    allowed = np.random.default_rng(seed).random(len(vectors)) < 0.5 if masked else np.ones(len(vectors), dtype=bool)
    found = TwoStageIndex(vectors, points).search_exhaustive(queries, k, allowed=allowed)
    for row, query in enumerate(queries.astype(np.float64)):
        slow = sorted(float(np.sqrt(((x - query) ** 2).sum())) for x in vectors[allowed].astype(np.float64))[:k]
        assert np.allclose(found.distances[row, : len(slow)], slow, rtol=1e-5, atol=1e-6)
        assert (found.ids[row, len(slow) :] == -1).all()
        assert np.isinf(found.distances[row, len(slow) :]).all()
        ids = found.ids[row, : len(slow)]
        assert allowed[ids].all()
        again = np.sqrt(((vectors[ids].astype(np.float64) - query) ** 2).sum(axis=1))
        assert np.allclose(found.distances[row, : len(slow)], again, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), probes=st.integers(1, 6), masked=st.booleans())
def test_probed_search_is_the_exhaustive_search_of_its_buckets(kind, seed, probes, masked):
    vectors, queries, points = vectors_of(kind, seed)
    random = np.random.default_rng(seed)
    buckets = random.integers(0, len(points), len(vectors))
    allowed = random.random(len(vectors)) < 0.5 if masked else np.ones(len(vectors), dtype=bool)
    index = TwoStageIndex(vectors, points, buckets)
    found = index.search(queries, 10, probes, allowed=allowed)
    for row in range(len(queries)):
        assert len(found.probed[row]) == min(probes, len(points))
        kept = allowed & np.isin(buckets, found.probed[row])
        alone = index.search_exhaustive(queries[row : row + 1], 10, allowed=kept)
        assert np.array_equal(found.distances[row], alone.distances[0])
        assert np.array_equal(found.ids[row], alone.ids[0])
        assert found.scanned[row] == kept.sum()
    to_anchors = np.sqrt(((queries[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2))
    for row, probed in enumerate(found.probed):
        assert (np.diff(to_anchors[row, probed]) >= -1e-9).all()
        assert to_anchors[row, probed].max() <= np.sort(to_anchors[row])[len(probed) - 1] + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 130), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_fill_goes_on_until_k_are_found_and_no_further(seed, k, share):
    vectors, queries, points = vectors_of("clustered", seed)
    allowed = np.random.default_rng(seed).random(len(vectors)) < share
    index = TwoStageIndex(vectors, points)
    found = index.search(queries, k, 1, allowed=allowed, fill=True)
    assert ((found.ids >= 0).sum(axis=1) == min(k, allowed.sum())).all()
    for row, probed in enumerate(found.probed):
        if len(probed) > 1:
            shorter = index.search(queries[row : row + 1], k, len(probed) - 1, allowed=allowed)
            assert (shorter.ids[0] >= 0).sum() < min(k, allowed.sum())


def test_order_by_bucket_ranks_the_nearest_anchor_first():
    # Anchors at 0 and 10. The query at 4 is nearer to 0, whose picture at -3 comes before 5, filed under 10.
    index = TwoStageIndex([[-3.0], [5.0], [11.0], [1.0]], [[0.0], [10.0]], buckets=[0, 1, 1, 0])
    by_distance = index.search([[4.0]], 4, 2)
    by_bucket = index.search([[4.0]], 4, 2, order="bucket")
    assert by_distance.ids.tolist() == [[1, 3, 0, 2]]
    assert by_bucket.ids.tolist() == [[3, 0, 1, 2]]
    assert by_bucket.distances.tolist() == [[3.0, 7.0, 1.0, 7.0]]


def test_ties_go_by_row():
    index = TwoStageIndex([[2.0], [0.0], [2.0], [0.0], [2.0]], [[0.0], [2.0]])
    for found in (index.search_exhaustive([[1.0]], 3), index.search([[1.0]], 3, "exact"), index.search([[1.0]], 3, 2)):
        assert found.ids.tolist() == [[0, 1, 2]]


def test_exact_search_of_clusters_looks_at_little():
    vectors, queries, points = vectors_of("clustered", 0, count=20_000, queries=50, dim=32, anchors=40)
    index = TwoStageIndex(vectors, points)
    assert index.search(queries, 10, "exact").scanned_share < 0.05
    assert index.search_exhaustive(queries, 10).scanned_share == 1.0


def test_exact_search_with_few_and_many_anchors():
    for anchors in (1, 2, 5, 40):
        vectors, queries, points = vectors_of("clustered", 1, count=500, dim=8, anchors=anchors)
        index = TwoStageIndex(vectors, points)
        same_up_to_ties(index.search(queries, 7, "exact"), index.search_exhaustive(queries, 7))


def test_coinciding_anchors():
    vectors, queries, points = vectors_of("random", 2)
    points[3] = points[0]
    points[4] = points[0] + 1e-6
    index = TwoStageIndex(vectors, points)
    same_up_to_ties(index.search(queries, 9, "exact"), index.search_exhaustive(queries, 9))


def test_empty_index_and_empty_batch():
    index = TwoStageIndex(np.zeros((0, 3)), np.eye(3))
    for found in (index.search(np.ones((2, 3)), 4), index.search(np.ones((2, 3)), 4, "exact")):
        assert found.ids.tolist() == [[-1] * 4] * 2
        assert found.scanned_share == 0.0
    index = TwoStageIndex(np.eye(3), np.eye(3))
    for probes in (1, "exact"):
        assert index.search(np.zeros((0, 3)), 2, probes).ids.shape == (0, 2)
    assert index.search_exhaustive(np.zeros((0, 3)), 2).ids.shape == (0, 2)


def test_large_batches_are_cut_without_changing_the_answer(monkeypatch):
    vectors, queries, points = vectors_of("clustered", 3, count=300, queries=60)
    whole = TwoStageIndex(vectors, points)
    expected = [whole.search(queries, 8, 2), whole.search_exhaustive(queries, 8), whole.search(queries, 8, "exact")]
    few = TwoStageIndex(vectors, points, np.arange(300) % len(points))
    filled = [few.search(queries, 90, 1, fill=True, order=order) for order in ("distance", "bucket")]
    monkeypatch.setattr("kedge.search.BLOCK_PAIRS", 64)
    monkeypatch.setattr("kedge.search.BLOCK_CANDIDATES", 64)
    monkeypatch.setattr("kedge.search.GALLERY_BLOCK", 17)
    cut = TwoStageIndex(vectors, points)
    found = [cut.search(queries, 8, 2), cut.search_exhaustive(queries, 8), cut.search(queries, 8, "exact")]
    found += [few.search(queries, 90, 1, fill=True, order=order) for order in ("distance", "bucket")]
    for one, other in zip(found, expected + filled, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.distances, other.distances)


def test_memory_of_a_batch_stays_bounded_where_filling_goes_on(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    index = TwoStageIndex(vectors, vectors[:100])
    monkeypatch.setattr("kedge.search.BLOCK_CANDIDATES", 1 << 18)
    for probes in (1, "exact"):
        tracemalloc.start()
        index.search(vectors[:60], 2000, probes, fill=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30 << 20  # all candidates at once took 194 MB


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), k=st.sampled_from([1, 20, 400]))
@pytest.mark.parametrize("few_numbers", [0, 1 << 17])
def test_one_query_at_a_time_answers_as_a_batch_does(kind, seed, k, few_numbers):
    vectors, queries, points = vectors_of(kind, seed, count=900, dim=24, anchors=3)
    index = TwoStageIndex(vectors, points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kedge.search.FEW_NUMBERS", few_numbers)
        for probes in (1, 2, "exact"):
            batch = index.search(queries, k, probes)
            for row in range(len(queries)):
                one = index.search(queries[row : row + 1], k, probes)
                assert np.array_equal(one.ids[0], batch.ids[row])
                assert np.array_equal(one.distances[0], batch.distances[row])
                assert np.array_equal(one.probed[0], batch.probed[row])
                assert one.scanned[0] == batch.scanned[row]


def test_exact_search_looks_at_few_more_than_the_own_bucket_where_the_anchors_tell_most():
    random = np.random.default_rng(0)
    points = random.normal(size=(12, 40))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    # As embeddings are after training: wide along the directions of the anchors, narrow beside them.
    mixed = random.dirichlet(np.full(12, 0.4), size=6040) @ points
    vectors = (mixed + 0.01 * random.normal(size=mixed.shape)).astype(np.float32)
    index = TwoStageIndex(vectors[:6000], points)
    found = index.search(vectors[6000:], 20, "exact")
    same_up_to_ties(found, index.search_exhaustive(vectors[6000:], 20))
    own = index.search(vectors[6000:], 20, 1).scanned.mean()
    assert found.scanned.mean() < 1.5 * own


def test_half_precision_is_searched_as_it_is_held():
    vectors, queries, points = vectors_of("clustered", 4, count=2000, dim=32)
    half = TwoStageIndex(vectors.astype(np.float16), points)
    rounded = TwoStageIndex(vectors.astype(np.float16).astype(np.float32), points)
    assert half.nbytes < 0.7 * rounded.nbytes
    for probes in (1, "exact"):
        same_up_to_ties(half.search(queries, 9, probes), rounded.search(queries, 9, probes))


def test_vectors_may_come_in_parts():
    vectors, queries, points = vectors_of("clustered", 5)
    buckets = np.random.default_rng(0).integers(0, len(points), len(vectors))
    parts = (vectors[start : start + 33] for start in range(0, len(vectors), 33))
    same_up_to_ties(
        TwoStageIndex(parts, points, buckets).search(queries, 5, 2),
        TwoStageIndex(vectors, points, buckets).search(queries, 5, 2),
    )
    for wrong, said in ((vectors[:-1], "119 vectors"), (np.concatenate([vectors, vectors]), "120 vectors of 6")):
        with pytest.raises(InputError, match=said):
            TwoStageIndex(iter([wrong]), points, buckets)
    with pytest.raises(InputError, match="with their buckets"):
        TwoStageIndex(iter([vectors]), points)


def test_impossible_calls_are_named():
    index = TwoStageIndex(np.eye(3), np.eye(3))
    for wrong, said in [
        (lambda: index.search(np.ones((1, 4)), 1), "4 dimensions, the index 3"),
        (lambda: index.search(np.ones(3), 1), "shape"),
        (lambda: index.search([[np.nan, 0, 0]], 1), "row 0 is not finite"),
        (lambda: index.search(np.ones((1, 3)), 0), "k is"),
        (lambda: index.search(np.ones((1, 3)), 1, 0), "probes"),
        (lambda: index.search(np.ones((1, 3)), 1, 2.5), "probes"),
        (lambda: index.search(np.ones((1, 3)), 1, order="size"), "order"),
        (lambda: index.search(np.ones((1, 3)), 1, allowed=np.ones(2, dtype=bool)), "3 booleans"),
        (lambda: TwoStageIndex(np.eye(3), np.eye(4)), "3 dimensions, anchors 4"),
        (lambda: TwoStageIndex(np.eye(3), np.zeros((0, 3))), "at least one anchor"),
        (lambda: TwoStageIndex(np.eye(3), np.eye(3), buckets=[0, 1]), "buckets"),
        (lambda: TwoStageIndex(np.eye(3), np.eye(3), buckets=[0, 1, 3]), "buckets"),
        (lambda: TwoStageIndex(np.full((1, 3), np.inf), np.eye(3)), "not finite"),
    ]:
        with pytest.raises(InputError, match=said):
            wrong()


def test_scanned_and_probed_of_an_exact_search_are_what_it_compared():
    # Buckets of 2 at 0, 10 and 100: queries at 4.9 and 5.1 need the first two.
    index = TwoStageIndex([[0.0], [1.0], [9.0], [10.0], [100.0], [101.0]], [[0.0], [10.0], [100.0]])
    found = index.search([[4.9], [5.1]], 2, "exact")
    assert found.ids.tolist() == [[1, 2], [2, 1]]
    assert [probed.tolist() for probed in found.probed] == [[0, 1], [1, 0]]
    assert 3 <= found.scanned.min() <= found.scanned.max() <= 4


@pytest.mark.parametrize("probes", [1, 3])
def test_anchors_too_near_each_other_for_float32_are_ranked_by_float64(probes):
    random = np.random.default_rng(0)
    points = (random.normal(size=(200, 8)) * 1e-3 + 100).astype(np.float32)
    queries = (random.normal(size=(50, 8)) * 1e-3 + 100).astype(np.float32)
    found = TwoStageIndex(points, points).search(queries, 5, probes)
    apart = ((queries[:, None].astype(np.float64) - points) ** 2).sum(axis=2)
    for row, probed in enumerate(found.probed):
        assert probed.tolist() == np.argsort(apart[row], kind="stable")[:probes].tolist()


def test_filing_that_is_given_is_put_into_the_buckets_order():
    vectors, queries, points = vectors_of("clustered", 0, count=3000, queries=40, dim=8, anchors=40)
    filing = file_vectors(vectors, points)
    given = TwoStageIndex(vectors, points, filing.anchors, rho=filing.rho, gap=filing.gap)
    found = given.search(queries, 60, "exact")
    same_up_to_ties(found, given.search_exhaustive(queries, 60))
    own = TwoStageIndex(vectors, points, filing.anchors)
    assert np.array_equal(found.scanned, own.search(queries, 60, "exact").scanned)


def test_of_one_query_the_nearest_is_found_among_vectors_that_float32_cannot_tell_apart(monkeypatch):
    monkeypatch.setattr("kedge.search.FEW_NUMBERS", 0)
    monkeypatch.setattr("kedge.search.GALLERY_BLOCK", 8)
    random = np.random.default_rng(0)
    for _ in range(50):
        vectors = (1 + 1e-7 * random.integers(-1, 2, size=(40, 3))).astype(np.float32)
        query = (1 + 1e-7 * random.integers(-1, 2, size=(1, 3))).astype(np.float32)
        apart = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        assert TwoStageIndex(vectors, np.ones((1, 3))).search(query, 1).ids.tolist() == [[apart.argmin()]]
