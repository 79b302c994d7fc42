"""The gallery against plain Python lists and NumPy, and against kills, rivals and broken pictures."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kedge
from kedge import intake
from kedge.anchors import Anchors, expand_queries
from kedge.distances import unit_length
from kedge.errors import GalleryError, InputError, ModelError, PictureError
from kedge.filing import file_vectors, labelled_buckets
from kedge.gallery import Gallery
from kedge.memory_search import MemoryIndex
from tests.models import colour_of, embed, make_model, projection

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "model", classes=CLASSES)


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


def picture(path, class_number, seed, size=20):
    """A noisy picture near the class's colour, lossless."""
    noise = np.random.default_rng(seed).integers(-40, 41, size=(size, size, 3))
    pixels = np.clip(np.asarray(colour_of(class_number)) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(root, each=4, classes=CLASSES):
    for number, name in enumerate(classes):
        for seed in range(each):
            picture(root / name / f"{seed}.png", number, 100 * number + seed)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("pictures") / "photos")


def counts(report):
    return report.added, report.updated, report.unchanged, len(report.failed)


def rows(gallery, *columns):
    return gallery._table.read(columns).to_pylist()


def unit_vectors(count, dim=16, seed=0):
    return unit_length(np.random.default_rng(seed).normal(size=(count, dim)))


# Making and opening


def test_create_refuses_what_is_there(tmp_path, model):
    (tmp_path / "there").mkdir()
    with pytest.raises(GalleryError, match="is there already"):
        Gallery.create(tmp_path / "there", model)
    with pytest.raises(GalleryError, match="not on this machine"):
        Gallery.create("s3://bucket/gallery", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_failed_create_leaves_nothing(tmp_path, model, monkeypatch):
    monkeypatch.setattr(
        "kedge.gallery_folder.PicturesTable.create", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(GalleryError, match="disk full"):
        Gallery.create(tmp_path / "gallery", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["gallery.json", "model", "pictures.lance"])
def test_a_half_gallery_is_refused(tmp_path, model, part):
    Gallery.create(tmp_path / "gallery", model).close()
    gone = tmp_path / "gallery" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(GalleryError, match=f"no whole gallery: {part} missing"):
        Gallery.open(tmp_path / "gallery")


def test_other_galleries_that_cannot_be_opened(tmp_path, model):
    with pytest.raises(GalleryError, match=r"no gallery at .*kedge create"):
        Gallery.open(tmp_path / "nothing")
    place = tmp_path / "gallery"
    Gallery.create(place, model).close()
    card = json.loads((place / "gallery.json").read_text())
    (place / "gallery.json").write_text(json.dumps({**card, "format_version": 99}))
    with pytest.raises(GalleryError, match="update Kedge"):
        Gallery.open(place)
    (place / "gallery.json").write_text("{")
    with pytest.raises(GalleryError, match="cannot be read"):
        Gallery.open(place)
    (place / "gallery.json").write_text(json.dumps(card))
    shutil.rmtree(place / "model")
    other = make_model(place / "model", classes=CLASSES, seed=1)
    with pytest.raises(GalleryError, match=f"made with model {model.fingerprint}, .* holds {other.fingerprint}"):
        Gallery.open(place)
    (place / "model" / "encoder.onnx").unlink()
    with pytest.raises(GalleryError, match="model cannot be read"):
        Gallery.open(place)
    shutil.rmtree(place / "model")
    shutil.copytree(model.folder, place / "model")
    shutil.rmtree(place / "pictures.lance" / "_versions")
    with pytest.raises(GalleryError, match=r"pictures\.lance cannot be read"):
        Gallery.open(place)


# Adding


def test_a_folder_is_added_labelled_and_filed(gallery, model, photos):
    report = gallery.add(photos)
    assert counts(report) == (12, 0, 0, 0)
    stored = gallery._table.read(["id", "path", "label", "anchor", "filed_by", "rho", "gap", "embedding", "thumbnail"])
    assert {Path(row["path"]).parent.name for row in stored.to_pylist()} == set(CLASSES)
    anchors = model.search_anchors.vectors.astype(np.float64)
    for row in stored.to_pylist():
        pixels = np.asarray(Image.open(row["path"]))[2:18, 2:18]  # 20 pixels to 16 goes by resizing, so only near
        near = unit_length(embed(pixels[None], projection(16)))[0]
        assert np.linalg.norm(near - row["embedding"]) < 0.1
        distances = [np.linalg.norm(np.asarray(row["embedding"]) - anchor) for anchor in anchors]
        assert row["anchor"] == row["label"] == Path(row["path"]).parent.name == CLASSES[np.argmin(distances)]
        assert row["rho"] == pytest.approx(min(distances), rel=1e-5)
        assert row["gap"] > 0
        assert row["thumbnail"].startswith(b"\xff\xd8")
    assert gallery.thumbnails([stored["id"][0].as_py(), "nobody"]).keys() == {stored["id"][0].as_py()}
    told = gallery.info()
    assert (told["kind"], told["pictures"], told["anchors"], told["dim"]) == ("gallery", 12, 3, 16)
    assert told["labels"] == {"blue": 4, "green": 4, "red": 4}
    assert told["model"]["fingerprint"] == model.fingerprint


def test_the_same_again_adds_nothing(gallery, photos, monkeypatch):
    gallery.add(photos)
    version = gallery._table.version
    assert counts(gallery.add(photos)) == (0, 0, 12, 0)
    assert gallery._table.version == version
    # Without reading the files again.
    monkeypatch.setattr(intake, "read_for_encoder", lambda *_, **__: pytest.fail("was read again"))
    assert counts(gallery.add(photos)) == (0, 0, 12, 0)


def test_a_label_is_the_nearest_folder_that_is_a_class(gallery, tmp_path):
    places = {
        "2020": "train/red/2020/a.png",
        "images": "train/green/images/b.png",
        "ring": "train/ring/c.png",
        "far": "train/ring/2021/d.png",
    }
    for number, place in enumerate(places.values()):
        (tmp_path / "red" / place).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16), (9 * number, 99, 7)).save(tmp_path / "red" / place)
    gallery.add(tmp_path / "red" / "train")
    labels = {Path(row["path"]).name: row["label"] for row in gallery._table.read(["path", "label"]).to_pylist()}
    # Above the folder that was named nothing is looked at.
    assert labels == {"a.png": "red", "b.png": "green", "c.png": "ring", "d.png": "2021"}
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "red")
    gallery.add(archive)
    labels = {Path(row["path"]).name: row["label"] for row in gallery._table.read(["path", "label"]).to_pylist()}
    assert labels == {"a.png": "red", "b.png": "green", "c.png": "ring", "d.png": "2021"}


def test_another_path_or_label_updates_the_row(gallery, tmp_path):
    first = picture(tmp_path / "a" / "1.png", 0, 1)
    gallery.add(tmp_path / "a")
    (tmp_path / "b").mkdir()
    moved = first.rename(tmp_path / "b" / "renamed.png")
    assert counts(gallery.add(moved)) == (0, 1, 0, 0)
    assert rows(gallery, "path", "label") == [{"path": str(moved), "label": "a"}]  # nothing was said of the label
    (tmp_path / "labels.csv").write_text("path,label\nb/renamed.png,green\n")
    assert counts(gallery.add(moved, labels=tmp_path / "labels.csv")) == (0, 1, 0, 0)
    assert counts(gallery.add(moved, labels=str(tmp_path / "labels.csv"))) == (0, 0, 1, 0)
    assert counts(gallery.add(moved, labels="none")) == (0, 0, 1, 0)
    assert rows(gallery, "label", "anchor", "filed_by") == [{"label": "green", "anchor": "red", "filed_by": "nearest"}]
    assert counts(gallery.add(moved, labels=tmp_path / "labels.csv", file_by="label")) == (0, 1, 0, 0)
    (row,) = rows(gallery, "anchor", "filed_by", "rho", "gap", "embedding")
    vector = np.asarray(row["embedding"])[None]
    anchors = gallery.model.search_anchors
    filing = file_vectors(vector, anchors.vectors, labelled_buckets(["green"], anchors))
    assert (row["anchor"], row["filed_by"], row["rho"]) == ("green", "label", pytest.approx(filing.rho[0]))
    assert row["gap"] == pytest.approx(filing.gap[0])
    assert row["gap"] < 0


def test_a_touched_file_is_unchanged_and_then_not_read(gallery, tmp_path, monkeypatch):
    path = picture(tmp_path / "a" / "1.png", 0, 1)
    gallery.add(path)
    os.utime(path, (1e9, 1e9))
    assert counts(gallery.add(path)) == (0, 0, 1, 0)
    monkeypatch.setattr(intake, "read_for_encoder", lambda *_, **__: pytest.fail("was read again"))
    assert counts(gallery.add(path)) == (0, 0, 1, 0)


def test_a_file_with_another_picture_replaces_the_row(gallery, tmp_path):
    path = picture(tmp_path / "a" / "1.png", 0, 1)
    gallery.add(path)
    picture(path, 1, 2)
    assert counts(gallery.add(path)) == (1, 0, 0, 0)
    assert rows(gallery, "anchor") == [{"anchor": "green"}]


def test_copies_are_stored_once_and_adding_them_again_changes_nothing(gallery, tmp_path):
    first = picture(tmp_path / "a" / "1.png", 0, 1)
    shutil.copy2(first, tmp_path / "a" / "2.png")
    (tmp_path / "b").mkdir()
    shutil.copy2(first, tmp_path / "b" / "3.png")
    report = gallery.add(tmp_path / "a", tmp_path / "b")
    assert counts(report) == (1, 0, 1, 1)
    assert "same content as" in report.failed[0].reason
    assert "'a'" in report.failed[0].reason
    assert counts(gallery.add(tmp_path / "a")) == (0, 0, 2, 0)
    assert rows(gallery, "path") == [{"path": str(first)}]


@pytest.mark.parametrize("chunk", [1, 1024])
def test_of_copies_the_one_with_a_label_gives_it(gallery, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(intake, "COMMIT_PICTURES", chunk)
    first = picture(tmp_path / "1.png", 0, 1)
    second, third = tmp_path / "2.png", tmp_path / "3.png"
    shutil.copy2(first, second)
    shutil.copy2(first, third)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n2.png,red\n3.png,\n")
    report = gallery.add(first, second, third, labels=labels)
    assert (report.added, report.failed) == (1, ())
    assert rows(gallery, "path", "label") == [{"path": str(second), "label": "red"}]
    # It stays where it is, as long as it is there.
    version = gallery._table.version
    assert counts(gallery.add(first, second, third, labels=labels)) == (0, 0, 3, 0)
    assert gallery._table.version == version
    second.unlink()
    assert counts(gallery.add(third)) == (0, 1, 0, 0)
    assert rows(gallery, "path", "label") == [{"path": str(third), "label": "red"}]


def test_a_picture_that_another_adds_while_its_file_changes_stays(gallery, tmp_path):
    path = picture(tmp_path / "red" / "a.png", 0, 1)
    with Gallery.open(gallery.folder) as other:

        def change(_stage, done, total):
            if done == total and not other.count():
                picture(path, 1, 2)
                other.add(tmp_path / "red")

        gallery.add(tmp_path / "red", progress=change)
    assert rows(gallery, "path", "anchor") == [{"path": str(path), "anchor": "green"}]
    assert counts(gallery.add(tmp_path / "red")) == (0, 0, 1, 0)


def test_broken_pictures_are_left_out_and_named(gallery, tmp_path):
    root = folder_of(tmp_path / "photos", each=1)
    (root / "red" / "empty.png").write_bytes(b"")
    (root / "red" / "text.jpg").write_text("no picture")
    whole = picture(tmp_path / "whole.png", 0, 5).read_bytes()
    (root / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list.csv").write_text("path\nwhole.png\nabsent.png\n")
    report = gallery.add(root, tmp_path / "list.csv")
    assert counts(report) == (4, 0, 0, 4)
    assert {Path(error.path).name for error in report.failed} == {"empty.png", "text.jpg", "cut.png", "absent.png"}
    assert all(isinstance(error, PictureError) and error.reason for error in report.failed)
    assert gallery.count() == 4


def test_a_list_gives_labels_and_columns(gallery, tmp_path):
    folder_of(tmp_path / "photos", each=1)
    (tmp_path / "list.csv").write_text("path,label,price,shop\nphotos/red/0.png,007,1.5,it's\nphotos/blue/0.png,,2,\n")
    assert counts(gallery.add(tmp_path / "list.csv", metadata={"season": 3})) == (2, 0, 0, 0)
    assert gallery.count("price > 1.7") == 1
    assert gallery.count("shop = 'it''s' AND season = 3 AND label = '007'") == 1
    assert gallery.count("label IS NULL") == 1
    assert counts(gallery.add(tmp_path / "list.csv", metadata={"season": 4})) == (0, 2, 0, 0)
    assert counts(gallery.add(tmp_path / "list.csv")) == (0, 0, 2, 0)
    assert gallery.count("season = 4") == 2


def test_only_an_empty_cell_of_a_list_says_nothing(gallery, tmp_path):
    folder_of(tmp_path / "photos", each=2, classes=["red"])
    picture(tmp_path / "x.png", 2, 7).rename(tmp_path / "null")
    (tmp_path / "list.csv").write_text("path,label\nphotos/red/0.png,NA\nphotos/red/1.png,null\nnull,nan\n")
    assert counts(gallery.add(tmp_path / "list.csv")) == (3, 0, 0, 0)
    assert set(gallery.info()["labels"]) == {"NA", "null", "nan"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_text_is_left_out_and_told(gallery, tmp_path):
    folder_of(tmp_path / "photos", each=2, classes=["red"])
    strange = os.fsencode(tmp_path / "photos" / "red") + b"/\xff.png"
    Path(os.fsdecode(strange)).write_bytes((tmp_path / "photos" / "red" / "0.png").read_bytes())
    report = gallery.add(tmp_path / "photos")
    assert counts(report) == (2, 0, 0, 1)
    assert "not UTF-8: rename it" in str(report.failed[0])


@pytest.mark.parametrize("options", [{}, {"on_disk": True}])
def test_more_may_be_asked_for_than_there_is(gallery, options):
    gallery.add_vectors(unit_vectors(5))
    with Gallery.open(gallery.folder, **options) as opened:
        for probes in (1, "exact"):
            (found,) = opened.search_vectors(unit_vectors(1), 10**15, probes)
            assert len(found.hits) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, "nothing to add"),
        (["photos", "nowhere"], {}, "no file or folder at"),
        (["photos", "empty"], {}, "holds no pictures"),
        (["photos"], {"labels": "labels.csv"}, "no file of labels at"),
        (["photos"], {"file_by": "label"}, "no anchor is called 'purple'"),
        (["photos"], {"file_by": "label", "labels": "none"}, "4 of 4 pictures have no label"),
        (["photos"], {"file_by": "size"}, "'nearest' or 'label'"),
        (["photos"], {"metadata": {"Anchor": 1}}, "'anchor' is there already"),
        (["photos"], {"metadata": {"a b": 1}}, "cannot be a column"),
        (["photos", "bad.csv"], {}, "no column 'path'"),
        (["photos", "no.parquet"], {}, "no column 'embedding'"),
        (["photos", "broken.parquet"], {}, "cannot be read as Parquet"),
        (["photos", "lists.parquet"], {}, "the column 'label' holds list"),
        (["photos", "short.parquet"], {}, r"embeddings of shape \(n, 16\)"),
        (["years.parquet", "names.parquet"], {}, "the column 'year' holds values of type int64, some given are not"),
        (["years.parquet", "photos"], {"metadata": {"YEAR": 1}}, "the column 'year' is there already"),
        (["twice.csv"], {}, "the column 'Year' is there already"),
        (["photos"], {"metadata": {"number": 2**70}}, "'number' holds a whole number of more than 64 bits"),
        (["photos", ""], {}, "one of the paths is empty"),
        (["folder.parquet"], {}, "is a folder: name the Parquet files"),
        (["crops.parquet"], {}, "the path 'a.png' is given with different embeddings"),
    ],
)
def test_a_wrong_add_changes_nothing(gallery, tmp_path, monkeypatch, arguments, options, message):
    folder_of(tmp_path / "photos", each=1, classes=(*CLASSES, "purple"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("file\nphotos/red/0.png\n")
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "no.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    pq.write_table(pa.table({"embedding": [[1.0, 0.0]]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"embedding": [[1.0] + [0.0] * 15], "label": [["a"]]}), tmp_path / "lists.parquet")
    vectors = list(unit_vectors(2))
    for name, year in (("years", [1, 2]), ("names", ["one", "two"])):
        pq.write_table(pa.table({"embedding": vectors, "year": year}), tmp_path / f"{name}.parquet")
    (tmp_path / "twice.csv").write_text("path,Year,year\nphotos/red/0.png,1,2\n")
    (tmp_path / "folder.parquet").mkdir()
    pq.write_table(pa.table({"embedding": vectors, "path": ["a.png"] * 2}), tmp_path / "crops.parquet")
    monkeypatch.chdir(tmp_path)
    version = gallery._table.version
    with pytest.raises(InputError, match=message):
        gallery.add(*arguments, **options)
    gallery._table.refresh()
    assert gallery._table.version == version


def test_what_is_not_a_number_says_nothing(gallery):
    for _ in range(2):
        report = gallery.add_vectors(unit_vectors(3), metadata={"year": [1.5, float("nan"), 2.0]})
    assert counts(report) == (0, 0, 3, 0)
    assert gallery.count("year IS NULL") == 1
    assert gallery.add_vectors(unit_vectors(3), metadata={"year": np.float16([2.5, np.nan, np.nan])}).updated == 1
    assert sorted(row["year"] or 0 for row in rows(gallery, "year")) == [0, 2.0, 2.5]


def test_a_file_named_again_by_its_folder_has_its_label(gallery, photos):
    assert gallery.add(photos / "red" / "0.png", photos).added == 12
    assert gallery.count("label IS NULL") == 0


def test_one_wrong_line_of_a_list_is_left_out_and_named(gallery, photos, tmp_path):
    (tmp_path / "list.csv").write_text(f"path\nhtp://host/a.jpg\na\0b.png\n{photos / 'red' / '0.png'}\n")
    report = gallery.add(tmp_path / "list.csv")
    assert counts(report) == (1, 0, 0, 2)
    assert str(report.failed[0]).startswith("htp://host/a.jpg: cannot be opened")


def test_vectors_of_an_export_become_the_pictures_they_are_of(gallery, model, photos, tmp_path):
    gallery.add(photos)
    gallery.export(tmp_path / "vectors.parquet", "parquet")
    with Gallery.create(tmp_path / "second", model) as second:
        second.add(tmp_path / "vectors.parquet")
        assert second.thumbnails([row["id"] for row in rows(second, "id")]) == {}
        assert counts(second.add(photos)) == (0, 12, 0, 0)
        told = ("id", "path", "label", "width", "height", "thumbnail", "perceptual_hash", "content_hash", "file_size")
        by_id = [sorted(rows(one, *told), key=lambda row: row["id"]) for one in (gallery, second)]
        assert by_id[0] == by_id[1]
        assert counts(second.add(photos)) == (0, 0, 12, 0)
        assert second.reindex(make_model(tmp_path / "new", classes=CLASSES, seed=1)).added == 12


def test_vectors_of_an_export_and_the_pictures_they_are_of_are_added_at_once(gallery, model, photos, tmp_path):
    gallery.add(photos)
    gallery.export(tmp_path / "vectors.parquet", "parquet")
    told = ("id", "path", "label", "width", "height", "thumbnail", "perceptual_hash", "content_hash", "file_size")
    with Gallery.create(tmp_path / "second", model) as second:
        assert counts(second.add(tmp_path / "vectors.parquet", photos)) == (12, 12, 0, 0)
        by_id = [sorted(rows(one, *told), key=lambda row: row["id"]) for one in (gallery, second)]
        assert by_id[0] == by_id[1]
        assert counts(second.add(photos)) == (0, 0, 12, 0)


def test_the_export_of_a_gallery_changes_nothing_in_it(gallery, photos, tmp_path):
    gallery.add(photos)
    told = ("id", "path", "label", "width", "content_hash", "file_size", "modified_at", "embedding")
    before = sorted(rows(gallery, *told), key=lambda row: row["id"])
    gallery.export(tmp_path / "vectors.parquet", "parquet")
    assert counts(gallery.add(tmp_path / "vectors.parquet")) == (0, 0, 12, 0)
    assert sorted(rows(gallery, *told), key=lambda row: row["id"]) == before
    vector = unit_length(np.ones((1, gallery.model.card.dim), np.float32))
    assert counts(gallery.add_vectors(vector, ids=[before[0]["id"]])) == (0, 1, 0, 0)
    (now,) = [row for row in rows(gallery, *told) if row["id"] == before[0]["id"]]
    np.testing.assert_array_equal(now.pop("embedding"), vector[0])
    assert now == {name: value for name, value in before[0].items() if name != "embedding"}


def test_one_id_with_two_embeddings_is_refused(gallery, tmp_path):
    for name, ones in (("a", [1, 0]), ("b", [0, 1])):
        vector = unit_length(np.resize(np.float32(ones), (1, gallery.model.card.dim)))
        pq.write_table(pa.table({"id": ["x"], "embedding": [vector[0].tolist()]}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"the id 'x' has one embedding in .*a\.parquet and another in .*b\.parquet"):
        gallery.add(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert gallery.count() == 0
    assert counts(gallery.add(tmp_path / "a.parquet", tmp_path / "a.parquet")) == (1, 0, 1, 0)


@pytest.mark.parametrize("first", ["list", "folder"])
def test_a_list_of_what_is_named_by_its_folder_too_says_its_columns(gallery, photos, tmp_path, first):
    listed = tmp_path / "list.csv"
    listed.write_text("path,rating\n" + "".join(f"{path},{len(path.name)}\n" for path in photos.rglob("*.png")))
    named = (listed, photos) if first == "list" else (photos, listed)
    assert counts(gallery.add(*named)) == (12, 0, 0, 0)
    assert gallery.count("rating IS NOT NULL AND label IS NOT NULL") == 12


def test_one_path_with_two_labels_or_values_is_refused(gallery, photos, tmp_path):
    path = sorted(photos.rglob("*.png"))[0]
    for again, said in (("blue,1", "label 'red' and 'blue'"), ("red,2", "rating '1' and '2'")):
        (tmp_path / "list.csv").write_text(f"path,label,rating\n{path},red,1\n{path},{again}\n")
        with pytest.raises(InputError, match=said):
            gallery.add(tmp_path / "list.csv")
    assert gallery.count() == 0


def test_a_column_that_says_nothing_is_of_no_kind_yet(gallery, photos, tmp_path):
    path = sorted(photos.rglob("*.png"))[0]
    for rating, found in (("", []), ("5", ["rating"])):
        (tmp_path / "list.csv").write_text(f"path,rating\n{path},{rating}\n")
        gallery.add(tmp_path / "list.csv")
        assert list(gallery.info()["columns"]) == found
    assert gallery.count("rating > 3") == 1
    gallery.add(path, metadata={"kept": True})
    with pytest.raises(InputError, match="numbers are no truth values"):
        gallery.add(path, metadata={"kept": 7})


def test_a_query_whose_embedding_is_not_finite_is_named(gallery, photos, monkeypatch):
    gallery.add(photos)
    path = sorted(photos.rglob("*.png"))[0]
    vectors = np.full((1, gallery.model.card.dim), np.nan, np.float32)
    monkeypatch.setattr(type(gallery.encoder), "encode", lambda *_: vectors)
    with pytest.raises(PictureError, match=f"{path.name}.*not finite"):
        gallery.search(path)


def test_a_picture_whose_embedding_is_not_finite_is_left_out_and_named(gallery, photos, monkeypatch):
    encode = type(gallery.encoder).encode

    def spoilt(encoder, squares, **options):
        vectors = encode(encoder, squares, **options)
        vectors[0, 0] = np.inf
        return vectors

    monkeypatch.setattr(type(gallery.encoder), "encode", spoilt)
    report = gallery.add(photos)
    assert counts(report) == (11, 0, 0, 1)
    assert "not finite" in report.failed[0].reason


def test_a_vector_called_as_a_picture_stays_when_that_is_added(gallery, photos):
    path = sorted((photos / "red").iterdir())[0]
    vector = unit_length(np.ones((1, gallery.model.card.dim), np.float32))
    gallery.add_vectors(vector, ids=["mine"], paths=[str(path)])
    gallery.add(photos / "red")
    assert gallery.count("id = 'mine'") == 1


def test_whether_a_query_is_known_is_told_of_the_query_and_not_of_what_it_is_turned_to(gallery, photos):
    gallery.add(photos)
    far = unit_length(np.random.default_rng(0).normal(size=(3, gallery.model.card.dim)).astype(np.float32))
    plain, expanded = (gallery.search_vectors(far, 3, expand=expand) for expand in (False, True))
    assert [each.percentile for each in plain] == [each.percentile for each in expanded]


def test_a_search_goes_on_when_the_gallery_is_compacted_under_it(gallery, photos, monkeypatch):
    gallery.add(photos / "red")
    gallery.add(photos / "blue")
    with Gallery.open(gallery.folder) as other:
        newest, lost = Gallery._newest_index, []

        def compacted_meanwhile(opened):
            if not lost:
                lost.append(opened._table.version)
                other.compact()
            return newest(opened)

        monkeypatch.setattr(Gallery, "_newest_index", compacted_meanwhile)
        found = gallery.search(sorted((photos / "red").iterdir())[0], 8)
    assert len(found.hits) == 8
    assert gallery._table.version > lost[0]


def test_an_add_goes_on_when_the_gallery_is_compacted_under_it(gallery, photos, monkeypatch):
    gallery.add(photos / "red")
    gallery.add(photos / "blue")
    table, other = type(gallery._table), Gallery.open(gallery.folder)
    source, done = table._source, []

    def compacted_meanwhile(opened, given, **options):
        if not done:
            done.append(True)
            with monkeypatch.context() as patched:  # as another process, which is not kept out by this one's lock
                patched.setattr(table, "committing", lambda *_: nullcontext())
                other._table.compact()
        return source(opened, given, **options)

    monkeypatch.setattr(table, "_source", compacted_meanwhile)
    assert counts(gallery.add(photos)) == (4, 0, 8, 0)
    assert done
    assert gallery.count() == 12


def test_two_first_searches_on_disk_make_one_index(gallery, photos, monkeypatch):
    gallery.add(photos)
    query = sorted((photos / "red").iterdir())[0]
    with Gallery.open(gallery.folder, on_disk=True) as one, Gallery.open(gallery.folder, on_disk=True) as other:
        dataset = type(one._table._dataset)
        create, raced = dataset.create_index, []

        def raced_by_another(self, *arguments, **options):
            if not raced:
                raced.append(True)
                other.search(query, 3)
            return create(self, *arguments, **options)

        monkeypatch.setattr(dataset, "create_index", raced_by_another)
        assert one.search(query, 3).hits == other.search(query, 3).hits
        assert len(one._table._dataset.list_indices()) == 1


def test_a_labelled_copy_of_what_was_removed_meanwhile_leaves_it_removed(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "COMMIT_PICTURES", 1)
    first = picture(tmp_path / "1.png", 0, 1)
    shutil.copy2(first, tmp_path / "2.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1.png,\n2.png,red\n")

    insert = type(gallery._table).insert

    def insert_and_lose(table, columns):
        added = insert(table, columns)
        with Gallery.open(gallery.folder) as other:
            other.remove(where="label IS NULL")
        return added

    monkeypatch.setattr(type(gallery._table), "insert", insert_and_lose)
    report = gallery.add(first, tmp_path / "2.png", labels=labels)
    assert counts(report) == (1, 0, 1, 0)
    assert gallery.count() == 0


def test_what_is_removed_while_it_is_added_again_stays_removed(gallery, photos, tmp_path, monkeypatch):
    gallery.add(photos / "red")
    known = {row["path"]: row["id"] for row in rows(gallery, "id", "path")}
    relabelled = tmp_path / "list.csv"
    lines = [f"{path},green" for path in known] + [f"{photos / 'blue' / '0.png'},blue"]
    relabelled.write_text("\n".join(["path,label", *lines]))
    with Gallery.open(gallery.folder) as other:
        insert = type(gallery._table).insert

        def late(table, columns):
            other.remove([known[str(photos / "red" / "0.png")]])
            return insert(table, columns)

        monkeypatch.setattr(type(gallery._table), "insert", late)
        report = gallery.add(relabelled)
    assert (report.added, report.updated) == (1, 3)
    assert gallery.count("label = 'green'") == 3
    assert gallery.count() == 4


def test_a_list_in_parquet_says_what_one_in_csv_does(gallery, tmp_path):
    folder_of(tmp_path / "photos", each=2)
    rows = {"path": ["photos/red/0.png", "photos/blue/0.png"], "label": [7, None], "price": [1.5, 2.0]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text("path,label,price\nphotos/red/0.png,7,1.5\nphotos/blue/0.png,,2.0\n")
    assert counts(gallery.add(tmp_path / "list.parquet")) == (2, 0, 0, 0)
    assert counts(gallery.add(tmp_path / "list.csv")) == (0, 0, 2, 0)
    assert gallery.count("label = '7' AND price = 1.5") == 1
    pq.write_table(pa.table({"path": rows["path"], "label": ["x", "y"]}), tmp_path / "labels.parquet")
    assert counts(gallery.add(tmp_path / "photos", labels=tmp_path / "labels.parquet")) == (4, 2, 0, 0)
    assert gallery.count("label = 'x'") == 1


def test_single_adds_leave_few_fragments_and_rewrite_no_big_one(gallery):
    vectors = unit_vectors(400)
    gallery.add_vectors(vectors[:300])
    (big,) = (file.path for fragment in gallery._table._dataset.get_fragments() for file in fragment.data_files())
    for row in range(300, 400):
        gallery.add_vectors(vectors[row : row + 1])
    fragments = gallery._table._dataset.get_fragments()
    assert len(fragments) <= 34
    assert sum(fragment.count_rows() for fragment in fragments) == gallery.count() == 400
    assert big in {file.path for fragment in fragments for file in fragment.data_files()}


def test_progress_reaches_the_whole(gallery, photos):
    calls = []
    gallery.add(photos, progress=lambda *call: calls.append(call))
    assert calls[-1][1:] == (12, 12)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


# Ready-made vectors


def test_vectors_are_added_found_and_updated(gallery, tmp_path):
    vectors = unit_vectors(50)
    names = [f"v{row}" for row in range(50)]
    assert counts(gallery.add_vectors(vectors, ids=names, labels=["x"] * 50, metadata={"row": range(50)})) == (
        50,
        0,
        0,
        0,
    )
    assert counts(gallery.add_vectors(vectors, ids=names)) == (0, 0, 50, 0)
    assert counts(gallery.add_vectors(vectors[:5], ids=names[:5], labels=["y"] * 5)) == (0, 5, 0, 0)
    assert counts(gallery.add_vectors(-vectors[:2], ids=names[:2])) == (0, 2, 0, 0)
    assert gallery.search_vectors(-vectors[:1], 1, "exact")[0].hits[0].id == "v0"
    assert gallery.count("row < 10 AND label = 'y'") == 5
    pq.write_table(
        pa.table({"embedding": list(unit_vectors(3, seed=9)), "path": ["a", "b", "c"]}), tmp_path / "v.parquet"
    )
    assert counts(gallery.add(tmp_path / "v.parquet", metadata={"row": -1})) == (3, 0, 0, 0)
    version = gallery._table.version
    assert counts(gallery.add(tmp_path / "v.parquet")) == (0, 0, 3, 0)
    assert gallery._table.version == version
    assert gallery.count("path IN ('a', 'c') AND row = -1") == 2


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (unit_vectors(3, dim=8), {}, r"shape \(n, 16\)"),
        (unit_vectors(3)[0], {}, r"shape \(n, 16\)"),
        (unit_vectors(3) * [[1], [np.nan], [1]], {}, "embedding 1 holds a number that is not finite"),
        (unit_vectors(3).astype(np.float64) * 1e300, {}, "not finite"),
        (unit_vectors(3) * [[1], [1e19], [1]], {}, "embedding 1 is longer than 1e"),
        (unit_vectors(3) * [[1], [1], [1.01]], {}, "embedding 2 has length 1.01.*divide"),
        (unit_vectors(3), {"ids": ["a", "b", "a"]}, "'a' is given twice"),
        (unit_vectors(3), {"ids": ["a", "b"]}, "with 2 ids"),
        (unit_vectors(3), {"labels": [None, 1, "red"]}, "labels are texts, not 1"),
        (unit_vectors(3), {"paths": ["a", "b", 3.5]}, "paths are texts, not 3.5"),
        (unit_vectors(3), {"labels": ["red", "blue", "grey"], "file_by": "label"}, "no anchor is called 'grey'"),
        (unit_vectors(3), {"metadata": {"column": [1, "a", 2]}}, "mixes kinds"),
    ],
)
def test_wrong_vectors_are_refused(gallery, vectors, options, message):
    with pytest.raises(InputError, match=message):
        gallery.add_vectors(vectors, **options)
    assert gallery.count() == 0


# Searching


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), count=st.integers(1, 60), k=st.integers(1, 70), where=st.booleans())
def test_exact_search_equals_exhaustive(tmp_path_factory, model, seed, count, k, where):
    vectors, queries = unit_vectors(count, seed=seed), unit_vectors(3, seed=seed + 1)
    even = np.arange(count) % 2 == 0
    with Gallery.create(tmp_path_factory.mktemp("exact") / "gallery", model) as gallery:
        gallery.add_vectors(vectors, ids=[str(row) for row in range(count)], labels=np.where(even, "a", "b").tolist())
        for probes in ("exact", 1):
            results = gallery.search_vectors(queries, k, probes, where="label = 'a'" if where else None)
            for query, result in zip(queries, results, strict=True):
                distances = np.linalg.norm(query.astype(np.float64) - vectors, axis=1)
                expected = np.sort(distances[even] if where else distances)[:k]
                found = [hit.distance for hit in result.hits]
                # Whatever is probed, there are k hits as long as k match.
                assert len(found) == len(expected)
                assert [distances[int(hit.id)] for hit in result.hits] == pytest.approx(found, abs=1e-5)
                if probes == "exact":
                    assert found == pytest.approx(expected, abs=1e-5)


def test_a_picture_finds_itself_however_it_is_given(gallery, photos):
    gallery.add(photos)
    path = photos / "green" / "2.png"
    for query in (path, str(path), path.read_bytes(), Image.open(path)):
        result = gallery.search(query, k=4)
        assert result.hits[0].path == str(path)
        assert result.hits[0].distance == pytest.approx(0, abs=1e-4)
        assert [hit.rank for hit in result.hits] == [1, 2, 3, 4]
        assert {hit.label for hit in result.hits} == {"green"}
        assert result.probed == ("green",)
        assert 0 < result.scanned_share <= 1
    assert gallery.search(path).query == str(path)
    both = gallery.search_many([path, photos / "red" / "0.png"], k=1)
    assert [result.hits[0].label for result in both] == ["green", "red"]


def test_a_filter_gives_k_hits_wherever_they_are_filed(gallery, photos):
    gallery.add(photos)
    result = gallery.search(photos / "red" / "0.png", k=3, where="label = 'blue'")
    assert [hit.label for hit in result.hits] == ["blue"] * 3
    assert gallery.search(photos / "red" / "0.png", k=3, where="label = 'nobody'").hits == ()
    assert len(gallery.search(photos / "red" / "0.png", k=50).hits) == 12
    assert {hit.label for hit in gallery.search(photos / "red" / "0.png", where="anchor = 'green'").hits} == {"green"}


def test_a_filter_asked_again_gives_what_matches_now(gallery, photos):
    gallery.add(photos)
    query = photos / "red" / "0.png"
    for _ in range(2):
        for number in range(20):
            found = gallery.search(query, where=f"label = 'red' and {number} = {number}").hits
            assert {hit.label for hit in found} == {"red"}
    gallery.remove(where="label = 'red'")
    assert gallery.search(query, where="label = 'red' and 1 = 1").hits == ()
    assert len({len(gallery.search(query, where="random() < 0.5").hits) for _ in range(30)}) > 1


def test_a_wrong_search_says_what_there_is(gallery, photos):
    query = photos / "red" / "0.png"
    assert gallery.search(query).hits == ()
    gallery.add(photos)
    with pytest.raises(InputError, match=r"no column 'lable' \(did you mean 'label'\?\); there are: id, path"):
        gallery.search(query, where="lable = 'red'")
    with pytest.raises(InputError, match="texts are put in quotes"):
        gallery.count("label = 3")
    for where in ("width = ?", "width = $1"):
        with pytest.raises(InputError, match="write the value itself"):
            gallery.search(query, where=where)
    assert gallery.count("label = 'what?' or label = '$1'") == 0
    for where in ("sum(width) > 3", "count(*) > 1", "row_number() over () = 1"):
        with pytest.raises(InputError, match="several pictures together, as sum"):
            gallery.search(query, where=where)
    for where in ("label ===", "cast(label as int) > 3", "width / 0 > 1", "label = 'red"):
        with pytest.raises(InputError, match="cannot be used"):
            gallery.search(query, where=where)
    with pytest.raises(InputError, match="in a list"):
        gallery.search_many("query.jpg")
    assert gallery.count("label = 'a \"path\" b'") == 0
    with pytest.raises(InputError, match='"label" in double quotes is a text, not the column: write label'):
        gallery.search(query, where="\"label\" = 'red'")
    assert gallery.count('label = "red"') == gallery.count("`label` = 'red'") == gallery.count("label = 'red'")
    for wrong in ({"where": " "}, {"k": 0}, {"probes": 0}, {"probes": "all"}, {"order": "size"}):
        with pytest.raises(InputError):
            gallery.search(query, **wrong)
    with pytest.raises(InputError, match="shape"):
        gallery.search_vectors(unit_vectors(2, dim=3))
    with pytest.raises(PictureError):
        gallery.search(photos / "absent.png")


# What Lance would take for `label = 'red'`, or for all pictures.
CUT_SHORT = (
    "label = 'red' width > 900",
    "label = 'red' garbage",
    "label = 'red'; and width > 900",
    "label = 'red' -- and width > 900",
    "label = 'nobody') or (1 = 1",
    "(label = 'red' and width > 900))",
    """label = "it's") or (1 = 1""",
)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("where", CUT_SHORT)
def test_a_filter_is_taken_as_a_whole_or_refused(gallery, photos, where, on_disk):
    gallery.add(photos)
    with pytest.raises(InputError, match="cannot be used"):
        gallery.remove(where=where)
    assert gallery.count() == 12
    with Gallery.open(gallery.folder, on_disk=on_disk) as opened:
        with pytest.raises(InputError, match="cannot be used"):
            opened.search(photos / "red" / "0.png", where=where)
        # Signs within a text are no part of the condition.
        assert opened.search(photos / "red" / "0.png", where="label <> ') ; -- ''(' and (width > 0)").hits


# Removing


def test_pictures_are_removed_and_can_come_back(gallery, photos):
    gallery.add(photos)
    some = [row["id"] for row in rows(gallery, "id")][:2]
    for wrong in ({}, {"ids": some, "where": "true"}, {"where": ""}, {"ids": [*some, "nobody"]}, {"ids": [5]}):
        with pytest.raises(InputError):
            gallery.remove(**wrong)
    before = gallery.versions()
    assert gallery.remove(where="label = 'nobody'") == 0
    assert gallery.versions() == before
    assert all(version.written_at.utcoffset() == timedelta(0) for version in before)
    assert abs(datetime.now(UTC) - before[-1].written_at) < timedelta(minutes=5)
    assert gallery.count() == 12
    assert gallery.remove(some) == 2
    green = gallery.count("label = 'green'")
    assert gallery.remove(where="label = 'green'") == green
    assert gallery.count() == 10 - green
    assert not {hit.id for hit in gallery.search(photos / "red" / "0.png").hits} & set(some)
    gallery.remove(where="true")
    assert gallery.count() == 0
    assert gallery.search(photos / "red" / "0.png").hits == ()
    gallery.compact()
    assert counts(gallery.add(photos)) == (12, 0, 0, 0)
    assert len(gallery.search(photos / "red" / "0.png").hits) == 12


def test_compacting_gives_space_back_and_changes_no_answer(gallery):
    vectors = unit_vectors(2000)
    gallery.add_vectors(vectors, ids=[str(row) for row in range(2000)], metadata={"row": range(2000)})
    gallery.remove(where="row >= 1000")
    before = gallery.search_vectors(vectors[:5], 10, "exact")
    size = sum(file.stat().st_size for file in gallery.folder.rglob("*.lance"))
    gallery.compact()
    assert sum(file.stat().st_size for file in gallery.folder.rglob("*.lance")) < 0.7 * size
    after = gallery.search_vectors(vectors[:5], 10, "exact")
    assert [[hit.id for hit in result.hits] for result in after] == [
        [hit.id for hit in result.hits] for result in before
    ]


def test_many_small_adds_leave_few_fragments(gallery):
    vectors = unit_vectors(80)
    for row in range(80):
        gallery.add_vectors(vectors[row : row + 1])
    assert gallery.count() == 80
    assert gallery._table.fragments <= 35


# Others at work

ADD = """
import sys
from kedge import intake
from kedge.gallery import Gallery
intake.COMMIT_PICTURES = int(sys.argv[3])
with Gallery.open(sys.argv[1]) as gallery:
    print("open", flush=True)
    report = gallery.add(sys.argv[2], progress=lambda stage, done, total: print(done, flush=True))
    print(report.added, report.updated, report.unchanged, len(report.failed))
"""


def adding(gallery, photos, commit):
    command = [sys.executable, "-c", ADD, str(gallery.folder), str(photos), str(commit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_gallery_killed_while_adding_holds_whole_pictures_and_is_completed(gallery, tmp_path):
    root = folder_of(tmp_path / "photos", each=100)
    for instant in (1, 60, 150):
        process = adding(gallery, root, commit=10)
        for line in process.stdout:
            if line.strip().isdigit() and int(line) >= instant:
                break
        time.sleep(random.Random(instant).uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        with Gallery.open(gallery.folder) as opened:
            stored = rows(opened, "id", "path", "label", "embedding", "thumbnail")
            assert instant - 20 <= len(stored) < 300
            assert len({row["id"] for row in stored}) == len(stored)
            for row in stored:
                assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-4)
                assert row["thumbnail"].startswith(b"\xff\xd8")
                assert row["label"] == Path(row["path"]).parent.name
            if stored:
                assert opened.search(stored[0]["path"], k=1).hits[0].id == stored[0]["id"]
    report = gallery.add(root)
    assert (report.added + report.unchanged, report.updated, report.failed) == (300, 0, ())
    assert report.unchanged == len(stored)
    assert gallery.count() == 300


def test_two_writers_of_the_same_pictures_store_each_once(gallery, tmp_path):
    root = folder_of(tmp_path / "photos", each=20)
    processes = [adding(gallery, root, commit=7) for _ in range(2)]
    reports = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        reports.append([int(number) for number in output.splitlines()[-1].split()])
    assert gallery.count() == 60
    assert len({row["id"] for row in rows(gallery, "id")}) == 60
    assert sum(report[0] for report in reports) == 60
    assert all(sum(report) == 60 and report[1] == report[3] == 0 for report in reports)


def test_what_others_commit_is_seen(gallery, photos):
    query = photos / "red" / "0.png"
    with Gallery.open(gallery.folder) as other:
        assert gallery.search(query).hits == ()
        other.add(photos)
        assert gallery.count() == 12
        assert len(gallery.search(query).hits) == 12
        other.remove(where="label = 'blue'")
        other.compact()
        assert len(gallery.search(query).hits) == 8
        assert {hit.label for hit in gallery.search(query, where="label <> 'red'").hits} == {"green"}


def test_a_query_far_from_every_anchor_is_not_known(tmp_path, model, gallery):
    picture(tmp_path / "red.png", 0, 1)
    gallery.add(tmp_path / "red.png")
    anchors = gallery.model.search_anchors.vectors
    near, far = anchors[0], unit_length(-anchors.sum(axis=0, keepdims=True))[0]
    (without,) = gallery.search_vectors(near[None])
    assert (without.known, without.percentile) == (None, None)
    card = model.card.model_copy(update={"anchor_distances": tuple(np.linspace(0, 0.5, 101).tolist())})
    calibrated = tmp_path / "calibrated"
    shutil.copytree(model.folder, calibrated)
    (calibrated / "kedge.json").write_text(card.model_dump_json())
    with Gallery.create(tmp_path / "second", calibrated) as second:
        found = second.search_vectors(np.stack([near, far]))  # also without a picture to be found
        assert [(one.known, one.percentile) for one in found] == [(True, 0.0), (False, 100.0)]


def test_hits_beyond_the_largest_distance_are_left_out(gallery):
    vectors = gallery.model.search_anchors.vectors
    gallery.add_vectors(vectors, ids=["a", "b", "c"])
    (every,) = gallery.search_vectors(vectors[:1], 3)
    limit = every.hits[1].distance
    (some,) = gallery.search_vectors(vectors[:1], 3, max_distance=limit)
    assert [hit.id for hit in some.hits] == [hit.id for hit in every.hits[:2]]
    (one,) = gallery.search_vectors(vectors[:1], 3, max_distance=0)
    assert [hit.id for hit in one.hits] == ["a"]
    for wrong in (-1, float("nan")):
        with pytest.raises(InputError, match="largest distance"):
            gallery.search_vectors(vectors[:1], 3, max_distance=wrong)


def test_an_expanded_query_is_searched_in_its_place(tmp_path, gallery):
    rows = unit_vectors(200, seed=2)
    gallery.add_vectors(rows)
    found = gallery.search_vectors(rows[:3], 9, "exact", expand=True)
    expanded = expand_queries(rows[:3], gallery.model.search_anchors.vectors)
    expected = gallery.search_vectors(expanded, 9, "exact")
    model = make_model(tmp_path / "model")
    model.write_card(model.card.model_copy(update={"distance": "l2"}))
    with pytest.raises(ModelError, match="--distance cosine"):
        kedge.Model.load(model.folder).expand(rows[:3])
    for one, other in zip(found, expected, strict=True):
        assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
        assert [hit.distance for hit in one.hits] == pytest.approx([hit.distance for hit in other.hits])
        assert one.hits[0].distance > 0.01  # no longer itself


def test_half_precision_finds_the_same_pictures(gallery):
    random_vectors = unit_length(np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32))
    gallery.add_vectors(random_vectors)
    whole = gallery.search_vectors(random_vectors[:20], 10, "exact")
    with Gallery.open(gallery.folder, half=True) as half:
        found = half.search_vectors(random_vectors[:20], 10, "exact")
    shared = [len({hit.id for hit in a.hits} & {hit.id for hit in b.hits}) for a, b in zip(whole, found, strict=True)]
    assert np.mean(shared) > 9.8


def test_exact_search_in_half_precision_is_exact_among_the_rounded_vectors():
    """Bounds of the vectors as they were would rule out the nearest of the rounded ones."""

    class Table:
        vectors = np.float32([[1.999, 0], [6.0015, 0]])

        def read(self, *_, **__):
            filing = file_vectors(self.vectors, anchors.vectors)
            own = {"rho": filing.rho, "gap": filing.gap, "anchor": [anchors.names[row] for row in filing.anchors]}
            texts = {name: ["near", "far"] for name in ("id", "path", "label")}
            return pa.table({**texts, **own, "_rowid": np.arange(2, dtype=np.uint64)})

        def embeddings(self):
            yield self.vectors

    anchors = Anchors(("a", "b"), np.float32([[0, 0], [10, 0]]))
    query = np.float32([[4, 0]])
    rounded = np.linalg.norm(Table.vectors.astype(np.float16).astype(np.float64) - query, axis=1)
    (found,) = MemoryIndex(Table(), anchors, half=True).search(query, 1, "exact", where=None, order="distance")
    assert found.said["id"].to_pylist() == [["near", "far"][int(rounded.argmin())]]
    assert found.distances[0] == pytest.approx(rounded.min())


def test_a_filter_finds_its_rows_whatever_their_numbers_and_few_filters_are_kept():
    """Lance numbers rows by the file that they lie in, which need not be the order that they are read in."""

    class Table:
        def read(self, *_, **__):
            texts = {name: ["near", "far"] for name in ("id", "path", "label")}
            zeros = np.zeros(2, dtype=np.float32)
            return pa.table({**texts, "rho": zeros, "gap": zeros, "anchor": ["a", "a"], "_rowid": np.uint64([5, 2])})

        def embeddings(self):
            yield np.float32([[1, 0], [2, 0]])

        def row_ids(self, _where):
            return np.uint64([5])

    index = MemoryIndex(Table(), Anchors(("a",), np.float32([[0, 0]])), half=False)
    for number in range(20):
        (found,) = index.search(np.float32([[9, 0]]), 2, 1, where=f"{number} = {number}", order="distance")
        assert found.said["id"].to_pylist() == ["near"]
    assert len(index._matches) == 16


def test_a_large_jpeg_gets_one_embedding_however_it_is_read(tmp_path):
    # Reduced decoding must be the same in training's data sets, in add, and in queries by path and by bytes.
    for number, name in enumerate(("train/red", "train/green", "test/red", "test/green")):
        for each in range(2):
            path = tmp_path / "photos" / name / f"{each}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([number, each]).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(path)
    model = make_model(tmp_path / "model", classes=["red", "green"])
    split = kedge.load_dataset(tmp_path / "photos").test
    decoded = split.decode(model.card.preprocessing.image_size)
    expected = dict(zip(decoded.paths, kedge.Encoder(model).encode(decoded.pixels), strict=True))
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.add(tmp_path / "photos" / "test")
        rows = gallery._table.read(["path", "embedding"]).to_pylist()
        assert len(rows) == 4
        for row in rows:
            np.testing.assert_array_equal(np.float32(row["embedding"]), expected[row["path"]])
            for query in (row["path"], Path(row["path"]).read_bytes()):
                assert gallery.search(query, 1).hits[0].distance == 0.0
