"""Measurement against a slow loop, against the two-stage index, and in bounded memory."""

import tracemalloc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kedge import measurement, search
from kedge.anchors import Anchors, nearest_anchors
from kedge.distances import unit_length
from kedge.errors import InputError
from kedge.figures import Confusion
from kedge.measurement import evaluate_vectors, exhaustive_scores
from kedge.metrics import interpolated_precision
from kedge.search import TwoStageIndex


def clustered(seed, queries=30, gallery=200, classes=5, dim=8, noise=0.8):
    """Return vectors and labels of noisy classes about random anchors."""
    random = np.random.default_rng(seed)
    anchors = random.normal(size=(classes, dim)).astype(np.float32) * 2
    query_labels, labels = random.integers(0, classes, queries), np.arange(gallery) % classes
    near = anchors[query_labels] + random.normal(size=(queries, dim)) * noise
    filed = anchors[labels] + random.normal(size=(gallery, dim)) * noise
    names = tuple(f"class {number}" for number in range(classes))
    return near.astype(np.float32), query_labels, filed.astype(np.float32), labels, Anchors(names, anchors)


def report_of(data, **options):
    queries, query_labels, gallery, labels, anchors = data
    options = {"classes": anchors.names, "distance": "l2", **options}
    return evaluate_vectors(queries, query_labels, gallery, labels, anchors, **options)


def slow_figures(queries, query_labels, gallery, labels, kept=None, leave_one_out=False):
    """[mAP, P@20, P@100, R@1, R@5, R@10] as defined, a picture at a time; `kept[query]` are the pictures looked at."""
    found = []
    for row, query in enumerate(queries):
        distances = ((gallery.astype(np.float64) - query.astype(np.float64)) ** 2).sum(axis=1)
        order = [
            picture
            for picture in np.argsort(distances, kind="stable")
            if (kept is None or picture in kept[row]) and not (leave_one_out and picture == row)
        ]
        right = [bool(labels[picture] == query_labels[row]) for picture in order]
        precisions = [sum(right[:rank]) / rank for rank in range(1, len(right) + 1) if right[rank - 1]]
        relevant = int((labels == query_labels[row]).sum()) - leave_one_out
        if relevant:
            shares = [sum(right[:k]) / k for k in (20, 100)]
            found.append([sum(precisions) / relevant, *shares, *(any(right[:k]) for k in (1, 5, 10))])
    return np.mean(found, axis=0)


def slow_map(*arguments):
    return slow_figures(*arguments)[0]


def figures_of(row):
    return [row.map, *(row.precision_at[k] for k in ("20", "100")), *(row.recall_at[k] for k in ("1", "5", "10"))]


def kept_by(queries, anchors, buckets, probes):
    """Return for each query the pictures filed under its nearest anchors."""
    distances = ((queries[:, None].astype(np.float64) - anchors[None]) ** 2).sum(axis=2)
    probed = np.argsort(distances, axis=1, kind="stable")[:, :probes]
    return [set(np.flatnonzero(np.isin(buckets, row))) for row in probed]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_every_map_equals_a_slow_loop(seed):
    data = clustered(seed)
    queries, query_labels, gallery, labels, anchors = data
    report = report_of(data, probes=(1, 3))
    for distance, scale in (("l2", np.asarray), ("cosine", unit_length)):
        near, filed, points = scale(queries), scale(gallery), scale(anchors.vectors)
        expected = slow_map(near, query_labels, filed, labels)
        assert report.figures("exhaustive", distance).map == pytest.approx(expected)
        first = labels[((near[:, None] - filed[None]) ** 2).sum(axis=2).argmin(axis=1)] == query_labels
        found = exhaustive_scores(queries, query_labels, gallery, labels, distance)
        assert found == pytest.approx((expected, first.mean()))
        for filed_by, buckets in (("nearest", nearest_anchors(filed, points)), ("label", labels)):
            for probes in (1, 3):
                kept = kept_by(near, points, buckets, probes)
                found = report.figures("two-stage", distance, filed_by, probes).map
                assert found == pytest.approx(slow_map(near, query_labels, filed, labels, kept))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.integers(2, 150),
    classes=st.integers(1, 6),
    dim=st.integers(1, 12),
    probes=st.integers(1, 9),
    leave_one_out=st.booleans(),
)
def test_every_figure_equals_a_slow_loops_where_many_pictures_tie(seed, size, classes, dim, probes, leave_one_out):
    random = np.random.default_rng(seed)
    # Small whole numbers: many pictures are equal, more are equally far, and nothing is rounded.
    gallery, points = (random.integers(-2, 3, (count, dim)).astype(np.float32) for count in (size, classes))
    labels = random.integers(0, classes, size)
    queries, asked = gallery, labels
    if not leave_one_out:
        queries, asked = random.integers(-2, 3, (17, dim)).astype(np.float32), random.integers(0, classes, 17)
    relevant = (labels == asked[:, None]).sum(axis=1) - leave_one_out
    assume(relevant.any())
    anchors = Anchors(tuple(f"class {number}" for number in range(classes)), points)
    report = report_of((queries, asked, gallery, labels, anchors), probes=(probes,), leave_one_out=leave_one_out)
    assert report.queries_without_relevant == (relevant == 0).sum()
    ways = {(None, None): None}
    for filed_by, buckets in (("nearest", nearest_anchors(gallery, points)), ("label", labels)):
        ways[filed_by, probes] = kept_by(queries, points, buckets, probes)
    for (filed_by, count), kept in ways.items():
        row = report.figures("exhaustive" if kept is None else "two-stage", "l2", filed_by, count)
        expected = slow_figures(queries, asked, gallery, labels, kept, leave_one_out)
        assert figures_of(row) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_confusions_are_the_other_class_found_most_among_the_first_twenty(leave_one_out):
    queries, asked, gallery, labels, anchors = clustered(1, gallery=120, noise=1.6)
    if leave_one_out:
        queries, asked = gallery, labels
    expected = {}
    for number, name in enumerate(anchors.names):
        found = Counter()
        for row in np.flatnonzero(asked == number):
            distances = ((gallery.astype(np.float64) - queries[row].astype(np.float64)) ** 2).sum(axis=1)
            order = [picture for picture in np.argsort(distances) if not (leave_one_out and picture == row)]
            found.update(int(labels[picture]) for picture in order[:20])
        total = found.total()
        del found[number]
        if found:
            other = max(sorted(found), key=lambda label: found[label])
            expected[name] = Confusion(anchors.names[other], found[other] / total)
    report = report_of((queries, asked, gallery, labels, anchors), leave_one_out=leave_one_out)
    assert report.confusions == expected
    assert len(expected) == 5


def test_a_class_that_finds_none_but_its_own_has_no_confusion():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 30, axis=0)
    labels = np.repeat([0, 1], 30)
    report = report_of((vectors, labels, vectors, labels, Anchors(("a", "b"), np.eye(2, dtype=np.float32))))
    assert report.confusions == {}
    fewer = report_of((vectors, labels, vectors[:40], labels[:40], Anchors(("a", "b"), np.eye(2, dtype=np.float32))))
    assert fewer.confusions == {"b": Confusion("a", 0.5)}
    assert fewer.to_json()["confusions"] == {"b": {"found": "a", "share": 0.5}}


def test_figures_do_not_depend_on_blocks_or_threads(monkeypatch):
    data = clustered(4, gallery=300)
    found = []
    for pairs, threads in ((1 << 20, "1"), (1 << 20, "4"), (7 * 300, "3")):
        monkeypatch.setattr("kedge.measurement.BLOCK_PAIRS", pairs)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        report = report_of(data)
        found.append([figures_of(row) for row in report.search])
    assert found[0] == found[1]
    assert found[0] == pytest.approx(np.array(found[2]), abs=1e-12)


def test_figures_equal_those_of_what_the_index_returns():
    data = clustered(3)
    queries, query_labels, gallery, labels, anchors = data
    report = report_of(data)
    index = TwoStageIndex(gallery, anchors.vectors)
    for probes in (1, 2, 5):
        ids = index.search(queries, 20, probes).ids
        right = (labels[np.maximum(ids, 0)] == query_labels[:, None]) & (ids >= 0)
        row = report.figures("two-stage", "l2", "nearest", probes)
        assert row.precision_at["20"] == pytest.approx(right.mean())
        assert row.recall_at["1"] == pytest.approx(right[:, 0].mean())
        assert row.recall_at["10"] == pytest.approx(right[:, :10].any(axis=1).mean())


def test_filed_by_label_with_one_probe_is_the_accuracy_of_the_nearest_anchor():
    for seed in range(5):
        data = clustered(seed, queries=200, noise=2.0)
        queries, query_labels, _, _, anchors = data
        accuracy = float((nearest_anchors(queries, anchors.vectors) == query_labels).mean())
        assert 0.3 < accuracy < 1
        assert report_of(data).figures("two-stage", "l2", "label", 1).map == pytest.approx(accuracy, abs=1e-12)


def test_exact_search_has_the_exhaustive_figures_and_looks_at_less():
    report = report_of(clustered(1, gallery=3000, noise=0.1))
    flat, exact = report.figures("exhaustive", "l2"), report.figures("two-stage", "l2", "nearest", "exact")
    assert (exact.map, exact.precision_at, exact.recall_at) == (flat.map, flat.precision_at, flat.recall_at)
    assert flat.scanned_share == 1.0
    assert exact.scanned_share < 0.5


def test_all_probes_are_exhaustive():
    report = report_of(clustered(2), probes=(5, 50))
    for probes in (5, 50):
        row = report.figures("two-stage", "l2", "nearest", probes)
        assert row.map == pytest.approx(report.figures("exhaustive", "l2").map)
        assert row.scanned_share == 1.0


def test_what_is_worked_out_once_is_no_part_of_the_time(monkeypatch):
    """The first query finds all in its own bucket, and the projection is of the queries that do not."""
    queries, query_labels, gallery, labels, anchors = clustered(0, gallery=600, noise=0.01)
    queries[0], queries[1:] = anchors.vectors[0], anchors.vectors.mean(axis=0)
    made, of = [], search.Sketch.of
    monkeypatch.setattr(search.Sketch, "of", lambda *given: made.append(given) or of(*given))
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: len(made)))
    report = report_of((queries, query_labels, gallery, labels, anchors), probes=("exact",))
    assert made
    assert {row.milliseconds_per_query for row in report.search} == {0.0}


def test_label_filing_is_left_out_when_a_class_has_no_anchor():
    queries, query_labels, gallery, labels, anchors = clustered(0)
    fewer = Anchors(anchors.names[:-1], anchors.vectors[:-1])
    report = report_of((queries, query_labels, gallery, labels, fewer), classes=anchors.names)
    assert {row.filed_by for row in report.search} == {None, "nearest"}


def test_queries_without_a_relevant_picture_are_counted_not_averaged():
    queries, query_labels, gallery, labels, anchors = clustered(0)
    kept = labels != 4
    report = report_of((queries, query_labels, gallery[kept], labels[kept], anchors))
    lonely = query_labels == 4
    assert report.queries_without_relevant == lonely.sum() > 0
    expected = slow_map(queries[~lonely], query_labels[~lonely], gallery[kept], labels[kept])
    assert report.figures("exhaustive", "l2").map == pytest.approx(expected)
    assert report.per_class["class 4"] is None


def test_leave_one_out_leaves_the_query_out():
    _, _, gallery, labels, anchors = clustered(0, gallery=40)
    report = report_of((gallery, labels, gallery, labels, anchors), leave_one_out=True)
    found = []
    for row in range(40):
        others = np.arange(40) != row
        found.append(slow_map(gallery[row : row + 1], labels[row : row + 1], gallery[others], labels[others]))
    assert report.figures("exhaustive", "l2").map == pytest.approx(np.mean(found))


def test_equal_vectors_tie_by_gallery_order():
    gallery = np.tile(np.array([[0.3, 0.7, 0.1]], dtype=np.float32), (500, 1))
    labels = np.zeros(500, dtype=np.int64)
    labels[0] = 1
    anchors = Anchors(("a", "b"), np.eye(2, 3, dtype=np.float32))
    query = np.array([[0.9, 0.2, 0.4]], dtype=np.float32)
    report = evaluate_vectors(query, np.array([1]), gallery, labels, anchors, classes=("a", "b"), distance="l2")
    assert report.figures("exhaustive", "l2").map == 1.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_copies_among_other_pictures_tie_by_gallery_order(seed):
    random = np.random.default_rng(seed)
    points = random.integers(-9, 10, size=(70, 37)).astype(np.float32)  # so that the slow loop rounds nothing
    queries, gallery, anchors = points[40:], points[random.integers(0, 40, 301)], Anchors(("a", "b"), points[:2])
    labels = random.integers(0, 2, 301)
    report = evaluate_vectors(
        queries, labels[:30], gallery, labels, anchors, classes=("a", "b"), distance="l2", probes=(1,)
    )
    assert report.figures("exhaustive", "l2").map == pytest.approx(slow_map(queries, labels[:30], gallery, labels))


def test_share_scanned_is_that_of_all_queries_whatever_their_order():
    random = np.random.default_rng(0)
    anchors = Anchors(tuple("abcdefghij"), np.eye(10, dtype=np.float32))
    # A crowded class and nine thin ones; the queries lie sorted by class.
    labels, asked = np.repeat(np.arange(10), [910, *[10] * 9]), np.repeat(np.arange(10), 200)
    gallery = anchors.vectors[labels] + random.normal(size=(1000, 10)).astype(np.float32) * np.float32(0.01)
    queries = anchors.vectors[asked] + random.normal(size=(2000, 10)).astype(np.float32) * np.float32(0.01)
    report = evaluate_vectors(queries, asked, gallery, labels, anchors, classes=anchors.names, distance="l2")
    shares = np.bincount(labels)[asked] / 1000
    assert report.figures("two-stage", "l2", "nearest", 1).scanned_share == pytest.approx(shares.mean(), abs=1e-9)


def test_memory_is_bounded():
    random = np.random.default_rng(0)
    queries = random.normal(size=(500, 32)).astype(np.float32)
    gallery = random.normal(size=(60_000, 32)).astype(np.float32)
    labels = np.arange(60_000) % 10
    anchors = Anchors(tuple("abcdefghij"), random.normal(size=(10, 32)).astype(np.float32))
    tracemalloc.start()
    evaluate_vectors(
        queries[:200], labels[:200], gallery, labels, anchors, classes=anchors.names, distance="l2", probes=(1,)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 130 << 20  # all distances at once would be 165


def test_json_has_the_shape_that_others_build_on():
    found = report_of(clustered(0), dataset="toy").to_json()
    assert [found[name] for name in ("dataset", "queries", "gallery", "classes", "dim")] == ["toy", 30, 200, 5, 8]
    assert found["left_out"] == 0
    assert set(found["per_class"]) == {f"class {number}" for number in range(5)}
    ways = [(row["mode"], row["distance"], row["filed_by"], row["probes"]) for row in found["search"]]
    for distance in ("l2", "cosine"):
        assert ("exhaustive", distance, None, None) in ways
        for filed_by in ("nearest", "label"):
            for probes in (1, 2, 5, "exact"):
                assert ("two-stage", distance, filed_by, probes) in ways
    row = found["search"][0]
    assert set(row) == {
        *("mode", "distance", "filed_by", "probes", "map", "precision_at", "recall_at"),
        *("scanned_share", "milliseconds_per_query"),
    }
    assert set(row["precision_at"]) == {"20", "100"}
    assert set(row["recall_at"]) == {"1", "5", "10"}
    assert len(found["precision_recall"]) == 101


def test_long_vectors_in_half_precision_have_the_same_figures():
    queries, query_labels, gallery, labels, anchors = clustered(0)
    longer = (300.0 * queries).astype(np.float16), (300.0 * gallery).astype(np.float16)
    found = report_of((longer[0], query_labels, longer[1], labels, anchors), distance="cosine")
    expected = report_of(
        (longer[0].astype(np.float64), query_labels, longer[1].astype(np.float64), labels, anchors), distance="cosine"
    )
    for one, other in zip(found.search, expected.search, strict=True):
        assert (one.map, one.precision_at, one.recall_at) == (other.map, other.precision_at, other.recall_at)
    assert found.headline()["map"] > 0.5


def test_impossible_input_is_named():
    data = clustered(0)
    with pytest.raises(InputError, match="the distance is 'l2' or 'cosine', not 'L2'"):
        report_of(data, distance="L2")
    with pytest.raises(InputError, match="probes"):
        report_of(data, probes=(0,))
    queries, query_labels, gallery, labels, anchors = data
    with pytest.raises(InputError, match=r"queries of shape \(\d+,\) were given"):
        report_of((query_labels.tolist(), query_labels, gallery, labels, anchors))
    with pytest.raises(InputError, match="7 dimensions"):
        report_of((queries[:, :7], query_labels, gallery, labels, anchors))
    with pytest.raises(InputError, match="0 queries"):
        report_of((queries[:0], query_labels[:0], gallery, labels, anchors))
    for place in (0, 2):
        wrong = [queries.copy(), query_labels, gallery.copy(), labels, anchors]
        wrong[place][3, 1] = np.nan
        with pytest.raises(InputError, match="not finite"):
            report_of(tuple(wrong))
    with pytest.raises(InputError, match="the same rows"):
        report_of((queries, query_labels, gallery, labels, anchors), leave_one_out=True)
    for wrong, said in [
        (query_labels - 1, "holds -1"),
        (query_labels + 5, "5 classes"),
        (query_labels * 1.0, "whole numbers"),
        (query_labels[:3], "one label for each of the 30"),
    ]:
        with pytest.raises(InputError, match=said):
            report_of((queries, wrong, gallery, labels, anchors))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_classes_and_the_curve_are_of_the_exhaustive_search_by_the_models_distance(distance):
    queries, asked, gallery, labels, anchors = clustered(0, noise=2.0)
    kept = labels != 4  # class 4 has queries, and nothing to be found
    gallery, labels = gallery[kept], labels[kept]
    report = report_of((queries, asked, gallery, labels, anchors), distance=distance)
    near, filed = (unit_length(queries), unit_length(gallery)) if distance == "cosine" else (queries, gallery)
    for number in range(4):
        own = asked == number
        assert report.per_class[f"class {number}"] == pytest.approx(slow_map(near[own], asked[own], filed, labels))
    assert report.per_class["class 4"] is None
    order = np.argsort(((near[:, None].astype(np.float64) - filed) ** 2).sum(axis=2), axis=1)
    answered = asked != 4
    relevance = labels[order][answered] == asked[answered][:, None]
    levels = np.linspace(0, 1, 101)
    curve = interpolated_precision(relevance, relevance.sum(axis=1), levels).mean(axis=0)
    assert report.precision_recall == pytest.approx(curve.tolist())
    assert exhaustive_scores(queries, asked, gallery, labels, distance)[1] == pytest.approx(relevance[:, 0].mean())


def test_equal_pictures_tie_however_a_product_rounds_them(monkeypatch):
    plain = measurement.squared_distances
    monkeypatch.setattr(
        measurement,
        "squared_distances",
        lambda asked, held: plain(asked, held) * (1 + 1e-5 * np.arange(len(held))[::-1]),
    )
    gallery = np.tile(np.float32([0.3, 0.7, -0.0]), (500, 1))
    gallery[::2, 2] = 0.0
    labels = np.zeros(500, dtype=np.int64)
    labels[0] = 1  # by gallery order the first
    anchors = Anchors(("a", "b"), np.eye(2, 3, dtype=np.float32))
    report = report_of((np.float32([[0.9, 0.2, 0.4]]), np.array([1]), gallery, labels, anchors))
    assert report.figures("exhaustive", "l2").map == 1.0
