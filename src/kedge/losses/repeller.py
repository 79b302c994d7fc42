"""The repeller: anchors nearer to each other than twice the margin push each other away, at any number of classes.

    L_R = 1/2 sum over ordered pairs y != y' of max(0, 2m - ||c_y - c_y'||)^2       arXiv:2306.00630

The sum over t anchors in R^d costs O(t^2 d). Up to MOST_SUMMED anchors it is summed. Beyond, `PairWatch` keeps a list
of the pairs that can contribute, as molecular dynamics does with neighbouring atoms (L. Verlet, Phys. Rev. 159, 98,
1967), and the sum over the list equals the full one; where the list would be too long, or is not ready yet, the anchors
of some rows stand for all: an unbiased estimate.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from kedge.errors import InputError

__all__ = ["MOST_SUMMED", "ROWS", "TINY", "PairWatch", "Reduction", "full_repeller", "sampled_repeller"]

Reduction = Literal["sum", "mean"]

# Up to so many anchors the full sum costs no more than a softmax over them does with 256 pictures a step.
MOST_SUMMED = 384
# What a step may cost beyond: so many anchors compared with all, and so many listed pairs an anchor.
ROWS, PAIRS = 32, 4
# A list that grows too long is given up for as many steps as it takes to make one, times this.
REST = 8
# Rows whose distances to all anchors are held at once.
BLOCK = 1 << 24
# Anchors may move this share of 2m, together, before a pair is looked at again.
SKIN = 0.1
# Squared distances below this share of the squared norms are taken again by differences: products cancel there.
CLOSE = 1e-3
# Added under roots: the gradient of ||x|| at 0 is then 0 and not NaN.
TINY = 1e-12


def full_repeller(
    anchors: Tensor, margin: float, reduction: Reduction = "sum", *, radius: float | None = None
) -> Tensor:
    """Return L_R, a scalar, of anchors (t, d); "mean" divides by the number of ordered pairs.

    radius: of the sphere about the origin that the anchors are put on first; None leaves them where they are.
    """
    count = len(anchors)
    if count < 2:
        return anchors.sum() * 0.0
    scale = 0.5 * _weight(count, reduction)
    blocks = torch.arange(count, device=anchors.device).split(max(1, BLOCK // count))
    if len(blocks) == 1:
        return _hinge(anchors, None, margin, scale, radius)
    return torch.stack([_hinge(anchors, rows, margin, scale, radius) for rows in blocks]).sum()


def sampled_repeller(
    anchors: Tensor, rows: Tensor, margin: float, reduction: Reduction = "sum", *, radius: float | None = None
) -> Tensor:
    """Return an estimate of L_R by the anchors numbered `rows` (r,) against all; radius as in `full_repeller`.

    Unbiased when each anchor is as likely to be drawn as any other: the mean over all draws is the full sum.
    """
    scale = 0.5 * len(anchors) / len(rows)
    return _hinge(anchors, rows, margin, scale * _weight(len(anchors), reduction), radius)


def _weight(count: int, reduction: Reduction) -> float:
    return 1.0 / (count * (count - 1)) if reduction == "mean" else 1.0


def _hinge(anchors: Tensor, rows: Tensor | None, margin: float, scale: float, radius: float | None) -> Tensor:
    value: Tensor = _Hinge.apply(anchors, rows, margin, scale, radius)
    return value


class _Hinge(torch.autograd.Function):
    """scale x the sum of max(0, 2m - distance)^2 over rows x anchors, and its gradient, by products of matrices."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, rows: Tensor | None, margin: float, scale: float, radius: float | None
    ) -> Tensor:
        points = anchors
        if radius is not None:
            stretch = radius / anchors.norm(dim=1, keepdim=True).clamp_min_(TINY)  # (t, 1), as F.normalize does
            points = anchors * stretch
        # About their mean, so that a common offset cannot swamp the differences.
        centred = points - points.mean(dim=0, keepdim=True)
        chosen = centred if rows is None else centred[rows]  # (r, d)
        distances = (_squared_distances(chosen, centred) + TINY).sqrt_()  # (r, t)
        own = torch.arange(len(chosen), device=anchors.device)
        distances[own, own if rows is None else rows] = 2.0 * margin
        hinge = (2.0 * margin - distances).clamp_(min=0.0)
        value = scale * hinge.square().sum()
        if ctx.needs_input_grad[0]:
            pull = hinge.div_(distances)  # (r, t): each difference's weight
            by_row = pull.sum(dim=1, keepdim=True) * chosen - pull @ centred
            if rows is None:
                gradient = by_row.mul_(-4.0 * scale)  # each pair stands in it from both sides
            else:
                # In the place of the centred anchors, which are not needed any more: there may be very many.
                gradient = centred.mul_(-pull.sum(dim=0)[:, None]).addmm_(pull.T, chosen)
                gradient.index_add_(0, rows, by_row, alpha=-1.0).mul_(2.0 * scale)
            if radius is not None:
                # On the sphere a point moves along it alone, and the less the further out its anchor lies.
                outward = (gradient * points).sum(dim=1, keepdim=True) / radius**2
                gradient.addcmul_(points, outward, value=-1.0).mul_(stretch)
            ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if torch.is_grad_enabled():  # by create_graph=True
            raise InputError("the class-anchor margin loss has no second derivatives: leave create_graph=True out")
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Return ||x - y||^2, shape (n, t), accurate for close ones too."""
    if left.device.type == "cuda" and len(right) <= MOST_SUMMED:
        # Looking for the close ones makes the CPU wait for the GPU, and so few are quick by differences.
        return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square_()
    squares = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)[None, :]
    squared = torch.addmm(squares, left, right.T, alpha=-2.0)
    first, second = torch.nonzero(squared < CLOSE * squares, as_tuple=True)
    for part in torch.arange(len(first), device=left.device).split(max(1, BLOCK // left.shape[1])):
        some, others = first[part], second[part]
        squared[some, others] = (left[some] - right[others]).square().sum(dim=1)
    return squared


class PairWatch:
    """Keeps the pairs of anchors that can contribute, while the anchors move: `watch(anchors, margin, reduction)`.

    Every anchor has a place where it was last compared with all others. A pair whose places lie further apart than
    2m + skin cannot contribute while both anchors are within skin / 2 of their places; all nearer ones are listed. A
    step compares at most ROWS anchors with all, those not compared yet and those that moved too far. `exact` tells
    whether the last value was the full sum, within rounding, or an estimate. All that it knows stands in `vars(watch)`,
    for a training that is to go on exactly as it was.
    """

    def __init__(self) -> None:
        self.exact = False
        self._margin = 0.0
        self._resting = 0
        self._places = torch.zeros(0, 0)
        self._compared, self._pairs = torch.zeros(0, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.int64)

    def __call__(self, anchors: Tensor, margin: float, reduction: Reduction) -> Tensor:
        """Return L_R of anchors (t, d), or an unbiased estimate."""
        self.exact = False
        if self._resting:
            self._resting -= 1
        else:
            # Steps of training come after those of a validation that records nothing, and go on with its list.
            with torch.inference_mode(False), torch.no_grad():
                self._update(anchors.detach(), margin)
        if not self.exact:
            rows = torch.randperm(len(anchors), device=anchors.device)[:ROWS]
            return sampled_repeller(anchors, rows, margin, reduction)
        first, second = self._pairs
        apart = ((anchors[first] - anchors[second]).square().sum(dim=1) + TINY).sqrt()
        return (2.0 * margin - apart).clamp(min=0.0).square().sum() * _weight(len(anchors), reduction)

    def _update(self, anchors: Tensor, margin: float) -> None:
        """Go on with the list; set `exact` when it is whole."""
        places = self._places
        if places.shape != anchors.shape or margin != self._margin:
            self._begin(anchors, margin)
        elif places.device != anchors.device:
            # A list that was saved comes back on the CPU.
            parts = (self._places, self._compared, self._pairs)
            self._places, self._compared, self._pairs = (part.to(anchors.device) for part in parts)
        rows = self._open(anchors)
        if len(rows):
            rows = self._compare(anchors, rows)
        if self._pairs.shape[1] > PAIRS * len(anchors):
            self._resting = REST * -(-len(anchors) // ROWS)
            self._places = torch.zeros(0, 0)
        else:
            self.exact = not len(rows)

    def _begin(self, anchors: Tensor, margin: float) -> None:
        self._margin = margin
        self._places = anchors.clone()
        self._compared = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        self._pairs = torch.zeros(2, 0, dtype=torch.int64, device=anchors.device)

    def _open(self, anchors: Tensor) -> Tensor:
        """Return the anchors to be compared with all: those not compared yet, or too far from their places."""
        # An anchor that is no number any more is not near either.
        near = (anchors - self._places).square_().sum(dim=1) <= (SKIN * self._margin) ** 2
        return torch.nonzero(~(near & self._compared))[:, 0]

    def _compare(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Compare some of the rows with all anchors' places, list what is near, return the rows still open."""
        now, later = rows[:ROWS], rows[ROWS:]
        self._places[now] = anchors[now]
        self._compared[now] = True
        limit = 2.0 * self._margin * (1.0 + SKIN)
        # A little wider, for what rounding may have taken from a distance.
        near = _squared_distances(self._places[now], self._places) < (limit * 1.001) ** 2
        some, others = torch.nonzero(near, as_tuple=True)
        some = now[some]
        renewed = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        renewed[now] = True
        kept = self._pairs[:, ~(renewed[self._pairs[0]] | renewed[self._pairs[1]])]
        # Each pair once: of two renewed ones, the one found from the smaller number.
        new = (some != others) & ~(renewed[others] & (others < some))
        self._pairs = torch.cat([kept, torch.stack([some[new], others[new]])], dim=1)
        return later
