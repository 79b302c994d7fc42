"""Cross-entropy of a linear classifier: what most image models are trained with, the loss to be measured against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            points = embeddings.to(torch.promote_types(embeddings.dtype, self.classifier.weight.dtype))
            return F.cross_entropy(self.classifier(points), labels, label_smoothing=self.label_smoothing)
