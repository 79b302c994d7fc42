"""Pictures under a URL, in fsspec's own store in memory: listed, read, known again; what fails is named."""

import io
import json
from datetime import UTC, datetime

import fsspec
import pytest
from PIL import Image

import kedge
from kedge import intake, stores
from kedge.cli import main
from kedge.errors import InputError, MissingPartError, PictureError
from tests.models import colour_of, make_model

CLASSES = ["red", "green", "blue"]


@pytest.fixture
def url():
    system = fsspec.filesystem("memory")
    for number, name in enumerate(CLASSES):
        for each in range(4):
            buffer = io.BytesIO()
            red, green, blue = colour_of(number)
            Image.new("RGB", (20 + each, 20), (red, green, max(0, blue - each))).save(buffer, "PNG")
            system.pipe_file(f"/bucket/{name}/{each}.png", buffer.getvalue())
    system.pipe_file("/bucket/notes.txt", b"no picture")
    system.pipe_file("/bucket/red/.hidden.png", b"hidden")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def gallery(tmp_path):
    with kedge.Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model", classes=CLASSES)) as opened:
        yield opened


def test_a_url_is_added_as_a_folder_would_be(url, gallery, monkeypatch):
    assert gallery.add(url).added == 12
    rows = gallery._table.read(["path", "label", "file_size"]).to_pylist()
    assert sorted({row["label"] for row in rows}) == sorted(CLASSES)
    assert all(row["path"].startswith("memory://") and row["file_size"] > 0 for row in rows)
    hit = gallery.search(rows[5]["path"], 1).hits[0]
    assert (hit.path, hit.distance) == (rows[5]["path"], 0.0)
    monkeypatch.setattr(intake, "read_for_encoder", lambda *_, **__: pytest.fail("was read again"))
    assert gallery.add(url).unchanged == 12


def test_the_command_takes_urls(url, gallery, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kedge", "add", str(gallery.folder), url, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["added"] == 12


def test_a_changed_file_and_one_picture_alone(url, gallery):
    gallery.add(url)
    buffer = io.BytesIO()
    Image.new("RGB", (33, 33), "white").save(buffer, "PNG")
    fsspec.filesystem("memory").pipe_file("/bucket/red/0.png", buffer.getvalue())
    assert gallery.add(f"{url}/red/0.png").added == 1
    assert gallery.count() == 12  # the one before it at that path is gone
    row = gallery._table.read(["label"], "path LIKE '%red/0.png'").to_pylist()
    assert row == [{"label": None}]


def test_where_no_time_is_told_the_content_decides(url, gallery, monkeypatch):
    monkeypatch.setattr(stores, "_WRITTEN", ())
    assert gallery.add(url).added == 12
    assert gallery.add(url).unchanged == 12
    buffer = io.BytesIO()
    Image.new("RGB", (33, 33), "white").save(buffer, "PNG")
    fsspec.filesystem("memory").pipe_file("/bucket/red/0.png", buffer.getvalue())
    report = gallery.add(url)
    assert (report.added, report.unchanged) == (1, 11)
    assert gallery.count() == 12


def test_a_prefix_may_be_hidden(url, gallery):
    fsspec.filesystem("memory").copy("/bucket/red", "/bucket/.kept/red", recursive=True)
    try:
        assert gallery.add(f"{url}/.kept").added == 4
        assert gallery.add(url).added == 8
    finally:
        fsspec.filesystem("memory").rm("/bucket/.kept", recursive=True)


def test_reindexing_reads_from_the_store(url, gallery, tmp_path):
    gallery.add(url)
    gallery.reindex(make_model(tmp_path / "new", classes=CLASSES, dim=8, seed=1))
    assert gallery.count() == 12


def test_mistakes_are_named(url, gallery, monkeypatch):
    with pytest.raises(InputError, match="nothing is found at"):
        gallery.add("memory://bucket/nothing")
    with pytest.raises(InputError, match=r"nothing is found at http://localhost:1/a\.png: .* can be reached"):
        gallery.add("http://localhost:1/a.png")
    with pytest.raises(InputError, match="cannot be opened"):
        gallery.add("nonsense://bucket")
    with pytest.raises(PictureError, match="no such file"):
        kedge.read_picture(f"{url}/red/9.png")
    monkeypatch.setattr("kedge.picture.MOST_BYTES", 10)
    with pytest.raises(PictureError, match="larger"):
        kedge.read_picture(f"{url}/red/1.png")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingPartError, match=r"kedge\[stores\]"):
        gallery.add(url)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"created": datetime(2026, 1, 2)}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"mtime": 0.5}, datetime(1970, 1, 1, microsecond=500_000, tzinfo=UTC)),
        ({"updated": "2026-01-02T00:00:00+00:00"}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"updated": "yesterday"}, None),
        ({}, None),
    ],
)
def test_times_of_all_kinds_of_stores(entry, expected):
    assert stores._written(entry) == expected
