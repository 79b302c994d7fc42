"""New classes without training: an anchor is set from a few examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from kedge.anchors import Anchors
from kedge.distances import squared_distances, unit_length
from kedge.encoder import Encoder
from kedge.errors import InputError, PictureError
from kedge.model import ANCHORS, SPLITS, Model, SplitName, write_splits
from kedge.picture import read_for_encoder, square

__all__ = ["NewClass", "add_class"]

LOCK = ".lock"


@dataclass(frozen=True)
class NewClass:
    """A class that was added: the nearest other anchor, how far it is, and what was known of the margin.

    Distances are Euclidean, of unit vectors when the model's distance is cosine. `margin` is the radius that training
    kept for a class, where the loss keeps one: an anchor nearer than that to another shares its pictures. `reach` is
    how far from their anchors 95 % of the pictures lie that were held out of training, where there were any: an anchor
    nearer than that to another lies among that one's pictures. `spread` is the mean distance of the examples to their
    own anchor.
    """

    name: str
    examples: int
    nearest: str
    distance: float
    margin: float | None
    reach: float | None
    spread: float

    @property
    def crowded(self) -> bool:
        """Whether the anchor lies within the margin or the reach of another, or nearer to it than to the examples."""
        return self.distance < max(self.margin or 0.0, self.reach or 0.0, self.spread)


def add_class(model: Model | str | Path, name: str, pictures: Sequence[str | Path]) -> tuple[Model, NewClass]:
    """Add a class to a model folder: its anchor is the mean of the examples' embeddings.

    The network stays as it is. Examples count as trained on: evaluation never takes them for queries. A gallery made
    with the model goes on with its own copy until `Gallery.reindex`, which keeps the embeddings. Raises InputError,
    with nothing changed, for a name that is taken, a picture that cannot be read, or examples that show no class.
    """
    folder = Model.of(model).folder
    # Of two that add at once the later takes the model as the other left it.
    with FileLock(folder / LOCK):
        return _add(Model.load(folder), name, pictures)


def _add(opened: Model, name: str, pictures: Sequence[str | Path]) -> tuple[Model, NewClass]:
    if not name or name != name.strip() or not name.isprintable():
        raise InputError(f"a class cannot be called {name!r}: give it a name without space around it, on one line")
    if name in opened.card.classes:
        raise InputError(f"{opened.folder} has a class '{name}' already: choose another name")
    if not pictures:
        raise InputError(f"no example of '{name}' was given: name at least one picture")
    encoder, splits = Encoder(opened), opened.splits()
    # A picture given twice counts once.
    read = {}
    for picture in (read_for_encoder(path, encoder.image_size) for path in pictures):
        read[picture.content_hash] = picture.path, square(picture.image, encoder.image_size)
    vectors = encoder.encode(np.stack([pixels for _, pixels in read.values()]))
    if not np.isfinite(vectors).all():
        wrong = [path for path, _ in read.values()][int(np.argmin(np.isfinite(vectors).all(axis=1)))]
        raise PictureError(wrong, "the model gives it an embedding that is not finite")
    others = opened.search_anchors
    anchor = vectors.mean(axis=0, keepdims=True)
    if opened.card.distance == "cosine":
        anchor = unit_length(anchor)
    if not np.linalg.norm(anchor) > 0:
        raise InputError(f"the examples of '{name}' have nothing in common: their embeddings cancel out")
    distances = np.sqrt(squared_distances(anchor, others.vectors))[0]
    nearest = int(distances.argmin())
    if distances[nearest] <= 1e-6 * np.linalg.norm(anchor):
        raise InputError(
            f"the examples of '{name}' lie on the anchor of '{others.names[nearest]}': they show that class"
        )
    added = NewClass(
        name=name,
        examples=len(read),
        nearest=others.names[nearest],
        distance=float(distances[nearest]),
        margin=_margin(opened),
        reach=opened.calibration.reach if opened.calibration else None,
        spread=float(np.sqrt(squared_distances(vectors, anchor)).mean()),
    )
    # Learned anchors of a model whose distance is cosine have lengths of their own, which L2 figures are made with.
    length = float(np.linalg.norm(opened.anchors.vectors, axis=1).mean()) if opened.card.distance == "cosine" else 1.0
    extended = np.concatenate([opened.anchors.vectors, anchor * length]).astype(np.float32)
    _write(opened, Anchors((*opened.card.classes, name), extended), {**splits, **dict.fromkeys(read, "train")})
    return Model.load(opened.folder), added


def _margin(model: Model) -> float | None:
    """Return the radius kept for a class, in the space that is searched; None when the loss keeps none there."""
    trained = model.card.trained
    if trained.get("features", "embedding") != "embedding":
        return None
    if trained.get("loss") == "cam-sphere":
        return 1.0
    if (
        trained.get("loss") in ("cam", "fixed-anchors")
        and model.card.distance == "l2"
        and trained.get("sharpening", 1.0) == 1.0
    ):
        return float(trained["margin"])
    return None


def _write(model: Model, anchors: Anchors, splits: Mapping[str, SplitName]) -> None:
    """Write splits, anchors and card, each in one step and in this order: whatever is read between is a whole model."""
    if (model.folder / SPLITS).is_file():
        write_splits(model.folder, splits)
    anchors.save(model.folder / ANCHORS)
    model.write_card(model.card.model_copy(update={"classes": anchors.names}))
