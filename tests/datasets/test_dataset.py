"""Splits: seeded, stratified, and never with the same content on both sides."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kedge.datasets import load_dataset
from kedge.errors import DatasetError
from tests.pictures import draw_classes

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def photos(tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=20, size=12, seed=0)
    return tmp_path / "photos"


def names(split):
    return {"/".join(Path(path).parts[-2:]) for path in split.paths}


def test_undivided_folder_is_split_by_seed_in_equal_parts(photos):
    dataset = load_dataset(photos, seed=1)
    assert dataset.classes == tuple(CLASSES)
    for split, each in ((dataset.test, 4), (dataset.validation, 2), (dataset.train, 14)):
        assert np.bincount(split.labels).tolist() == [each] * 3
    parts = [set(split.hashes) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60
    assert sorted(dataset.gallery.hashes) == sorted([*dataset.train.hashes, *dataset.validation.hashes])
    assert names(load_dataset(photos, seed=1).test) == names(dataset.test)
    assert names(load_dataset(photos, seed=2).test) != names(dataset.test)
    assert dataset.describe()["train_pictures"] == 42


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
    assert any("two labels" in note for note in dataset.notes)


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
    with pytest.raises(DatasetError, match=r"ant.*--shots 15"):
        load_dataset(photos, shots=15)


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
