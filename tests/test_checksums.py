"""Checksums: a changed byte is found in whatever file it lies, a torn or lost line does no harm."""

import os
import shutil
import zlib

import numpy as np
import pytest

from kedge.checksums import FILE, Checksums
from kedge.distances import unit_length
from kedge.errors import GalleryError, InputError, WorkError
from kedge.gallery import Gallery
from tests.models import make_model
from tests.pictures import draw_classes


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A gallery with several data files and a deletion file."""
    folder = tmp_path_factory.mktemp("checked")
    draw_classes(folder / "photos", ["red", "green", "blue"], each=4, size=16, seed=0)
    with Gallery.create(folder / "gallery", make_model(folder / "model")) as gallery:
        for label in ("red", "green", "blue"):
            gallery.add(folder / "photos" / label)
        gallery.remove([gallery.search(folder / "photos" / "green" / "0000.png", 1).hits[0].id])
    return folder / "gallery"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_whole_gallery_has_no_damage(filled):
    with Gallery.open(filled) as gallery:
        assert gallery.check() == []
        parts = {path.split("/")[1] if path.startswith("pictures") else path for path in gallery._files()}
        assert {"data", "_versions", "_deletions", "model/encoder.onnx"} <= parts


@pytest.mark.parametrize("at", [0, 137, -1, -200])
def test_a_flipped_byte_is_named_wherever_it_lies(filled, at):
    with Gallery.open(filled) as gallery:
        files = gallery._files()
    for name in files:
        path = filled / name
        whole = path.read_bytes()
        flip(path, at)
        try:
            with Gallery.open(filled) as gallery:
                found = {damage.path: damage.reason for damage in gallery.check()}
            assert found[name] == "holds other bytes than were written"
        except GalleryError:
            assert not name.startswith("pictures.lance/data"), "data can be damaged without keeping the gallery shut"
        finally:
            path.write_bytes(whole)


def test_a_flipped_byte_of_the_card_keeps_the_gallery_shut(filled):
    path = filled / "gallery.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        with pytest.raises(GalleryError):
            Gallery.open(filled)
        path.write_bytes(whole)
    Gallery.open(filled).close()


def test_missing_and_shortened_files_are_named(filled):
    with Gallery.open(filled) as gallery:
        name = next(name for name in gallery._files() if "/data/" in name)
        path, whole = filled / name, (filled / name).read_bytes()
        path.write_bytes(whole[:-3])
        assert gallery.check()[0].reason == f"has {len(whole) - 3} bytes, {len(whole)} were written"
        path.unlink()
        assert gallery.check()[0].reason == "is missing"
        path.write_bytes(whole)


def test_a_torn_line_is_not_believed_and_hides_no_other(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    Checksums(tmp_path).record(["a"])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"\n0000")  # a kill came here
    again = Checksums(tmp_path)
    assert again.record(["a", "b", "gone"]) == 1
    assert Checksums(tmp_path).verify(["a", "b"]) == []
    flip(tmp_path / "b", 0)
    assert Checksums(tmp_path).record(["b"]) == 0  # what is damaged is not summed again
    assert [damage.path for damage in Checksums(tmp_path).verify(["a", "b"])] == ["b"]
    os.truncate(tmp_path / FILE, 0)
    assert Checksums(tmp_path).verify(["a", "b"]) == []  # without sums nothing is known to be wrong
    Checksums(tmp_path).record(["a", "b"])
    Checksums(tmp_path).keep(["a"])
    assert (tmp_path / FILE).read_text().split()[-1] == "a"


def test_what_is_damaged_is_not_compacted(filled, tmp_path):
    shutil.copytree(filled, tmp_path / "gallery")
    file = sorted((tmp_path / "gallery" / "pictures.lance" / "data").iterdir())[0]
    flip(file, 64)
    with Gallery.open(tmp_path / "gallery") as gallery:
        with pytest.raises(WorkError, match=r"is damaged .* nothing was compacted"):
            gallery.compact()
        assert [damage.reason for damage in gallery.check()] == ["holds other bytes than were written"]


def test_small_additions_do_not_write_what_is_damaged_anew(tmp_path):
    model = make_model(tmp_path / "model")
    vectors = unit_length(np.random.default_rng(0).normal(size=(80, model.card.dim)).astype(np.float32))
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.add_vectors(vectors[:1])
        flip(sorted((tmp_path / "gallery" / "pictures.lance" / "data").iterdir())[0], 64)
        for row in range(1, 40):
            gallery.add_vectors(vectors[row : row + 1])
        assert [damage.reason for damage in gallery.check()] == ["holds other bytes than were written"]
        assert gallery._table.fragments == 40
    with Gallery.create(tmp_path / "whole", model) as gallery:
        for row in range(40):
            gallery.add_vectors(vectors[row : row + 1])
        assert gallery._table.fragments < 40
        assert gallery.check() == []


def test_versions_are_listed_and_gone_back_to(tmp_path):
    draw_classes(tmp_path / "photos", ["red", "green"], each=3, size=16, seed=1)
    with Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model")) as gallery:
        gallery.add(tmp_path / "photos" / "red")
        gallery.add(tmp_path / "photos" / "green")
        full = gallery.versions()[-1]
        assert full.pictures == gallery.count() == 6
        gallery.remove(where="label = 'red'")
        assert [version.pictures for version in gallery.versions()][-2:] == [6, 3]
        gallery.restore(full.number)
        vectors = gallery.model.search_anchors.vectors[:1]
        for place in ("a", "b"):
            gallery.add_vectors(vectors, ids=["one"], paths=[place], metadata={"share": [0.5]})
        changes = [version.change for version in gallery.versions()]
        assert changes[:6] == ["created", "3 added", "3 added", "3 removed", "restored", "columns added"]
        assert changes[6] == "1 added"
        assert {*changes[7:]} == {"pictures updated"}
        gallery.remove(ids=["one"])
        assert gallery.count() == 6
        assert len(gallery.search(tmp_path / "photos" / "red" / "0000.png").hits) == 6
        assert gallery.check() == []
        with pytest.raises(InputError, match="no version 99 is kept"):
            gallery.restore(99)
        gallery.remove(where="label = 'red'")
        before, after = gallery.compact()
        assert after < before
        assert gallery.count() == 3
        assert [version.change for version in gallery.versions()] == ["pictures removed"]
        assert gallery.check() == []


def test_versions_do_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("kedge.pictures_table._MOST_KEPT", 40)
    with Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model")) as gallery:
        vector = gallery.model.search_anchors.vectors[:1]
        for number in range(120):
            gallery.add_vectors(vector, ids=[str(number)])
        assert 40 <= len(gallery.versions()) < 100
        assert gallery.count() == 120
        oldest = gallery.versions()[0]
        gallery.restore(oldest.number)
        assert gallery.count() == oldest.pictures < 120
        assert gallery.check() == []


def test_a_torn_line_condemns_no_file_and_the_first_sum_counts(tmp_path):
    sums = Checksums(tmp_path)
    for name in ("a", "ab"):
        (tmp_path / name).write_text(f"the bytes of {name}")
    sums.record(["a", "ab"])
    # Cut off within the path: it would be a sum of another file.
    with (tmp_path / FILE).open("a") as file:
        file.write("00000000 9 a")
    assert Checksums(tmp_path).verify(["a", "ab"]) == []
    (tmp_path / "a").write_text("other bytes, a")
    size, crc = 14, zlib.crc32(b"other bytes, a")
    with (tmp_path / FILE).open("a") as file:
        file.write(f"\n{crc:08x} {size} a\n")
    assert [damage.path for damage in Checksums(tmp_path).verify(["a", "ab"])] == ["a"]


def test_sums_that_another_process_wrote_since_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"the bytes of {name}")
    mine = Checksums(tmp_path)
    mine.record(["a"])
    Checksums(tmp_path).record(["b"])
    flip(tmp_path / "b", 0)
    assert [damage.path for damage in mine.verify(["a", "b"])] == ["b"]
