"""The class-anchor margin loss: every picture is hauled to the learned anchor of its class.

A. Ghita, R. T. Ionescu, "Class Anchor Margin Loss for Content-Based Image Retrieval", arXiv:2306.00630.

With embeddings e_i in R^d, classes y_i and anchors c_1..c_t in R^d:

    attractor   L_A = mean over the batch of 1/2 ||e_i - c_{y_i}||^2
    repeller    L_R = 1/2 sum over ordered pairs y != y' of max(0, 2m - ||c_y - c_y'||)^2
    norm floor  L_N = 1/2 sum over y of max(0, p - ||c_y||)^2
    L_CAM = L_A + L_R + L_N
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from kedge.errors import ConfigError
from kedge.losses.batch import arithmetic, check_batch
from kedge.losses.repeller import MOST_SUMMED, ROWS, TINY, PairWatch, Reduction, full_repeller, sampled_repeller

__all__ = ["AnchorStart", "ClassAnchorMargin", "LossTerms", "attractor", "norm_floor", "start_anchors"]

# Up to so many fixed anchors are all compared with each other, once, which takes seconds; of more, so many with all.
MOST_COMPARED, COMPARED = 10_000, 500

AnchorStart = Literal["auto", "base", "simplex", "random"]


@dataclass(frozen=True)
class LossTerms:
    """What the last step's loss was made of, already weighted: the three add up to it."""

    attractor: float
    repeller: float
    norm_floor: float


def attractor(embeddings: Tensor, own_anchors: Tensor) -> Tensor:
    """Return L_A, a scalar, of embeddings and their own class's anchors, both (batch, d)."""
    return 0.5 * (embeddings - own_anchors).square().sum(dim=1).mean()


def norm_floor(anchors: Tensor, least_norm: float, reduction: Reduction = "sum") -> Tensor:
    """Return L_N, a scalar, of anchors (t, d): half the sum, or the mean, over anchors of the squared hinge."""
    count = len(anchors)
    if count > MOST_SUMMED or anchors.device.type == "cpu":
        # Few anchors are short, or none, and the others add nothing.
        anchors = anchors[~(torch.linalg.vector_norm(anchors.detach(), dim=1) >= least_norm)]
    norms = (anchors.square().sum(dim=1) + TINY).sqrt()
    hinge = (least_norm - norms).clamp(min=0.0)
    total = 0.5 * hinge.square().sum()
    return total / count if reduction == "mean" else total


class ClassAnchorMargin(nn.Module):
    """The class-anchor margin loss: `loss(embeddings, labels)` -> scalar, with `loss.anchors` as its parameter.

    embeddings: (batch, d), not normalised; labels: (batch,) in 0..num_classes-1. No pairs or triplets of pictures are
    mined. Up to 384 classes the repeller is summed over all pairs of anchors; beyond, a step stays as cheap as one of a
    softmax over the classes: the repeller is exact where few anchors are near each other, else an unbiased estimate
    (`exact` tells of the last step; on the sphere it is always an estimate; see `kedge.losses.repeller`). Arithmetic is
    at least float32, whatever the autocast. It has first derivatives alone: create_graph=True raises InputError.

    margin:        m, the radius kept for a class; anchors repel each other up to 2m.
    least_norm:    p, the norm below which an anchor is pushed from the origin.
    sphere:        puts embeddings and anchors on the sphere of radius m and divides the loss by m^2 (`cam-sphere`).
                   The paper's formula is `sphere=False`.
    reduction:     "sum" (the paper's) or "mean" over anchor pairs and anchors; "mean" keeps SGD from being blown up.
    start:         how anchors begin. "base": base vectors scaled so that neighbours are 2m apart, needs
                   num_classes <= dim; "simplex": a regular simplex with sides 2m, needs num_classes <= dim + 1;
                   "random": normal vectors, scaled so that the nearest two of them are about 2m apart (at most twice
                   as far as usual ones at 2m); "auto": base where it fits, else random.
    learnable:     False keeps the anchors where they start; the repeller is then a constant, of more than 10,000
                   classes an estimate.
    attractor_weight, repeller_weight, norm_weight: weights of the three terms.

    `watch` is what is known of near pairs of many anchors, and no part of the `state_dict`: a loss that goes on without
    it estimates until it has compared them anew. `terms` holds the last step's terms; `step_terms` the same as tensors,
    for loops that must not wait for a GPU.
    Raises ConfigError for settings that cannot be.
    """

    anchors: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 8.0,
        least_norm: float = 1.0,
        sphere: bool = False,
        reduction: Reduction = "sum",
        start: AnchorStart = "auto",
        learnable: bool = True,
        attractor_weight: float = 1.0,
        repeller_weight: float = 1.0,
        norm_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ConfigError(f"num_classes and dim must be at least 1, not {num_classes} and {dim}")
        if not (0 < margin < math.inf and 0 <= least_norm < math.inf):
            raise ConfigError(f"margin must be above 0 and least_norm at least 0, not {margin} and {least_norm}")
        if reduction not in ("sum", "mean"):
            raise ConfigError(f"reduction must be 'sum' or 'mean', not '{reduction}'")
        self.margin = margin
        self.least_norm = least_norm
        self.sphere = sphere
        self.reduction: Reduction = reduction
        self.attractor_weight = attractor_weight
        self.repeller_weight = repeller_weight
        self.norm_weight = norm_weight
        first = start_anchors(num_classes, dim, margin, start)
        if learnable:
            self.anchors = nn.Parameter(first)
        else:
            self.register_buffer("anchors", first)
        self.exact = True
        self.watch = PairWatch()
        self._fixed: tuple[object, Tensor] | None = None
        self.step_terms: dict[str, Tensor] = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar of at least float32."""
        labels = check_batch(embeddings, labels, *self.anchors.shape)
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            points, anchors = embeddings.to(arithmetic(embeddings)), self.anchors.to(arithmetic(self.anchors))
            radius, scale = None, 1.0
            if self.sphere:
                points, scale = self._on_sphere(points), self.margin**-2
                if len(anchors) <= MOST_SUMMED:
                    anchors = self._on_sphere(anchors)
                else:
                    # Of many those of the batch alone: the repeller puts them all there, in a third of the passes.
                    radius = self.margin
                floor = points.new_zeros(())  # every norm is m there: the floor has nothing to do
            else:
                floor = norm_floor(anchors, self.least_norm, self.reduction) * self.norm_weight
            own = anchors[labels] if radius is None else self._on_sphere(anchors[labels])
            pull = attractor(points, own) * (scale * self.attractor_weight)
            push = self._repeller(anchors, radius) * (scale * self.repeller_weight)
        self.step_terms = {"attractor": pull.detach(), "repeller": push.detach(), "norm_floor": floor.detach()}
        return pull + push + floor

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return self.margin * F.normalize(vectors, dim=1)

    def _repeller(self, anchors: Tensor, radius: float | None) -> Tensor:
        self.exact = True
        if not anchors.requires_grad:
            # Fixed anchors repel as they did before. Nothing moves by it: very many need not all be compared for that.
            self.exact = len(anchors) <= MOST_COMPARED
            settings = self.margin, self.reduction
            state = (self.anchors._version, self.anchors.data_ptr(), settings)
            if self._fixed is None or self._fixed[0] != state:
                rows = torch.randperm(len(anchors), device=anchors.device)[:COMPARED]
                value = (
                    full_repeller(anchors, *settings, radius=radius)
                    if self.exact
                    else sampled_repeller(anchors, rows, *settings, radius=radius)
                )
                self._fixed = (state, value)
            return self._fixed[1]
        if len(anchors) <= MOST_SUMMED:
            return full_repeller(anchors, self.margin, self.reduction)
        if self.sphere:
            # No two points of the sphere lie further apart than 2m: no pair can be left out.
            self.exact = False
            rows = torch.randperm(len(anchors), device=anchors.device)[:ROWS]
            return sampled_repeller(anchors, rows, self.margin, self.reduction, radius=radius)
        value = self.watch(anchors, self.margin, self.reduction)
        self.exact = self.watch.exact
        return value

    @property
    def terms(self) -> LossTerms:
        """The last step's attractor, repeller and norm floor, weighted; zeros before the first step."""
        # Read when asked for, not in `forward`: a number taken from a GPU waits for it.
        return LossTerms(*(float(self.step_terms.get(term.name, 0.0)) for term in fields(LossTerms)))

    def extra_repr(self) -> str:
        """Say the settings when the module is printed."""
        classes, dim = self.anchors.shape
        kind = "sphere" if self.sphere else "paper"
        return f"{classes} anchors, dim={dim}, margin={self.margin}, least_norm={self.least_norm}, {kind}"


def start_anchors(num_classes: int, dim: int, margin: float, start: AnchorStart) -> Tensor:
    """Return the anchors' first values, shape (num_classes, dim); see `ClassAnchorMargin` for the kinds."""
    if start == "auto":
        start = "base" if num_classes <= dim else "random"
    if num_classes == 1 and start == "simplex":
        start = "base"  # about the origin one corner would be the origin, which has no direction
    if start == "base":
        if num_classes > dim:
            raise ConfigError(
                f"{num_classes} classes have no base vector each in {dim} dimensions: "
                f"use start='random' or dim >= {num_classes}"
            )
        return torch.eye(num_classes, dim) * (margin * 2**0.5)
    if start == "simplex":
        return _simplex(num_classes, dim) * (2.0 * margin)
    if start == "random":
        return torch.randn(num_classes, dim) * (margin * (2.0 / dim) ** 0.5 * _spread(num_classes, dim))
    raise ConfigError(f"start must be 'auto', 'base', 'simplex' or 'random', not '{start}'")


def _spread(count: int, dim: int) -> float:
    """Return how much further apart usual normal vectors lie than the nearest two of `count`, at most 2."""
    pairs = max(1, count * (count - 1) // 2)
    return float(min(2.0, (dim / chi2.ppf(1.0 / (pairs + 1), dim)) ** 0.5))


def _simplex(count: int, dim: int) -> Tensor:
    """Return the corners of a regular simplex with sides of length 1 about the origin, shape (count, dim)."""
    if count > dim + 1:
        raise ConfigError(f"a regular simplex of {count} corners needs dim >= {count - 1}, not {dim}")
    corners = torch.eye(count, dtype=torch.float64) * 0.5**0.5
    corners = corners - corners.mean(dim=0, keepdim=True)
    # The corners span count - 1 dimensions: turn them into the first ones.
    left, singular, _ = torch.linalg.svd(corners, full_matrices=False)
    turned = (left * singular)[:, : count - 1]
    return F.pad(turned, (0, dim - turned.shape[1])).to(torch.float32)
