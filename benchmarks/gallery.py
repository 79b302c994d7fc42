"""How fast is a gallery written, opened, filtered and looked through for duplicates, and how much memory does it take?

    python benchmarks/gallery.py                      # all of it; or some: --parts write single remove open where

Synthetic unit vectors about random anchors, seeded. Every part makes its own gallery in a temporary folder, and runs in
a process of its own, so that its peak memory is its own. Prints tables in Markdown.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

import kedge
from kedge.anchors import Anchors
from kedge.distances import unit_length
from kedge.duplicates import duplicate_groups

ROOT = Path(__file__).parents[1]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(PARTS)
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of vectors, for a quick look")
    return parser.parse_args()


def make_gallery(folder, dim, classes):
    """Return an empty gallery of a model with random anchors."""
    sys.path.insert(0, str(ROOT))
    from tests.models import make_model

    model = make_model(folder / "model", classes=[f"class {number:05}" for number in range(classes)], dim=dim)
    points = unit_length(np.random.default_rng(0).normal(size=(classes, dim)).astype(np.float32))
    Anchors(model.card.classes, points).save(model.folder / "anchors.safetensors")
    return kedge.Gallery.create(folder / "gallery", model.folder)


def clustered(gallery, count, seed=1):
    random = np.random.default_rng(seed)
    points = gallery.model.search_anchors.vectors
    vectors = points[random.integers(0, len(points), count)]
    return unit_length(vectors + np.float32(0.03) * random.normal(size=vectors.shape).astype(np.float32))


def measure_writing(folder, scale):
    print("| ready-made vectors | anchors | s | a second |\n|---|---|---|---|")
    for count, dim, classes in ((500_000, 64, 20), (500_000, 128, 100), (300_000, 256, 1000)):
        place = folder / f"{dim}"
        place.mkdir()
        gallery, count = make_gallery(place, dim, classes), int(count * scale)
        vectors = clustered(gallery, count)
        started = time.perf_counter()
        gallery.add_vectors(vectors)
        took = time.perf_counter() - started
        print(f"| {count:,} x {dim} | {classes} | {took:.1f} | {count / took:,.0f} |", flush=True)
        shutil.rmtree(place)


def measure_single_adds(folder, scale):
    gallery, count = make_gallery(folder, 64, 20), int(10_000 * scale)
    vectors, taken = clustered(gallery, count), []
    for row in range(count):
        started = time.perf_counter()
        gallery.add_vectors(vectors[row : row + 1], ids=[str(row)])
        taken.append(time.perf_counter() - started)
    tenth = max(1, count // 10)
    first, last = 1000 * np.mean(taken[:tenth]), 1000 * np.mean(taken[-tenth:])
    print("| single adds | first tenth, ms each | last tenth | slowest | fragments at the end |\n|---|---|---|---|---|")
    print(f"| {count:,} | {first:.1f} | {last:.1f} | {1000 * max(taken):.0f} | {gallery._table.fragments} |")


def measure_removal(folder, scale):
    gallery, count = make_gallery(folder, 64, 20), int(1_000_000 * scale)
    half = count // 2
    vectors = clustered(gallery, count)
    gallery.add_vectors(vectors, metadata={"half": (np.arange(count) % 2).tolist()})
    started = time.perf_counter()
    removed = gallery.remove(where="half = 1")
    took = time.perf_counter() - started
    before, after = gallery.compact()
    assert (removed, gallery.count()) == (half, count - half)
    print("| removed | of | s | on disk before, MB | compacted |\n|---|---|---|---|---|")
    print(f"| {removed:,} | {count:,} | {took:.1f} | {before / 1e6:,.0f} | {after / 1e6:,.0f} |")


# VmHWM is a program's own peak; getrusage's begins with that of the process which started it.
OPENING = """
import sys, time
import numpy as np, kedge
queries = np.load(sys.argv[2])
with kedge.Gallery.open(sys.argv[1], half=sys.argv[3] == "half") as gallery:
    started = time.perf_counter()
    index = gallery._newest_index()._index
    took = time.perf_counter() - started
    ids = index.search(queries, 100, "exact" if sys.argv[3] == "again" else 1).ids
    np.save(sys.argv[4], ids)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(took, index.nbytes / (4 * len(index) * index.dim), int(peak.split()[1]) / 2**20)
"""


def measure_opening(folder, scale):
    gallery, count = make_gallery(folder, 256, 1000), int(1_000_000 * scale)
    gallery.add_vectors(clustered(gallery, count))
    np.save(folder / "queries.npy", clustered(gallery, 500, seed=2))
    print("| 256 dimensions, 1,000 anchors | s | index / raw float32 | GiB at most | recall@100, 1 probe |")
    print("|---|---|---|---|---|")
    truth = None
    for kind in ("again", "whole", "half"):
        out = folder / f"{kind}.npy"
        words = [sys.executable, "-c", OPENING, str(gallery.folder), str(folder / "queries.npy"), kind, str(out)]
        took, ratio, most = map(float, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
        found = np.load(out)
        if kind == "again":
            truth, name = found, f"{count:,}, exact"
        else:
            name = f"{count:,}, {'float16' if kind == 'half' else 'float32'}"
        recall = (
            "" if truth is None else f"{np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]):.4f}"
        )
        print(f"| {name} | {took:.1f} | {ratio:.3f} | {most:.1f} | {recall} |", flush=True)


def measure_filters(folder, scale):
    gallery, count = make_gallery(folder, 128, 100), int(300_000 * scale)
    vectors = clustered(gallery, count)
    drawn = np.random.default_rng(3).random(count)
    gallery.add_vectors(vectors, metadata={"share": drawn.tolist()})
    queries = clustered(gallery, 20, seed=2)
    gallery.search_vectors(queries[:1], 100)
    print(
        "| filter | matches | hits of 100 | a new filter, ms | exhaustive | asked again, ms | exhaustive, rows known |"
    )
    print("|---|---|---|---|---|---|---|")

    for share in (0.0001, 0.01, 0.5):
        where, rows = f"share < {share}", np.flatnonzero(drawn < share)
        took = np.zeros(4)
        gallery.search_vectors(queries[:1], 100, where=where)  # known from here on
        for number, query in enumerate(queries):
            # Another number makes another filter, of the same rows.
            for kind, text in ((0, f"{where} AND {number} = {number}"), (2, where)):
                started = time.perf_counter()
                (result,) = gallery.search_vectors(query[None], 100, where=text)
                took[kind] += time.perf_counter() - started
                assert len(result.hits) == min(100, len(rows))
            started = time.perf_counter()
            matching = gallery._table.row_ids(where)
            matched = time.perf_counter()
            apart = vectors[rows] - query
            squared = np.vecdot(apart, apart)
            nearest = np.argpartition(squared, min(100, len(rows)) - 1)[:100]
            nearest[np.argsort(squared[nearest])]
            took[1] += time.perf_counter() - started
            took[3] += time.perf_counter() - matched
            assert len(matching) == len(rows)
        cells = " | ".join(f"{each:.1f}" for each in 1000 * took / len(queries))
        print(f"| {where} | {len(rows):,} | {min(100, len(rows))} | {cells} |", flush=True)


def measure_duplicates(_folder, scale):
    count, random = int(100_000 * scale), np.random.default_rng(0)
    hashes = random.integers(-(2**63), 2**63 - 1, size=count)
    vectors = unit_length(random.normal(size=(count, 64)).astype(np.float32))
    copies = random.choice(count, size=2 * (count // 50), replace=False).reshape(2, -1)
    hashes[copies[1]] = hashes[copies[0]] ^ (1 << random.integers(0, 62, copies.shape[1]))
    vectors[copies[1]] = vectors[copies[0]]
    hashes[: count // 100] = 0  # blank pictures, which all have one hash
    names = [str(row) for row in range(count)]
    started = time.perf_counter()
    groups = duplicate_groups(names, names, names, names, hashes.tolist(), vectors, bits=4, distance=0.1)
    took = time.perf_counter() - started
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    most = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
    print("| pictures | planted copies | groups found | s | GiB at most |\n|---|---|---|---|---|")
    print(f"| {count:,} | {copies.shape[1]:,} | {len(groups):,} | {took:.1f} | {most:.1f} |")


PARTS = {
    "write": measure_writing,
    "single": measure_single_adds,
    "remove": measure_removal,
    "open": measure_opening,
    "where": measure_filters,
    "duplicates": measure_duplicates,
}


def main():
    options = parse()
    if len(options.parts) > 1:
        for part in options.parts:
            subprocess.run([sys.executable, __file__, "--parts", part, "--scale", str(options.scale)], check=True)
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("kedge", "pylance", "numpy"))
    print(f"{date.today()}, {versions}.\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        PARTS[options.parts[0]](Path(folder), options.scale)
    print(flush=True)


if __name__ == "__main__":
    main()
