"""Export: a trained network -> a model folder that runs without torch."""

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from kedge.errors import WorkError
from kedge.model import ENCODER, WEIGHTS
from kedge.network import StoredEmbedding
from kedge.runtime import TOLERANCE, relative_error

__all__ = ["export_encoder"]


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


def _check_graph(path: Path, pictures: npt.NDArray[np.uint8], expected: npt.NDArray[np.float32]) -> None:
    import onnxruntime

    # On the CPU, though there be a GPU: by CUDA's TensorFloat-32 they would differ.
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pictures": pictures})
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise WorkError(f"the exported graph differs from the network by {error:.1e} (at most {TOLERANCE:.0e} allowed)")
