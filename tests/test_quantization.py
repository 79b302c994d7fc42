"""An int8 model: a whole model folder, near the one it was made from, with its cost told."""

import json

import numpy as np
import pytest

import kedge
from kedge.errors import DatasetError, ModelError
from kedge.measurement import exhaustive_scores
from tests.pictures import draw_classes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantized")
    draw_classes(root / "photos", ["circle", "square", "cross"], each=24, size=32, seed=0)
    settings = {"image_size": 32, "epochs": 3, "batch_size": 16, "dim": 8, "quiet": True}
    return root, kedge.train(root / "photos", root / "model", **settings)


@pytest.fixture(scope="module")
def small(trained):
    root, model = trained
    return kedge.quantize(model, root / "photos", root / "small")


def test_embeddings_stay_near_and_the_cost_is_measured(trained, small):
    root, model = trained
    quantized, cost = small
    split = kedge.load_dataset(root / "photos", membership=model.splits())
    queries, gallery = split.validation.decode(32), split.train.decode(32)
    for each, told in ((model, cost.map_float32), (quantized, cost.map_int8)):
        encoder = kedge.Encoder(each)
        vectors = encoder.encode(queries.pixels), encoder.encode(gallery.pixels)
        expected, _ = exhaustive_scores(vectors[0], queries.labels, vectors[1], gallery.labels, "cosine")
        assert told == pytest.approx(expected, abs=1e-4)
    before, after = (kedge.Encoder(each).encode(gallery.pixels) for each in (model, quantized))
    assert 0 < np.linalg.norm(before - after, axis=1).mean() < 0.3
    assert cost.split == "validation"
    assert cost.queries == len(split.validation)


def test_it_is_a_model_of_its_own(trained, small, tmp_path):
    root, model = trained
    quantized, cost = small
    assert quantized.fingerprint != model.fingerprint
    assert not quantized.encodes_like(model)
    assert quantized.info()["precision"] == "int8"
    assert quantized.card.scores["int8"] == {
        "validation_map": cost.map_int8,
        "validation_map_float32": cost.map_float32,
    }
    assert not {"validation", "test"} & quantized.card.scores.keys()
    assert "int8" in (quantized.folder / "report.html").read_text("utf-8")
    assert "Not measured on test pictures" in (quantized.folder / "report.html").read_text("utf-8")
    assert quantized.card.anchor_distances != model.card.anchor_distances
    assert quantized.encoder_path.stat().st_size < 0.5 * model.encoder_path.stat().st_size
    with kedge.Gallery.create(tmp_path / "gallery", quantized) as gallery:
        assert gallery.add(root / "photos").added == 72
    assert kedge.evaluate(quantized, root / "photos").queries > 0


def test_pictures_that_the_model_never_saw_are_no_measure(trained, tmp_path):
    _, model = trained
    draw_classes(tmp_path / "others", ["circle", "square", "cross"], each=24, size=32, seed=9)
    with pytest.raises(DatasetError, match="give the data that it was trained with"):
        kedge.quantize(model, tmp_path / "others", tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_model_without_pictures_held_back_is_told_apart(trained, tmp_path):
    root, model = trained
    model.copy_to(tmp_path / "model")
    splits = json.loads((tmp_path / "model" / "splits.json").read_text())
    everything = [content for part in splits.values() for content in part]
    (tmp_path / "model" / "splits.json").write_text(json.dumps({name: [] for name in splits} | {"train": everything}))
    with pytest.raises(DatasetError, match="without pictures held back"):
        kedge.quantize(tmp_path / "model", root / "photos", tmp_path / "small")


def test_mistakes_write_nothing(trained, small, tmp_path):
    root, model = trained
    with pytest.raises(ModelError, match="exists already"):
        kedge.quantize(model, root / "photos", root / "small")
    with pytest.raises(ModelError, match="int8 already"):
        kedge.quantize(small[0], root / "photos", tmp_path / "again")
    card = json.loads((model.folder / "kedge.json").read_text())
    assert card["precision"] == "float32"
    draw_classes(tmp_path / "others" / "train", ["circle", "square", "cross"], each=4, size=32, seed=5)
    with pytest.raises(DatasetError):
        kedge.quantize(model, tmp_path / "absent", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in root.iterdir()) == ["model", "photos", "small"]
