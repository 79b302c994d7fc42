"""Duplicates against a slow loop over all pairs."""

import io
import json
import re
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kedge import duplicates
from kedge.duplicates import duplicate_groups, near_pairs
from kedge.errors import InputError
from kedge.gallery import Gallery
from kedge.page import duplicates_page
from tests.models import make_model
from tests.pictures import draw_classes


def drawn_hashes(seed, count, bits):
    """Hashes of which many differ in about as many bits as are asked for, and some are equal."""
    random = np.random.default_rng(seed)
    seeds = random.integers(-(2**63), 2**63 - 1, size=max(1, count // 4))
    hashes = seeds[random.integers(0, len(seeds), count)]
    for row in range(count):
        for bit in random.integers(0, 63, random.integers(0, bits + 2)):
            hashes[row] ^= np.int64(1) << np.int64(bit)
    return hashes


def slow_groups(contents, hashes, vectors, bits, distance):
    """Join every two rows that duplicate each other, then keep to each group's first; return the groups as sets."""

    def same(a, b):
        apart = bin((hashes[a] ^ hashes[b]) & (2**64 - 1)).count("1") if None not in (hashes[a], hashes[b]) else 99
        near = apart <= bits and np.linalg.norm(vectors[a] - vectors[b]) <= distance
        return near or contents[a] == contents[b]

    group = list(range(len(hashes)))
    for a, b in combinations(range(len(hashes)), 2):
        if same(a, b):
            group = [group[a] if number == group[b] else number for number in group]
    joined = {number: {row for row in range(len(group)) if group[row] == number} for number in group}
    kept = set()
    for rest in joined.values():
        while rest:
            own = {row for row in rest if row == min(rest) or same(min(rest), row)}
            kept |= {frozenset(own)} if len(own) > 1 else set()
            rest = rest - own
    return kept


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(0, 60), bits=st.integers(0, 9), block=st.sampled_from([1, 7, 9999])
)
def test_near_pairs_are_those_of_a_slow_loop(seed, count, bits, block):
    hashes = drawn_hashes(seed, count, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        found = {tuple(pair) for pairs in near_pairs(hashes, bits) for pair in pairs.tolist()}
    unsigned = [int(value) & (2**64 - 1) for value in hashes]
    assert found == {
        (a, b) for a, b in combinations(range(count), 2) if bin(unsigned[a] ^ unsigned[b]).count("1") <= bits
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 40), bits=st.integers(0, 6))
def test_groups_are_those_of_a_slow_loop(seed, count, bits):
    random = np.random.default_rng(seed)
    hashes = [None if random.random() < 0.1 else int(value) for value in drawn_hashes(seed, count, bits)]
    contents = [str(value) for value in random.integers(0, 3 * count + 1, count)]
    vectors = random.normal(size=(count, 3)).astype(np.float32)
    names = [str(row) for row in range(count)]
    found = duplicate_groups(names, names, names, contents, hashes, vectors, bits=bits, distance=1.5)
    assert {frozenset(map(int, group.ids)) for group in found} == slow_groups(contents, hashes, vectors, bits, 1.5)
    for group in found:
        assert (group.kind == "exact") == (len({contents[int(row)] for row in group.ids}) == 1)
        rows = [int(row) for row in group.ids]
        assert group.distance == pytest.approx(max(np.linalg.norm(vectors[rows[0]] - vectors[row]) for row in rows))
    assert [len(group.ids) for group in found] == sorted((len(group.ids) for group in found), reverse=True)


def test_the_bit_of_the_sign_is_one_of_a_hash():
    hashes, names = [0, -(2**63) + 1], ["a", "b"]  # two bits from each other, the first and the last
    for bits, groups in ((1, []), (2, [("a", "b")])):
        found = duplicate_groups(names, names, names, names, hashes, np.zeros((2, 2)), bits=bits, distance=0.0)
        assert [group.ids for group in found] == groups


def test_a_chain_of_near_pictures_is_not_one_group():
    hashes = [0b0, 0b11, 0b1111, 0b111111]  # each two bits from the next
    names = [str(row) for row in range(4)]
    groups = duplicate_groups(names, names, names, names, hashes, np.zeros((4, 2), np.float32), bits=2, distance=0.0)
    assert [group.ids for group in groups] == [("0", "1"), ("2", "3")]


def test_pictures_that_look_unlike_are_no_duplicates():
    def jpeg(colour, size=32, quality=90):
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), colour).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    def found(**shown):
        names, vectors = list("abcd"), np.zeros((4, 2), np.float32)
        asked = []

        def thumbnails(ids):
            asked.extend(ids)
            return {key: shown[key] for key in ids if key in shown}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "LOOKED_AT", 3)
            groups = duplicate_groups(
                names, names, names, ["1", "2", "3", "4"], [7] * 4, vectors, bits=2, distance=0.0, thumbnails=thumbnails
            )
        assert asked == names
        return [group.ids for group in groups]

    again = jpeg((250, 5, 5), size=200, quality=30)
    assert found(a=jpeg("red"), b=jpeg("green"), c=again) == [("a", "c", "d")]  # d came as a vector
    assert found(b=jpeg("green"), c=again) == [("a", "b", "c", "d")]
    # What looks unlike the first may be alike.
    assert found(a=jpeg("red"), b=jpeg("blue"), c=again, d=jpeg("blue")) == [("a", "c"), ("b", "d")]
    assert found(a=jpeg("red"), **dict.fromkeys("bcd", jpeg("blue"))) == [("b", "c", "d")]
    assert found(a=jpeg("red"), b=jpeg("blue"), c=jpeg("green"), d=jpeg("white")) == []


def test_equal_contents_are_duplicates_whatever_they_look_like_and_shades_count():
    def found(first, second, contents):
        shown = {}
        for key, grey in (("a", first), ("b", second)):
            buffer = io.BytesIO()
            Image.new("L", (32, 32), grey).save(buffer, "PNG")
            shown[key] = buffer.getvalue()
        names, vectors = list("ab"), np.zeros((2, 2), np.float32)
        told = {"bits": 2, "distance": 0.0, "thumbnails": lambda _: shown}
        return [group.kind for group in duplicate_groups(names, names, names, contents, [7, 7], vectors, **told)]

    assert found(0, 255, ["1", "1"]) == ["exact"]
    assert found(100, 115, ["1", "2"]) == ["near"]
    assert found(100, 130, ["1", "2"]) == []


def test_memory_does_not_grow_with_the_pairs_of_one_hash():
    count = 3000
    vectors = np.zeros((count, 4), dtype=np.float32)
    names = [str(row) for row in range(count)]
    tracemalloc.start()
    (group,) = duplicate_groups(names, names, names, names, [7] * count, vectors, bits=4, distance=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(group.ids) == count
    assert peak < 250 << 20  # all pairs, with the graph of them, took 580 MB
    page = duplicates_page([group], {})
    assert page.count("<figure>") == 24
    assert "and 2976 more" in page


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_groups_do_not_depend_on_blocks(seed, count):
    hashes = drawn_hashes(seed, count, 3)[np.random.default_rng(seed).integers(0, count, count)]
    vectors = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    names = [str(row) for row in range(count)]
    found = []
    for block in (duplicates._BLOCK, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "_BLOCK", block)
            arguments = names, names, names, names, hashes.tolist(), vectors
            found.append(duplicate_groups(*arguments, bits=3, distance=1.5))
    assert found[0] == found[1]


def test_a_gallery_lists_what_was_saved_again_smaller(tmp_path):
    draw_classes(tmp_path / "photos", ["red", "green", "blue"], each=5, size=64, seed=0)
    first = tmp_path / "photos" / "red" / "0000.png"
    with Image.open(first) as image:
        image.resize((48, 48), Image.Resampling.LANCZOS).save(tmp_path / "photos" / "red" / "copy.png")
    with Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model")) as gallery:
        assert gallery.duplicates() == []
        gallery.add(tmp_path / "photos")
        (group,) = gallery.duplicates()
        assert group.kind == "near"
        assert {str(first), str(first.with_name("copy.png"))} == set(group.paths)
        assert group.labels == ("red", "red")
        page = duplicates_page([group], gallery.thumbnails(group.ids))
        assert page.count("data:image/jpeg") == 2
        assert re.findall("<div class='path' title='([^']+)'>([^<]+)<", page) == [
            (f"{path}\n--id {key}", Path(path).name) for key, path in zip(group.ids, group.paths, strict=True)
        ]
        command = re.search("<code class='command'>(.+?)</code>", page)[1]
        assert re.sub("<[^>]+>", "", command) == f"kedge remove GALLERY --id {group.ids[1]}"
        vector = gallery.model.search_anchors.vectors[:1]
        gallery.add_vectors(np.repeat(vector, 2, axis=0), ids=["a", "b"])
        assert [group.kind for group in gallery.duplicates()] == ["near", "exact"]
        for wrong in ({"bits": -1}, {"bits": 17}, {"distance": -1.0}):
            with pytest.raises(InputError):
                gallery.duplicates(**wrong)
    assert "No two pictures" in duplicates_page([], {})
    assert json.dumps(group.ids)
