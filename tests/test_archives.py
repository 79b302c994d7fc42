"""Pictures inside archives: added, found, known again and told apart from broken ones, as if in a folder."""

import io
import os
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kedge
from kedge import intake
from kedge.archives import open_archive
from kedge.errors import InputError
from tests.models import make_model
from tests.pictures import draw_classes

CLASSES = ["red", "green", "blue"]
KINDS = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.bz2": "bztar", "tar.xz": "xztar"}


@pytest.fixture
def photos(tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=5, size=32, seed=0)
    (tmp_path / "photos" / "red" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / "red" / ".hidden.png").write_bytes(b"hidden")
    return tmp_path / "photos"


@pytest.fixture
def gallery(tmp_path):
    with kedge.Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model", classes=CLASSES)) as opened:
        yield opened


def rows(gallery):
    gallery._table.refresh()
    return gallery._table.read(["id", "path", "label", "embedding", "file_size"]).to_pylist()


def write_tar(path, contents):
    with tarfile.open(path, "w") as opened:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))


def test_names_that_archives_hold_in_other_ways_are_found(photos, gallery, tmp_path):
    names = {"/red/0.png": "red", "./green/0.png": "green", "blue//0.png": "blue"}
    for name in ("packed.zip", ".zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            for written, label in names.items():
                packed.write(sorted((photos / label).glob("[0-9]*.png"))[0], written)
    report = gallery.add(tmp_path / "packed.zip")
    assert (report.added, report.failed) == (3, ())
    paths = {row["path"]: row["label"] for row in rows(gallery)}
    assert paths == {str(tmp_path / "packed.zip" / label / "0.png"): label for label in names.values()}
    assert gallery.add(tmp_path / ".zip").unchanged == 3  # copies, of which the stored ones are there
    (tmp_path / "packed.zip").unlink()
    assert gallery.add(tmp_path / ".zip").updated == 3


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_is_added_as_its_folder_would_be(suffix, photos, gallery, tmp_path, monkeypatch):
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), KINDS[suffix], photos))
    assert archive.name == f"packed.{suffix}"
    report = gallery.add(archive)
    assert (report.added, report.failed) == (15, ())
    with kedge.Gallery.create(tmp_path / "other", gallery.model) as other:
        other.add(photos)
        expected = {row["id"]: row for row in rows(other)}
    for row in rows(gallery):
        same = expected[row["id"]]
        assert row["path"] == same["path"].replace(str(photos), str(archive))
        assert (row["label"], row["embedding"]) == (same["label"], same["embedding"])
        assert row["file_size"] == same["file_size"]
        assert gallery.search(row["path"], 1).hits[0].id == row["id"]
    monkeypatch.setattr(intake, "read_for_encoder", lambda *_, **__: pytest.fail("was read again"))
    assert gallery.add(archive).unchanged == 15


def test_a_changed_archive_is_read_again(photos, gallery, tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", photos))
    gallery.add(archive)
    with zipfile.ZipFile(archive, "a") as opened:
        Image.new("RGB", (20, 20), "white").save(tmp_path / "new.png")
        opened.write(tmp_path / "new.png", "white/new.png")
    report = gallery.add(archive)
    assert (report.added, report.unchanged) == (1, 15)


def test_a_gallery_of_an_archive_is_reindexed_from_it(photos, gallery, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "packed"), "tar", photos)
    gallery.add(archive)
    gallery.reindex(make_model(tmp_path / "new", classes=CLASSES, dim=8, seed=1))
    assert gallery.count() == 15
    Path(archive).unlink()
    with pytest.raises(InputError, match="15 of 15 pictures are not at their paths"):
        gallery.reindex(make_model(tmp_path / "newer", classes=CLASSES, dim=4, seed=2))


def test_labels_of_the_root_are_the_archives_name(gallery, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "green.tar.gz", "w:gz") as opened:
        opened.add(tmp_path / "a.png", "./a.png")
    gallery.add(tmp_path / "green.tar.gz")
    assert [row["label"] for row in rows(gallery)] == ["green"]


def test_what_is_broken_is_named_and_the_rest_is_added(photos, gallery, tmp_path):
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(photos.rglob("*.png")):
            opened.write(path, path.relative_to(photos))
        opened.writestr("red/broken.jpg", b"no picture")
    content = bytearray(archive.read_bytes())
    place = content.find(next((photos / "red").glob("[0-9]*.png")).read_bytes()[:60]) + 50
    content[place : place + 4] = b"\0\0\0\0"
    archive.write_bytes(content)
    report = gallery.add(archive)
    assert report.added == 14
    assert sorted(Path(failure.path).suffix for failure in report.failed) == [".jpg", ".png"]
    assert any("archive" in failure.reason for failure in report.failed)


def test_names_may_begin_with_a_dot_and_one_broken_archive_stops_no_others(photos, gallery, tmp_path):
    with zipfile.ZipFile(tmp_path / "dotted.zip", "w") as opened:
        opened.write(photos / "red" / "0000.png", "./red/0000.png")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    (tmp_path / "list.csv").write_text("path\ndotted.zip/red/0000.png\nbroken.zip/red/0000.png\n")
    report = gallery.add(tmp_path / "list.csv")
    assert report.added == 1
    assert "broken.zip cannot be read as an archive" in report.failed[0].reason
    assert gallery.add(tmp_path / "dotted.zip").updated == 1  # a label
    (tmp_path / "dotted.zip").write_bytes(b"no archive any more")
    gallery.add(photos / "blue")
    new = make_model(tmp_path / "new", classes=CLASSES, dim=8, seed=1)
    with pytest.raises(InputError, match="1 of 6 pictures are not at their paths any more"):
        gallery.reindex(new)
    gallery.reindex(new, drop_missing=True)
    assert gallery.count() == 5


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_what_is_no_archive_is_refused(name, gallery, tmp_path):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(InputError, match="cannot be read as an archive"):
        gallery.add(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as opened:
        opened.writestr("notes.txt", "none")
    with pytest.raises(InputError, match="holds no pictures"):
        gallery.add(tmp_path / "empty.zip")
    assert gallery.count() == 0


def test_a_cut_archive_says_so(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "cut.tar", "w") as opened:
        opened.add(tmp_path / "a.png", "a.png")
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:9000])
    with pytest.raises((EOFError, InputError)):
        open_archive(tmp_path / "cut.tar").read("a.png")


def test_threads_that_read_at_once_read_their_own_file(tmp_path):
    contents = {str(number): bytes([number]) * 50_000 for number in range(200)}
    write_tar(tmp_path / "packed.tar", contents)
    archive = open_archive(tmp_path / "packed.tar")
    names = [str(number) for number in np.random.default_rng(0).integers(0, 200, 4000)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: archive.read(name) == contents[name], names))


def test_an_archive_written_anew_with_as_many_bytes_is_read_again(tmp_path):
    path = tmp_path / "packed.tar"
    for second, content in enumerate((b"one", b"two")):
        write_tar(path, {"a": content})
        os.utime(path, (second, second))
        assert open_archive(path).read("a") == content
