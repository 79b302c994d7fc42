"""Encoder: pictures -> embeddings, by the model's ONNX graph, without torch; by torch where there is a GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kedge.distances import unit_length
from kedge.errors import InputError, MissingPartError, ModelError
from kedge.model import Model
from kedge.picture import square
from kedge.runtime import Graph, Runtime, best_runtime, load_graph

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Encoder"]

# Pixels at once, which caches hold; and how many pictures at most. A GPU wants more at once.
BATCH_PIXELS, MOST_AT_ONCE = 16 * 224 * 224, 64
TIMES_ON_GPU = 16


class Encoder:
    """Turns pictures into embeddings as the model says, by the runtime that is fastest here unless one is named.

    This is the only place where embeddings are made unit length: they are, when the model's distance is cosine. Raises
    ModelError for a model that cannot be had or run, MissingPartError for a runtime that is not installed, InputError
    for one that is none.
    """

    def __init__(self, model: Model | str | Path, *, threads: int | None = None, runtime: Runtime = "auto") -> None:
        model = Model.of(model)
        precision = model.card.precision
        chosen = best_runtime(precision, has_weights=model.has_weights) if runtime == "auto" else runtime
        try:
            self._run = _load(model, chosen, threads)
        except (ModelError, MissingPartError):
            if runtime != "auto" or chosen != "torch":
                raise
            # Nobody asked for torch, and the graph is what a model is.
            chosen = best_runtime(precision, has_weights=False)
            self._run = _load(model, chosen, threads)
        times = TIMES_ON_GPU if chosen == "torch" else 1
        self._at_once = times * max(1, min(MOST_AT_ONCE, BATCH_PIXELS // model.card.preprocessing.image_size**2))
        self.image_size = model.card.preprocessing.image_size
        self.dim = model.card.dim
        self.normalises = model.card.distance == "cosine"

    def encode(self, squares: npt.NDArray[np.uint8], *, raw: bool = False) -> npt.NDArray[np.float32]:
        """Return the embeddings, shape (n, dim) float32, of preprocessed pictures, shape (n, s, s, 3) uint8.

        Unit length when the model's distance is cosine; `raw=True` leaves them as the network made them.
        Raises InputError for other shapes.
        """
        size = self.image_size
        if squares.shape[1:] != (size, size, 3) or squares.dtype != np.uint8:
            raise InputError(
                f"pictures of shape (n, {size}, {size}, 3) uint8 are expected, not {squares.shape} {squares.dtype}"
            )
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(squares), self._at_once):
            parts.append(self._run(squares[start : start + self._at_once]))
        embeddings = np.concatenate(parts)
        return embeddings if raw or not self.normalises else unit_length(embeddings)

    def encode_pictures(self, images: Sequence["Image"], *, raw: bool = False) -> npt.NDArray[np.float32]:
        """Return the embeddings, shape (n, dim) float32, of decoded pictures of any size."""
        squares = np.empty((len(images), self.image_size, self.image_size, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            squares[row] = square(image, self.image_size)
        return self.encode(squares, raw=raw)


def _load(model: Model, runtime: Runtime, threads: int | None) -> Graph:
    if runtime != "torch":
        return load_graph(model.encoder_path, runtime=runtime, precision=model.card.precision, threads=threads)
    try:
        from kedge.torch_runtime import load_network
    except ImportError as error:
        raise MissingPartError(f"the runtime needs {error.name}: pip install 'kedge[train]'") from error
    return load_network(model)
