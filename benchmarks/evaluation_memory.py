"""How much memory does an evaluation take? All modes over synthetic vectors; prints a line of Markdown.

python benchmarks/evaluation_memory.py --queries 10000 --gallery 50000 --dim 512
"""

import argparse
import resource
import time

import numpy as np

from kedge.anchors import Anchors
from kedge.measurement import evaluate_vectors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    centres = random.normal(size=(options.classes, options.dim)).astype(np.float32)

    def draw(count):
        labels = np.arange(count) % options.classes
        return centres[labels] + random.normal(size=(count, options.dim)).astype(np.float32) * np.float32(2), labels

    (queries, query_labels), (gallery, labels) = draw(options.queries), draw(options.gallery)
    names = tuple(f"class {number}" for number in range(options.classes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    report = evaluate_vectors(
        queries, query_labels, gallery, labels, Anchors(names, centres), classes=names, distance="cosine"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = f"{options.queries:,} x {options.gallery:,} x {options.dim}"
    took = time.monotonic() - started
    print(f"| {size} | {len(report.search)} | {before / 2**20:.2f} | {peak / 2**20:.2f} | {took:.0f} |")


if __name__ == "__main__":
    main()
