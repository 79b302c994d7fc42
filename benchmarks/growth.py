"""How does the time of a query grow with the gallery, at a fixed number of classes?

    python benchmarks/growth.py --counts 10000 100000 1000000 10000000 --classes 100 1000 --plot docs/images/growth.png

Vectors of 64 dimensions in compact clusters: unit anchors at random, noise 0.03 a dimension, seeded. One thread, one
query at a time, one anchor probed, k = 10; the median of 200 queries, the best of three rounds. Recall@10 is against an
exhaustive search in float64, which is timed too. FAISS IVF has the same anchors as its centroids. Needs `.[bench]`.
"""

import argparse
import os
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import faiss  # noqa: E402  (the number of threads is read when these are imported)
import numpy as np  # noqa: E402

import kedge  # noqa: E402
from kedge.distances import unit_length  # noqa: E402

DIM, K, QUERIES, ROUNDS, PART = 64, 10, 200, 3, 1 << 18


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--classes", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def clustered(count, anchors, seed):
    random = np.random.default_rng(seed)
    vectors, labels = np.empty((count, DIM), np.float32), random.integers(0, len(anchors), count)
    for start in range(0, count, PART):
        part = labels[start : start + PART]
        vectors[start : start + PART] = anchors[part] + 0.03 * random.standard_normal((len(part), DIM), np.float32)
    return vectors, labels


def microseconds(search, queries):
    """Return the median time of a single query, the best of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        taken = []
        for row in range(len(queries)):
            started = time.perf_counter()
            search(queries[row : row + 1])
            taken.append(time.perf_counter() - started)
        best = min(best, 1e6 * float(np.median(taken)))
    return best


def nearest_of_all(vectors, query):
    """Return the K nearest rows, worked out in float64, a part of the gallery at a time."""
    rows, distances = np.zeros(0, np.int64), np.zeros(0)
    for start in range(0, len(vectors), PART):
        apart = vectors[start : start + PART].astype(np.float64) - query
        squared = np.einsum("nd,nd->n", apart, apart)
        some = np.argpartition(squared, K)[:K]
        rows, distances = np.append(rows, some + start), np.append(distances, squared[some])
    return set(rows[np.argsort(distances)[:K]].tolist())


def with_kedge(vectors, anchors, labels, queries):
    index = kedge.TwoStageIndex(vectors, anchors, labels)
    return microseconds(lambda query: index.search(query, K, 1), queries), index.search(queries, K, 1).ids


def with_faiss(index, vectors, queries):
    index.add(vectors)
    return microseconds(lambda query: index.search(query, K), queries)


def measure(count, classes):
    """Return the row of the table: what one query takes, each way; one index is held at a time."""
    anchors = unit_length(np.random.default_rng(0).normal(size=(classes, DIM)))
    vectors, labels = clustered(count, anchors, seed=1)
    queries, _ = clustered(QUERIES, anchors, seed=2)
    ours, found = with_kedge(vectors, anchors, labels, queries)
    quantizer = faiss.IndexFlatL2(DIM)
    quantizer.add(anchors)
    theirs = with_faiss(faiss.IndexIVFFlat(quantizer, DIM, classes), vectors, queries)
    exhaustive = with_faiss(faiss.IndexFlatL2(DIM), vectors, queries[:20])
    truth = [nearest_of_all(vectors, query) for query in queries[:50]]
    recall = np.mean([len(set(row) & right) / K for row, right in zip(found.tolist(), truth, strict=False)])
    return count, count / classes, recall, ours, theirs, exhaustive


def main():
    options = parse()
    faiss.omp_set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("kedge", "numpy", "faiss-cpu"))
    print(f"{date.today()}, {versions}; {DIM} dimensions, one thread, one query at a time, 1 probe, k = {K}.")
    measured = {}
    for classes in options.classes:
        print(f"\n**{classes} classes**\n")
        print(
            "| pictures | a bucket | recall@10 | Kedge, µs | x the first | FAISS IVF, µs | FAISS Flat, µs | x Kedge |"
        )
        print("|---|---|---|---|---|---|---|---|")
        rows = measured[classes] = []
        for count in options.counts:
            rows.append(measure(count, classes))
            _, bucket, recall, ours, theirs, flat = rows[-1]
            print(
                f"| {count:,} | {bucket:,.0f} | {recall:.4f} | {ours:,.0f} | {ours / rows[0][3]:.1f} | {theirs:,.0f} "
                f"| {flat:,.0f} | {flat / ours:.1f} |",
                flush=True,
            )
    if options.plot:
        plot(measured, options.plot)


def plot(measured, path):
    """Draw the time of a query against the number of pictures, a panel for each number of classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(measured), 4), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False, sharey=True)[0]
    for axes, (classes, rows) in zip(panels, measured.items(), strict=True):
        counts = [row[0] for row in rows]
        for column, name in ((5, "FAISS Flat"), (3, "Kedge, 1 probe"), (4, "FAISS IVF, our anchors")):
            axes.plot(counts, [row[column] for row in rows], "o-", label=name, markersize=4)
        axes.set(title=f"{classes} classes", xlabel="pictures", xscale="log", yscale="log")
    panels[0].set_ylabel("one query, µs")
    panels[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
