"""Training: from pictures to a whole model folder, resumed after a kill, stopped with a reason."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import kedge
from kedge.anchors import Anchors
from kedge.augmentation import mixed_up
from kedge.batches import LabelledBatches
from kedge.config import TrainingConfig
from kedge.defaults import resolve
from kedge.distances import unit_length
from kedge.encoder import Encoder
from kedge.errors import ConfigError, DatasetError, DivergedError, InputError, ModelError, WorkError
from kedge.losses import LOSSES, ClassAnchorMargin
from kedge.network import Network, StoredEmbedding, sharpened
from kedge.torch_device import training_precision
from kedge.torch_runtime import restore_network
from kedge.training_loop import EmbeddingTraining, _CheckpointIO, fit
from tests.pictures import draw_classes

FAST = {"image_size": 32, "epochs": 2, "batch_size": 16, "dim": 8, "quiet": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draw_classes(root, ["circle", "square", "cross"], each=24, size=32, seed=0)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "model"
    return kedge.train(photos, out, **FAST)


def test_model_folder_is_whole_and_readable(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names == {
        "kedge.json",
        "encoder.onnx",
        "weights.safetensors",
        "anchors.safetensors",
        "splits.json",
        "metrics.jsonl",
        "report.html",
    }
    assert not trained.folder.with_name("model.partial").exists()
    card = json.loads((trained.folder / "kedge.json").read_text())
    assert card["classes"] == ["circle", "cross", "square"]
    assert card["trained"]["loss"] == "cam-sphere"
    assert card["scores"]["test"]["map"] > 0
    lines = trained.metrics()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"loss", "attractor", "repeller", "norm_floor", "auxiliary", "validation_map"} <= set(lines[0])


def test_whoever_may_read_the_card_may_read_the_model(trained):
    modes = {path.stat().st_mode for path in trained.folder.iterdir()}
    assert modes == {(trained.folder / "kedge.json").stat().st_mode}


@pytest.mark.parametrize(("may_use", "takes"), [(1, 1), (64, 2)])
def test_training_takes_no_more_threads_than_it_may_use(may_use, takes, photos, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr("kedge.training.own_cores", lambda: may_use)
        kedge.train(photos, tmp_path / "model", **{**FAST, "epochs": 1}, evaluate=False)
        assert torch.get_num_threads() == takes
    finally:
        torch.set_num_threads(before)


def test_pictures_left_out_are_named(photos, tmp_path, capsys):
    rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    missing = [f"{tmp_path}/gone{number}.png,circle" for number in range(25)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, *missing]))
    kedge.train(tmp_path / "list.csv", tmp_path / "model", **{**FAST, "quiet": False, "epochs": 1})
    said = capsys.readouterr()
    assert "gone0.png: no such file" in said.out + said.err
    assert "left out 5 more" in said.out + said.err
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, f"{tmp_path}/gone.png,ring"]))
    with pytest.raises(DatasetError, match=r"class 'ring' has no training picture .*gone\.png: no such file"):
        kedge.train(tmp_path / "list.csv", tmp_path / "other", **FAST)


def test_a_test_picture_that_cannot_be_read_is_named(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    broken = sorted((tmp_path / "photos").rglob("*.png"))[0]
    for number in range(200):
        broken.write_bytes(b"no picture %d" % number)
        if str(broken) in kedge.load_dataset(tmp_path / "photos").test.paths:
            break
    else:
        pytest.fail("never drawn to test on")
    kedge.train(tmp_path / "photos", tmp_path / "model", **{**FAST, "quiet": False, "epochs": 1})
    assert capsys.readouterr().err.count(f"left out {broken}: not a picture that can be read") == 1


def test_a_model_is_kept_where_no_test_picture_can_be_read(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos" / "train")
    for number, name in enumerate(("circle", "square", "cross")):
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        (tmp_path / "photos" / "test" / name / "0.png").write_bytes(b"version https://git-lfs %d" % number)
    model = kedge.train(tmp_path / "photos", tmp_path / "model", loss="none", **{**FAST, "dim": None, "quiet": False})
    assert "none of the 3 test pictures of photos can be read" in capsys.readouterr().err
    assert "test" not in model.card.scores
    with pytest.raises(DatasetError, match="none of the 3 test pictures"):
        kedge.evaluate(model, tmp_path / "photos")


def test_a_model_goes_to_its_place_from_another_file_system(photos, tmp_path, monkeypatch):
    rename = Path.rename

    def across(place, to):
        if place.parent.name == "state":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(place, to)

    monkeypatch.setattr(Path, "rename", across)
    model = kedge.train(photos, tmp_path / "model", loss="none", state=tmp_path / "state", **{**FAST, "dim": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "state"]
    assert (model.folder / "report.html").is_file()
    assert not (tmp_path / "state" / "model").exists()


def test_one_picture_a_class_to_validate_on_has_no_map(tmp_path):
    draw_classes(tmp_path / "photos", ["circle", "square"], each=4, size=32, seed=0)
    model = kedge.train(tmp_path / "photos", tmp_path / "model", **FAST)
    assert [line.get("validation_map") for line in model.metrics()] == [None, None]
    assert "NaN" not in (model.folder / "metrics.jsonl").read_text()


def test_held_out_pictures_calibrate_what_is_known(trained, photos):
    validation = kedge.load_dataset(photos, membership=trained.splits()).validation.decode(32)
    vectors = Encoder(trained).encode(validation.pixels)
    distances = np.linalg.norm(vectors[:, None] - trained.search_anchors.vectors[None], axis=2).min(axis=1)
    assert trained.card.anchor_distances[0] == pytest.approx(distances.min(), abs=1e-4)
    assert trained.card.anchor_distances[-1] == pytest.approx(distances.max(), abs=1e-4)


def test_membership_covers_every_picture_once(trained, photos):
    splits = trained.splits()
    dataset = kedge.load_dataset(photos)
    assert sorted(splits) == sorted({*dataset.gallery.hashes, *dataset.test.hashes})
    assert {splits[content] for content in dataset.test.hashes} == {"test"}
    # Another seed would validate on others; the stored membership decides.
    assert sorted(kedge.load_dataset(photos, seed=7).validation.hashes) != sorted(dataset.validation.hashes)
    again = kedge.load_dataset(photos, seed=7, membership=splits)
    assert sorted(again.validation.hashes) == sorted(dataset.validation.hashes)


def test_sphere_model_stores_unit_vectors_and_unit_anchors(trained, photos):
    pixels = kedge.load_dataset(photos).test.decode(32).pixels
    vectors = Encoder(trained).encode(pixels, raw=True)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(trained.anchors.vectors, axis=1), 1, atol=1e-5)


def test_exported_graph_equals_the_network(trained):
    network = restore_network(trained).network
    pixels = torch.randint(0, 256, (70, 32, 32, 3), dtype=torch.uint8)
    anchors = torch.from_numpy(trained.anchors.vectors)
    stored = StoredEmbedding(network.eval(), "embedding", anchors=anchors, sharpening=1.5)
    with torch.inference_mode():
        expected = stored(pixels).numpy()
    found = Encoder(trained).encode(pixels.numpy(), raw=True)
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("settings", [{"loss": "cross-entropy"}, {"loss": "cam"}, {"features": "joint"}])
def test_any_stored_vectors_can_be_turned_to_class_means_or_learned_anchors(photos, tmp_path, settings):
    plain, turned = (
        kedge.train(photos, tmp_path / str(power), state=tmp_path / "state", resume=power > 1, **each, **FAST)
        for power, each in ((1.0, {**settings, "sharpening": 1.0}), (6.0, {**settings, "sharpening": 6.0}))
    )
    dataset = kedge.load_dataset(photos, membership=plain.splits())
    pixels = dataset.train.decode(32).pixels
    before = Encoder(plain).encode(pixels, raw=True)
    means = Anchors.from_means(dataset.classes, unit_length(before), dataset.train.labels)
    around = torch.from_numpy((plain.anchors if settings == {"loss": "cam"} else means).vectors)
    found = Encoder(turned).encode(pixels, raw=True)
    assert np.abs(found - sharpened(torch.from_numpy(before), around, 6.0).numpy()).max() < 1e-3
    assert turned.card.distance == "cosine"
    if settings == {"loss": "cam"}:
        expected = sharpened(around, around, 6.0).numpy()
    else:
        expected = Anchors.from_means(dataset.classes, found, dataset.train.labels).vectors
    assert np.abs(turned.anchors.vectors - expected).max() < 1e-3
    rebuilt = Encoder(turned, runtime="torch").encode(pixels, raw=True)
    assert np.abs(found - rebuilt).max() < 1e-3


def test_class_means_are_as_long_as_the_vectors_whatever_the_distance(photos, tmp_path):
    by_cosine, by_l2 = (
        kedge.train(photos, tmp_path / way, state=tmp_path / "state", resume=way == "l2", **FAST, **settings)
        for way in ("cosine", "l2")
        for settings in [{"loss": "cross-entropy", "distance": way}]
    )
    dataset = kedge.load_dataset(photos, membership=by_l2.splits())
    vectors = Encoder(by_l2).encode(dataset.train.decode(32).pixels, raw=True)
    own = [vectors[dataset.train.labels == number] for number in range(len(dataset.classes))]
    assert np.abs(by_l2.anchors.vectors - [each.mean(axis=0) for each in own]).max() < 1e-3
    means = [unit_length(each).mean(axis=0) * np.linalg.norm(each, axis=1).mean() for each in own]
    assert np.abs(by_cosine.anchors.vectors - means).max() < 1e-3


def test_all_but_few_shots_are_sharpened(trained, photos, tmp_path):
    few = kedge.train(photos, tmp_path / "few", shots=5, **FAST)
    pooled = kedge.train(photos, tmp_path / "pooled", features="pooled", **FAST)
    shown = [model.card.trained.get("sharpening") for model in (trained, few, pooled)]
    assert shown == [1.5, 1.0, 1.0]
    network = restore_network(few).network
    pictures = kedge.load_dataset(photos).test.decode(32).pixels
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(pictures))[0].numpy()
    assert np.abs(Encoder(few).encode(pictures, raw=True) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("given", "mixup", "epochs"),
    [
        ({}, 1.0, 150),
        ({"loss": "center"}, None, 150),
        ({"mixup": 0.0}, 0.0, 150),
        ({"epochs": 100}, 1.0, 100),
        ({"epochs": 99}, None, 99),
        ({"image_size": 96}, 1.0, 150),
        ({"image_size": 97}, None, 60),
        ({"freeze_backbone": True}, None, 60),
        ({"freeze_backbone": True, "epochs": 100}, None, 100),
    ],
)
def test_few_pictures_are_seen_often_and_mixed_from_scratch(given, mixup, epochs, photos, monkeypatch):
    config, dataset = TrainingConfig.of(given), kedge.load_dataset(photos)
    resolved = resolve(config, LOSSES[config.loss], dataset)
    assert (resolved.mixup, resolved.epochs) == (mixup, epochs)
    monkeypatch.setattr("kedge.defaults.FEW_PICTURES", len(dataset.train) - 1)
    assert resolve(config, LOSSES[config.loss], dataset).mixup == config.mixup


@pytest.mark.parametrize(
    ("given", "usual", "of_four_times_as_many"),
    [
        ({}, 0.25, 0.0625),
        ({"loss": "cross-entropy"}, 0.01, 0.0025),
        ({"loss": "arcface"}, 0.005, 0.00125),
        ({"weight_decay": 0.5}, 0.5, 0.5),
        ({"backbone": "swin_tiny_patch4_window7_224"}, 0.05, 0.05),
        ({"freeze_backbone": True}, 0.05, 0.05),
        ({"loss": "none"}, None, None),
    ],
)
def test_weights_decay_less_where_more_pictures_are_trained_on(
    given, usual, of_four_times_as_many, photos, monkeypatch
):
    config, dataset = TrainingConfig.of(given), kedge.load_dataset(photos)
    monkeypatch.setattr("kedge.defaults.FEW_PICTURES", 0)
    assert resolve(config, LOSSES[config.loss], dataset).weight_decay == usual
    monkeypatch.setattr("kedge.defaults.CHOSEN_ON", len(dataset.train) / 4)
    assert resolve(config, LOSSES[config.loss], dataset).weight_decay == pytest.approx(of_four_times_as_many)


@pytest.mark.parametrize(
    ("given", "decay"),
    [({}, 0.5), ({"loss": "cross-entropy"}, 0.02), ({"backbone": "swin_tiny_patch4_window7_224"}, 0.05)],
)
def test_few_pictures_keep_the_decay_they_were_measured_with_but_for_transformers(given, decay, photos):
    config = TrainingConfig.of(given)
    resolved = resolve(config, LOSSES[config.loss], kedge.load_dataset(photos))
    assert (resolved.epochs, resolved.weight_decay) == (150, decay)


def test_tried_settings_are_fitted_to_the_pictures_and_given_ones_are_not(photos, monkeypatch):
    dataset, recipe = kedge.load_dataset(photos), LOSSES["cam-sphere"]
    monkeypatch.setattr("kedge.defaults.CHOSEN_ON", len(dataset.train) / 4)
    tried = {"batch_size": 100, "weight_decay": 0.4, "learning_rate": 0.001}
    fitted = resolve(TrainingConfig(), recipe, dataset, tried)
    assert (fitted.batch_size, fitted.learning_rate) == (16, 0.001)
    assert fitted.weight_decay == pytest.approx(0.1)
    given = resolve(TrainingConfig.of(tried), recipe, dataset)
    assert (given.batch_size, given.weight_decay) == (100, 0.4)
    frozen = resolve(TrainingConfig(freeze_backbone=True), recipe, dataset, tried)
    assert (frozen.learning_rate, frozen.weight_decay) == (0.001, 0.4)


@pytest.mark.parametrize("few", [True, False])
def test_no_two_tries_of_a_loss_train_the_same_with_few_pictures_either(few, photos, monkeypatch):
    dataset = kedge.load_dataset(photos)
    if not few:
        monkeypatch.setattr("kedge.defaults.FEW_PICTURES", 0)
    for name, recipe in LOSSES.items():
        best, seen = {}, set()
        for stage in recipe.tries():
            tries = [{**best, **tried} for tried in stage]
            seen |= {resolve(TrainingConfig(loss=name), recipe, dataset, tried).model_dump_json() for tried in tries}
            best = tries[-1]
        # So few pictures take smaller batches than any that is tried.
        assert len(seen) == (11 if recipe.build else 0), name


def test_pictures_are_enlarged_to_what_the_backbone_takes_also_where_a_size_is_given(photos):
    dataset, recipe = kedge.load_dataset(photos), LOSSES["cam"]
    assert resolve(TrainingConfig(image_size=16), recipe, dataset).image_size == 32
    assert resolve(TrainingConfig(image_size=48), recipe, dataset).image_size == 48


def test_batches_of_pairs_are_large_but_for_few_or_large_pictures(photos):
    dataset, recipe = kedge.load_dataset(photos), LOSSES["supcon"]
    many = replace(dataset, train=dataset.train[np.zeros(3200, dtype=np.int64)])
    sizes = [resolve(TrainingConfig(image_size=side), recipe, many).batch_size for side in (32, 96, 128)]
    assert sizes == [200, 200, 100]
    assert resolve(TrainingConfig(image_size=128, batch_size=150), recipe, many).batch_size == 150
    assert resolve(TrainingConfig(image_size=32), recipe, dataset).batch_size == 16


@pytest.mark.parametrize(
    ("loss", "given", "together"),
    [
        ("supcon", {}, 1),  # three classes, batches of 16
        ("supcon", {"batch_size": 11}, 4),
        ("supcon", {"batch_size": 12}, 1),
        ("supcon", {"batch_size": 12, "together": 2}, 2),
        ("arcface", {}, None),
        ("arcface", {"batch_size": 2}, None),
        ("arcface", {"batch_size": 2, "together": 3}, 3),
    ],
)
def test_pairs_of_a_class_come_together_where_batches_have_few_by_chance(loss, given, together, photos):
    resolved = resolve(TrainingConfig(loss=loss, **given), LOSSES[loss], kedge.load_dataset(photos))
    assert resolved.together == together


def test_a_length_that_is_asked_for_is_had_or_refused(photos):
    dataset = kedge.load_dataset(photos)
    usual = resolve(TrainingConfig(loss="cross-entropy"), LOSSES["cross-entropy"], dataset)
    asked = resolve(TrainingConfig(loss="cross-entropy", dim=12), LOSSES["cross-entropy"], dataset)
    assert (usual.head, usual.dim) == ("none", None)
    assert (asked.head, asked.dim) == ("linear", 12)
    with pytest.raises(ConfigError, match="leave --dim out"):
        resolve(TrainingConfig(loss="cam", head="none", dim=12), LOSSES["cam"], dataset)


def test_many_validation_pictures_are_looked_at_all_over():
    batches = LabelledBatches(torch.zeros(1000, 1), torch.arange(1000))
    shown = torch.cat([labels for _, labels in batches.in_order(10)])
    assert shown.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert torch.cat([labels for _, labels in batches.in_order(2000)]).tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("given", "many", "few"),
    [
        ({}, 0.0, 0.4),
        ({"loss": "cam"}, 0.0, 0.4),
        ({"loss": "fixed-anchors"}, 0.0, 0.4),
        ({"loss": "arcface"}, 0.4, 0.4),
        ({"brightness": 0.1}, 0.1, 0.1),
        ({"freeze_backbone": True}, 0.4, 0.4),
    ],
)
def test_class_anchors_see_pictures_as_bright_as_they_are_but_for_few(given, many, few, photos, monkeypatch):
    config, dataset = TrainingConfig.of(given), kedge.load_dataset(photos)
    assert resolve(config, LOSSES[config.loss], dataset).brightness == few
    monkeypatch.setattr("kedge.defaults.FEW_PICTURES", 0)
    assert resolve(config, LOSSES[config.loss], dataset).brightness == many


def test_expanded_queries_are_evaluated(trained, photos):
    dataset = kedge.load_dataset(photos, membership=trained.splits())
    encoder, anchors = Encoder(trained), trained.anchors.vectors.astype(np.float64)
    queries, gallery = (encoder.encode(split.decode(32).pixels) for split in (dataset.test, dataset.gallery))
    centre = anchors.mean(axis=0)
    apart, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (anchors - centre, queries - centre))
    expanded = (asked @ apart.T) ** 9 @ apart
    cosines = expanded / np.linalg.norm(expanded, axis=1, keepdims=True) @ gallery.T
    expected = [
        average_precision_score(dataset.gallery.labels == label, row)
        for label, row in zip(dataset.test.labels, cosines, strict=True)
    ]
    report = kedge.evaluate(trained, photos, expand=True)
    assert report.to_json()["expanded"] is True
    assert report.figures("exhaustive", "cosine").map == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize("loss", ["adaface", "cam", "cross-entropy", "none", "proxy-anchor", "triplet"])
def test_every_loss_trains(loss, photos, tmp_path):
    model = kedge.train(photos, tmp_path / "model", loss=loss, **FAST)
    assert len(model.anchors) == 3
    if loss in ("cross-entropy", "none"):
        dataset = kedge.load_dataset(photos)
        vectors = Encoder(model).encode(dataset.train.decode(32).pixels)
        mean = vectors[dataset.train.labels == 1].astype(np.float64).mean(axis=0, keepdims=True)
        assert np.allclose(model.search_anchors.vectors[1], unit_length(mean)[0], atol=1e-4)


@pytest.mark.parametrize("features", ["pooled", "joint"])
def test_stored_features(features, photos, tmp_path):
    model = kedge.train(photos, tmp_path / "model", features=features, **FAST)
    assert model.card.dim == {"pooled": 256, "joint": 8 + 256 + 128}[features]
    assert kedge.evaluate(model, photos).dim == model.card.dim


def test_joint_vectors_are_of_the_network_that_the_embedding_is_of(trained, photos, tmp_path):
    joint = kedge.train(photos, tmp_path / "model", features="joint", sharpening=1.0, **FAST)
    assert learned(joint) == learned(trained)


def test_a_backbone_of_which_nothing_joint_can_be_had_is_refused_before_it_is_trained(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("kedge.training.fit", lambda *_, **__: pytest.fail("was trained"))
    with pytest.raises(ConfigError, match="does not tell its stages apart"):
        kedge.train(
            photos, tmp_path / "model", features="joint", backbone="hiera_tiny_224", **{**FAST, "image_size": 224}
        )
    assert not (tmp_path / "model.partial").exists()


def test_joint_vectors_are_centred_by_the_pictures_trained_on(photos, tmp_path):
    model = kedge.train(photos, tmp_path / "model", features="joint", **FAST)
    stored = restore_network(model)
    squares = torch.from_numpy(kedge.load_dataset(photos, membership=model.splits()).train.decode(32).pixels)
    with torch.inference_mode():
        pooled, earlier = stored.network.eval().pool_stages(squares)
    assert torch.allclose(stored.network.feature_mean, pooled.mean(dim=0), atol=1e-5)
    assert torch.allclose(stored.earlier_mean, earlier.mean(dim=0), atol=1e-5)
    assert stored.earlier_mean.norm() > 0


def test_a_precision_left_open_is_no_other_setting(trained, photos):
    again = kedge.train(photos, trained.folder, resume=True, **{**FAST, "precision": "auto"})
    assert again.fingerprint == trained.fingerprint


def test_settings_that_were_cut_off_are_told(photos, tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "settings.json").write_text('{"loss": "ca')
    with pytest.raises(InputError, match=r"settings\.json cannot be read.*train anew"):
        kedge.train(photos, tmp_path / "model", resume=True, **FAST)


def test_embeddings_that_are_not_finite_are_told(photos, tmp_path, monkeypatch):
    pool = Network.pool
    monkeypatch.setattr(Network, "pool", lambda network, pictures: pool(network, pictures) * float("nan"))
    with pytest.raises(DivergedError, match="embeddings that are not finite"):
        kedge.train(photos, tmp_path / "model", loss="none", **FAST)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_a_network_that_makes_one_embedding_of_all_pictures_is_told(photos, tmp_path, monkeypatch, noise):
    def one(network, pictures):
        return 1 + noise * torch.rand(len(pictures), network.feature_dim)

    monkeypatch.setattr(Network, "pool", one)
    with pytest.raises(DivergedError, match="one embedding of all pictures"):
        kedge.train(photos, tmp_path / "model", loss="none", **FAST)
    assert not (tmp_path / "model").exists()


def test_a_loss_without_a_pair_to_learn_from_is_told(photos, tmp_path, capsys):
    settings = {**FAST, "epochs": 1, "quiet": False}
    kedge.train(photos, tmp_path / "model", loss="triplet", shots=1, evaluate=False, **settings)
    assert "no batch had a pair to learn from" in capsys.readouterr().err


def test_one_network_is_made_several_models_of(photos, tmp_path):
    settings = {"loss": "cross-entropy", **FAST}
    state = tmp_path / "state"
    first = kedge.train(photos, tmp_path / "first", state=state, **settings)
    stored = {"features": "softmax", "mirrored": True}
    second = kedge.train(photos, tmp_path / "second", state=state, resume=True, **stored, **settings)
    alone = kedge.train(photos, tmp_path / "alone", **stored, **settings)
    assert second.metrics() == first.metrics()  # to the millisecond: nothing was trained again
    assert learned(alone) == learned(first)
    assert np.allclose(second.anchors.vectors, alone.anchors.vectors, atol=1e-6)
    assert (first.card.dim, second.card.dim) == (8, 3)
    pixels = kedge.load_dataset(photos).test.decode(32).pixels
    plain, mirrored = (
        np.abs(Encoder(model).encode(pixels) - Encoder(model).encode(pixels[:, :, ::-1].copy())).max()
        for model in (first, second)
    )
    assert mirrored < 1e-5 < plain
    with pytest.raises(InputError, match="other settings"):
        kedge.train(photos, tmp_path / "third", state=state, resume=True, **{**settings, "dim": 9})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_anchors_and_classifiers_have_no_decay_and_a_rate_of_their_own(photos, tmp_path, monkeypatch, optimizer):
    seen, rates = {}, []
    configure = EmbeddingTraining.configure_optimizers

    def watched(module):
        found = configure(module)
        seen["groups"] = found["optimizer"].param_groups
        factor = found["lr_scheduler"]["scheduler"].lr_lambdas[0]
        rates.extend(factor(step) for step in range(module.trainer.estimated_stepping_batches))
        return found

    monkeypatch.setattr(EmbeddingTraining, "configure_optimizers", watched)
    given = {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.3, "anchor_rate": 5.0, "auxiliary": 0.5}
    kedge.train(photos, tmp_path / "model", warmup=0.5, **given, **{**FAST, "epochs": 4})
    network, beside = seen["groups"]
    assert (network["weight_decay"], network["initial_lr"]) == (0.3, 0.01)
    assert (beside["weight_decay"], beside["initial_lr"]) == (0.0, 0.05)
    assert {tuple(each.shape) for each in beside["params"]} == {(3, 8), (3, 256), (3,)}  # anchors, and the classifier
    half = len(rates) // 2
    assert rates[:half] == pytest.approx([(step + 1) / half for step in range(half)])
    down = len(rates) - half
    assert rates[half:] == pytest.approx([(1 + np.cos(np.pi * step / down)) / 2 for step in range(down)])


def test_frozen_backbone_keeps_its_weights_and_trains_the_head(photos, tmp_path):
    torch.manual_seed(0)
    before = Network("resnet10-half", image_size=32, dim=8, pretrained=False, on_sphere=True).state_dict()
    model = kedge.train(photos, tmp_path / "model", freeze_backbone=True, **FAST)
    after = restore_network(model).network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("backbone."))
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_shots_train_on_few_and_search_all(photos, tmp_path):
    model = kedge.train(photos, tmp_path / "model", shots=5, **FAST)
    dataset = kedge.load_dataset(photos, shots=5)
    assert len(dataset.train) == 15
    assert kedge.evaluate(model, photos).gallery == len(dataset.gallery) > 15


def wait_for_epochs(process, log, count):
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= count) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.01)


def test_an_interrupt_is_told_and_can_be_resumed(photos, tmp_path):
    command = [sys.executable, "-m", "kedge", "train", str(photos), "--out", str(tmp_path / "model")]
    command += ["--image-size", "32", "--batch-size", "16", "--epochs", "500"]
    # Whoever runs the tests in the background may have told all to take no notice.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait_for_epochs(process, tmp_path / "model.partial" / "metrics.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; --resume goes on" in said
    assert "mAP among the validation pictures" in said
    assert "Traceback" not in said
    assert (tmp_path / "model.partial" / "resume.ckpt").is_file()


def test_a_whole_model_is_taken_for_no_other_run(photos, tmp_path):
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    small = {**FAST, "image_size": 16}  # raised to what the backbone takes
    whole = kedge.train(mine, tmp_path / "model", **small)
    again = kedge.train(mine, tmp_path / "model", resume=True, **small)
    assert again.fingerprint == whole.fingerprint
    for other in ({"shots": 3}, {"gradient_clip": 1.0}, {"mixup": 1.0}):
        with pytest.raises(InputError, match=f"begun with other settings.*{next(iter(other))} was"):
            kedge.train(mine, tmp_path / "model", resume=True, **{**small, **other})
    with pytest.raises(ConfigError, match="'scale' is no setting of the loss cam-sphere"):
        kedge.train(mine, tmp_path / "model", resume=True, scale=3.0, **small)
    next(mine.rglob("*.png")).unlink()
    with pytest.raises(InputError, match="have changed since"):
        kedge.train(mine, tmp_path / "model", resume=True, **small)
    untrained = {"loss": "none", "precision": "bfloat16", "resume": True, "quiet": True}
    kedge.train(photos, tmp_path / "none", **untrained)
    kedge.train(photos, tmp_path / "none", **untrained)


def test_a_run_goes_on_with_the_labels_that_it_began_with(photos, tmp_path):
    rows = [
        [str(path), path.parent.name, "test" if path.stem.endswith("3") else "train"]
        for path in (sorted(photos.rglob("*.png")))
    ]
    listed = tmp_path / "list.csv"

    def write():
        listed.write_text("\n".join(["path,label,split", *map(",".join, rows)]))

    write()
    for out in ("first", "second"):
        kedge.train(listed, tmp_path / out, state=tmp_path / "state", resume=out == "second", **FAST)
    rows[0][1], rows[-1][1] = rows[-1][1], rows[0][1]
    write()
    for out in ("first", "third"):  # a whole model, and the state of an unfinished one
        with pytest.raises(InputError, match="have changed since"):
            kedge.train(listed, tmp_path / out, state=tmp_path / "state", resume=True, **FAST)


def test_a_run_has_a_folder_to_write_and_settings_to_try(photos, tmp_path):
    with pytest.raises(ModelError, match="no name of a folder"):
        kedge.train(photos, ".", **FAST)
    with pytest.raises(ConfigError, match="no setting is named 'foo'"):
        kedge.train(photos, tmp_path / "model", tried={"foo": 1}, **FAST)
    model = kedge.train(photos, tmp_path / "deep" / "down" / "model", state=tmp_path / "state", **FAST)
    assert model.folder.is_dir()


def test_pictures_that_do_not_fit_into_memory_are_looked_through_first(photos, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("kedge.training.MOST_IN_MEMORY", 0)
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    name = sorted(path.name for path in mine.iterdir())[1]
    broken = sorted((mine / name).iterdir())
    for path in broken[::2]:
        path.write_bytes(path.read_bytes()[:60])
    kedge.train(mine, tmp_path / "model", **{**FAST, "epochs": 1, "quiet": False})
    assert f"left out {mine / name}" in capfd.readouterr().err
    for path in broken[1::2]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=f"no training picture of class '{name}' can be read"):
        kedge.train(mine, tmp_path / "other", **{**FAST, "epochs": 1})
    # Nothing was trained, so nothing is in the way once the pictures are mended.
    assert not (tmp_path / "other.partial").exists()


def test_killed_run_resumes_to_the_same_end(photos, tmp_path, monkeypatch):
    settings = {**FAST, "epochs": 8, "seed": 3, "mixup": 1.0}
    whole = kedge.train(photos, tmp_path / "whole", **settings)
    code = "import json, sys, kedge; kedge.train(**json.loads(sys.argv[1]))"
    call = json.dumps({"data": str(photos), "out": str(tmp_path / "killed"), **settings})
    process = subprocess.Popen([sys.executable, "-c", code, call])
    partial = tmp_path / "killed.partial"
    log = partial / "metrics.jsonl"
    wait_for_epochs(process, log, 3)
    for resume in (True, False):
        with pytest.raises(InputError, match="another run writes"):
            kedge.train(photos, tmp_path / "killed", resume=resume, **settings)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    with pytest.raises(ModelError, match="--resume"):
        kedge.train(photos, tmp_path / "killed", **settings)
    with pytest.raises(InputError, match="other settings"):
        kedge.train(photos, tmp_path / "killed", resume=True, **{**settings, "dim": 9})
    resumed = kedge.train(photos, tmp_path / "killed", resume=True, **settings)
    assert [line["epoch"] for line in resumed.metrics()] == list(range(1, 9))
    assert resumed.metrics()[-1]["loss"] == pytest.approx(whole.metrics()[-1]["loss"], rel=1e-3)
    assert np.allclose(resumed.anchors.vectors, whole.anchors.vectors, atol=1e-3)
    assert not partial.exists()
    again = kedge.train(photos, tmp_path / "killed", resume=True, **settings)
    assert again.fingerprint == resumed.fingerprint
    monkeypatch.chdir(photos)
    assert kedge.train(".", tmp_path / "killed", resume=True, **settings).fingerprint == resumed.fingerprint
    with pytest.raises(InputError, match="data was"):
        kedge.train("digits", tmp_path / "killed", resume=True, **settings)
    with pytest.raises(InputError, match="loss was 'cam-sphere' and is 'arcface'"):
        kedge.train(photos, tmp_path / "killed", resume=True, **{**settings, "loss": "arcface"})


def test_a_run_goes_on_with_the_pictures_that_it_began_with(photos, tmp_path):
    """One more may reshuffle the splits: what was trained on would be tested on."""
    mine, state = tmp_path / "photos", tmp_path / "state"
    shutil.copytree(photos, mine)
    kedge.train(mine, tmp_path / "first", state=state, **FAST)
    draw_classes(tmp_path / "more", ["circle"], each=1, size=32, seed=9)
    shutil.move(tmp_path / "more" / "circle" / "0000.png", mine / "circle" / "new.png")
    with pytest.raises(InputError, match="have changed since"):
        kedge.train(mine, tmp_path / "second", state=state, resume=True, **FAST)


def test_a_class_without_a_readable_picture_is_named_before_training(tmp_path):
    draw_classes(tmp_path / "photos", ["circle", "square", "cross"], each=8, size=32, seed=0)
    for number, path in enumerate(sorted((tmp_path / "photos" / "square").iterdir())):
        path.write_bytes(path.read_bytes()[: 100 + number])
    with pytest.raises(DatasetError, match="class 'square'"):
        kedge.train(tmp_path / "photos", tmp_path / "model", loss="arcface", **FAST)
    assert not (tmp_path / "model.partial" / "metrics.jsonl").exists()


def test_a_loss_that_cannot_be_had_leaves_nothing_begun(photos, tmp_path):
    with pytest.raises(ConfigError, match="simplex"):
        kedge.train(photos, tmp_path / "model", **{**FAST, "loss": "cam", "anchor_start": "simplex", "dim": 1})
    assert not list(tmp_path.iterdir())


def test_gradients_are_clipped_in_bfloat16_too(photos, tmp_path):
    settings = {**FAST, "epochs": 1, "precision": "bfloat16"}
    plain, clipped = (
        kedge.train(photos, tmp_path / f"{clip}", gradient_clip=clip, **settings) for clip in (None, 1e-6)
    )
    assert clipped.card.trained["precision"] == "bfloat16"
    assert learned(clipped) != learned(plain)


def learned(model):
    """What was logged of each epoch, but for what it took."""
    return [{name: line[name] for name in line.keys() - {"seconds", "memory_mb"}} for line in model.metrics()]


def test_pictures_that_do_not_fit_into_memory_are_read_from_disk(photos, tmp_path, monkeypatch):
    kept = kedge.train(photos, tmp_path / "kept", **FAST)
    monkeypatch.setattr("kedge.training.MOST_IN_MEMORY", 1000)
    read = kedge.train(photos, tmp_path / "read", **FAST)
    assert learned(read) == [pytest.approx(line, rel=1e-3) for line in learned(kept)]
    assert np.allclose(read.anchors.vectors, kept.anchors.vectors, atol=1e-3)


@pytest.fixture
def on_cpu(monkeypatch):
    """Where there is a GPU too, the CPU is taken."""
    for module in ("torch_device", "training_loop"):
        monkeypatch.setattr(f"kedge.{module}.training_device", lambda: torch.device("cpu"))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("cpu", "asked", "dtype"),
    [
        ({"avx512_bf16": True}, "auto", torch.bfloat16),
        ({"amx_bf16": True}, "auto", torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, "auto", torch.float32),
        ({"avx512_bf16": True}, "float32", torch.float32),
        ({}, "bfloat16", torch.bfloat16),
    ],
)
def test_networks_are_trained_in_what_the_cpu_is_quick_in(cpu, asked, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    seen = []

    class Loss(torch.nn.Module):
        def forward(self, embeddings, _):
            seen.append(embeddings.dtype)
            return embeddings.float().square().mean()

    given = {**LOSSES["cam"].settings, "epochs": 1, "batch_size": 8, "precision": asked}
    settings = TrainingConfig.model_construct(**{**TrainingConfig().model_dump(), **given})
    network = Network("resnet10-half", image_size=32, dim=8, pretrained=False, on_sphere=False)
    batches = LabelledBatches(torch.randn(24, 256), torch.arange(24) % 3)
    fit(EmbeddingTraining(network, Loss(), settings, 3, None), batches, None, tmp_path, resume=False, quiet=True)
    assert set(seen) == {dtype}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("groups", "precision"), [(1, "bfloat16"), (2, "bfloat16"), (4, "float32")], ids=["whole", "grouped", "depthwise"]
)
def test_depthwise_convolutions_are_trained_in_float32_on_a_cpu(groups, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=groups))
    assert training_precision(TrainingConfig(), network) == precision


@pytest.mark.usefixtures("on_cpu")
def test_float16_is_for_gpus():
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        training_precision(TrainingConfig(precision="float16"), torch.nn.Linear(1, 1))


def test_resume_state_is_no_arbitrary_pickle(tmp_path):
    settings = TrainingConfig.model_construct(
        **{**TrainingConfig().model_dump(), **LOSSES["cam"].settings, "epochs": 1, "batch_size": 8}
    )
    network = Network("resnet10-half", image_size=32, dim=8, pretrained=False, on_sphere=False)
    module = EmbeddingTraining(network, ClassAnchorMargin(3, 8), settings, 3, None)
    data = LabelledBatches(torch.randn(24, 256), torch.arange(24) % 3)
    fit(module, data, None, tmp_path, resume=False, quiet=True)
    torch.load(tmp_path / "resume.ckpt", weights_only=True)


@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_state_is_named(left, tmp_path):
    state = tmp_path / "resume.ckpt"
    torch.save({"weights": torch.zeros(100)}, state)
    state.write_bytes(state.read_bytes()[:left])
    with pytest.raises(InputError, match=r"resume\.ckpt cannot be read .*train anew"):
        _CheckpointIO().load_checkpoint(state, weights_only=True)


def test_a_state_is_replaced_whole(tmp_path, monkeypatch):
    state, write = tmp_path / "resume.ckpt", _CheckpointIO().save_checkpoint
    write({"epoch": 1}, state)

    def torn(_, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        write({"epoch": 2}, state)
    assert torch.load(state, weights_only=True) == {"epoch": 1}


def test_an_interrupt_while_a_state_is_written_is_an_interrupt(tmp_path):
    """In a process of its own: torch would abort it."""
    program = f"""
import random, signal, torch
from kedge.training_loop import _CheckpointIO

signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.01))
        _CheckpointIO().save_checkpoint({{"weights": [torch.zeros(20_000)] * 60}}, {str(tmp_path / "resume.ckpt")!r})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gpu_too_small_is_told_with_the_remedy(photos, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EmbeddingTraining, "training_step", full)
    with pytest.raises(WorkError, match=r"batches of 16 pictures of 32 px: lower batch_size or image_size"):
        kedge.train(photos, tmp_path / "model", **FAST)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("sphere", [False, True])
def test_many_anchors_go_on_exactly_as_they_would_have(sphere, tmp_path):
    """What the repeller draws, and what it knows of near pairs, is as it was."""
    settings = TrainingConfig.model_construct(
        **{**TrainingConfig().model_dump(), **LOSSES["cam"].settings, "epochs": 4, "batch_size": 100}
    )
    inputs, labels = torch.randn(1000, 256), torch.arange(1000) % 500

    class Stopped(EmbeddingTraining):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            if self.current_epoch == 2:
                raise InterruptedError

    def trained(kind, name, resume=False):
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(1)
        network = Network("resnet10-half", image_size=32, dim=16, pretrained=False, on_sphere=sphere)
        loss = ClassAnchorMargin(500, 16, margin=1.0, start="random", sphere=sphere)
        data = LabelledBatches(inputs, labels)
        with pytest.raises(InterruptedError) if kind is Stopped else nullcontext():
            fit(kind(network, loss, settings, 500, None), data, None, tmp_path / name, resume=resume, quiet=True)
        return loss.anchors.detach()

    whole, stopped = trained(EmbeddingTraining, "whole"), trained(Stopped, "stopped")
    assert not torch.equal(stopped, whole)
    assert torch.equal(trained(EmbeddingTraining, "stopped", resume=True), whole)


def test_a_mixed_batch_counts_each_class_by_its_share():
    settings = TrainingConfig.model_construct(**{**TrainingConfig().model_dump(), "mixup": 0.5, "auxiliary": 0.3})
    network = Network("resnet10-half", image_size=32, dim=8, pretrained=False, on_sphere=True)
    module = EmbeddingTraining(network, ClassAnchorMargin(3, 8, sphere=True), settings, 3, None)
    pooled, labels = torch.randn(24, 256), torch.arange(24) % 3
    module.random = torch.Generator().manual_seed(5)
    value = module.training_step((pooled, labels), 0)
    blended, shown = mixed_up(pooled, labels, 0.5, torch.Generator().manual_seed(5))
    vectors, logits = network.embed(blended), module.classifier(blended)
    expected = sum(
        part * (module.loss(vectors, classes) + 0.3 * torch.nn.functional.cross_entropy(logits, classes))
        for part, classes in shown
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    logged = module.means()
    named = sum(logged[name] for name in ("attractor", "repeller", "norm_floor", "auxiliary"))
    assert logged["loss"] == pytest.approx(named, rel=1e-5)


def test_loss_that_is_no_number_stops_with_a_reason(photos, tmp_path):
    with pytest.raises(DivergedError, match=r"epoch \d+.*learning_rate"):
        kedge.train(photos, tmp_path / "model", loss="cam", optimizer="sgd", learning_rate=1e6, **FAST)
    assert list(tmp_path.iterdir()) == []  # nothing is in the way of other settings
    with pytest.raises(DivergedError) as found:
        kedge.train(photos, tmp_path / "other", loss="cosface", scale=1e39, gradient_clip=1.0, **FAST)
    # What is set already is not advised.
    assert "scale (1e+39)" in str(found.value)
    assert "gradient_clip" not in str(found.value)


def test_mistakes_are_found_before_anything_is_written(photos, tmp_path, trained):
    wrong = [
        ({"loss": "cam-spere"}, ConfigError, "cam-sphere"),
        ({"backbone": "resnet_18"}, ConfigError, "resnet18"),
        ({"backbone": "resnet18.a1_in2k"}, ConfigError, r"has no weights 'a1_in2k' \(did you mean 'resnet18.a1_in1k'"),
        ({"freeze_backbone": True, "brightness": 0.2}, ConfigError, "leave brightness out"),
        ({"freeze_backbone": True, "auxiliary": 0.2}, ConfigError, "leave auxiliary out"),
        ({"loss": "cam", "anchor_start": "base", "dim": 2}, ConfigError, "dim"),
        ({"loss": "none", "features": "pooled"}, ConfigError, "none"),
        ({"classes": 2, "sharpening": 1.5}, ConfigError, "two classes"),
        ({"mirrored": True, "flip": False}, ConfigError, "leave mirrored out"),
        ({"loss": "none", "head": "linear"}, ConfigError, "trains no head"),
        ({"freeze_backbone": True, "head": "none"}, ConfigError, "a frozen backbone has its head trained"),
        ({"freeze_backbone": True, "features": "pooled"}, ConfigError, "a frozen backbone has its head trained"),
        ({"seed": 2**32}, ConfigError, "seed"),
    ]
    for settings, error, said in wrong:
        with pytest.raises(error, match=said):
            kedge.train(photos, tmp_path / "model", **{**FAST, **settings})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="exists already"):
        kedge.train(photos, trained.folder, **FAST)
