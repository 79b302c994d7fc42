"""The losses that class anchors are measured against: their formulas, and batches that are awkward."""

import math

import numpy as np
import pytest
import torch

from kedge.config import TrainingConfig
from kedge.errors import ConfigError
from kedge.losses import LOSSES, AdaFace, CenterLoss, ClassAnchorMargin, loss_recipe
from kedge.losses.metric_learning import metric_learning_loss

TRAINED = sorted(name for name, recipe in LOSSES.items() if recipe.build is not None)


# Settings that not every loss has, at values that are nobody's own.
OF_LOSSES = {
    "margin": 0.7,
    "scale": 7.0,
    "least_norm": 100.0,
    "anchor_start": "random",
    "learnable_anchors": False,
    "reduction": "mean",
    "label_smoothing": 0.3,
}


def built(name, num_classes=5, dim=8, **given):
    recipe = LOSSES[name]
    torch.manual_seed(0)
    return recipe.build(num_classes, dim, TrainingConfig(**{**recipe.settings, **given}))


def drawn(count=12, dim=8, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, dim, generator=generator)
    return embeddings.requires_grad_(), torch.arange(count) % classes


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 3, 4, 0, 1, 2], [3] * 8, [0, 0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 3]],
    ids=["usual", "one", "few", "pairless"],
)
def test_every_batch_has_a_finite_loss_and_gradient(name, labels):
    embeddings, _ = drawn(len(labels))
    loss = built(name)(embeddings, torch.tensor(labels))
    assert loss.shape == ()
    loss.backward()
    assert torch.isfinite(loss)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", TRAINED)
def test_equal_embeddings_have_a_finite_gradient(name):
    embeddings = torch.ones(6, 8, requires_grad=True)
    built(name)(embeddings, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_reckoned_in_float32(name, kind):
    embeddings, labels = drawn()
    rounded = embeddings.detach().to(kind)
    expected = built(name)(rounded.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = built(name)(rounded, labels)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_double_precision_stays_and_halved_parameters_are_widened(name):
    embeddings, labels = drawn()
    whole = built(name)(embeddings, labels)
    double = built(name)(embeddings.double(), labels)
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(whole.item(), rel=1e-4)
    halved = built(name).bfloat16()(embeddings, labels)
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(whole.item(), rel=0.1, abs=0.1)


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_no_batch_is_named(name):
    loss, (embeddings, labels) = built(name), drawn()
    with pytest.raises(ValueError, match=r"labels must have shape \(12,\), not \(11,\)"):
        loss(embeddings, labels[1:])
    with pytest.raises(ValueError, match=r"embeddings must have shape \(batch, .*\), not \(8,\)"):
        loss(embeddings[0], labels[:1])
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"labels number 5 classes from 0, {wrong} is none"):
            loss(embeddings, torch.where(labels == 2, wrong, labels))
    with pytest.raises(ValueError, match="a batch without pictures"):
        loss(embeddings[:0], labels[:0])


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_bring_the_loss_down(name):
    loss, (embeddings, labels) = built(name), drawn(20)
    points = torch.nn.Parameter(embeddings.detach().clone())
    optimizer = torch.optim.Adam([points, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(points, labels)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]


def test_center_loss_is_cross_entropy_and_half_the_weighted_squares():
    loss, (embeddings, labels) = CenterLoss(5, 8, weight=0.2), drawn()
    with torch.no_grad():
        loss.centers.copy_(torch.randn(5, 8))
    embeddings = embeddings.detach()
    classifier = loss.cross_entropy.classifier
    logits = (embeddings @ classifier.weight.T + classifier.bias).detach()
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        expected -= float(logits[row].log_softmax(0)[label]) / 12
        expected += 0.1 * float(((embeddings[row] - loss.centers[label].detach()) ** 2).sum()) / 12
    assert float(loss(embeddings, labels).detach()) == pytest.approx(expected, rel=1e-5)


def test_adaface_is_its_formula():
    loss, (embeddings, labels) = AdaFace(5, 8, margin=0.4, concentration=0.333, scale=10.0), drawn()
    loss.mean.fill_(2.5)
    loss.deviation.fill_(0.7)
    found = float(loss.eval()(embeddings, labels).detach())  # the averages stand still
    points, prototypes = embeddings.detach().double().numpy(), loss.prototypes.detach().double().numpy()
    total = 0.0
    for point, label in zip(points, labels.tolist(), strict=True):
        norm = float(np.linalg.norm(point))
        quality = min(1.0, max(-1.0, (norm - 2.5) / (0.7 / 0.333 + 1e-3)))
        cosines = [float(point @ p) / (norm * float(np.linalg.norm(p))) for p in prototypes]
        angle = min(math.pi - 1e-3, max(1e-3, math.acos(cosines[label]) - 0.4 * quality))  # clipped, as in its paper
        cosines[label] = math.cos(angle) - (0.4 * quality + 0.4)
        total += math.log(sum(math.exp(10 * c) for c in cosines)) - 10 * cosines[label]
    assert found == pytest.approx(total / 12, rel=1e-5)


def test_adaface_keeps_moving_averages_of_norms():
    loss, (embeddings, labels) = AdaFace(5, 8, momentum=0.9), drawn()
    norms = embeddings.detach().norm(dim=1)
    loss(embeddings, labels)
    assert float(loss.mean) == pytest.approx(0.9 * 20 + 0.1 * float(norms.mean()))
    assert float(loss.deviation) == pytest.approx(0.9 * 100 + 0.1 * float(norms.std()))


def test_the_margin_of_arcface_is_an_angle_in_radians():
    points, labels = drawn()
    build = loss_recipe("arcface").build
    torch.manual_seed(0)
    loss = build(5, 8, TrainingConfig(margin=0.3, scale=10.0))
    found = float(loss(points, labels).detach())
    weights = loss.loss.W.detach().double().numpy().T
    total = 0.0
    for point, label in zip(points.detach().double().numpy(), labels.tolist(), strict=True):
        cosines = [float(point @ w) / float(np.linalg.norm(point) * np.linalg.norm(w)) for w in weights]
        cosines[label] = math.cos(math.acos(cosines[label]) + 0.3)
        total += math.log(sum(math.exp(10 * c) for c in cosines)) - 10 * cosines[label]
    assert found == pytest.approx(total / 12, rel=1e-4)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("setting", OF_LOSSES)
def test_a_loss_takes_the_settings_that_change_it_and_no_others(name, setting):
    value = name == "fixed-anchors" if setting == "learnable_anchors" else OF_LOSSES[setting]

    def told(loss):
        with torch.no_grad():
            if isinstance(loss, ClassAnchorMargin):
                loss.anchors *= 0.5  # near enough for all to repel each other
            return float(loss(*drawn())), [float(parameter.norm()) for parameter in loss.parameters()]

    recipe, usual = LOSSES[name], told(built(name))
    assert (setting in recipe.reads) == (usual != told(built(name, **{setting: value})))
    if setting in recipe.reads:
        recipe.check([setting, "epochs"])
    else:
        with pytest.raises(ConfigError, match=f"'{setting}' is no setting of the loss {name}: leave it out"):
            recipe.check(["epochs", setting])


def test_every_loss_has_twelve_tries_its_own_settings_among_them_and_none_twice():
    for recipe in LOSSES.values():
        if recipe.build:
            optimisers, own, batches, light = recipe.tries()
            kept = [{name: recipe.settings.get(name) for name in tried} for tried in own]
            assert all(tried != usual for tried, usual in zip(own, kept, strict=True)), recipe.name
            mine = {name: recipe.settings[name] for name in ("optimizer", "learning_rate", "weight_decay")}
            assert sum(mine.items() <= tried.items() for tried in optimisers) == 1
            # The recipe's own, whatever the defaults with few pictures are.
            stated = {name: recipe.settings.get(name) for tried in own for name in tried}
            stated = {name: value for name, value in stated.items() if value is not None}
            assert all(
                {**stated, "brightness": recipe.settings.get("brightness", 0.4)}.items() <= t.items()
                for t in optimisers
            )
            of_pairs = recipe.name in ("contrastive", "triplet", "supcon", "multi-similarity")
            assert batches == ({"batch_size": 200 if of_pairs else 50},)
            assert recipe.settings["batch_size"] in (100, recipe.batch_try)
            assert [tried["brightness"] for tried in light] == [0.4 - recipe.settings.get("brightness", 0.4)]
            assert sum(map(len, recipe.tries())) == 12


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match="arcface"):
        loss_recipe("arc-face")
    with pytest.raises(ConfigError, match="did you mean 'cam'"):
        loss_recipe("CAM")


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_of_any_whole_numbers_are_the_same_classes(name, kind):
    embeddings, labels = drawn(5)
    expected = built(name)(embeddings, labels.flip(0))
    assert built(name)(embeddings, labels.flip(0).to(kind)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_labels_that_are_no_whole_numbers_are_refused(name, kind):
    embeddings, labels = drawn(5)
    with pytest.raises(ValueError, match="whole numbers"):
        built(name)(embeddings, labels.to(kind))


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_a_batch_leaves_the_parameters_their_type(name, own):
    loss = built(name).to(own)
    optimizer = torch.optim.AdamW([*loss.parameters(), torch.nn.Parameter(torch.zeros(1))])
    for kind in (torch.float32, torch.float64):
        embeddings, labels = drawn()
        loss(embeddings.to(kind), labels).backward()
        optimizer.step()
    assert {parameter.dtype for parameter in loss.parameters()} <= {own}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("contrastive", {"pos_margin": 0.0, "neg_margin": 1.0}),
        ("triplet", {"margin": 0.2}),
        ("arcface", {"margin": pytest.approx(0.5, abs=1e-3), "scale": 64}),
        ("cosface", {"margin": 0.35, "scale": 64}),
        ("proxy-anchor", {"margin": 0.1, "alpha": 32}),
        ("proxy-nca", {"softmax_scale": 3}),
        ("supcon", {"temperature": 0.1}),
        ("multi-similarity", {"alpha": 2, "beta": 50, "base": 0.5}),
    ],
)
def test_what_nobody_sets_is_as_the_authors_have_it(name, published):
    loss = metric_learning_loss(name, 5, 8).loss
    # The library keeps the first of these by other names.
    for parts in (getattr(loss, "loss_fn", None), getattr(loss, "proxy_loss", None), loss):
        found = {setting: getattr(parts, setting) for setting in published if hasattr(parts, setting)}
        if found:
            break
    assert found == published


def test_pairs_are_mined_as_the_authors_do():
    triplets, pairs = (metric_learning_loss(name, 5, 8).miner for name in ("triplet", "multi-similarity"))
    assert (type(triplets).__name__, triplets.type_of_triplets) == ("TripletMarginMiner", "semihard")
    assert triplets.margin == 0.2
    assert (type(pairs).__name__, pairs.epsilon) == ("MultiSimilarityMiner", 0.1)


def test_adaface_of_one_picture_and_of_a_huge_one():
    loss, point = AdaFace(5, 8), torch.ones(1, 8)
    assert torch.isfinite(loss(point, torch.tensor([0])))
    assert (float(loss.mean), float(loss.deviation)) == (20.0, 100.0)  # one norm has no deviation
    loss.eval()
    far, farther = (float(loss(1000 * scale * point, torch.tensor([0])).detach()) for scale in (0.1, 1.0))
    assert far == pytest.approx(farther)  # norms count up to 100
