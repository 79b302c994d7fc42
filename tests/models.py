"""A whole model folder without training: its embeddings are worked out by hand from a picture's colours.

The graph shifts a picture's values to [-1, 1], averages them over a 4 x 4 grid and multiplies by a fixed matrix with
orthonormal rows (columns, where dim is larger), so that near pictures have near embeddings. The anchor of a class is
the embedding of a picture that is all of its colour: `colour_of(class_number)`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kedge.anchors import Anchors
from kedge.distances import unit_length
from kedge.model import Distance, Model, ModelCard, Preprocessing

GRID = 4
COLOURS = ((220, 30, 30), (30, 200, 40), (40, 60, 230), (240, 220, 30), (200, 40, 210), (30, 210, 220), (235, 235, 235))


def colour_of(class_number: int) -> tuple[int, int, int]:
    """The colour whose plain picture lies on the anchor of that class."""
    if class_number < len(COLOURS):
        return COLOURS[class_number]
    red, green, blue = np.random.default_rng(class_number).integers(20, 236, size=3).tolist()
    return red, green, blue


def make_model(
    folder: str | Path,
    *,
    classes: Sequence[str] = ("red", "green", "blue"),
    dim: int = 16,
    image_size: int = 16,
    distance: Distance = "cosine",
    seed: int = 0,
) -> Model:
    """Write a model folder and open it; `image_size` is a multiple of 4."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    matrix = projection(dim, seed)
    onnx.save(graph(matrix, image_size), folder / "encoder.onnx")
    plain = np.asarray([colour_of(number) for number in range(len(classes))], dtype=np.uint8)
    squares = np.broadcast_to(plain[:, None, None, :], (len(plain), image_size, image_size, 3))
    vectors = embed(squares, matrix)
    anchors = Anchors(tuple(classes), unit_length(vectors) if distance == "cosine" else vectors)
    anchors.save(folder / "anchors.safetensors")
    card = ModelCard(
        kedge_version="0.1.0",
        created_at="2025-01-01T00:00:00+00:00",
        classes=tuple(classes),
        dim=dim,
        distance=distance,
        preprocessing=Preprocessing(image_size=image_size),
        trained={},
    )
    (folder / "kedge.json").write_text(card.model_dump_json(indent=2), "utf-8")
    return Model.load(folder)


def projection(dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """The fixed matrix of the graph, (48, dim)."""
    size = max(3 * GRID * GRID, dim)
    square, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return np.ascontiguousarray(square[: 3 * GRID * GRID, :dim], dtype=np.float32)


def embed(squares: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the graph works out, in NumPy: squares (n, s, s, 3) -> raw embeddings (n, dim)."""
    count, size = len(squares), squares.shape[1]
    values = squares.astype(np.float64) / 127.5 - 1.0
    cells = values.reshape(count, GRID, size // GRID, GRID, size // GRID, 3).mean(axis=(2, 4))  # (n, 4, 4, 3)
    return (cells.transpose(0, 3, 1, 2).reshape(count, -1) @ matrix).astype(np.float32)


def graph(matrix: npt.NDArray[np.float32], image_size: int) -> onnx.ModelProto:
    """The ONNX graph: uint8 `pictures` (n, s, s, 3) -> float32 `embeddings` (n, dim)."""
    cell = image_size // GRID
    nodes = [
        helper.make_node("Cast", ["pictures"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["values", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["shifted"]),
        helper.make_node("Transpose", ["shifted"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["cells"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "matrix"], ["embeddings"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(1 / 127.5), "scale"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(matrix, "matrix"),
    ]
    inputs = [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", image_size, image_size, 3])]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", matrix.shape[1]])]
    body = helper.make_graph(nodes, "kedge-test", inputs, outputs, constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
