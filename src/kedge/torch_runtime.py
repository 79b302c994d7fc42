"""Torch runtime: a model's network, built anew from its weights, on a GPU."""

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kedge.config import TrainingConfig
from kedge.errors import KedgeError, ModelError, first_line
from kedge.losses import loss_recipe
from kedge.model import WEIGHTS, Model
from kedge.network import Network, StoredEmbedding
from kedge.runtime import TOLERANCE, Graph, load_graph, relative_error
from kedge.torch_device import whole_float32

__all__ = ["load_network", "restore_network"]


def load_network(model: Model) -> Graph:
    """Return a function from pictures (n, s, s, 3) uint8 to embeddings (n, d) float32; on CUDA if it is there.

    Raises ModelError for a model whose network cannot be built anew, or whose graph gives other embeddings.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = restore_network(model).to(memory_format=torch.channels_last).eval()
    try:
        network = network.to(device)
        encode = _encoding(network, device, torch.float32)
        _check(model, encode)
    except RuntimeError as error:  # a GPU that others have filled, above all
        raise ModelError(
            f"{model.folder} cannot be run on {device} ({first_line(error)}): leave --runtime torch out"
        ) from error
    return encode if model.card.precision == "float32" else _encoding(network, device, torch.bfloat16)


def restore_network(model: Model) -> StoredEmbedding:
    """Return the network that a model's graph was exported from, by the settings and weights in its folder."""
    if model.card.precision == "int8":
        raise ModelError(f"{model.folder} works in int8, which its graph alone does: leave --runtime torch out")
    if not model.has_weights:
        raise ModelError(f"{model.folder} has no {WEIGHTS} to build its network from: leave --runtime torch out")
    names = TrainingConfig.model_fields
    try:
        settings = TrainingConfig.of({name: value for name, value in model.card.trained.items() if name in names})
        weights = load_file(model.folder / WEIGHTS)
        network = Network(
            str(settings.backbone),
            image_size=model.card.preprocessing.image_size,
            dim=settings.dim,
            pretrained=False,
            on_sphere=loss_recipe(settings.loss).on_sphere,
        )
        classifier, anchors = weights.get("classifier.weight"), weights.get("anchors")
        stored = StoredEmbedding(
            network,
            settings.features,
            classifier=None if classifier is None else torch.nn.Linear(*reversed(classifier.shape)),
            anchors=anchors,
            sharpening=settings.sharpening or 1.0,
            mirrored=settings.mirrored,
        )
        lacking = sorted(stored.state_dict().keys() - weights.keys())
        if lacking:
            raise ModelError(f"its weights lack {', '.join(lacking[:3])}, as those of an older Kedge may")
        stored.load_state_dict(weights)
    except (KedgeError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{model.folder} cannot be built anew ({first_line(error)}): leave --runtime torch out"
        ) from error
    return stored


def _encoding(network: StoredEmbedding, device: torch.device, precision: torch.dtype) -> Graph:
    def run(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        halved = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
        with torch.inference_mode(), halved, whole_float32():
            embeddings: npt.NDArray[np.float32] = network(torch.from_numpy(squares).to(device)).float().cpu().numpy()
        return embeddings

    return run


def _check(model: Model, encode: Graph) -> None:
    """Raise ModelError when the network does not agree with the graph, which decides what a model's embeddings are."""
    size = model.card.preprocessing.image_size
    squares = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    expected = load_graph(model.encoder_path, runtime="onnxruntime", precision="float32", threads=1)(squares)
    found = encode(squares)
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise ModelError(
            f"the network built from {model.folder / WEIGHTS} differs from the model's graph by {error:.1e} "
            f"(at most {TOLERANCE:.0e} allowed): leave --runtime torch out"
        )
