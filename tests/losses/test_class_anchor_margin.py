"""The loss against numbers worked by hand, a slow float64 loop and numerical gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.errors import ConfigError
from kedge.losses import ClassAnchorMargin
from kedge.losses.class_anchor_margin import start_anchors


def slow_loss(embeddings, labels, anchors, margin, least_norm):
    """The three sums of the paper as they are written, one pair at a time, in Python floats.

    Under each root stands the 1e-12 by which it has a gradient at 0: beside a distance of nearly none it counts.
    """

    def root(length):
        return math.sqrt(length**2 + 1e-12)

    pull = sum(
        0.5 * sum((e - c) ** 2 for e, c in zip(row, anchors[label], strict=True))
        for row, label in zip(embeddings, labels, strict=True)
    ) / len(embeddings)
    push = 0.0
    for first in range(len(anchors)):
        for second in range(len(anchors)):
            if first != second:
                push += 0.5 * max(0.0, 2 * margin - root(math.dist(anchors[first], anchors[second]))) ** 2
    floor = sum(0.5 * max(0.0, least_norm - root(math.hypot(*anchor))) ** 2 for anchor in anchors)
    return pull, push, floor


def make_loss(anchors, **options):
    loss = ClassAnchorMargin(len(anchors), len(anchors[0]), start="random", **options)
    with torch.no_grad():
        loss.anchors.copy_(torch.tensor(anchors))
    return loss


def test_worked_by_hand():
    # Anchors (3, 0) and (0, 4) lie 5 apart; m = 4, so the hinge is 8 - 5 = 3 and L_R = 1/2 (9 + 9) = 9.
    # p = 3.5: only the first anchor is short, by 0.5: L_N = 1/2 * 0.25 = 0.125.
    # e_1 = (3, 2) is 2 from (3, 0); e_2 = (0, 4) lies on its anchor: L_A = (1/2 * 4 + 0) / 2 = 1.
    loss = make_loss([[3.0, 0.0], [0.0, 4.0]], margin=4.0, least_norm=3.5)
    value = loss(torch.tensor([[3.0, 2.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    assert value.item() == pytest.approx(10.125, rel=1e-6)
    terms = loss.terms
    assert (terms.attractor, terms.repeller, terms.norm_floor) == pytest.approx((1.0, 9.0, 0.125), rel=1e-6)


def test_sphere_worked_by_hand():
    # On the sphere of radius m = 2 the anchors (5, 0), (0, 7) become (2, 0), (0, 2): hinge 4 - 2 sqrt 2.
    # e = (-3, 0) becomes (-2, 0), 4 from its anchor: L_A = 8. All divided by m^2 = 4.
    loss = make_loss([[5.0, 0.0], [0.0, 7.0]], margin=2.0, sphere=True)
    value = loss(torch.tensor([[-3.0, 0.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx((8.0 + (4 - 2 * math.sqrt(2)) ** 2) / 4, rel=1e-6)
    assert loss.terms.norm_floor == 0.0


def test_weights_scale_their_own_terms():
    anchors = [[3.0, 0.0], [0.0, 4.0]]
    options = {"attractor_weight": 2.0, "repeller_weight": 0.5, "norm_weight": 8.0}
    loss = make_loss(anchors, margin=4.0, least_norm=3.5, **options)
    loss(torch.tensor([[3.0, 2.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    terms = loss.terms
    assert (terms.attractor, terms.repeller, terms.norm_floor) == pytest.approx((2.0, 4.5, 1.0), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(1, 7),
    dim=st.integers(1, 6),
    batch=st.integers(1, 9),
    margin=st.floats(0.1, 10),
    least_norm=st.floats(0, 5),
    seed=st.integers(0, 1000),
)
def test_equals_a_slow_loop(classes, dim, batch, margin, least_norm, seed):
    random = np.random.default_rng(seed)
    anchors = random.normal(size=(classes, dim)) * 3
    embeddings, labels = random.normal(size=(batch, dim)), random.integers(0, classes, batch)
    loss = make_loss(anchors.tolist(), margin=margin, least_norm=least_norm).double()
    with torch.no_grad():
        loss.anchors.copy_(torch.tensor(anchors))
    value = loss(torch.tensor(embeddings), torch.tensor(labels))
    expected = slow_loss(embeddings.tolist(), labels.tolist(), anchors.tolist(), margin, least_norm)
    terms = loss.terms
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(sum(expected), rel=1e-9, abs=1e-9)
    assert (terms.attractor, terms.repeller, terms.norm_floor) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("sphere", [False, True])
def test_gradients_agree_with_numerical_ones(sphere):
    torch.manual_seed(0)
    loss = ClassAnchorMargin(4, 3, margin=2.0, least_norm=1.5, sphere=sphere, start="random").double()
    labels = torch.tensor([0, 3, 1, 1, 2])
    embeddings = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    anchors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def value(points, moved):
        return torch.func.functional_call(loss, {"anchors": moved}, (points, labels))

    assert torch.autograd.gradcheck(value, (embeddings, anchors))


@pytest.mark.parametrize("sphere", [False, True])
def test_coinciding_and_zero_anchors_give_no_nan(sphere):
    loss = make_loss([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], margin=3.0, sphere=sphere)
    value = loss(torch.zeros(2, 2, requires_grad=True), torch.tensor([0, 2]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(loss.anchors.grad).all()


def test_mean_reduction_divides_by_ordered_pairs_and_anchors():
    torch.manual_seed(0)
    anchors = torch.randn(5, 3).tolist()
    assert 0 < sum(math.hypot(*anchor) < 1.5 for anchor in anchors) < 5
    embeddings, labels = torch.randn(2, 3), torch.tensor([0, 1])
    total, mean = (
        make_loss(anchors, margin=4.0, least_norm=1.5),
        make_loss(anchors, margin=4.0, least_norm=1.5, reduction="mean"),
    )
    total(embeddings, labels)
    mean(embeddings, labels)
    assert mean.terms.repeller == pytest.approx(total.terms.repeller / 20)
    assert mean.terms.norm_floor == pytest.approx(total.terms.norm_floor / 5)


def test_arithmetic_is_float32_under_autocast():
    loss = ClassAnchorMargin(3, 4, margin=8.0)
    embeddings = torch.full((2, 4), 300.0)  # its squares leave float16's range
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings.to(torch.float16), torch.tensor([0, 1]))
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


def test_starts():
    base = start_anchors(5, 8, 3.0, "base")
    assert torch.allclose(torch.pdist(base), torch.full((10,), 6.0))
    simplex = start_anchors(9, 8, 3.0, "simplex")
    assert torch.allclose(torch.pdist(simplex), torch.full((36,), 6.0), atol=1e-4)
    assert torch.allclose(simplex.mean(dim=0), torch.zeros(8), atol=1e-5)
    torch.manual_seed(0)
    random = start_anchors(50, 256, 3.0, "random")
    assert torch.pdist(random).min().item() == pytest.approx(6.0, rel=0.05)
    crowded = start_anchors(50, 2, 3.0, "random")  # the nearest two cannot be far apart: usual ones are
    assert torch.pdist(crowded).square().mean().sqrt().item() == pytest.approx(12.0, rel=0.2)
    with pytest.raises(ConfigError, match="dim >= 9"):
        start_anchors(9, 8, 3.0, "base")
    with pytest.raises(ConfigError, match="dim >= 9"):
        start_anchors(10, 8, 3.0, "simplex")


def test_one_class_has_a_direction_whatever_the_start():
    for start in ("base", "simplex", "random"):
        assert start_anchors(1, 3, 2.0, start).norm() > 0


def test_fixed_anchors_are_saved_but_not_trained():
    loss = ClassAnchorMargin(3, 4, learnable=False)
    assert list(loss.parameters()) == []
    assert "anchors" in loss.state_dict()


def train_anchors(steps, rate, optimizer, **options):
    """Train free embeddings of four classes by the loss alone and return (anchors, last value)."""
    torch.manual_seed(0)
    loss = ClassAnchorMargin(4, 8, **options)
    with torch.no_grad():
        loss.anchors.mul_(0.5)  # nearer than they start
    embeddings = torch.nn.Parameter(torch.randn(40, 8))
    labels = torch.arange(40) % 4
    chosen = optimizer([*loss.parameters(), embeddings], lr=rate)
    for _ in range(steps):
        chosen.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        chosen.step()
    return loss.anchors.detach(), value.item()


def test_anchors_collapse_without_repeller_and_floor_and_do_not_with_them():
    # The attractor alone is least when all lie in one place. Shared embeddings, as of a network that cannot yet tell
    # the classes apart, haul every anchor to the same point.
    def shrink(**weights):
        torch.manual_seed(0)
        loss = ClassAnchorMargin(4, 8, margin=2.0, start="base", **weights)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            loss(torch.zeros(8, 8), torch.arange(8) % 4).backward()
            optimizer.step()
        return torch.pdist(loss.anchors.detach()).min().item()

    assert shrink(repeller_weight=0.0, norm_weight=0.0) < 0.01
    assert shrink() > 1.0


def test_summed_repeller_under_sgd_throws_anchors_far_apart_and_mean_does_not():
    # Two anchors a hair apart at a large margin: one summed step leaps past 2m, and beyond it nothing pulls back
    # but the attractor; the mean over pairs steps gently.
    far, _ = train_anchors(1, 1.0, torch.optim.SGD, margin=50.0, start="random")
    near, _ = train_anchors(1, 1.0, torch.optim.SGD, margin=50.0, start="random", reduction="mean")
    assert torch.pdist(far).min().item() > 2 * torch.pdist(near).min().item()


def test_near_zero_start_stays_stuck_under_adam_and_a_base_start_is_there_at_once():
    # Adam moves a number by about its rate a step, however large the gradient: 2m is thousands of steps away.
    def spread(start):
        torch.manual_seed(0)
        loss = ClassAnchorMargin(4, 8, margin=8.0, start=start)
        if start == "random":
            with torch.no_grad():
                loss.anchors.mul_(1e-6)
        optimizer = torch.optim.Adam(loss.parameters(), lr=4e-3)
        for _ in range(200):
            optimizer.zero_grad()
            loss(loss.anchors.detach().repeat(2, 1), torch.arange(8) % 4).backward()
            optimizer.step()
        return torch.pdist(loss.anchors.detach()).min().item()

    assert spread("random") < 4.0
    assert spread("base") > 15.0


def test_far_start_leaves_the_repeller_idle():
    torch.manual_seed(0)
    loss = ClassAnchorMargin(10, 64, margin=2.0)
    with torch.no_grad():
        loss.anchors.normal_()  # a standard normal start at d = 64: some 11 apart, more than 2m = 4
    loss(torch.zeros(1, 64), torch.tensor([0]))
    assert loss.terms.repeller == 0.0


def test_a_label_below_zero_is_no_class():
    with pytest.raises(ValueError, match="-1 is none"):
        ClassAnchorMargin(3, 4)(torch.zeros(2, 4), torch.tensor([-1, 0]))


def test_wrong_shapes_and_settings_are_named():
    loss = ClassAnchorMargin(3, 4)
    with pytest.raises(ValueError, match=r"\(batch, 4\)"):
        loss(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        loss(torch.zeros(2, 4), torch.tensor([0]))
    for margin in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="margin"):
            ClassAnchorMargin(3, 4, margin=margin)
    with pytest.raises(ConfigError, match="reduction"):
        ClassAnchorMargin(3, 4, reduction="max")
