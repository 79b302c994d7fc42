"""Quantization: a model folder whose graph works with 8-bit whole numbers, and what that costs in mAP."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from kedge.calibration import Calibration
from kedge.datasets import Split
from kedge.distances import unit_length
from kedge.encoder import Encoder
from kedge.errors import DatasetError, MissingPartError, ModelError
from kedge.evaluation import encode_split, load_for
from kedge.measurement import exhaustive_scores
from kedge.model import ENCODER, REPORT, Model
from kedge.page import report_page

__all__ = ["Quantized", "quantize", "write_int8_graph"]

# Pictures that show the graph how large its numbers get, and the most that the cost is measured with.
CALIBRATED, MOST_QUERIES, MOST_SEARCHED = 256, 2000, 20_000


@dataclass(frozen=True)
class Quantized:
    """What a quantization cost: mAP by the model's distance, before and after, of so many queries of a split."""

    split: str
    queries: int
    map_float32: float
    map_int8: float


def quantize(model: Model | str | Path, data: str | Path, out: str | Path) -> tuple[Model, Quantized]:
    """Write the model folder `out`: the same model with an int8 graph, calibrated on pictures it was trained on.

    Its cost is measured on validation pictures, on test pictures where there are none, and kept in its scores. Raises
    InputError before anything is written.
    """
    opened, out = Model.of(model), Path(out)
    if out.exists():
        raise ModelError(f"{out} exists already: choose another --out, or remove it first")
    if opened.card.precision != "float32":
        raise ModelError(f"{opened.folder} is {opened.card.precision} already: give the model it was made from")
    dataset = load_for(opened, data)
    # Pictures that the model never saw are divided anew, and are neither.
    known = opened.splits()
    seen = {split: getattr(dataset, split) for split in ("train", "validation", "test")}
    if known:
        seen = {
            name: split[np.flatnonzero([known.get(content) == name for content in split.hashes])]
            for name, split in seen.items()
        }
    name = "validation" if len(seen["validation"]) else "test"
    queries, shown = seen[name], seen["train"]
    if len(shown) and not len(queries):
        raise DatasetError(
            f"{opened.folder} was trained without pictures held back, on which the cost is measured: train it with some"
        )
    if not len(shown):
        raise DatasetError(
            f"{dataset.name} lacks pictures that {opened.folder} was trained on: give the data that it was trained with"
        )
    stage = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
    try:
        opened.copy_to(stage)
        write_int8_graph(opened, shown, stage / ENCODER)
        small = Model.load(stage)
        found = (_map(each, shown, queries) for each in (opened, small))
        cost = Quantized(name, min(len(queries), MOST_QUERIES), *found)
        scores = {**opened.card.scores, "int8": {f"{name}_map": cost.map_int8, f"{name}_map_float32": cost.map_float32}}
        for split in ("validation", "test"):
            scores.pop(split, None)  # measured with the other graph
        card = opened.card.model_copy(update={"precision": "int8", "scores": scores})
        calibration = _calibrated(small, seen["validation"]) if card.anchor_distances else None
        if calibration:
            card = card.model_copy(update={"anchor_distances": calibration.quantiles})
        small.write_card(card)
        (stage / REPORT).write_text(report_page(Model.load(stage), None, None), "utf-8")
        stage.rename(out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return Model.load(out), cost


def write_int8_graph(model: Model, split: Split, path: Path) -> None:
    """Write a model's graph in 8-bit whole numbers, calibrated on pictures of a split."""
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader
    except ImportError as error:
        raise MissingPartError(f"quantization needs {error.name}: pip install 'kedge[train]'") from error

    class Shown(CalibrationDataReader):  # type: ignore[misc]  # its base has no types
        def __init__(self) -> None:
            self.parts = _shown(split, model.card.preprocessing.image_size)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            part = next(self.parts, None)
            return None if part is None else {"pictures": part}

    with tempfile.TemporaryDirectory() as folder, _silence():
        plain = Path(folder) / ENCODER
        quant_pre_process(str(model.encoder_path), str(plain), skip_symbolic_shape=True)
        quantize_static(
            str(plain),
            str(path),
            Shown(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Seven bits of weights: sums of two products overflow the 16 bits that older CPUs have for them.
            reduce_range=True,
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantizer's notices, one for each layer that it leaves as it is, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _shown(split: Split, size: int) -> Iterator[npt.NDArray[np.uint8]]:
    pixels = _spread(split, CALIBRATED).decode(size).pixels
    yield from np.array_split(pixels, max(1, len(pixels) // 32))


def _map(model: Model, searched: Split, queries: Split) -> float:
    encoder = Encoder(model)
    asked = encode_split(encoder, _spread(queries, MOST_QUERIES))
    gallery = encode_split(encoder, _spread(searched, MOST_SEARCHED))
    found = exhaustive_scores(asked.vectors, asked.labels, gallery.vectors, gallery.labels, model.card.distance)
    return round(found[0], 4)


def _calibrated(model: Model, held_out: Split) -> Calibration | None:
    vectors = encode_split(Encoder(model), _spread(held_out, MOST_QUERIES)).vectors
    return Calibration.fit(
        unit_length(vectors) if model.card.distance == "cosine" else vectors, model.search_anchors.vectors
    )


def _spread(split: Split, most: int) -> Split:
    """Return at most so many of the pictures, drawn by a fixed seed."""
    return split[np.sort(np.random.default_rng(0).permutation(len(split))[:most])]
