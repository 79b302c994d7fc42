"""Reindexing: another model takes over whole or not at all, also where the process is killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kedge.anchors import Anchors
from kedge.distances import unit_length
from kedge.errors import GalleryError, InputError
from kedge.gallery import Gallery
from kedge.gallery_folder import MODEL, TABLE, GalleryFolder
from kedge.model import ANCHORS, Model
from tests.models import make_model
from tests.pictures import draw_classes

CLASSES = ["red", "green", "blue"]
REINDEX = """
import sys, kedge
from kedge import intake
intake.COMMIT_PICTURES = 5
with kedge.Gallery.open(sys.argv[1]) as gallery:
    print("begun", flush=True)
    gallery.reindex(sys.argv[2])
"""


@pytest.fixture
def setting(tmp_path):
    """A gallery of 60 pictures with a column of its own, and a model of another length to go over to."""
    draw_classes(tmp_path / "photos", CLASSES, each=20, size=32, seed=0)
    new = make_model(tmp_path / "new", classes=CLASSES, dim=24, seed=1)
    with Gallery.create(tmp_path / "gallery", make_model(tmp_path / "old", classes=CLASSES)) as gallery:
        gallery.add(tmp_path / "photos" / "red", tmp_path / "photos" / "green", metadata={"year": 1999})
        gallery.add(tmp_path / "photos" / "blue", file_by="label")
        yield tmp_path, gallery, new


def told(gallery):
    columns = ["id", "path", "label", "filed_by", "anchor", "embedding", *gallery._table.metadata_columns]
    gallery._table.refresh()
    rows = gallery._table.read(columns).to_pylist()
    return sorted(({**row, "embedding": tuple(row["embedding"])} for row in rows), key=lambda row: row["id"])


def fresh(folder, new):
    """What a new gallery of the same pictures holds."""
    with Gallery.create(folder / "fresh", new) as gallery:
        gallery.add(folder / "photos" / "red", folder / "photos" / "green", metadata={"year": 1999})
        gallery.add(folder / "photos" / "blue", file_by="label")
        return told(gallery)


def test_a_new_model_takes_over(setting):
    folder, gallery, new = setting
    other = Gallery.open(folder / "gallery")
    query = sorted((folder / "photos" / "red").iterdir())[3]
    assert other.search(query, 1).hits[0].path == str(query)
    report = gallery.reindex(new)
    assert (report.added, report.failed) == (60, ())
    assert told(gallery) == fresh(folder, new)
    assert gallery.search(query, 1).hits[0].path == str(query)
    assert gallery.check() == []
    assert not (folder / "gallery" / TABLE).exists()
    assert not (folder / "gallery" / MODEL).exists()
    for use in (
        lambda: other.search(query, 1),
        lambda: other.add(query),
        lambda: other.remove(["a"]),
        lambda: other.restore(1),
        lambda: other.reindex(new),
        other.compact,
        other.count,
        other.info,
        other.check,
        other.versions,
        other.duplicates,
    ):
        with pytest.raises(GalleryError, match="went over to another model meanwhile: open it again"):
            use()
    with Gallery.open(folder / "gallery") as again:
        assert again.model.fingerprint == new.fingerprint
        assert again.check() == []
        with pytest.raises(InputError, match="already"):
            again.reindex(new)
        back = again.reindex(folder / "old")  # and back
        assert back.added == 60
        again.add(folder / "photos")
        assert again.count() == 60


def test_a_kill_just_after_the_switch_leaves_a_whole_gallery(setting, monkeypatch):
    """Nothing is summed or swept away any more; and back again, to the folder that was not."""
    folder, _, new = setting
    monkeypatch.setattr(Gallery, "_sum", lambda _: None)
    monkeypatch.setattr(GalleryFolder, "sweep", lambda _: None)
    for model in (new, Model.load(folder / "old"), new):
        with Gallery.open(folder / "gallery") as opened:
            opened.reindex(model)
        with Gallery.open(folder / "gallery") as again:
            assert again.check() == []
            assert again.count() == 60
            assert again.model.fingerprint == model.fingerprint
    monkeypatch.undo()
    with Gallery.open(folder / "gallery") as again:
        again.compact()
        assert again.check() == []
        kept = {path.name for path in again.folder.iterdir()}
        assert kept == {"gallery.json", again._folder.part, ".writing", ".reindexing"}


def test_what_is_added_while_a_model_takes_over_is_kept_or_refused(setting, monkeypatch):
    """A writer that comes at the last moment waits, and is told; the table it had is of no use any more."""
    folder, gallery, new = setting
    other, said, switch = Gallery.open(folder / "gallery"), [], GalleryFolder.switch

    def write():
        try:
            said.append(other.add_vectors([[1.0] + [0.0] * (other.model.card.dim - 1)], ids=["late"]))
        except GalleryError as error:
            said.append(error)

    writer = threading.Thread(target=write)

    def begun(*arguments):
        writer.start()
        writer.join(0.3)
        assert said == []
        return switch(*arguments)

    monkeypatch.setattr(GalleryFolder, "switch", begun)
    gallery.reindex(new)
    writer.join()
    assert "went over to another model" in str(said[0])
    assert gallery.count() == 60


def test_a_table_that_nobody_swept_away_takes_no_more_pictures(setting, monkeypatch):
    folder, gallery, new = setting
    other = Gallery.open(folder / "gallery")
    monkeypatch.setattr(GalleryFolder, "sweep", lambda _: None)
    gallery.reindex(new)
    with pytest.raises(GalleryError, match="went over to another model"):
        other.add_vectors([[1.0] + [0.0] * (other.model.card.dim - 1)], ids=["late"])


def test_the_model_of_a_gallery_in_another_precision_has_taken_over_already(setting):
    """The gallery's copy has another fingerprint than the model it was made of, from the start and later."""
    folder, _, _ = setting
    moved = move_anchors(folder / "old", folder / "moved")
    with Gallery.create(folder / "halved", folder / "old", precision="bfloat16") as gallery:
        gallery.add_vectors(gallery.model.search_anchors.vectors, ids=CLASSES)
        for model, has_it in ((folder / "old", True), (moved, False), (moved, True), (folder / "old", False)):
            if has_it:
                with pytest.raises(InputError, match="already"):
                    gallery.reindex(model)
            else:
                gallery.reindex(model)
            parts = {path.name for path in gallery.folder.glob("model-*")}
            assert parts == {gallery._folder.part} - {"."}
            assert gallery.count() == 3
            assert gallery.check() == []


def move_anchors(model, folder):
    """A copy of a model whose anchors have moved a little: it encodes alike."""
    copy = Model.load(model)
    copy.copy_to(folder)
    Anchors(copy.anchors.names, copy.anchors.vectors + np.float32(0.01)).save(folder / ANCHORS)
    return folder


def test_what_else_lies_in_a_gallery_is_left_alone(setting):
    folder, gallery, new = setting
    own = folder / "gallery" / "model-v2"
    new.copy_to(own)
    (folder / "gallery" / "model-notes.txt").write_text("mine")
    gallery.reindex(own)
    gallery.compact()
    assert Model.load(own).fingerprint == new.fingerprint
    assert (folder / "gallery" / "model-notes.txt").read_text() == "mine"
    assert gallery.count() == 60


def test_a_gallery_opened_while_a_model_takes_over_is_the_new_one(setting, monkeypatch):
    folder, gallery, new = setting
    load, done = Model.load, []

    def late(place):
        if not done:
            done.append(place)
            gallery.reindex(new)
        return load(place)

    monkeypatch.setattr(Model, "load", late)
    with Gallery.open(folder / "gallery") as opened:
        assert done
        assert opened.model.fingerprint == new.fingerprint
        assert opened.count() == 60


def test_what_is_read_late_of_a_gallery_that_went_over_says_so(setting):
    folder, gallery, new = setting
    other, found = Gallery.open(folder / "gallery"), GalleryFolder.open(folder / "gallery")
    gallery.reindex(new)
    for use in (found.open_table, lambda: other.encoder, lambda: Gallery(found)):
        with pytest.raises(GalleryError, match="went over to another model meanwhile: open it again"):
            use()


def test_one_reindexes_at_a_time(setting):
    folder, gallery, new = setting
    other, tried = Gallery.open(folder / "gallery"), []

    def progress(*_):
        if not tried:
            for use in (lambda: other.reindex(new), other.compact):
                with pytest.raises(GalleryError, match="another process reindexes or compacts"):
                    use()
                tried.append(use)

    gallery.reindex(new, progress=progress)
    assert len(tried) == 2
    assert gallery.count() == 60
    assert gallery.check() == []


def test_vectors_at_the_path_of_a_picture_are_no_pictures(setting):
    folder, gallery, new = setting
    place = str(sorted((folder / "photos" / "red").iterdir())[0])
    vectors = [[float(row == column) for column in range(gallery.model.card.dim)] for row in range(3)]
    gallery.add_vectors(vectors, ids=["one", "two", "three"], paths=[place] * 3)
    with pytest.raises(InputError, match="3 of 63 pictures are not at their paths any more, or came as vectors"):
        gallery.reindex(new)
    assert gallery.count() == 63


def test_what_a_run_cut_short_took_over_is_taken_back_with_the_gallery(setting, monkeypatch):
    folder, gallery, new = setting
    expected = fresh(folder, new)
    before = gallery.versions()[-1].number
    labels = folder / "labels.csv"
    photo = sorted((folder / "photos" / "red").iterdir())[0]
    loose = folder / "loose.png"
    photo.rename(loose)
    gallery.add(loose, labels="none", metadata={"weight": 3.5})
    labels.write_text("path,label\nloose.png,green\n")
    gallery.add(loose, labels=labels)

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GalleryFolder, "switch", cut)
        with pytest.raises(KeyboardInterrupt):
            gallery.reindex(new)
    loose.rename(photo)
    gallery.restore(before)
    gallery.reindex(new)
    assert told(gallery) == expected


def test_a_column_of_a_run_cut_short_that_is_no_more_is_in_nobodys_way(setting, monkeypatch):
    folder, gallery, new = setting
    before = gallery.versions()[-1].number
    gallery.add(folder / "photos" / "red", metadata={"weight": 3.5})
    with monkeypatch.context() as patched:
        patched.setattr(GalleryFolder, "switch", lambda *_: pytest.fail("cut short here"))
        with pytest.raises(pytest.fail.Exception):
            gallery.reindex(new)
    gallery.restore(before)
    gallery.add(folder / "photos" / "red", metadata={"weight": "heavy"})
    gallery.reindex(new)
    assert gallery.count("weight = 'heavy'") == 20


def test_what_cannot_be_taken_over_is_left_out_and_named(setting, monkeypatch):
    folder, gallery, new = setting
    gallery.add_vectors(unit_length(np.ones((1, gallery.model.card.dim), np.float32)), ids=["loose"])
    with monkeypatch.context() as patched:
        patched.setattr(GalleryFolder, "switch", lambda *_: pytest.fail("cut short here"))
        with pytest.raises(pytest.fail.Exception):
            gallery.reindex(new, drop_missing=True)
    first, second, third = sorted((folder / "photos" / "red").iterdir())[:3]
    first.write_bytes(b"no picture any more")  # it was read by the run that was cut short
    second.unlink()
    shutil.copy(sorted((folder / "photos" / "green").iterdir())[-1], third)
    with pytest.raises(InputError, match="2 of 61 pictures are not at their paths"):
        gallery.reindex(new)
    report = gallery.reindex(new, drop_missing=True)
    reasons = {Path(failure.path).name: failure.reason for failure in report.failed}
    assert gallery.count() == 57
    assert "not a picture" in reasons.pop(first.name)
    assert "not at its path" in reasons.pop(second.name)
    assert "came as a vector" in reasons.pop("loose")
    assert all("same content as" in reason for reason in reasons.values())
    assert len(reasons) == 1


def test_reindexing_runs_the_model_as_the_gallery_does(setting):
    _, gallery, new = setting
    with Gallery.open(gallery.folder, runtime="nonsense") as opened, pytest.raises(InputError, match="nonsense"):
        opened.reindex(new)


def test_missing_pictures_are_said_and_nothing_changes(setting):
    folder, gallery, new = setting
    before = told(gallery)
    gone = sorted((folder / "photos" / "green").iterdir())[0]
    gone.unlink()
    with pytest.raises(InputError, match="1 of 60 pictures are not at their paths"):
        gallery.reindex(new)
    assert told(gallery) == before
    broken = sorted((folder / "photos" / "green").iterdir())[1]
    broken.write_bytes(b"no picture")
    gallery.reindex(new, drop_missing=True)
    assert {row["path"] for row in told(gallery)} == {row["path"] for row in before} - {str(gone), str(broken)}


def test_killed_again_and_again_it_still_takes_over_whole(setting):
    folder, gallery, new = setting
    before, draw = told(gallery), random.Random(0)
    gallery.close()
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", REINDEX, str(folder / "gallery"), str(new.folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Gallery.open(folder / "gallery") as opened:
            done = opened.model.fingerprint == new.fingerprint
            if done:
                break
            assert told(opened) == before
            assert opened.check() == []
    with Gallery.open(folder / "gallery") as opened:
        if not done:
            opened.remove(where="label = 'green'")  # what was removed meanwhile stays away
            opened.reindex(new)
        expected = fresh(folder, new)
        assert told(opened) == [row for row in expected if done or row["label"] != "green"]
        opened.compact()
        assert opened.check() == []
