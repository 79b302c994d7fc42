"""Folders: the layouts that are read, and what is said of those that are not."""

import shutil
from pathlib import Path

import pytest

from kedge.datasets import load_dataset
from kedge.errors import DatasetError
from tests.pictures import draw_classes

CLASSES = ["ant", "bee"]


def draw_into(folder, each=6, seed=0):
    draw_classes(folder, CLASSES, each=each, size=8, seed=seed)


def test_train_and_test_folders(tmp_path):
    draw_into(tmp_path / "train", each=10)
    draw_into(tmp_path / "test", each=3, seed=1)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.gallery), len(dataset.test), len(dataset.validation)) == (20, 6, 2)
    assert all("/test/" in path for path in dataset.test.paths)


def test_split_folders_are_known_in_any_spelling(tmp_path):
    draw_into(tmp_path / "Train", each=10)
    draw_into(tmp_path / "TEST", each=3, seed=1)
    dataset = load_dataset(tmp_path)
    assert (dataset.classes, len(dataset.gallery), len(dataset.test)) == (("ant", "bee"), 20, 6)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder(name, tmp_path):
    draw_into(tmp_path / "train")
    draw_into(tmp_path / "test", each=2, seed=1)
    draw_into(tmp_path / name, each=4, seed=2)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.gallery)) == (12, 8, 20)


def test_train_folder_alone_has_no_test_pictures(tmp_path):
    draw_into(tmp_path / "train")
    assert len(load_dataset(tmp_path).test) == 0


def test_pictures_may_lie_deeper(tmp_path):
    draw_into(tmp_path)
    deep = tmp_path / "ant" / "2024" / "may"
    deep.mkdir(parents=True)
    (tmp_path / "ant" / "0000.png").rename(deep / "0000.png")
    dataset = load_dataset(tmp_path)
    assert len(dataset.gallery) + len(dataset.test) == 12


def test_tiny_imagenets_own_layout(tmp_path):
    draw_classes(tmp_path / "drawn", ["n01", "n02"], each=8, size=8, seed=0)
    for wnid in ("n01", "n02"):
        images = tmp_path / "train" / wnid / "images"
        images.parent.mkdir(parents=True)
        (tmp_path / "drawn" / wnid).rename(images)
    (tmp_path / "drawn").rmdir()
    (tmp_path / "val" / "images").mkdir(parents=True)
    rows = []
    for number, wnid in enumerate(["n02", "n01"]):
        source = tmp_path / "train" / wnid / "images" / "0007.png"
        source.rename(tmp_path / "val" / "images" / f"val_{number}.png")
        rows.append(f"val_{number}.png\t{wnid}\t0\t0\t7\t7")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    dataset = load_dataset(tmp_path)
    assert [dataset.classes[label] for label in dataset.test.labels] == ["n02", "n01"]
    assert len(dataset.gallery) == 14


def test_what_is_no_data_set_is_said(tmp_path):
    def said(path=tmp_path, **options):
        with pytest.raises(DatasetError) as found:
            load_dataset(path, **options)
        return str(found.value)

    assert "did you mean 'cifar100'" in said("cifar-100")
    assert "folder of pictures" in said(tmp_path / "none")
    assert "no picture under" in said()
    (tmp_path / "ant").mkdir()
    assert "no picture under" in said()
    draw_into(tmp_path / "more")
    (tmp_path / "more" / "ant" / "0000.png").rename(tmp_path / "loose.png")
    assert "loose.png lies outside any class folder" in said()
    (tmp_path / "loose.png").unlink()
    assert "class 'ant' has no picture" in said()
    (tmp_path / "ant").rmdir()
    assert "1 class" in said()
    (tmp_path / "more" / "cow").mkdir()
    assert "class 'cow' has no picture" in said(tmp_path / "more")
    (tmp_path / "more" / "ant" / "0001.png").rename(tmp_path / "more" / "cow" / "one.png")
    assert "class 'cow' has one training picture" in said(tmp_path / "more")
    (tmp_path / "picture.png").touch()
    assert "is a file" in said(tmp_path / "picture.png")


def test_hidden_files_and_folders_are_nobodys(tmp_path):
    draw_into(tmp_path)
    (tmp_path / "._loose.png").touch()
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "notes.txt").touch()
    assert load_dataset(tmp_path).classes == ("ant", "bee")


def test_class_whose_pictures_are_copies_of_one_has_one(tmp_path):
    draw_into(tmp_path)
    draw_classes(tmp_path, ["cow"], each=1, size=8, seed=5)
    shutil.copy(tmp_path / "cow" / "0000.png", tmp_path / "cow" / "again.png")
    with pytest.raises(DatasetError, match="class 'cow' has one training picture"):
        load_dataset(tmp_path)


def test_loose_picture_in_a_split_folder_is_named(tmp_path):
    draw_into(tmp_path / "train")
    (tmp_path / "train" / "loose.jpg").touch()
    with pytest.raises(DatasetError, match=r"train/loose\.jpg lies outside any class folder"):
        load_dataset(tmp_path)


def test_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    draw_into(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # not by chmod: root may read everything
    with pytest.raises(DatasetError, match=r"cannot be read: Permission denied"):
        load_dataset(tmp_path)


def test_tiny_imagenets_torn_annotations_are_said(tmp_path):
    draw_into(tmp_path / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.png\tant\t0\t0\t7\t7\nval_1.p")
    with pytest.raises(DatasetError, match=r"val_annotations\.txt: line 2"):
        load_dataset(tmp_path)


def test_test_class_that_was_not_trained_on_is_named(tmp_path):
    draw_into(tmp_path / "train")
    draw_classes(tmp_path / "test", ["ant", "owl"], each=2, size=8, seed=1)
    with pytest.raises(DatasetError, match="owl"):
        load_dataset(tmp_path)
