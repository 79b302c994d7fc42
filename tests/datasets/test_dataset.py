"""Splits: seeded, stratified, and never with the same content on both sides."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.datasets import load_dataset
from kedge.datasets.dataset import Listed, Listing, divide
from kedge.errors import ConfigError, DatasetError
from kedge.picture import content_hash
from tests.pictures import draw_classes

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def photos(tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=20, size=12, seed=0)
    return tmp_path / "photos"


def names(split):
    return {"/".join(Path(path).parts[-2:]) for path in split.paths}


def test_undivided_folder_is_split_in_equal_parts_with_the_same_test_pictures_for_every_seed(photos):
    dataset = load_dataset(photos, seed=1)
    assert dataset.classes == tuple(CLASSES)
    for split, each in ((dataset.test, 4), (dataset.validation, 2), (dataset.train, 14)):
        assert np.bincount(split.labels).tolist() == [each] * 3
    parts = [set(split.hashes) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60
    assert sorted(dataset.gallery.hashes) == sorted([*dataset.train.hashes, *dataset.validation.hashes])
    again = load_dataset(photos, seed=1)
    assert (names(again.test), names(again.validation)) == (names(dataset.test), names(dataset.validation))
    # What is chosen on the validation pictures of one seed has seen no test picture of another.
    other = load_dataset(photos, seed=2)
    assert names(other.test) == names(dataset.test)
    assert names(other.validation) != names(dataset.validation)
    assert dataset.describe()["train_pictures"] == 42


@st.composite
def rows(draw):
    """Rows of 2-4 classes as (file, label, content, split), with copies, contradictions and splits said or not."""
    divided = draw(st.booleans())
    split = st.sampled_from(["train", "train", "validation", "test"]) if divided else st.none()
    found = []
    for own, label in enumerate("abcd"[: draw(st.integers(2, 4))], 1):
        contents = draw(st.lists(st.integers(0, 20), min_size=4, max_size=16))
        if draw(st.integers(0, 3)):  # else contents that other classes may have too
            contents = [100 * own + content for content in contents]
        found += [(f"{label}{number}", label, content, draw(split)) for number, content in enumerate(contents)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=rows(),
    seed=st.integers(0, 3),
    shots=st.none() | st.integers(1, 3),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    remembered=st.lists(st.sampled_from(["train", "validation", "test", None]), max_size=20),
)
def test_what_holds_of_every_division(rows, seed, shots, share, remembered, tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    for file, _, content, _ in rows:
        (root / file).write_text(str(content))
    contents = [content_hash(str(content).encode()) for _, _, content, _ in rows]
    membership = {content: split for content, split in zip(contents, remembered, strict=False) if split}
    listing = Listing("rows", tuple(Listed(str(root / file), label, split) for file, label, _, split in rows))
    options = {"seed": seed, "shots": shots, "max_classes": None, "validation_share": share, "membership": membership}
    try:
        dataset = divide(listing, **options)
    except DatasetError as error:
        assert "class" in str(error)
        return
    parts = {name: set(getattr(dataset, name).hashes) for name in ("train", "validation", "test", "gallery")}
    # No content stands on two sides, and the gallery is all of training, drawn or not.
    assert not parts["train"] & parts["validation"]
    assert not parts["gallery"] & parts["test"]
    assert parts["train"] | parts["validation"] <= parts["gallery"]
    if shots is None:
        assert parts["train"] | parts["validation"] == parts["gallery"]
    else:
        assert np.bincount(dataset.train.labels, minlength=len(dataset.classes)).tolist() == [shots] * len(
            dataset.classes
        )
    # What a picture was before, it stays; only what stands under two labels is left out of everything.
    labels = {}
    for _, label, content, _ in rows:
        labels.setdefault(content_hash(str(content).encode()), set()).add(label)
    assert parts["gallery"] | parts["test"] == {content for content, names in labels.items() if len(names) == 1}
    for content, split in membership.items():
        assert content not in parts["test" if split != "test" else "gallery"]
    # Paths, labels and hashes go together, and equal calls give equal splits.
    of_path = {str(root / file): (label, content_hash(str(content).encode())) for file, label, content, _ in rows}
    again = divide(listing, **options)
    for name in parts:
        split = getattr(dataset, name)
        assert len(split) == len(split.labels) == len(split.paths) == len(split.hashes)
        for path, label, content in zip(split.paths, split.labels, split.hashes, strict=True):
            assert of_path[path] == (dataset.classes[label], content)
        assert split.paths == getattr(again, name).paths


def test_numbers_that_cannot_be_are_refused(photos):
    with pytest.raises(DatasetError, match="is empty"):
        load_dataset("")
    for option in ({"shots": 0}, {"max_classes": 1}, {"validation_share": 1.0}, {"validation_share": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            load_dataset(photos, **option)


def test_split_does_not_depend_on_the_files_names(photos):
    before = load_dataset(photos).test.hashes
    for number, path in enumerate(sorted((photos / "ant").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed-{number}.png"))
    assert sorted(load_dataset(photos).test.hashes) == sorted(before)


def test_equal_contents_go_together(photos):
    for path in sorted((photos / "ant").iterdir()):
        shutil.copy(path, path.with_name("copy-of-" + path.name))
    dataset = load_dataset(photos)
    sides = [set(split.hashes) for split in (dataset.train, dataset.validation, dataset.test)]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert len(dataset.test) == 4 * 2 + 4 + 4


def test_training_copies_of_test_pictures_are_left_out_of_training(tmp_path):
    draw_classes(tmp_path / "train", CLASSES, each=8, size=12, seed=0)
    draw_classes(tmp_path / "test", CLASSES, each=3, size=12, seed=1)
    leaked = next((tmp_path / "test" / "bee").iterdir())
    shutil.copy(leaked, tmp_path / "train" / "bee" / "leaked.png")
    dataset = load_dataset(tmp_path)
    assert len(dataset.test) == 9
    assert not names(dataset.gallery) & {"bee/leaked.png"}
    assert any("1 training pictures" in note for note in dataset.notes)


def test_content_under_two_labels_is_left_out_of_both(photos):
    shutil.copy(photos / "ant" / "0000.png", photos / "bee" / "same.png")
    dataset = load_dataset(photos)
    everything = {*dataset.gallery.paths, *dataset.test.paths}
    assert len(everything) == 59
    assert {failure.path for failure in dataset.skipped} == {
        str(photos / "ant" / "0000.png"),
        str(photos / "bee" / "same.png"),
    }
    assert {failure.reason for failure in dataset.skipped} == {"the same picture stands under 'ant' and 'bee'"}


def test_the_fingerprint_is_of_pictures_labels_and_what_is_tested_on(photos):
    first = load_dataset(photos, seed=0).fingerprint
    for other in ({"seed": 3}, {"shots": 2}, {"validation_share": 0.3}):
        assert load_dataset(photos, **other).fingerprint == first
    rows = [
        (path, path.parent.name, "test" if number % 4 == 0 else "train")
        for number, path in enumerate(sorted(photos.rglob("*.png")))
    ]

    def of(rows):
        lines = ["path,label,split", *(",".join(map(str, row)) for row in rows)]
        (photos.parent / "list.csv").write_text("\n".join(lines))
        return load_dataset(photos.parent / "list.csv").fingerprint

    found = {of(rows)}
    for number, (label, split) in enumerate((("bee", "test"), ("ant", "train"), ("bee", "train"))):
        changed = list(rows)
        changed[4 * (number == 1)] = (changed[4 * (number == 1)][0], label, split)
        found.add(of(changed))
    assert len(found) == 4
    assert of(reversed(rows)) in found


def test_names_that_are_no_text_are_refused(photos):
    odd = photos / os.fsdecode(b"caf\xe9")
    shutil.copytree(photos / "ant", odd)
    with pytest.raises(DatasetError, match=r"the name b'caf\\xe9' is not UTF-8"):
        load_dataset(photos)
    shutil.rmtree(odd)
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_dataset(photos.rename(odd.parent.parent / odd.name))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes among files")
def test_a_pipe_is_no_picture_and_waits_for_nobody(photos):
    os.mkfifo(photos / "ant" / "pipe.png")
    (failure,) = load_dataset(photos).skipped
    assert (Path(failure.path).name, failure.reason) == ("pipe.png", "not a regular file")


def test_a_class_that_cannot_be_trained_says_why_and_no_other_reason(photos):
    shutil.copy(photos / "ant" / "0000.png", photos / "bee" / "same.png")
    lines = [
        f"{path},{path.parent.name},{'validation' if path.parent.name == 'cat' else 'train'}"
        for path in (sorted(photos.rglob("*.png")))
    ]
    (photos.parent / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    with pytest.raises(DatasetError, match="class 'cat' has no training picture that can be used: add some"):
        load_dataset(photos.parent / "list.csv")
    copies = [line.replace("validation", "train") for line in lines if ",cat," in line]
    (photos.parent / "list.csv").write_text("\n".join(["path,label,split", *lines, *copies]))
    with pytest.raises(DatasetError, match=r"class 'cat' .* \(.*0000\.png stands among the test or validation"):
        load_dataset(photos.parent / "list.csv")


def test_membership_goes_over_everything_and_new_pictures_follow_the_rule(photos):
    first = load_dataset(photos, seed=0)
    membership = dict.fromkeys(first.gallery.hashes, "train") | dict.fromkeys(first.test.hashes, "test")
    draw_classes(photos.parent / "more", CLASSES, each=10, size=12, seed=9)
    for path in (photos.parent / "more").rglob("*.png"):
        path.rename(photos / path.parent.name / f"new-{path.name}")
    again = load_dataset(photos, seed=5, membership=membership)
    assert set(first.test.hashes) <= set(again.test.hashes)
    assert not set(first.gallery.hashes) & set(again.test.hashes)
    assert len(again.test) == 12 + 6


def test_shots_are_drawn_from_train_and_the_gallery_stays_whole(photos):
    dataset = load_dataset(photos, shots=3)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(dataset.validation.labels).max() <= 3
    assert len(dataset.gallery) == 48
    assert set(dataset.train.hashes) <= set(dataset.gallery.hashes)
    assert not set(dataset.train.hashes) & set(dataset.validation.hashes)
    with pytest.raises(DatasetError, match=r"ant.* the 15 shots asked for: ask for at most 14"):
        load_dataset(photos, shots=15)


def test_shots_are_drawn_by_seed_and_no_copy_fills_a_shot(photos):
    for path in sorted((photos / "ant").iterdir()):
        shutil.copy(path, path.with_name("copy-of-" + path.name))
    drawn = [load_dataset(photos, shots=5, seed=seed).train for seed in (0, 0, 1)]
    assert drawn[0].paths == drawn[1].paths != drawn[2].paths
    assert len(set(drawn[0].hashes)) == len(drawn[0]) == 15


def test_validation_pictures_among_the_test_ones_are_left_out(tmp_path):
    draw_classes(tmp_path / "train", CLASSES, each=6, size=12, seed=0)
    draw_classes(tmp_path / "val", CLASSES, each=3, size=12, seed=1)
    draw_classes(tmp_path / "test", CLASSES, each=3, size=12, seed=2)
    shutil.copy(tmp_path / "test" / "ant" / "0000.png", tmp_path / "val" / "ant" / "leaked.png")
    shutil.copy(tmp_path / "val" / "bee" / "0000.png", tmp_path / "train" / "bee" / "leaked.png")
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 9, 9)
    assert not set(dataset.gallery.hashes) & set(dataset.test.hashes)
    assert not names(dataset.train) & {"bee/leaked.png"}


def test_first_classes_only(photos):
    assert load_dataset(photos, max_classes=2).classes == ("ant", "bee")
    with pytest.raises(DatasetError, match="3 classes"):
        load_dataset(photos, max_classes=4)


def test_no_validation_when_none_is_asked_for(photos):
    dataset = load_dataset(photos, validation_share=0.0)
    assert len(dataset.validation) == 0
    assert len(dataset.train) == 48


def test_decode_leaves_out_and_names_what_is_broken(photos):
    dataset = load_dataset(photos)
    broken = dataset.train.paths[3]
    Path(broken).write_bytes(b"\x89PNG broken")
    decoded = dataset.train.decode(8)
    assert decoded.pixels.shape == (41, 8, 8, 3)
    assert [failure.path for failure in decoded.failures] == [broken]
    assert decoded.paths == dataset.train.paths[:3] + dataset.train.paths[4:]
    assert decoded.labels.tolist() == np.delete(dataset.train.labels, 3).tolist()
    assert len(dataset.train[5:9]) == 4


def test_how_many_are_held_out_and_drawn(photos):
    few = load_dataset(photos, shots=3, validation_share=0.5)
    assert np.bincount(few.validation.labels).tolist() == [3] * 3
    drawn = [names(load_dataset(photos, seed=seed, shots=3, validation_share=0.0).train) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("each", "share", "held"), [(2, 0.1, 0), (3, 0.1, 1), (3, 0.89, 2)])
def test_of_few_pictures_one_is_held_out_and_one_left(tmp_path, each, share, held):
    draw_classes(tmp_path / "train", CLASSES, each=each, size=12, seed=0)
    draw_classes(tmp_path / "test", CLASSES, each=1, size=12, seed=1)
    dataset = load_dataset(tmp_path, validation_share=share)
    assert np.bincount(dataset.validation.labels, minlength=3).tolist() == [held] * 3
    assert np.bincount(dataset.train.labels).tolist() == [each - held] * 3
