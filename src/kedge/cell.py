"""Cell: what a comparison trains and measures, in a process of its own, so that a failure takes nothing else along.

    python -m kedge.cell    reads a list of jobs as a line of JSON on stdin, prints a row each as a line of JSON

It ends when its stdin ends: a comparison that is killed leaves nothing running.
"""

import json
import os
import sys
import threading
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kedge.anchors import expand_queries
from kedge.config import READ_OUT, TrainingConfig
from kedge.datasets import Dataset, load_dataset
from kedge.encoder import Encoder
from kedge.errors import ConfigError, DatasetError, KedgeError
from kedge.evaluation import Encoded, encode_split, evaluate_embedded
from kedge.figures import SearchFigures
from kedge.losses import loss_recipe
from kedge.measurement import exhaustive_scores
from kedge.model import Model
from kedge.torch_device import training_device
from kedge.training import train

__all__ = ["classes_left", "measure", "validate"]

# The two-stage search that is compared beside the exhaustive one.
PROBES = (1,)
# Settings that have columns of their own.
IN_COLUMNS = ("loss", "backbone", "shots", "seed", "epochs", "precision", *READ_OUT)


def validate(
    data: str,
    out: str,
    settings: dict[str, Any],
    tried: dict[str, Any],
    unseen_classes: int = 0,
    pictures: str | None = None,
) -> dict[str, Any]:
    """Train a model and return its validation mAP, L2 and cosine; the test pictures are left alone. See `measure`."""
    whole = _whole(data, settings, pictures)
    if not len(whole.validation):
        raise DatasetError(
            f"{data} has no validation pictures, on which settings are chosen: put some below val/<class>/, give more "
            "pictures a class, or leave the tries out"
        )
    if unseen_classes:
        settings = {**settings, "classes": classes_left(whole, unseen_classes)}
    model = _train(data, out, settings, tried)
    scores = model.card.scores.get("validation")
    if scores is None:
        raise DatasetError(f"no validation picture of {data} can be read: mend them")
    found = {f"validation_{name.removeprefix('map_')}_map": score for name, score in scores.items()}
    return {"pictures": whole.fingerprint, **found}


def measure(
    data: str,
    out: str,
    settings: dict[str, Any],
    tried: dict[str, Any] | None = None,
    unseen_classes: int = 0,
    state: str | None = None,
    pictures: str | None = None,
) -> dict[str, Any]:
    """Train a model and return what it reaches: shares by column name, seconds, milliseconds a step, MB.

    tried: settings chosen by tries, in place of the loss's own. state: see `train`. pictures: the fingerprint of the
    data set that others are measured on; DatasetError for another.
    Columns begin with the way to search: `l2`, `cosine`: exhaustive; `probed_l2`, `probed_cosine`: two-stage, filed by
    nearest, one probe; `expanded`: exhaustive by cosine, queries expanded. `shots_…`: a gallery of the pictures drawn
    to train on. `unseen_…`: queries and gallery of the classes that were left out.
    """
    settings = {**settings, "seed": settings.get("seed", 0)}
    whole = _whole(data, settings, pictures)
    if unseen_classes:
        settings["classes"] = classes_left(whole, unseen_classes)
        _check_unseen(whole, settings["classes"])
    model = _train(data, out, settings, tried, state)
    trained = model.card.trained
    recipe = loss_recipe(trained["loss"])
    row = {"learns_anchors": int(recipe.learns_anchors), "distance": model.card.distance, **_cost(model)}
    row |= {"features": trained["features"], "sharpening": trained["sharpening"], "mirrored": int(trained["mirrored"])}
    said = {name: trained[name] for name in TrainingConfig.model_fields if name in trained and name not in IN_COLUMNS}
    row["settings"] = json.dumps(said)
    validation = model.card.scores.get("validation", {})
    row |= {f"validation_{name.removeprefix('map_')}_map": value for name, value in validation.items()}

    dataset = load_dataset(data, seed=settings["seed"], max_classes=settings.get("classes"), membership=model.splits())
    encoder = Encoder(model)
    queries, gallery = encode_split(encoder, dataset.test), encode_split(encoder, dataset.gallery)
    row |= {"classes": len(dataset.classes), "queries": len(queries), "gallery": len(gallery)}
    left_out = len(dataset.skipped) + len(queries.failures) + len(gallery.failures)
    row |= {"pictures": whole.fingerprint, "left_out": left_out}
    row |= _columns(model, dataset, queries, gallery, "")
    if settings.get("shots"):
        drawn = load_dataset(
            data,
            seed=settings["seed"],
            shots=settings["shots"],
            max_classes=settings.get("classes"),
            validation_share=model.card.trained["validation_share"],
        ).train.hashes
        # Of copies one is shown, as one may be drawn.
        hashes, first = np.unique(gallery.hashes, return_index=True)
        shown = gallery[np.sort(first[np.isin(hashes, drawn)])]
        row |= _columns(model, dataset, queries, shown, "shots_")
    if unseen_classes:
        row |= _unseen(model, encoder, whole, settings["classes"])
    return row


def _train(
    data: str, out: str, settings: dict[str, Any], tried: dict[str, Any] | None, state: str | None = None
) -> Model:
    """Train a model; raise DatasetError when there was nothing to learn from, which nobody would see in its figures."""
    model = train(data, out, resume=True, quiet=True, evaluate=False, tried=tried, state=state, **settings)
    lines = model.metrics()
    if lines and not any(line["loss"] for line in lines):
        raise DatasetError(
            f"the loss {model.card.trained['loss']} was 0 in every epoch: no batch had a pair to learn from, give more "
            "pictures a class"
        )
    return model


def _whole(data: str, settings: dict[str, Any], pictures: str | None) -> Dataset:
    """Return the data set with the classes that are left out of training; DatasetError when it has changed since."""
    share = settings.get("validation_share", TrainingConfig.model_fields["validation_share"].default)
    whole = load_dataset(data, seed=settings["seed"], max_classes=settings.get("classes"), validation_share=share)
    if pictures not in (None, whole.fingerprint):
        raise DatasetError(f"the pictures of {data} have changed since the comparison was begun: choose another --out")
    return whole


def classes_left(whole: Dataset, unseen: int) -> int:
    """Return how many classes are trained on when the last ones are left out; ConfigError where either are too few."""
    if unseen == 1:
        raise ConfigError("of 1 class left out every picture is relevant, whatever the loss: leave out 2 or more")
    if unseen > len(whole.classes) - 2:
        raise ConfigError(f"{whole.name} has {len(whole.classes)} classes: {unseen} left out leave fewer than 2")
    return len(whole.classes) - unseen


def _check_unseen(whole: Dataset, trained: int) -> None:
    """Raise DatasetError when the classes from number `trained` on cannot be measured."""
    for name, split in (("test", whole.test), ("training", whole.gallery)):
        if not (split.labels >= trained).any():
            left_out = "', '".join(whole.classes[trained:])
            raise DatasetError(f"no {name} picture is of the classes left out ('{left_out}'): leave out more")


def _unseen(model: Model, encoder: Encoder, whole: Dataset, trained: int) -> dict[str, float]:
    """Return the figures on the classes from number `trained` on: no picture of theirs was trained on."""
    queries, gallery = (
        encode_split(encoder, split[np.flatnonzero(split.labels >= trained)]) for split in (whole.test, whole.gallery)
    )
    return _columns(model, whole, queries, gallery, "unseen_")


def _columns(model: Model, dataset: Dataset, queries: Encoded, gallery: Encoded, prefix: str) -> dict[str, float]:
    report = evaluate_embedded(model, dataset, queries, gallery, PROBES)
    expanded = expand_queries(queries.vectors, model.anchors.vectors)
    found = exhaustive_scores(expanded, queries.labels, gallery.vectors, gallery.labels, "cosine")
    columns = {f"{prefix}expanded_{name}": round(share, 5) for name, share in zip(("map", "r1"), found, strict=True)}
    for distance in ("l2", "cosine"):
        columns |= _shares(report.figures("exhaustive", distance), f"{prefix}{distance}")
        probed = report.figures("two-stage", distance, "nearest", 1)
        columns |= _shares(probed, f"{prefix}probed_{distance}")
        columns[f"{prefix}probed_{distance}_scanned"] = round(probed.scanned_share, 4)
    return columns


def _shares(figures: SearchFigures, name: str) -> dict[str, float]:
    shares = {"map": figures.map, "r1": figures.recall_at["1"]}
    shares |= {f"p{k}": figures.precision_at[k] for k in ("20", "100")}
    return {f"{name}_{figure}": round(share, 5) for figure, share in shares.items()}


def _cost(model: Model) -> dict[str, Any]:
    """Return what the training took: seconds, milliseconds a step, MB at most, and on what."""
    trained, lines = model.card.trained, model.metrics()
    seconds = sum(line["seconds"] for line in lines)
    steps = len(lines) * max(1, trained["train_pictures"] // trained.get("batch_size", 1))
    return {
        "train_pictures": trained["train_pictures"],
        "epochs": len(lines),
        "train_seconds": round(seconds, 1),
        "step_ms": round(1000 * seconds / steps, 2) if lines else 0.0,
        "memory_mb": max((line["memory_mb"] for line in lines), default=0),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else training_device().type,
        "threads": torch.get_num_threads(),
        "precision": trained["precision"],
        "kedge": version("kedge"),
        "torch": version("torch"),
        "date": date.today().isoformat(),
    }


def _end_with_the_parent() -> None:
    # Not sys.stdin, whose lock this thread would hold: processes forked to decode pictures wait for it forever.
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Do the jobs on stdin in order and print their rows; what fails on purpose is printed as `failure`."""
    jobs = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # What libraries print, in Python or below it, is no row: it goes to stderr.
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for job in jobs:
        Path(job["out"]).parent.mkdir(parents=True, exist_ok=True)
        work = validate if job.pop("validate") else measure
        try:
            row = work(**job)
        except KedgeError as error:
            row = {"failure": str(error)}
        print(json.dumps(row), file=rows, flush=True)


if __name__ == "__main__":
    main()
