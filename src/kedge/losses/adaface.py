"""AdaFace: an angular margin that adapts to each picture's quality, told by the norm of its embedding.

M. Kim, A. K. Jain, X. Liu, "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022, arXiv:2204.00964.
With z the embedding, m the margin, h the concentration, and mean and deviation of norms kept as moving averages:

    n = clip((||z|| - mean) / (deviation / h), -1, 1)      no gradient flows through it
    logit of the own class = s (cos(theta + g_angle) - g_add),  g_angle = -m n,  g_add = m n + m     (eqs. 13-16)
    logit of any other     = s cos(theta)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedge.losses.batch import arithmetic, check_batch

__all__ = ["AdaFace"]


class AdaFace(nn.Module):
    """`loss(embeddings, labels)` -> scalar, of embeddings (batch, d), not normalised, and labels (batch,)."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.4,
        concentration: float = 0.333,
        scale: float = 64.0,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_classes, dim)))
        self.margin, self.concentration, self.scale, self.momentum = margin, concentration, scale, momentum
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar of at least float32; in training mode the moving averages take a step."""
        labels = check_batch(embeddings, labels, *self.prototypes.shape)
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            wide = arithmetic(embeddings, self.prototypes)
            points, prototypes = embeddings.to(wide), self.prototypes.to(wide)
            quality = self._quality(points.detach().norm(dim=1).clamp(1e-3, 100.0))
            cosines = F.normalize(points) @ F.normalize(prototypes).T
            # Inside of -1 and 1, where the arc cosine has a gradient.
            own = cosines.gather(1, labels[:, None])[:, 0].clamp(-1 + 1e-6, 1 - 1e-6)
            angle = (own.acos() - self.margin * quality).clamp(1e-3, torch.pi - 1e-3)
            moved = angle.cos() - (self.margin * quality + self.margin)
            return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], moved[:, None]), labels)

    def _quality(self, norms: Tensor) -> Tensor:
        """Return n of each embedding, (batch,), and move the averages towards this batch's."""
        if self.training and len(norms) > 1:
            step = 1 - self.momentum
            self.mean.lerp_(norms.mean().to(self.mean), step)
            self.deviation.lerp_(norms.std().to(self.deviation), step)
        return ((norms - self.mean) / (self.deviation / self.concentration + 1e-3)).clamp(-1, 1)
