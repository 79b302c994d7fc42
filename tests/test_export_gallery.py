"""Exports: what other programs read is what the gallery holds."""

import errno
import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from kedge.distances import unit_length
from kedge.errors import InputError, MissingPartError
from kedge.gallery import Gallery
from kedge.search import TwoStageIndex
from tests.models import make_model


@pytest.fixture
def gallery(tmp_path):
    model = make_model(tmp_path / "model")
    random = np.random.default_rng(0)
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        near = unit_length(random.normal(size=(300, model.card.dim)).astype(np.float32))
        gallery.add_vectors(near[:200], metadata={"year": [int(year) for year in random.integers(1900, 2000, 200)]})
        gallery.add_vectors(
            near[200:], labels=[["red", "green", "blue"][row % 3] for row in range(100)], file_by="label"
        )
        yield gallery


def queries_of(gallery, count=9):
    return unit_length(np.random.default_rng(1).normal(size=(count, gallery.model.card.dim)).astype(np.float32))


def test_faiss_searches_the_same_buckets(gallery, tmp_path):
    assert gallery.export(tmp_path / "index.faiss", "faiss") == 300
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    ids = json.loads((tmp_path / "index.faiss.ids.json").read_text())
    queries = queries_of(gallery)
    gallery.export(tmp_path / "all.npz", "npz")
    stored = np.load(tmp_path / "all.npz", allow_pickle=False)
    own = TwoStageIndex(stored["embeddings"], stored["anchors"], stored["buckets"])
    for probes in (1, 2, 3):
        index.nprobe = probes
        squared, rows = index.search(queries, 10)
        found = own.search(queries, 10, probes)
        assert np.array_equal(rows, found.ids)
        assert np.allclose(np.sqrt(squared), found.distances, atol=1e-5)
    # The gallery's own exact search finds the pictures that these numbers stand for.
    index.nprobe = 3
    _, rows = index.search(queries, 5)
    for row, result in zip(rows, gallery.search_vectors(queries, 5, "exact"), strict=True):
        assert [ids[number] for number in row] == [hit.id for hit in result.hits]


def test_parquet_goes_into_another_gallery(gallery, tmp_path):
    gallery.export(tmp_path / "all.parquet", "parquet")
    with Gallery.create(tmp_path / "second", gallery.model) as second:
        assert second.add(tmp_path / "all.parquet").added == 300
        queries = queries_of(gallery)
        for one, other in zip(
            gallery.search_vectors(queries, 20, "exact"), second.search_vectors(queries, 20, "exact"), strict=True
        ):
            assert [(hit.id, hit.label) for hit in one.hits] == [(hit.id, hit.label) for hit in other.hits]
        assert second.count("year < 1950") == gallery.count("year < 1950") > 0


def test_an_empty_gallery_is_exported_with_texts_for_names(tmp_path):
    with Gallery.create(tmp_path / "empty", make_model(tmp_path / "model")) as empty:
        assert empty.export(tmp_path / "x.npz", "npz") == 0
    with np.load(tmp_path / "x.npz") as found:
        assert [found[name].dtype.kind for name in ("ids", "paths", "labels")] == ["U"] * 3


def test_what_cannot_be_exported_is_said_and_nothing_is_left(gallery, tmp_path, monkeypatch):
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match="faiss, npz, parquet"):
        gallery.export(tmp_path / "x", "csv")
    with pytest.raises(InputError, match="is there already"):
        gallery.export(tmp_path / "model", "npz")
    with pytest.raises(InputError, match="cannot be written"):
        gallery.export(tmp_path / "nowhere" / "x.npz", "npz")
    with pytest.raises(InputError, match="cannot be written"):
        gallery.export(tmp_path / "nowhere" / "x", "faiss")
    (tmp_path / "x.ids.json").write_text("mine")
    with pytest.raises(InputError, match=r"x.ids.json is there already"):
        gallery.export(tmp_path / "x", "faiss")
    (tmp_path / "x.ids.json").unlink()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPartError, match=r"pip install 'kedge\[faiss\]'"):
        gallery.export(tmp_path / "x", "faiss")
    monkeypatch.undo()
    rename = Path.rename

    def full(place, to):
        if to == tmp_path / "x":
            raise OSError(errno.ENOSPC, "no space left")
        return rename(place, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError, match="no space left"):
        gallery.export(tmp_path / "x", "faiss")
    assert set(tmp_path.iterdir()) == before
