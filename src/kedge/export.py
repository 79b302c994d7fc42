"""Export: a trained network -> a model folder that runs without torch."""

import io
import json
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from kedge.anchors import Anchors
from kedge.errors import WorkError
from kedge.model import ANCHORS, CARD, ENCODER, WEIGHTS, ModelCard
from kedge.network import StoredEmbedding

__all__ = ["export_encoder", "write_card"]

# float32 sums in another order differ by less than this, relative to the vector's norm.
TOLERANCE = 1e-4


def export_encoder(stored: StoredEmbedding, folder: Path, image_size: int) -> None:
    """Write `encoder.onnx` and `weights.safetensors`; raise WorkError when the graph does not agree with torch."""
    stored = stored.to("cpu").float().to(memory_format=torch.contiguous_format).eval()
    pictures = torch.randint(0, 256, (3, image_size, image_size, 3), dtype=torch.uint8)
    path = folder / ENCODER
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            stored,
            (pictures,),
            str(path),
            input_names=["pictures"],
            output_names=["embeddings"],
            dynamic_shapes={"pictures": {0: torch.export.Dim("batch", min=1)}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        expected = stored(pictures).numpy()
    _check_graph(path, pictures.numpy(), expected)
    # Not by `save_file`, which lets nobody but its owner read the file. Some of timm's models have one tensor twice.
    weights = {name: tensor.contiguous().clone() for name, tensor in stored.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights))


def _check_graph(path: Path, pictures: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pictures": pictures})
    error = float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-12)
    if not error <= TOLERANCE:
        raise WorkError(f"the exported graph differs from the network by {error:.1e} (at most {TOLERANCE:.0e} allowed)")


def write_card(folder: Path, card: ModelCard, anchors: Anchors) -> None:
    """Write `anchors.safetensors` and `kedge.json`."""
    anchors.save(folder / ANCHORS)
    (folder / CARD).write_text(json.dumps(card.model_dump(), indent=2) + "\n", "utf-8")
