"""Cross-entropy of a linear classifier: what most image models are trained with, the loss to be measured against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedge.losses.batch import arithmetic, check_batch

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.Module):
    """Softmax cross-entropy of a linear classifier on the embedding: `loss(embeddings, labels)` -> scalar.

    embeddings: (batch, d); labels: (batch,) in 0..num_classes-1. The classifier is a part of the loss, and not of the
    model that is saved. Arithmetic is at least float32, whatever the autocast.
    """

    def __init__(self, num_classes: int, dim: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, num_classes)
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar of at least float32."""
        own = self.classifier
        labels = check_batch(embeddings, labels, *own.weight.shape)
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            wide = arithmetic(embeddings, own.weight)
            logits = F.linear(embeddings.to(wide), own.weight.to(wide), own.bias.to(wide))
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
