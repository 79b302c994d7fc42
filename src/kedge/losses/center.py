"""Cross-entropy with center loss: pictures are also drawn to a center of their class, learned beside the classifier.

Y. Wen, K. Zhang, Z. Li, Y. Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016.
"""

import torch
from torch import Tensor, nn

from kedge.losses.batch import arithmetic, check_batch
from kedge.losses.cross_entropy import CrossEntropy

__all__ = ["CenterLoss"]


class CenterLoss(nn.Module):
    """Cross-entropy + weight / 2 x the mean squared distance to the own class's center: `loss(embeddings, labels)`.

    embeddings: (batch, d); labels: (batch,) in 0..num_classes-1. Centers, (num_classes, d), start at the origin and are
    learned. Unlike class anchors nothing keeps them apart but the classifier.
    """

    def __init__(self, num_classes: int, dim: int, *, weight: float = 0.003, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy(num_classes, dim, label_smoothing=label_smoothing)
        self.centers = nn.Parameter(torch.zeros(num_classes, dim))
        self.weight = weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar of at least float32."""
        labels = check_batch(embeddings, labels, *self.centers.shape)
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            points, centers = (part.to(arithmetic(embeddings, self.centers)) for part in (embeddings, self.centers))
            apart = (points - centers[labels]).square().sum(dim=1).mean()
            loss: Tensor = self.cross_entropy(points, labels) + 0.5 * self.weight * apart
            return loss
