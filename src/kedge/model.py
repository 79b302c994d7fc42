"""Model: a folder that holds everything a trained embedding needs to be used again.

    kedge.json           classes, preprocessing, distance, how it was trained, what it scored
    encoder.onnx         pictures -> embeddings, runs without torch
    weights.safetensors  the network's weights, for `--runtime torch`, above all on GPUs
    anchors.safetensors  one vector a class
    splits.json          content hashes of the pictures that were trained on, validated on and tested on
    metrics.jsonl        one line an epoch
    report.html          what was measured, with plots

No file in it is a pickle. The folder is written beside its final place and renamed, so that it is whole or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from kedge.anchors import Anchors, expand_queries
from kedge.atomic_write import write_atomically
from kedge.calibration import Calibration
from kedge.errors import InputError, ModelError, first_line
from kedge.runtime import Precision, describe_runtime

__all__ = [
    "ANCHORS",
    "CARD",
    "ENCODER",
    "FORMAT_VERSION",
    "METRICS",
    "REPORT",
    "SPLITS",
    "WEIGHTS",
    "Distance",
    "Model",
    "ModelCard",
    "Preprocessing",
    "SplitName",
    "write_splits",
]

FORMAT_VERSION = 1
Distance = Literal["l2", "cosine"]
SplitName = Literal["train", "validation", "test"]

CARD, ENCODER, WEIGHTS, ANCHORS = "kedge.json", "encoder.onnx", "weights.safetensors", "anchors.safetensors"
SPLITS, METRICS, REPORT = "splits.json", "metrics.jsonl", "report.html"
NEEDED = (CARD, ENCODER, ANCHORS)


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Closed):
    """How a decoded picture becomes the encoder's input: a square of `image_size` pixels, RGB, uint8.

    The shorter side is resized to `image_size` (bicubic, antialiased) and the middle is cut out. Normalisation by the
    channel means and deviations is the first step of the graph itself.
    """

    image_size: int = Field(ge=8, le=4096)


class ModelCard(_Closed):
    """What `kedge.json` says of a model."""

    format_version: int = FORMAT_VERSION
    kedge_version: str
    created_at: str
    classes: tuple[str, ...]
    dim: int = Field(ge=1)
    distance: Distance
    preprocessing: Preprocessing
    trained: dict[str, Any]
    """The resolved training settings, and the name and counts of the data set."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """What it scored: keys say the split and the figure."""
    precision: Precision = "float32"
    """Of the graph's arithmetic; int8 stands in the graph itself."""
    anchor_distances: tuple[float, ...] | None = Field(None, min_length=1, max_length=101)
    """Quantiles of the distance from a held-out picture to its nearest anchor: see `Calibration`."""

    def write(self, folder: Path) -> None:
        """Put the card into a model folder, in one step."""
        write_atomically(folder / CARD, json.dumps(self.model_dump(), indent=2) + "\n")


@dataclass(frozen=True)
class Model:
    """A model folder that was found whole; `kedge.Encoder(model)` runs it."""

    folder: Path
    card: ModelCard
    anchors: Anchors

    @classmethod
    def of(cls, model: "Model | str | Path") -> "Model":
        """Return a model, opened if its folder is given; raises ModelError as `load` does."""
        return model if isinstance(model, Model) else cls.load(model)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a model folder; raise ModelError for one that is missing, half written or of a newer format."""
        folder = Path(folder)
        if folder.is_file():
            raise ModelError(f"{folder} is a file: a model is a folder, which `kedge train` makes")
        if not folder.is_dir():
            raise ModelError(f"no model folder at {folder}: train one with `kedge train DATA --out {folder}`")
        missing = [name for name in NEEDED if not (folder / name).is_file()]
        if missing == list(NEEDED):
            # Nothing of a model is here: it may be somebody's pictures.
            raise ModelError(f"{folder} is no model folder: name the one that `kedge train --out` wrote")
        if missing:
            raise ModelError(
                f"{folder} is no whole model folder: {', '.join(missing)} missing. "
                f"Name the folder that `kedge train --out` wrote, or train again"
            )
        card = _read_card(folder / CARD)
        anchors = Anchors.load(folder / ANCHORS, card.classes)
        if anchors.dim != card.dim:
            raise ModelError(f"{folder}: anchors have {anchors.dim} dimensions, {CARD} says {card.dim}: train again")
        return cls(folder, card, anchors)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides an embedding and where it is filed: graph, anchors, preprocessing, distance."""
        digest = self._digest(ENCODER, ANCHORS)
        digest.update("\0".join(self.card.classes).encode())
        return digest.hexdigest()[:16]

    def copy_to(self, folder: Path) -> None:
        """Write a copy of the model's folder, without what lies hidden in it, such as a lock."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(".*"))

    def encodes_like(self, other: "Model") -> bool:
        """Tell whether two models give every picture the same embedding, whatever their anchors."""
        return self._digest(ENCODER).digest() == other._digest(ENCODER).digest()

    def _digest(self, *names: str) -> "hashlib._Hash":
        digest = hashlib.sha256()
        for name in names:
            digest.update((self.folder / name).read_bytes())
        digest.update(self.card.preprocessing.model_dump_json().encode())
        digest.update(self.card.distance.encode())
        if self.card.precision != "float32":
            digest.update(self.card.precision.encode())
        return digest

    @property
    def has_weights(self) -> bool:
        """Whether the network can be built anew, as `kedge train` leaves it."""
        return (self.folder / WEIGHTS).is_file()

    @property
    def encoder_path(self) -> Path:
        """The ONNX graph."""
        return self.folder / ENCODER

    @property
    def search_anchors(self) -> Anchors:
        """The anchors as pictures are filed under them: unit length when the model's distance is cosine."""
        return self.anchors.unit() if self.card.distance == "cosine" else self.anchors

    def expand(self, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return queries, (n, d) as they are searched with, turned to the anchors of the classes they look like.

        A search then ranks by class more than by likeness (docs/method.md). Raises ModelError for a model that searches
        by L2: what comes of it has no length of its own.
        """
        if self.card.distance != "cosine":
            raise ModelError(
                f"queries are expanded where search is by cosine; {self.folder} searches by {self.card.distance}: "
                "train it with --distance cosine"
            )
        if queries.ndim != 2 or queries.shape[1] != self.card.dim:
            raise InputError(f"queries of shape (n, {self.card.dim}) are expected, not {queries.shape}")
        return expand_queries(queries, self.search_anchors.vectors)

    @property
    def calibration(self) -> Calibration | None:
        """What tells known classes from unknown ones; None for a model without held-out pictures."""
        return Calibration(self.card.anchor_distances) if self.card.anchor_distances else None

    def info(self) -> dict[str, Any]:
        """Return what the model is: classes, dimensions, how it was trained and what it scored."""
        trained = self.card.trained
        return {
            "kind": "model",
            "pictures": trained.get("train_pictures", 0),
            "labels": list(self.card.classes),
            "model": {"fingerprint": self.fingerprint, "path": str(self.folder)},
            "anchors": len(self.anchors),
            "dim": self.card.dim,
            "distance": self.card.distance,
            "precision": self.card.precision,
            "runtime": describe_runtime(self.card.precision, has_weights=self.has_weights),
            "image_size": self.card.preprocessing.image_size,
            "loss": trained.get("loss"),
            "backbone": trained.get("backbone"),
            "scores": self.card.scores,
        }

    def check_precision(self, precision: Precision) -> None:
        """Raise ModelError when the model cannot be told to work in this precision."""
        if precision not in get_args(Precision):
            raise ModelError(f"no precision is called '{precision}': there are {', '.join(get_args(Precision))}")
        if precision != self.card.precision and "int8" in (precision, self.card.precision):
            raise ModelError(
                f"{self.folder} works in {self.card.precision}, and int8 takes another graph: "
                f"make one with `kedge quantize`, or name the model that this one was made from"
            )

    def write_card(self, card: ModelCard) -> None:
        """Put another card into the folder, in one step."""
        card.write(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """Return what was logged, one entry an epoch; empty for a model that was not trained."""
        path = self.folder / METRICS
        if not path.is_file():
            return []
        with _reading(path):
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]

    def splits(self) -> Mapping[str, SplitName]:
        """Return which split each picture was in when the model was trained, by content hash."""
        path = self.folder / SPLITS
        if not path.is_file():
            return {}
        with _reading(path):
            stored: dict[SplitName, list[str]] = json.loads(path.read_text("utf-8"))
            return {content: name for name, contents in stored.items() for content in contents}


def write_splits(folder: Path, splits: Mapping[str, SplitName]) -> None:
    """Write which split each content is in, as `Model.splits` reads it."""
    names = get_args(SplitName)
    stored = {name: sorted(content for content, split in splits.items() if split == name) for name in names}
    write_atomically(folder / SPLITS, json.dumps(stored))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}): train the model again") from error


def _read_card(path: Path) -> ModelCard:
    with _reading(path):
        text = json.loads(path.read_text("utf-8"))
        version = text.get("format_version") if isinstance(text, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version}, this Kedge reads up to {FORMAT_VERSION}: update Kedge"
            )
        return ModelCard.model_validate(text)
