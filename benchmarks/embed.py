"""Embed a data set with a model, for the benchmarks that take vectors.

    python benchmarks/embed.py MODEL DATA OUT.npz

Writes queries (test pictures), gallery (training pictures) and anchors, all as the gallery of that model searches them,
query_labels and gallery_labels (numbers of classes).
"""

import sys
from pathlib import Path

import numpy as np

import kedge


def encoded(encoder, split):
    """Return vectors and labels of a split's readable pictures, a block at a time."""
    vectors, labels = [], []
    for start in range(0, len(split), 2048):
        decoded = split[start : start + 2048].decode(encoder.image_size)
        vectors.append(encoder.encode(decoded.pixels))
        labels.append(decoded.labels)
    return np.concatenate(vectors), np.concatenate(labels)


def main():
    folder, data, out = sys.argv[1:]
    model = kedge.Model.load(folder)
    dataset = kedge.load_dataset(data, seed=int(model.card.trained.get("seed", 0)), membership=model.splits())
    encoder = kedge.Encoder(model)
    queries, query_labels = encoded(encoder, dataset.test)
    gallery, gallery_labels = encoded(encoder, dataset.gallery)
    np.savez(
        Path(out),
        queries=queries,
        gallery=gallery,
        anchors=model.search_anchors.vectors,
        query_labels=query_labels,
        gallery_labels=gallery_labels,
    )


if __name__ == "__main__":
    main()
