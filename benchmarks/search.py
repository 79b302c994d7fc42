"""How fast is two-stage search, and how exact? Kedge beside FAISS, usearch, hnswlib and NumPy on the same vectors.

    python benchmarks/search.py --sets 50000x512/100 300000x256/1000 1000000x128/1000
    python benchmarks/search.py --real tiny20=vectors.npz       # arrays: queries, gallery, anchors

A set is pictures x dimensions / classes: unit anchors at random, noise 0.03 a dimension, seeded. Needs `.[bench]`.
Prints a table in Markdown. Times are the best of --repeats; ratios are to the faster of FAISS Flat and NumPy, in kind
(one query at a time, or all in a batch). The truth for recall@100 is the exhaustive search in float64.
"""

import argparse
import os
import time
from datetime import date
from importlib.metadata import version

K = 100


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=["50000x512/100", "300000x256/1000"])
    parser.add_argument("--real", nargs="*", default=[], help="NAME=FILE.npz with queries, gallery and anchors")
    parser.add_argument("--queries", type=int, default=10_000, help="queries in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--graphs", action="store_true", help="measure the graph indexes too: minutes to build")
    return parser.parse_args()


OPTIONS = parse()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(OPTIONS.threads)

import faiss  # noqa: E402  (the number of threads is read when these are imported)
import hnswlib  # noqa: E402
import numpy as np  # noqa: E402
from usearch.index import Index  # noqa: E402

import kedge  # noqa: E402
from kedge.anchors import nearest_anchors  # noqa: E402
from kedge.distances import unit_length  # noqa: E402


def synthetic(name, queries):
    """Return (queries, gallery, anchors) of compact clusters."""
    shape, classes = name.split("/")
    count, dim = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    anchors = unit_length(random.normal(size=(int(classes), dim)).astype(np.float32))
    gallery = anchors[random.integers(0, len(anchors), count)]
    gallery += np.float32(0.03) * random.normal(size=(count, dim)).astype(np.float32)
    near = anchors[random.integers(0, len(anchors), queries)]
    near += np.float32(0.03) * random.normal(size=(queries, dim)).astype(np.float32)
    return near, gallery, anchors


def numpy_exhaustive(gallery, kind=np.float32):
    """Blocked NumPy: one product a block of the gallery, then a partial sort."""
    squares = np.einsum("nd,nd->n", gallery, gallery, dtype=kind)

    def search(queries):
        best, ids = [], []
        for start in range(0, len(gallery), 65_536):
            part = gallery[start : start + 65_536].astype(kind, copy=False)
            block = squares[start : start + 65_536] - 2.0 * (queries @ part.T)
            some = np.argpartition(block, min(K, block.shape[1]) - 1, axis=1)[:, :K]
            best.append(np.take_along_axis(block, some, axis=1))
            ids.append(some + start)
        values, rows = np.concatenate(best, axis=1), np.concatenate(ids, axis=1)
        order = np.argsort(values, axis=1)[:, :K]
        return np.take_along_axis(rows, order, axis=1)

    def in_blocks(queries):
        return np.concatenate([search(queries[start : start + 64]) for start in range(0, len(queries), 64)])

    return in_blocks


def faiss_ivf(gallery, anchors, trained):
    dim = gallery.shape[1]
    quantizer = faiss.IndexFlatL2(dim)
    if not trained:
        quantizer.add(anchors)
    index = faiss.IndexIVFFlat(quantizer, dim, len(anchors))
    if trained:
        index.train(gallery[:: max(1, len(gallery) // (40 * len(anchors)))])
    index.add(gallery)
    return index


def exhaustive_engines(gallery):
    flat = faiss.IndexFlatL2(gallery.shape[1])
    flat.add(gallery)
    yield "FAISS Flat", "", lambda queries: flat.search(queries, K)[1]
    yield "NumPy exhaustive", "", numpy_exhaustive(gallery)


def kedge_engines(gallery, anchors, buckets):
    index = kedge.TwoStageIndex(gallery, anchors, buckets)
    index.search(gallery[:1], K, "exact")  # works out its bounds
    for probes in (1, 2, 5, "exact"):
        yield "Kedge", probes, lambda queries, probes=probes: index.search(queries, K, probes)


def half_engine(gallery, anchors, buckets):
    index = kedge.TwoStageIndex(gallery.astype(np.float16), anchors, buckets)
    yield "Kedge, float16", 1, lambda queries: index.search(queries, K, 1)


def ivf_engines(gallery, anchors, name, trained):
    index = faiss_ivf(gallery, anchors, trained)
    for probes in (1, 2, 5):

        def probe(queries, probes=probes):
            index.nprobe = probes
            return index.search(queries, K)[1]

        yield name, probes, probe


def graph_engines(gallery):
    # The same effort for all three in building.
    graph = faiss.IndexHNSWFlat(gallery.shape[1], 16)
    graph.hnsw.efConstruction = 100
    graph.add(gallery)
    near = hnswlib.Index("l2", gallery.shape[1])
    near.init_index(len(gallery), M=16, ef_construction=100)
    near.set_num_threads(OPTIONS.threads)
    near.add_items(gallery)
    for ef in (128, 512):

        def walk(queries, ef=ef):
            graph.hnsw.efSearch = ef
            return graph.search(queries, K)[1]

        def ask(queries, ef=ef):
            near.set_ef(ef)
            return near.knn_query(queries, K)[0]

        yield "FAISS HNSW", f"ef {ef}", walk
        yield "hnswlib", f"ef {ef}", ask
    other = Index(ndim=gallery.shape[1], metric="l2sq", connectivity=16, expansion_add=100, expansion_search=256)
    other.add(np.arange(len(gallery)), gallery, threads=OPTIONS.threads)
    yield "usearch", "ef 256", lambda queries: np.atleast_2d(other.search(queries, K, threads=OPTIONS.threads).keys)


def engines(gallery, anchors, buckets):
    """Yield (name, probes, search) of every way to search: ids, or Kedge's answer, which says what it scanned."""
    yield from exhaustive_engines(gallery)
    yield from kedge_engines(gallery, anchors, buckets)
    yield from half_engine(gallery, anchors, buckets)
    yield from ivf_engines(gallery, anchors, "FAISS IVF, our anchors", trained=False)
    yield from ivf_engines(gallery, anchors, "FAISS IVF, k-means", trained=True)
    if OPTIONS.graphs:
        yield from graph_engines(gallery)


def timed(search, queries, repeats):
    """Return (seconds a query, answer), the best of some repeats after one query that is not counted."""
    search(queries[:1])
    best = np.inf
    for _ in range(repeats):
        started = time.perf_counter()
        answer = search(queries)
        best = min(best, (time.perf_counter() - started) / len(queries))
    return best, answer


def measure(name, queries, gallery, anchors):
    buckets = nearest_anchors(gallery, anchors)
    own = np.bincount(buckets, minlength=len(anchors))[nearest_anchors(queries, anchors)].mean() / len(gallery)
    checked = np.linspace(0, len(queries) - 1, 200).astype(int)
    truth = numpy_exhaustive(gallery, np.float64)(queries[checked].astype(np.float64))
    rows, exhaustive = [], {}
    for engine, probes, search in engines(gallery, anchors, buckets):
        slow = engine in ("FAISS Flat", "NumPy exhaustive")
        # Fewer queries of what takes long: each costs the same there.
        single_queries = queries[checked[::4]] if slow else queries[checked]

        def one_by_one(part, search=search):
            return [search(part[row : row + 1]) for row in range(len(part))]

        single, _ = timed(one_by_one, single_queries, OPTIONS.repeats)
        asked = queries[:: max(1, len(queries) // 1000)] if slow else queries
        batch, found = timed(search, asked, OPTIONS.repeats)
        looked = search(queries[checked])
        ids = np.asarray(getattr(looked, "ids", looked)).tolist()
        recall = np.mean([len(set(row) & set(right)) / K for row, right in zip(ids, truth.tolist(), strict=True)])
        scanned = getattr(found, "scanned", None)
        shares = "" if scanned is None else f"{scanned.mean() / len(gallery):.2%}, {scanned.max() / len(gallery):.2%}"
        if slow:
            exhaustive["single"] = min(single, exhaustive.get("single", np.inf))
            exhaustive["batch"] = min(batch, exhaustive.get("batch", np.inf))
        rows.append((engine, probes, recall, single, batch, shares))
    print(
        f"\n**{name}**: {len(gallery):,} x {gallery.shape[1]}, {len(anchors)} anchors, {len(queries):,} queries in a "
        f"batch; the query's own bucket is {own:.2%} of the gallery.\n"
    )
    columns = ["engine", "probes", "recall@100", "one query, µs", "x exhaustive", "in a batch, µs", "x exhaustive"]
    print("| " + " | ".join([*columns, "scanned: mean, worst"]) + " |")
    print("|---" * 8 + "|")
    for engine, probes, recall, single, batch, shares in rows:
        print(
            f"| {engine} | {probes} | {recall:.4f} | {1e6 * single:,.0f} | {exhaustive['single'] / single:.1f} "
            f"| {1e6 * batch:,.1f} | {exhaustive['batch'] / batch:.1f} | {shares} |",
            flush=True,
        )


def main():
    faiss.omp_set_num_threads(OPTIONS.threads)
    versions = ", ".join(f"{name} {version(name)}" for name in ("kedge", "numpy", "faiss-cpu", "hnswlib", "usearch"))
    print(f"{date.today()}, {versions}; {OPTIONS.threads} thread{'s' * (OPTIONS.threads > 1)}, k = {K}.")
    for name in OPTIONS.sets:
        measure(name, *synthetic(name, OPTIONS.queries))
    for said in OPTIONS.real:
        name, _, path = said.partition("=")
        stored = np.load(path)
        parts = [np.ascontiguousarray(stored[part], dtype=np.float32) for part in ("queries", "gallery", "anchors")]
        measure(name, *parts)


if __name__ == "__main__":
    main()
