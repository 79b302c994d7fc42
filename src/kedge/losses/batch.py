"""Batch: what every loss is given, and the numbers it is worked out in."""

import torch
from torch import Tensor

__all__ = ["arithmetic", "check_batch"]


def check_batch(embeddings: Tensor, labels: Tensor, num_classes: int, dim: int | None = None) -> Tensor:
    """Return labels as int64; raise ValueError unless embeddings are (batch, dim) and labels (batch,) number classes.

    On a GPU labels are not looked at, which would wait for it.
    """
    wanted = "(batch, d)" if dim is None else f"(batch, {dim})"
    if embeddings.ndim != 2 or (dim is not None and embeddings.shape[1] != dim):
        raise ValueError(f"embeddings must have shape {wanted}, not {tuple(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels must have shape ({len(embeddings)},), not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers, not {labels.dtype}")
    if not len(labels):
        raise ValueError("a batch without pictures has no loss: leave it out")
    if labels.device.type == "cpu":
        for found in (int(labels.min()), int(labels.max())):
            if not 0 <= found < num_classes:
                raise ValueError(f"labels number {num_classes} classes from 0, {found} is none: leave such rows out")
    # Bytes would be taken for a mask where anchors are chosen by them.
    return labels.long()


def arithmetic(*given: Tensor) -> torch.dtype:
    """Return what numbers to work in: float32, or float64 where something given is."""
    found = torch.float32
    for tensor in given:
        found = torch.promote_types(found, tensor.dtype)
    return found
