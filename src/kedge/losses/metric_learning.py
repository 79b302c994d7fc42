"""The losses of pytorch-metric-learning, as it has them; the settings are their authors' unless others are given."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kedge.losses.batch import arithmetic, check_batch

__all__ = ["MetricLearning", "metric_learning_loss"]


class MetricLearning(nn.Module):
    """A loss of pytorch-metric-learning, perhaps with a miner of its pairs: `loss(embeddings, labels)` -> scalar.

    Arithmetic is at least float32. A batch in which there is no pair to learn from has a loss of 0.
    """

    def __init__(self, num_classes: int, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.num_classes, self.loss, self.miner = num_classes, loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (batch, d) and labels (batch,)."""
        labels = check_batch(embeddings, labels, self.num_classes)
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            wide = arithmetic(embeddings, *self.loss.parameters())
            points = embeddings.to(wide)
            pairs = () if self.miner is None else (self.miner(points, labels),)
            # The library gives its parameters the type of the embeddings, for good: it is shown widened ones.
            widened = {name: own.to(wide) for name, own in self.loss.named_parameters()}
            found: Tensor = functional_call(self.loss, widened, (points, labels, *pairs))
            return found


def metric_learning_loss(
    name: str, num_classes: int, dim: int, *, margin: float | None = None, scale: float | None = None
) -> MetricLearning:
    """Return a loss by Kedge's name for it; margin and scale go over the authors', where the loss has them."""
    from pytorch_metric_learning import losses, miners

    made = partial(MetricLearning, num_classes)

    def with_margin(kind: Callable[..., nn.Module], default: float, *arguments: int, **options: Any) -> nn.Module:
        return kind(*arguments, margin=default if margin is None else margin, **options)

    if name == "contrastive":
        # Hadsell, Chopra and LeCun, CVPR 2006, on unit vectors; the library's hinges are not squared as theirs are.
        return made(losses.ContrastiveLoss(pos_margin=0.0, neg_margin=1.0 if margin is None else margin))
    if name == "triplet":
        # Schroff, Kalenichenko and Philbin, arXiv:1503.03832: margin 0.2, semi-hard triplets; theirs is a margin
        # between squared distances, the library's between distances.
        miner = with_margin(miners.TripletMarginMiner, 0.2, type_of_triplets="semihard")
        return made(with_margin(losses.TripletMarginLoss, 0.2), miner)
    if name == "arcface":
        # arXiv:1801.07698: a margin of 0.5, scale 64. The library takes degrees.
        degrees = 28.6 if margin is None else math.degrees(margin)
        return made(losses.ArcFaceLoss(num_classes, dim, margin=degrees, scale=scale or 64))
    if name == "cosface":
        # arXiv:1801.09414: margin 0.35, scale 64.
        return made(with_margin(losses.CosFaceLoss, 0.35, num_classes, dim, scale=scale or 64))
    if name == "proxy-anchor":
        # arXiv:2003.13911: margin 0.1, alpha 32.
        return made(with_margin(losses.ProxyAnchorLoss, 0.1, num_classes, dim, alpha=scale or 32))
    if name == "proxy-nca":
        # arXiv:1703.07464, on unit vectors with a scale of 3; the library's sum has the own proxy in it.
        return made(losses.ProxyNCALoss(num_classes, dim, softmax_scale=scale or 3))
    if name == "supcon":
        # arXiv:2004.11362: temperature 0.1.
        return made(losses.SupConLoss(temperature=1 / (scale or 10)))
    if name == "multi-similarity":
        # arXiv:1904.06627: alpha 2, beta 50, lambda 0.5, pairs mined with epsilon 0.1.
        loss = losses.MultiSimilarityLoss(alpha=2, beta=scale or 50, base=0.5)
        return made(loss, miners.MultiSimilarityMiner(epsilon=0.1))
    raise ValueError(name)
