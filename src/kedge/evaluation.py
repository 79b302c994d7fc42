"""Evaluation: how well a model retrieves the pictures of a data set; `measurement` says it of their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kedge.datasets import Dataset, Split, load_dataset
from kedge.encoder import Encoder
from kedge.errors import DatasetError, PictureError
from kedge.figures import Probes, Report
from kedge.measurement import DEFAULT_PROBES, check_probes, evaluate_vectors
from kedge.model import Model
from kedge.runtime import Runtime

__all__ = [
    "Encoded",
    "encode_split",
    "evaluate",
    "evaluate_dataset",
    "evaluate_embedded",
    "load_for",
]

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PICTURES_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class Encoded:
    """Raw vectors (n, d), labels (n,) and content hashes of a split's readable pictures, and why others are not."""

    vectors: Vectors
    labels: Labels
    hashes: tuple[str, ...]
    failures: tuple[PictureError, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> "Encoded":
        return Encoded(self.vectors[rows], self.labels[rows], tuple(self.hashes[row] for row in rows))


def evaluate(
    model: Model | str | Path,
    data: str | Path,
    *,
    probes: Sequence[Probes] = DEFAULT_PROBES,
    expand: bool = False,
    runtime: Runtime = "auto",
) -> Report:
    """Measure how well a model retrieves: test pictures are the queries, training pictures the gallery.

    Pictures that the model was trained on are never queries, wherever they lie now. expand: see `Model.expand`. Raises
    ModelError for a model that cannot be had, DatasetError where nothing is left to test with.
    """
    opened = Model.of(model)
    return evaluate_dataset(opened, load_for(opened, data), probes=probes, expand=expand, runtime=runtime)


def load_for(model: Model, data: str | Path) -> Dataset:
    """Load a data set as a model saw it: the same split, by content, and its first classes and those added since."""
    trained = model.card.trained
    seed, most = int(trained.get("seed", 0)), trained.get("classes")
    membership = model.splits()
    if most is not None:
        try:
            dataset = load_dataset(data, seed=seed, max_classes=most, membership=membership)
        except DatasetError:  # of fewer classes, perhaps; what else is wrong is said below
            return load_dataset(data, seed=seed, membership=membership)
        if dataset.classes == model.card.classes:
            return dataset
        if set(dataset.classes) <= set(model.card.classes):
            return load_dataset(data, seed=seed, membership=membership).of_classes(model.card.classes)
    return load_dataset(data, seed=seed, membership=membership)


def evaluate_dataset(
    model: Model,
    dataset: Dataset,
    *,
    probes: Sequence[Probes] = DEFAULT_PROBES,
    expand: bool = False,
    runtime: Runtime = "auto",
) -> Report:
    """Measure a model on a data set that is loaded already; see `evaluate`. Raises DatasetError."""
    check_probes(probes)
    if not len(dataset.test):
        raise DatasetError(
            f"{dataset.name} has no picture that {model.folder} was not trained on: nothing to test with"
        )
    encoder = Encoder(model, runtime=runtime)
    queries = encode_split(encoder, dataset.test)
    if not len(queries):
        first = dataset.test.paths[0]
        raise DatasetError(
            f"none of the {len(dataset.test)} test pictures of {dataset.name} can be read, such as {first}"
        )
    if expand:
        queries = replace(queries, vectors=model.expand(queries.vectors))
    gallery = encode_split(encoder, dataset.gallery)
    report = evaluate_embedded(model, dataset, queries, gallery, probes)
    return replace(report, expanded=expand, left_out=(*dataset.skipped, *queries.failures, *gallery.failures))


def evaluate_embedded(
    model: Model,
    dataset: Dataset,
    queries: Encoded,
    gallery: Encoded,
    probes: Sequence[Probes] = DEFAULT_PROBES,
) -> Report:
    """Measure a model on pictures of a data set that it has encoded."""
    return evaluate_vectors(
        queries.vectors,
        queries.labels,
        gallery.vectors,
        gallery.labels,
        model.anchors,
        classes=dataset.classes,
        distance=model.card.distance,
        dataset=dataset.name,
        probes=probes,
    )


def encode_split(encoder: Encoder, split: Split) -> Encoded:
    """Encode a split's readable pictures, decoded a block at a time."""
    vectors, labels = [np.zeros((0, encoder.dim), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    hashes: list[str] = []
    failures: list[PictureError] = []
    for start in range(0, len(split), PICTURES_AT_ONCE):
        decoded = split[start : start + PICTURES_AT_ONCE].decode(encoder.image_size)
        vectors.append(encoder.encode(decoded.pixels, raw=True))
        labels.append(decoded.labels)
        hashes += decoded.hashes
        failures += decoded.failures
    return Encoded(np.concatenate(vectors), np.concatenate(labels), tuple(hashes), tuple(failures))
