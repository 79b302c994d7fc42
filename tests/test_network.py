"""Networks: any backbone gives features of the right shape, and small pictures are not shrunk to nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kedge.errors import ConfigError
from kedge.losses.class_anchor_margin import start_anchors
from kedge.network import Network, StoredEmbedding, build_backbone, earlier_dim, sharpened


def network(backbone="resnet10-half", image_size=32, dim=8, on_sphere=False):
    torch.manual_seed(0)
    return Network(backbone, image_size=image_size, dim=dim, pretrained=False, on_sphere=on_sphere).eval()


def pictures(size, count=2):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("backbone", "size"),
    # The last one's pooled features are longer than its `num_features`.
    [("resnet10-half", 64), ("resnet18", 32), ("swin_tiny_patch4_window7_224", 64), ("mobilenetv3_small_050", 64)],
)
def test_pictures_to_embeddings(backbone, size):
    embeddings, pooled = network(backbone, size)(pictures(size))
    assert embeddings.shape == (2, 8)
    assert pooled.shape[0] == 2
    assert torch.isfinite(embeddings).all()


def test_backbones_that_cannot_read_a_size_say_so():
    for name, size in (("dla34", 96), ("xcit_nano_12_p16_224", 100), ("maxvit_tiny_tf_224", 100)):
        with pytest.raises(ConfigError, match=rf"{name} cannot read squares of \d+ px \(.+\).*--image-size"):
            network(name, size)
    assert network("dla34", 256)(pictures(256))[1].shape == (2, 512)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_feature_map_of_small_pictures_is_at_least_four_wide(name, size):
    backbone = build_backbone(name, image_size=size, pretrained=False).eval()
    with torch.inference_mode():
        assert backbone.forward_features(torch.zeros(1, 3, size, size)).shape[-1] >= 4


def test_network_sees_the_middle_that_it_is_trained_on():
    net, given = network(image_size=64), pictures(64)
    assert net.view_size == 56
    assert torch.allclose(net.pool(given), net.pool(given[:, 4:60, 4:60]))


def test_embedding_on_the_sphere_is_unit_length():
    embeddings, _ = network(on_sphere=True)(pictures(32))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2))


def test_normalisation_is_part_of_the_graph():
    net = network()
    black = net.pool(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    by_hand = net.backbone((torch.zeros(1, 3, 28, 28) - net.mean) / net.std)
    assert torch.allclose(black, by_hand, atol=1e-3)


def test_stored_features():
    net, given = network(dim=8), pictures(32)
    embeddings, pooled = net(given)
    assert torch.equal(StoredEmbedding(net, "embedding")(given), embeddings)
    assert torch.equal(StoredEmbedding(net, "pooled")(given), pooled)
    joint = StoredEmbedding(net, "joint")
    stored = joint(given)
    assert stored.shape == (2, joint.dim) == (2, 8 + 256 + 128)
    maps = net.backbone.stages[:-1](net.backbone.stem((given[:, 2:30, 2:30].permute(0, 3, 1, 2) - net.mean) / net.std))
    joint.earlier_mean.normal_()
    net.feature_mean.normal_()
    for part, of in (
        (joint(given)[:, :8], embeddings),
        (joint(given)[:, 8:264], pooled - net.feature_mean),
        (joint(given)[:, 264:], maps.mean(dim=(2, 3)) - joint.earlier_mean),
    ):
        assert torch.allclose(part, F.normalize(of, dim=1) / 3**0.5, atol=1e-5)


@pytest.mark.parametrize(
    "backbone", ["resnet10-half", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_stages_are_those_that_are_pooled(backbone):
    size = 224 if "224" in backbone else 32
    net, given = network(backbone, image_size=size), pictures(size)
    pooled, earlier = net.pool_stages(given)
    assert torch.allclose(pooled, net.pool(given), atol=1e-5)
    assert earlier.shape == (2, earlier_dim(net))
    assert not net.training


def test_stages_that_end_elsewhere_than_what_is_pooled_are_said(monkeypatch):
    net = network()
    stages = type(net.backbone).forward_intermediates

    def another(backbone, given, indices):
        last, maps = stages(backbone, given, indices)
        return last + 1, maps

    monkeypatch.setattr(type(net.backbone), "forward_intermediates", another)
    with pytest.raises(ConfigError, match="its last stage is another than it pools"):
        earlier_dim(net)


def test_a_backbone_that_does_not_tell_its_stages_is_said():
    net = network("hiera_tiny_224", image_size=224)
    with pytest.raises(ConfigError, match="does not tell its stages apart"):
        StoredEmbedding(net, "joint")


@pytest.mark.parametrize("on_sphere", [True, False])
def test_a_picture_and_its_mirror_image_are_stored_as_one(on_sphere):
    net, given = network(dim=8, on_sphere=on_sphere), pictures(32)
    stored = StoredEmbedding(net, "embedding", mirrored=True)(given)
    mean = torch.stack([net(picture[None])[0][0] + net(picture.flip(1)[None])[0][0] for picture in given]) / 2
    assert torch.allclose(stored, F.normalize(mean, dim=1) if on_sphere else mean, atol=1e-5)
    assert torch.allclose(
        StoredEmbedding(net, "joint", mirrored=True)(given.flip(2)),
        StoredEmbedding(net, "joint", mirrored=True)(given),
        atol=1e-5,
    )
    assert not torch.allclose(net(given.flip(2))[0], net(given)[0], atol=1e-3)


def test_sharpening_by_hand():
    # Their mean is 0. cos 0.6, -0.6, -0.8 and 0.8, squared with their signs: 2 x (0.36, -0.64) is their sum.
    anchors = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    found = sharpened(torch.tensor([[3.0, -4.0]]), anchors, 2.0)
    assert torch.allclose(found, torch.tensor([[0.36, -0.64]]) / (0.36**2 + 0.64**2) ** 0.5)
    assert torch.allclose(sharpened(torch.tensor([[0.6, -0.8]]), anchors, 1.0), torch.tensor([[0.6, -0.8]]))


def test_sharpening_against_a_slow_sum():
    random = np.random.default_rng(3)
    # As class means have, the anchors have something in common: it is taken off.
    vectors, anchors = (1.0 + random.normal(size=(count, 6)) for count in (4, 9))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    centre = sum(anchors) / 9
    turned = sharpened(torch.from_numpy(vectors).float(), torch.from_numpy(anchors).float(), 1.5)
    for vector, found in zip(vectors, turned, strict=True):
        off = vector / np.linalg.norm(vector) - centre
        total = np.zeros(6)
        for anchor in anchors:
            point = (anchor - centre) / np.linalg.norm(anchor - centre)
            cosine = off @ point / np.linalg.norm(off)
            total += np.copysign(abs(cosine) ** 1.5, cosine) * point
        assert np.allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_sharpening_leaves_the_corners_of_a_simplex_and_turns_others_to_the_nearest():
    anchors = F.normalize(start_anchors(5, 8, 1.0, "simplex"), dim=1)
    assert torch.allclose(sharpened(anchors, anchors, 1.5), anchors, atol=1e-6)
    between = F.normalize(anchors[0] * 0.6 + anchors[1] * 0.4, dim=0)[None]
    nearer = sharpened(between, anchors, 1.5)
    assert float(nearer @ anchors[0]) > float(between @ anchors[0]) > float(between @ anchors[1])


@pytest.mark.parametrize("features", ["embedding", "pooled", "joint"])
def test_stored_vectors_are_sharpened(features):
    net, given = network(dim=8), pictures(32)
    plain = StoredEmbedding(net, features)
    anchors = torch.randn(3, plain.dim)
    stored = StoredEmbedding(net, features, anchors=anchors, sharpening=6.0)
    assert torch.allclose(stored(given), sharpened(plain(given), anchors, 6.0), atol=1e-6)


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match="resnet18"):
        network("resnet_18")
    with pytest.raises(ConfigError, match="resnet10-half"):
        build_backbone("resnet10-half", image_size=32, pretrained=True)


def test_pretrained_weights_that_cannot_be_had_are_said(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ConfigError, match=r"resnet18.*no route to host.*--pretrained"):
        build_backbone("resnet18", image_size=64, pretrained=True)
