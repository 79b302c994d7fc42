"""The repeller at any number of anchors: against a slow sum in float64, exact where it says so, unbiased where not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.errors import InputError
from kedge.losses import ClassAnchorMargin, class_anchor_margin, repeller
from kedge.losses.repeller import PairWatch, full_repeller, sampled_repeller


def slow_repeller(anchors, margin):
    """Half the sum over ordered pairs, and its gradient, pair by pair in float64."""
    points = anchors.detach().double().numpy()
    total, gradient = 0.0, np.zeros_like(points)
    for i in range(len(points)):
        for j in range(len(points)):
            apart = np.linalg.norm(points[i] - points[j])
            if i != j and apart < 2 * margin:
                total += 0.5 * (2 * margin - apart) ** 2
                gradient[i] -= 2 * (2 * margin - apart) * (points[i] - points[j]) / max(apart, 1e-12)
    return total, gradient


def with_gradient(function, anchors, *arguments):
    anchors = anchors.detach().clone().requires_grad_()
    value = function(anchors, *arguments)
    value.backward()
    return value.item(), anchors.grad.double().numpy()


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("block", [1 << 24, 64])
def test_full_sum_and_gradient_equal_the_slow_ones(offset, block, monkeypatch):
    monkeypatch.setattr(repeller, "BLOCK", block)  # whole, or a few rows at a time
    torch.manual_seed(0)
    anchors = torch.randn(30, 5) + offset
    anchors[7] = anchors[3] + 1e-4  # a close pair, where products cancel
    value, gradient = with_gradient(full_repeller, anchors, 1.0)
    expected, slope = slow_repeller(anchors, 1.0)
    assert value == pytest.approx(expected, rel=1e-5)
    # The direction of the close pair is known as well as its difference is in float32.
    others = np.setdiff1d(np.arange(30), [3, 7])
    np.testing.assert_allclose(gradient[others], slope[others], atol=2e-4 if offset == 0 else 5e-3)
    np.testing.assert_allclose(gradient, slope, atol=1e-2 if offset == 0 else 0.2)


def test_gradient_passes_the_numerical_check():
    torch.manual_seed(1)
    anchors = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([2, 9, 5])
    assert torch.autograd.gradcheck(lambda points: full_repeller(points, 1.0), (anchors,))
    assert torch.autograd.gradcheck(lambda points: sampled_repeller(points, rows, 1.0), (anchors,))


def test_second_derivatives_are_refused():
    """They would lack the repeller's part."""
    anchors = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(InputError, match="no second derivatives"):
        torch.autograd.grad(full_repeller(anchors, 3.0) + anchors.sum(), anchors, create_graph=True)


def test_estimate_is_unbiased_in_value_and_gradient():
    torch.manual_seed(2)
    anchors = torch.randn(9, 3, dtype=torch.float64)
    draws = [with_gradient(sampled_repeller, anchors, torch.tensor([i, j]), 1.0) for i in range(9) for j in range(i)]
    expected, slope = slow_repeller(anchors, 1.0)
    assert np.mean([value for value, _ in draws]) == pytest.approx(expected)
    np.testing.assert_allclose(np.mean([gradient for _, gradient in draws], axis=0), slope, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.lists(st.tuples(st.floats(0.0, 1.5), st.integers(1, 60)), min_size=5, max_size=25),
    rows=st.integers(1, 80),
)
def test_watched_pairs_give_the_full_sum_whenever_they_say_so(seed, steps, rows):
    # Sixty anchors wander; each step some of them leap by some length, small or beyond what the skin allows.
    torch.manual_seed(seed)
    anchors = torch.randn(60, 6, dtype=torch.float64) * 2.5
    watch, exact = PairWatch(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeller, "ROWS", rows)
        patch.setattr(repeller, "PAIRS", 100)
        for length, count in steps:
            chosen = torch.randperm(60)[:count]
            anchors[chosen] += length * torch.nn.functional.normalize(torch.randn(count, 6, dtype=torch.float64))
            value, gradient = with_gradient(watch, anchors, 1.0, "sum")
            if watch.exact:
                exact += 1
                expected, slope = slow_repeller(anchors, 1.0)
                assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
                np.testing.assert_allclose(gradient, slope, atol=1e-9)
    if rows >= 60:
        assert exact == len(steps)  # every step may compare all that moved


def test_watch_gives_up_a_crowded_list_and_comes_back():
    torch.manual_seed(3)
    watch, anchors = PairWatch(), torch.randn(500, 4) * 0.1
    watch(anchors, 1.0, "sum")
    assert not watch.exact
    spread = torch.randn(500, 64) * 4
    found = []
    for _ in range(400):
        watch(spread, 1.0, "sum")
        found.append(watch.exact)
    assert found[-1]
    assert not found[0]


def test_loss_of_many_classes_is_exact_once_all_anchors_are_compared():
    torch.manual_seed(4)
    loss = ClassAnchorMargin(500, 16, margin=1.0, start="random")
    embeddings, labels = torch.randn(8, 16), torch.arange(8)
    for _ in range(-(-500 // repeller.ROWS)):
        value = loss(embeddings, labels)
    assert loss.exact
    expected, _ = slow_repeller(loss.anchors, 1.0)
    assert loss.terms.repeller == pytest.approx(expected, rel=1e-4)
    value.backward()
    assert torch.isfinite(loss.anchors.grad).all()


def test_loss_of_many_classes_on_the_sphere_is_an_estimate_about_the_full_sum():
    torch.manual_seed(5)
    loss = ClassAnchorMargin(400, 16, margin=1.0, sphere=True, start="random")
    embeddings, labels = torch.randn(8, 16), torch.arange(8)
    drawn = []
    for _ in range(200):
        loss(embeddings, labels)
        drawn.append(loss.terms.repeller)
    assert not loss.exact
    expected, _ = slow_repeller(torch.nn.functional.normalize(loss.anchors), 1.0)
    assert np.mean(drawn) == pytest.approx(expected, rel=0.02)


def test_fixed_anchors_of_many_classes_are_summed_once_and_exactly():
    torch.manual_seed(6)
    loss = ClassAnchorMargin(400, 8, margin=1.0, start="random", learnable=False)
    loss(torch.zeros(2, 8), torch.tensor([0, 1]))
    expected, _ = slow_repeller(loss.anchors, 1.0)
    assert loss.exact
    assert loss.terms.repeller == pytest.approx(expected, rel=1e-5)
    loss.anchors.mul_(0.5)  # as when saved ones are loaded
    loss(torch.zeros(2, 8), torch.tensor([0, 1]))
    assert loss.terms.repeller == pytest.approx(slow_repeller(loss.anchors, 1.0)[0], rel=1e-5)


def test_very_many_fixed_anchors_are_estimated_once():
    torch.manual_seed(7)
    loss = ClassAnchorMargin(12_000, 4, margin=1.0, start="random", learnable=False)
    loss(torch.zeros(2, 4), torch.tensor([0, 1]))
    value = loss.terms.repeller
    assert not loss.exact
    assert value == pytest.approx(float(full_repeller(loss.anchors, 1.0)), rel=0.1)
    loss(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert loss.terms.repeller == value
    assert not loss.exact


@pytest.mark.parametrize("count", [1, 2])
def test_one_anchor_has_nobody_to_repel_and_two_have_each_other(count):
    anchors = torch.zeros(count, 3)
    anchors[-1, 0] = 1.0
    value, gradient = with_gradient(full_repeller, anchors, 1.0)
    assert value == pytest.approx([0.0, 1.0][count - 1])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_training_goes_on_after_a_validation_in_inference_mode(kind):
    torch.manual_seed(8)
    loss = ClassAnchorMargin(500, 16, margin=1.0, start="random").to(kind)
    embeddings, labels = torch.randn(8, 16), torch.arange(8)
    for _ in range(30):
        with torch.inference_mode():
            loss(embeddings, labels)
        loss.zero_grad()
        loss(embeddings, labels).backward()
        with torch.no_grad():
            loss.anchors -= 0.001 * loss.anchors.grad.clamp(-1, 1)
    assert loss.exact
    assert torch.isfinite(loss.anchors.grad).all()


@pytest.mark.parametrize("sphere", [False, True])
@pytest.mark.parametrize("count", [5, 500])
def test_an_anchor_that_is_no_number_is_never_hidden(count, sphere):
    loss = ClassAnchorMargin(count, 16, margin=1.0, start="random", sphere=sphere)
    embeddings, labels = torch.randn(2, 16), torch.tensor([0, 1])
    for _ in range(30):
        loss(embeddings, labels)
    with torch.no_grad():
        loss.anchors[count - 1] = torch.nan
    assert loss(embeddings, labels).isnan()


def test_fixed_anchors_are_summed_anew_for_another_margin():
    loss = ClassAnchorMargin(20, 8, margin=1.0, start="random", learnable=False)
    for margin in (1.0, 3.0):
        loss.margin = margin
        loss(torch.zeros(2, 8), torch.tensor([0, 1]))
        assert loss.terms.repeller == pytest.approx(slow_repeller(loss.anchors, margin)[0], rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.floats(0.02, 0.09))
def test_anchors_that_creep_within_the_skin_stay_listed(seed, length):
    torch.manual_seed(seed)
    anchors, watch = torch.randn(60, 3, dtype=torch.float64) * 1.5, PairWatch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeller, "ROWS", 60)
        patch.setattr(repeller, "PAIRS", 100)
        for _ in range(20):
            anchors += length * torch.nn.functional.normalize(torch.randn(60, 3, dtype=torch.float64))
            value, _ = with_gradient(watch, anchors, 1.0, "sum")
            assert watch.exact
            assert value == pytest.approx(full_repeller(anchors, 1.0).item(), rel=1e-7)


def test_a_watched_mean_is_that_of_the_full_sum_and_another_margin_begins_anew():
    torch.manual_seed(0)
    anchors, watch = torch.randn(500, 16), PairWatch()
    for margin in (1.3, 1.5):
        for _ in range(20):
            value = watch(anchors, margin, "mean")
        assert watch.exact
        assert value.item() == pytest.approx(full_repeller(anchors, margin, "mean").item(), rel=1e-4)
        assert value > 0


def test_what_the_watch_estimates_is_about_the_full_sum():
    torch.manual_seed(0)
    # The first are crowded, the others are not: rows that are not drawn at random would tell another sum.
    anchors = torch.cat([torch.randn(250, 4) * 0.1, torch.randn(250, 4) * 3])
    watch = PairWatch()
    drawn = [watch(anchors, 1.0, "sum").item() for _ in range(300)]
    assert not watch.exact
    assert np.mean(drawn) == pytest.approx(full_repeller(anchors, 1.0).item(), rel=0.05)


def test_a_crowded_list_is_left_alone_for_a_while(monkeypatch):
    watch, anchors, compared = PairWatch(), torch.randn(500, 4) * 0.1, []
    compare = PairWatch._compare
    monkeypatch.setattr(PairWatch, "_compare", lambda *given: compared.append(1) or compare(*given))
    for _ in range(100):
        watch(anchors, 1.0, "sum")
    assert len(compared) < 10


def test_a_common_offset_changes_nothing():
    torch.manual_seed(0)
    anchors = (torch.randn(30, 5) * 16).round() / 16  # exact in float32 beside the offset
    value, gradient = with_gradient(full_repeller, anchors, 1.0)
    moved, same = with_gradient(full_repeller, anchors + 1e4, 1.0)
    assert moved == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(same, gradient, atol=1e-2)


@pytest.mark.parametrize("rows", [None, [3, 0, 11]])
def test_anchors_put_on_a_sphere_repel_as_their_points_there_do(rows):
    torch.manual_seed(0)
    anchors = torch.randn(40, 3, dtype=torch.float64) * 5
    chosen = () if rows is None else (torch.tensor(rows),)
    of_points = full_repeller if rows is None else sampled_repeller

    def along(moved):
        return of_points(2.0 * torch.nn.functional.normalize(moved, dim=1), *chosen, 1.5)

    value, gradient = with_gradient(along, anchors)
    found, same = with_gradient(lambda moved: of_points(moved, *chosen, 1.5, radius=2.0), anchors)
    assert found == pytest.approx(value)
    np.testing.assert_allclose(same, gradient, rtol=1e-9, atol=1e-9)


def test_many_anchors_on_the_sphere_have_the_gradient_of_few():
    torch.manual_seed(0)
    anchors, points, labels = torch.randn(20, 6), torch.randn(8, 6), torch.arange(8)
    found = []
    for most in (384, 4):
        with pytest.MonkeyPatch.context() as patch:
            for module in (repeller, class_anchor_margin):
                patch.setattr(module, "MOST_SUMMED", most)
            patch.setattr(class_anchor_margin, "ROWS", 20)  # all of them: the estimate is the sum
            loss = ClassAnchorMargin(20, 6, margin=2.0, sphere=True, start="random")
            with torch.no_grad():
                loss.anchors.copy_(anchors)
            value = loss(points, labels)
            value.backward()
            found.append((value.item(), loss.anchors.grad.numpy(), loss.exact))
    assert [exact for *_, exact in found] == [True, False]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
