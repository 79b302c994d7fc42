"""The two engines: a gallery held in memory and one searched on disk give the same answers, whatever came before."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedge.distances import unit_length
from kedge.errors import InputError
from kedge.gallery import Gallery
from kedge.pictures_table import PicturesTable
from tests.models import make_model

CLASSES = ("it's", "green", "blue", "grey", "pink")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("disk") / "model", classes=CLASSES)


def drawn(random, count, model):
    return unit_length(random.normal(size=(count, model.card.dim)).astype(np.float32))


def told(results):
    return [
        ([(hit.id, hit.label, hit.anchor, hit.rank) for hit in one.hits], one.probed, round(one.scanned_share, 9))
        for one in results
    ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([1, 5, 60]), st.sampled_from(["nearest", "label"])),
        st.tuples(st.just("remove"), st.integers(0, 9), st.none()),
        st.tuples(st.just("compact"), st.none(), st.none()),
        st.tuples(st.just("reopen"), st.none(), st.none()),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, seed=st.integers(0, 999))
def test_both_engines_answer_as_a_list_in_plain_python_does(steps, seed, model, tmp_path_factory):
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("engines") / "gallery"
    memory, disk = Gallery.create(folder, model), Gallery.open(folder, on_disk=True, cache=8)
    held: dict[str, np.ndarray] = {}
    for kind, amount, file_by in steps:
        if kind == "add":
            vectors, ids = (
                drawn(random, amount, model),
                [f"{len(held)}-{row}-{random.integers(1e9)}" for row in range(amount)],
            )
            labels = [CLASSES[row] for row in random.integers(0, len(CLASSES), amount)]
            memory.add_vectors(vectors, ids=ids, labels=labels, file_by=file_by)
            held |= dict(zip(ids, vectors, strict=True))
        elif kind == "remove":
            gone = [key for row, key in enumerate(sorted(held)) if row % 10 == amount]
            assert disk.remove(gone) == len(gone)
            held = {key: vector for key, vector in held.items() if key not in gone}
        elif kind == "compact":
            memory.compact()
        else:
            memory, disk = Gallery.open(folder), Gallery.open(folder, on_disk=True)
        queries = drawn(random, 3, model)
        for options in (
            {"k": 7, "probes": 1},
            {"k": 3, "probes": 2, "order": "bucket"},
            {"k": 200, "probes": 1},
            {"k": 5, "probes": 3, "where": "label = 'it''s' OR label = 'blue'"},
            {"k": 5, "probes": 1, "where": "label = 'nobody'"},
        ):
            assert told(disk.search_vectors(queries, **options)) == told(memory.search_vectors(queries, **options))
        for engine in (memory, disk):
            for query, result in zip(queries, engine.search_vectors(queries, 9, "exact"), strict=True):
                apart = {key: float(np.linalg.norm(vector.astype(float) - query)) for key, vector in held.items()}
                expected = sorted(apart.values())[:9]
                assert [hit.distance for hit in result.hits] == pytest.approx(expected, rel=1e-6)
                assert [apart[hit.id] for hit in result.hits] == pytest.approx(expected, rel=1e-6)
    assert disk.check() == []


@pytest.mark.parametrize("asked", [{"where": "label = 'c7'"}, {"order": "bucket", "k": 200}, {"k": 400}])
def test_far_anchors_are_looked_into_as_near_ones_are(asked, tmp_path, monkeypatch):
    names = [f"c{number}" for number in range(30)]
    model, random = make_model(tmp_path / "model", classes=names), np.random.default_rng(0)
    labels = random.integers(len(names), size=600)
    vectors = unit_length(model.search_anchors.vectors[labels] + 0.1 * random.normal(size=(600, model.card.dim)))
    memory = Gallery.create(tmp_path / "gallery", model)
    memory.add_vectors(vectors, labels=[names[label] for label in labels])
    disk = Gallery.open(tmp_path / "gallery", on_disk=True)
    queries = vectors[:20]
    looked_into, nearest = [], PicturesTable.nearest

    def seen(*told, **options):
        looked_into.append(options["probes"])
        return nearest(*told, **options)

    monkeypatch.setattr(PicturesTable, "nearest", seen)
    assert told(disk.search_vectors(queries, **{"k": 5, **asked})) == told(
        memory.search_vectors(queries, **{"k": 5, **asked})
    )
    assert None not in looked_into or asked.get("k") == 400  # all of them only where all are asked for
    for emptied in range(8):
        memory.remove(where=f"label = 'c{emptied}'")
    options = {"k": 5, "where": asked.get("where", "").replace("c7", "c9") or None}
    for one, other in zip(
        disk.search_vectors(queries, probes="exact", **options),
        memory.search_vectors(queries, probes="exact", **options),
        strict=True,
    ):
        assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
        assert len(one.hits) == 5


def test_what_lies_between_two_anchors_is_found_however_lance_files_it(tmp_path):
    names = [f"c{number}" for number in range(30)]
    model = make_model(tmp_path / "model", classes=names, distance="l2", dim=32)
    anchors = model.search_anchors.vectors
    first, second = np.triu_indices(len(names), 1)
    Gallery.create(tmp_path / "gallery", model).add_vectors((anchors[first] + anchors[second]) / 2)
    disk = Gallery.open(tmp_path / "gallery", on_disk=True)
    assert {len(result.hits) for result in disk.search_vectors(anchors, 300)} == {300}


def test_settings_that_cannot_be_are_said(model, tmp_path):
    Gallery.create(tmp_path / "gallery", model)
    with pytest.raises(InputError, match="not both"):
        Gallery.open(tmp_path / "gallery", half=True, on_disk=True)
    for cache in (0, 10**17):
        with pytest.raises(InputError, match=r"the cache holds 1 to \d+ MiB"):
            Gallery.open(tmp_path / "gallery", on_disk=True, cache=cache)


def test_the_index_is_made_once_and_checked_with_the_rest(model, tmp_path):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.add_vectors(drawn(np.random.default_rng(0), 300, model))
    for _ in range(2):
        with Gallery.open(tmp_path / "gallery", on_disk=True) as gallery:
            gallery.search_vectors(model.search_anchors.vectors[:1], 5)
            indexes = [name for name in gallery._files() if "_indices" in name]
    assert len(list((tmp_path / "gallery" / "pictures.lance" / "_indices").iterdir())) == 1
    path = tmp_path / "gallery" / indexes[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert [damage.path for damage in gallery.check()] == [indexes[0]]


def test_pictures_filed_by_label_are_found_wherever_their_vectors_lie(tmp_path):
    """Lance's index has them by their nearest anchor: with so many anchors that is none of the few looked into."""
    names = [f"class {number}" for number in range(30)]
    many, random = make_model(tmp_path / "model", classes=names), np.random.default_rng(1)
    with Gallery.create(tmp_path / "gallery", many) as memory:
        labels = [names[row] for row in random.integers(0, len(names), 300)]
        memory.add_vectors(drawn(random, 300, many), labels=labels, file_by="label")
        queries = drawn(random, 5, many)
        with Gallery.open(tmp_path / "gallery", on_disk=True) as disk:
            assert told(disk.search_vectors(queries, k=8)) == told(memory.search_vectors(queries, k=8))
