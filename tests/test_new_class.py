"""A class added to a model from a few examples, and taken over by a gallery without reading a picture."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import kedge
from kedge import new_class
from kedge.anchors import Anchors
from kedge.errors import InputError, ModelError, PictureError
from kedge.evaluation import load_for
from kedge.model import Model
from tests.models import colour_of, embed, make_model, projection
from tests.pictures import draw_classes

CLASSES = ["red", "green", "blue"]


def plain(path, colour, size=32):
    Image.new("RGB", (size, size), colour).save(path)
    return path


@pytest.fixture(params=["cosine", "l2"])
def model(request, tmp_path):
    return make_model(tmp_path / "model", classes=CLASSES, distance=request.param)


def test_the_anchor_is_the_mean_of_the_examples(model, tmp_path):
    colours = [(240, 220, 30), (200, 180, 10), (250, 240, 90)]
    paths = [plain(tmp_path / f"{number}.png", colour) for number, colour in enumerate(colours)]
    changed, added = kedge.add_class(model, "yellow", paths)
    squares = np.broadcast_to(np.array(colours, np.uint8)[:, None, None, :], (3, 16, 16, 3))
    vectors = embed(squares, projection(16)).astype(np.float64)
    if model.card.distance == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    else:
        mean = vectors.mean(axis=0)
    assert changed.card.classes == ("red", "green", "blue", "yellow")
    np.testing.assert_allclose(changed.search_anchors.vectors[3], mean, atol=1e-5)
    np.testing.assert_array_equal(changed.anchors.vectors[:3], model.anchors.vectors)
    distances = np.linalg.norm(model.search_anchors.vectors - mean, axis=1)
    assert added.distance == pytest.approx(distances.min(), rel=1e-4)
    assert added.nearest == CLASSES[distances.argmin()]
    assert added.spread == pytest.approx(np.linalg.norm(vectors - mean, axis=1).mean(), abs=1e-5)
    assert changed.fingerprint != model.fingerprint
    assert changed.encodes_like(model)


def test_the_anchor_is_as_long_as_those_that_were_learned(tmp_path):
    model = make_model(tmp_path / "model", classes=CLASSES)
    Anchors(model.card.classes, 7 * model.anchors.vectors).save(model.folder / "anchors.safetensors")
    changed, _ = kedge.add_class(model.folder, "yellow", [plain(tmp_path / "y.png", colour_of(3))])
    assert np.linalg.norm(changed.anchors.vectors, axis=1) == pytest.approx([7] * 4, rel=1e-5)


def test_of_two_that_add_at_once_none_is_lost(model, tmp_path, monkeypatch):
    write = new_class._write

    def slowly(*given):
        time.sleep(0.2)
        write(*given)

    monkeypatch.setattr(new_class, "_write", slowly)
    colours = {"yellow": (240, 220, 30), "teal": (10, 130, 130)}
    paths = {name: plain(tmp_path / f"{name}.png", colour) for name, colour in colours.items()}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: kedge.add_class(model.folder, name, [paths[name]]), colours))
    grown = Model.load(model.folder)
    assert sorted(grown.card.classes[3:]) == ["teal", "yellow"]
    for name, path in paths.items():
        vector = kedge.Encoder(grown).encode_pictures([kedge.read_picture(path).image])
        assert grown.card.classes[int(grown.search_anchors.nearest(vector)[0])] == name


def test_examples_are_never_queries_afterwards(model, tmp_path):
    (model.folder / "splits.json").write_text(json.dumps({"train": [], "validation": [], "test": []}))
    path = plain(tmp_path / "y.png", colour_of(3))
    changed, _ = kedge.add_class(model, "yellow", [path])
    assert changed.splits() == {kedge.read_picture(path).content_hash: "train"}


def test_a_model_of_the_first_classes_is_measured_on_these_and_on_those_added(tmp_path):
    draw_classes(tmp_path / "photos", ["blue", "cyan", "green", "red"], each=10, size=32, seed=0)
    model = make_model(tmp_path / "model", classes=["blue", "cyan"])
    model.write_card(model.card.model_copy(update={"trained": {**model.card.trained, "classes": 2}}))
    grown, _ = kedge.add_class(model, "red", sorted((tmp_path / "photos" / "red").iterdir())[:2])
    dataset = load_for(grown, tmp_path / "photos")
    assert dataset.classes == ("blue", "cyan", "red")
    whole = kedge.load_dataset(tmp_path / "photos", membership=grown.splits())
    for part in ("train", "validation", "test", "gallery"):
        kept, every = getattr(dataset, part), getattr(whole, part)
        assert [(path, dataset.classes[label]) for path, label in zip(kept.paths, kept.labels, strict=True)] == [
            (path, whole.classes[label])
            for path, label in zip(every.paths, every.labels, strict=True)
            if whole.classes[label] != "green"
        ]
    assert kedge.evaluate(grown, tmp_path / "photos", probes=(1,)).classes == 3
    # Of a folder with fewer classes than it was told to take, there are those.
    model.write_card(model.card.model_copy(update={"trained": {**model.card.trained, "classes": 5}}))
    assert load_for(model, tmp_path / "photos").classes == ("blue", "cyan", "green", "red")


def test_mistakes_change_nothing(model, tmp_path):
    good = plain(tmp_path / "good.png", colour_of(3))
    before = {path.name: path.read_bytes() for path in model.folder.glob("[!.]*")}
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name, pictures, said in [
        ("red", [good], "already"),
        (" ", [good], "name"),
        ("yellow", [], "at least one"),
        ("yellow", [tmp_path / "absent.png"], "absent"),
        ("crimson", [plain(tmp_path / "red.png", colour_of(0))], "they show that class"),
    ]:
        with pytest.raises(InputError, match=said):
            kedge.add_class(model, name, pictures)
    with pytest.raises(PictureError, match=r"broken\.jpg"):
        kedge.add_class(model, "yellow", [good, tmp_path / "broken.jpg"])
    assert {path.name: path.read_bytes() for path in model.folder.glob("[!.]*")} == before
    (model.folder / "splits.json").write_text("{")
    with pytest.raises(ModelError, match=r"splits\.json cannot be read"):
        kedge.add_class(model, "yellow", [good])
    assert "yellow" not in kedge.Model.load(model.folder).card.classes


def test_a_large_example_lies_on_the_anchor_it_makes(model, tmp_path):
    """It is decoded at a reduced scale, as a query is."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg")
    extended, added = kedge.add_class(model, "noise", [tmp_path / "large.jpg"])
    with kedge.Gallery.create(tmp_path / "gallery", extended) as gallery:
        gallery.add(tmp_path / "large.jpg")
        (row,) = gallery._table.read(["embedding", "anchor"]).to_pylist()
    assert row["anchor"] == "noise"
    np.testing.assert_allclose(row["embedding"], extended.search_anchors.vectors[-1], atol=1e-6)
    assert added.spread < 1e-5


def test_a_model_between_its_two_writes_is_the_old_one(model, tmp_path, monkeypatch):
    path = plain(tmp_path / "y.png", colour_of(3))
    old = Model.load(model.folder)
    monkeypatch.setattr(Model, "write_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kedge.add_class(model, "yellow", [path])
    found = Model.load(model.folder)
    assert found.card.classes == old.card.classes
    np.testing.assert_array_equal(found.anchors.vectors, old.anchors.vectors)


def test_a_crowded_class_is_told(tmp_path, capsys, monkeypatch):
    model = make_model(tmp_path / "model", classes=CLASSES)
    card = json.loads((model.folder / "kedge.json").read_text())
    card["trained"] = {"loss": "cam-sphere"}
    (model.folder / "kedge.json").write_text(json.dumps(card))
    path = plain(tmp_path / "rose.png", (230, 60, 60))
    monkeypatch.setattr("sys.argv", ["kedge", "add-class", str(model.folder), "rose", str(path)])
    from kedge.cli import app

    with pytest.raises(SystemExit):
        app()
    said = capsys.readouterr()
    assert "within the margin of 1: expect pictures of 'rose' and 'red' under either" in said.err
    assert "kedge reindex GALLERY" in said.out


def test_a_class_whose_examples_lie_further_than_another_is_crowded_by_any_loss(model, tmp_path):
    """No margin is known of this model."""
    around = [np.add(colour_of(0), step) for step in ((-20, 30, 30), (-10, -25, -25))]
    paths = [
        plain(tmp_path / f"{number}.png", tuple(map(int, each.clip(0, 255)))) for number, each in enumerate(around)
    ]
    _, added = kedge.add_class(model, "rose", paths)
    assert added.margin is None
    assert (added.nearest, added.crowded) == ("red", True)
    assert added.distance < added.spread


@pytest.mark.parametrize(
    ("trained", "distance", "margin"),
    [
        ({"loss": "cam-sphere"}, "cosine", 1.0),
        ({"loss": "cam-sphere", "features": "joint"}, "cosine", None),
        ({"loss": "cam", "margin": 8.0}, "l2", 8.0),
        ({"loss": "fixed-anchors", "margin": 8.0}, "l2", 8.0),
        ({"loss": "cam", "margin": 8.0, "sharpening": 6.0}, "l2", None),  # its vectors are of unit length
        ({"loss": "cam", "margin": 8.0}, "cosine", None),
        ({"loss": "center"}, "l2", None),
    ],
)
def test_a_margin_is_known_where_the_loss_kept_one_among_the_stored_vectors(trained, distance, margin, tmp_path):
    model = make_model(tmp_path / "model", classes=CLASSES, distance=distance)
    model.write_card(model.card.model_copy(update={"trained": trained}))
    path = plain(tmp_path / "yellow.png", colour_of(3))
    assert kedge.add_class(model, "yellow", [path])[1].margin == margin


def test_an_example_whose_embedding_is_not_finite_is_named(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model", classes=CLASSES)
    paths = [plain(tmp_path / f"{number}.png", colour_of(number)) for number in (0, 3)]
    encode = kedge.Encoder.encode

    def spoilt(encoder, squares):
        vectors = encode(encoder, squares)
        vectors[1, 0] = np.nan
        return vectors

    monkeypatch.setattr(kedge.Encoder, "encode", spoilt)
    with pytest.raises(PictureError, match=r"3\.png.*not finite"):
        kedge.add_class(model, "yellow", paths)


def test_a_gallery_takes_a_new_class_over_without_reading_a_picture(tmp_path):
    draw_classes(tmp_path / "photos", [*CLASSES, "white"], each=10, size=32, seed=0)
    model = make_model(tmp_path / "model", classes=CLASSES)
    with kedge.Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.add(tmp_path / "photos" / "red", tmp_path / "photos" / "white", metadata={"year": 1999})
        gallery.add(tmp_path / "photos" / "green", file_by="label")
        before = {row["id"]: row for row in gallery._table.read(["id", "embedding", "label", "year"]).to_pylist()}
        examples = sorted((tmp_path / "photos" / "white").iterdir())[:5]
        shutil.copytree(model.folder, tmp_path / "grown")
        grown, _ = kedge.add_class(tmp_path / "grown", "white", examples)
        kept = tmp_path / "kept"
        (tmp_path / "photos").rename(kept)  # nothing can be read any more
        report = gallery.reindex(grown)
        assert report.added == gallery.count() == 30
        rows = gallery._table.read(["id", "embedding", "label", "year", "anchor", "filed_by", "rho"]).to_pylist()
        for row in rows:
            assert {name: row[name] for name in ("id", "embedding", "label", "year")} == before[row["id"]]
            distances = np.linalg.norm(grown.search_anchors.vectors - np.array(row["embedding"]), axis=1)
            nearest = grown.card.classes[int(distances.argmin())]
            assert row["anchor"] == (row["label"] if row["filed_by"] == "label" else nearest)
            assert row["rho"] == pytest.approx(distances[grown.card.classes.index(row["anchor"])], abs=1e-5)
        assert {row["label"] for row in rows if row["anchor"] == "white"} >= {"white"}
        found = gallery.search(sorted((kept / "white").iterdir())[7], 5)
        assert found.probed[0] == "white"


def test_a_class_among_the_pictures_of_another_is_told_by_any_loss(model, tmp_path, capsys, monkeypatch):
    """One example has no spread, and no margin is known: how far held-out pictures lie is."""
    path = plain(tmp_path / "rose.png", (230, 60, 60))
    probe = kedge.add_class(make_model(tmp_path / "other", classes=CLASSES, distance=model.card.distance), "r", [path])
    assert not probe[1].crowded
    reach = probe[1].distance + 0.01
    model.write_card(model.card.model_copy(update={"anchor_distances": (0.0, reach)}))
    monkeypatch.setattr("sys.argv", ["kedge", "add-class", str(model.folder), "rose", str(path)])
    from kedge.cli import app

    with pytest.raises(SystemExit):
        app()
    assert f"that is where pictures of 'red' lie, up to {reach:.3g} from it" in capsys.readouterr().err
