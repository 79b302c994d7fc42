"""Torch runtime: the network built from a model's weights gives what its graph gives, or is refused."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn import functional as F

import kedge
from kedge.anchors import Anchors
from kedge.errors import ModelError
from kedge.export import export_encoder
from kedge.model import ANCHORS, WEIGHTS, Model, ModelCard, Preprocessing
from kedge.network import Network, StoredEmbedding
from tests.models import make_model

SIZE, DIM = 32, 8


def model_of(folder, stored, **trained):
    """Write a model folder as training does."""
    folder.mkdir()
    export_encoder(stored, folder, SIZE)
    anchors = Anchors(("red", "green"), np.eye(2, stored.dim, dtype=np.float32))
    card = ModelCard(
        kedge_version="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
        classes=anchors.names,
        dim=stored.dim,
        distance="cosine",
        preprocessing=Preprocessing(image_size=SIZE),
        trained={"backbone": "resnet10-half", "dataset": "photos", "train_pictures": 8, **trained},
    )
    anchors.save(folder / ANCHORS)
    card.write(folder)
    return Model.load(folder)


def network(*, dim, on_sphere):
    torch.manual_seed(1)
    made = Network("resnet10-half", image_size=SIZE, dim=dim, pretrained=False, on_sphere=on_sphere)
    made.feature_mean.normal_()
    return made


@pytest.fixture
def sharpened(tmp_path):
    anchors = F.normalize(torch.randn(2, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    stored = StoredEmbedding(network(dim=DIM, on_sphere=True), "embedding", anchors=anchors, sharpening=1.5)
    return model_of(tmp_path / "model", stored, loss="cam-sphere", dim=DIM, sharpening=1.5)


@pytest.fixture
def squares():
    return np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)


def same(model, squares):
    by_graph = kedge.Encoder(model, runtime="onnxruntime", threads=1).encode(squares)
    by_torch = kedge.Encoder(model, runtime="torch").encode(squares)
    np.testing.assert_allclose(by_torch, by_graph, atol=1e-5)


def test_sharpened_embeddings(sharpened, squares):
    same(sharpened, squares)


@pytest.mark.parametrize("classes", [63, 64, 100])
def test_sharpened_embeddings_are_the_same_by_every_runtime_for_any_number_of_classes(classes, squares, tmp_path):
    """OpenVINO has taken a square matrix of anchors for its transpose."""
    dim = 100 if classes == 100 else 64
    anchors = torch.randn(classes, dim, generator=torch.Generator().manual_seed(1))
    stored = StoredEmbedding(network(dim=dim, on_sphere=False), "embedding", anchors=anchors, sharpening=16.0)
    model = model_of(tmp_path / "model", stored, loss="cam", dim=dim, sharpening=16.0)
    same(model, squares)
    by_graph, by_openvino = (
        kedge.Encoder(model, runtime=name, threads=1).encode(squares, raw=True) for name in ("onnxruntime", "openvino")
    )
    np.testing.assert_allclose(by_openvino, by_graph, atol=1e-4)
    # The sixteenth powers of small cosines are 0 in float32, were they not taken relative to the largest.
    np.testing.assert_allclose(np.linalg.norm(by_graph, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("features", ["pooled", "joint"])
def test_other_features(features, squares, tmp_path):
    stored = StoredEmbedding(network(dim=DIM, on_sphere=True), features)
    if features == "joint":
        stored.earlier_mean.normal_()
    same(model_of(tmp_path / "model", stored, loss="cam-sphere", dim=DIM, features=features), squares)


def test_weights_that_lack_what_is_stored_now_are_said(squares, tmp_path):
    stored = StoredEmbedding(network(dim=DIM, on_sphere=True), "joint")
    model = model_of(tmp_path / "model", stored, loss="cam-sphere", dim=DIM, features="joint")
    weights = {name: tensor for name, tensor in load_file(model.folder / WEIGHTS).items() if name != "earlier_mean"}
    save_file(weights, model.folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"its weights lack earlier_mean.*leave --runtime torch out"):
        kedge.Encoder(model, runtime="torch").encode(squares)


def test_a_tensor_with_two_names_is_kept_by_both(squares, tmp_path):
    made = network(dim=DIM, on_sphere=True)
    made.twin = made.head
    stored = StoredEmbedding(made, "embedding")
    model = model_of(tmp_path / "model", stored, loss="cam-sphere", dim=DIM)
    weights = load_file(model.folder / WEIGHTS)
    np.testing.assert_array_equal(weights["network.twin.weight"], weights["network.head.weight"])
    kedge.Encoder(model, runtime="onnxruntime", threads=1).encode(squares[:1])


def test_means_over_mirror_images(squares, tmp_path):
    stored = StoredEmbedding(network(dim=DIM, on_sphere=True), "joint", mirrored=True)
    stored.earlier_mean.normal_()
    settings = {"loss": "cam-sphere", "dim": DIM, "features": "joint", "mirrored": True}
    model = model_of(tmp_path / "model", stored, **settings)
    same(model, squares)
    same(model, squares[:1])
    encoder = kedge.Encoder(model, runtime="onnxruntime", threads=1)
    np.testing.assert_allclose(encoder.encode(squares[:, :, ::-1].copy()), encoder.encode(squares), atol=1e-5)


def test_softmax_features_of_a_network_without_head(squares, tmp_path):
    stored = StoredEmbedding(network(dim=None, on_sphere=False), "softmax", classifier=nn.Linear(256, 2))
    same(model_of(tmp_path / "model", stored, loss="cross-entropy", head="none", features="softmax"), squares)


def test_bfloat16_is_near(sharpened, squares):
    sharpened.write_card(sharpened.card.model_copy(update={"precision": "bfloat16"}))
    near = kedge.Encoder(sharpened.folder, runtime="torch").encode(squares)
    exact = kedge.Encoder(make_float32(sharpened), runtime="onnxruntime").encode(squares)
    assert 1e-6 < np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.05


def make_float32(model):
    model.write_card(model.card.model_copy(update={"precision": "float32"}))
    return model.folder


def test_weights_that_differ_from_the_graph_are_refused(sharpened, squares, monkeypatch):
    expected = kedge.Encoder(sharpened, runtime="onnxruntime", threads=1).encode(squares)
    path = sharpened.folder / "weights.safetensors"
    weights = load_file(path)
    weights["network.head.weight"] += 0.1
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"differs from the model's graph by .*--runtime torch"):
        kedge.Encoder(sharpened, runtime="torch")
    weights.pop("network.head.weight")
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"cannot be built anew .*--runtime torch"):
        kedge.Encoder(sharpened, runtime="torch")
    # Where nobody asked for torch, the graph does it.
    monkeypatch.setattr("kedge.runtime.has_gpu", lambda: True)
    np.testing.assert_allclose(kedge.Encoder(sharpened).encode(squares), expected, atol=1e-5)


def test_models_without_weights_and_in_int8_are_refused(sharpened, tmp_path):
    with pytest.raises(ModelError, match=r"has no weights\.safetensors"):
        kedge.Encoder(make_model(tmp_path / "other"), runtime="torch")
    sharpened.write_card(sharpened.card.model_copy(update={"precision": "int8"}))
    with pytest.raises(ModelError, match="int8"):
        kedge.Encoder(sharpened.folder, runtime="torch")
