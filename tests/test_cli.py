"""The command line: the contract's JSON, one line and an exit code for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kedge.anchors import Anchors
from kedge.cli import main
from kedge.cli.models import _show_report
from kedge.cli.options import scored
from kedge.cli.progress import comparison_progress
from kedge.gallery import Gallery
from kedge.measurement import evaluate_vectors
from tests.models import make_model
from tests.pictures import draw_classes


def kedge(*words, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "kedge", *map(str, words)], capture_output=True, text=True, cwd=folder, timeout=300
    )


@pytest.fixture
def mistake(monkeypatch, capsys):
    """Run what cannot work, in this process, for speed; return its one line."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kedge", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 2, said.out + said.err
        assert said.out == ""
        assert len(said.err.strip().splitlines()) == 1, said.err
        return said.err

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of three classes, a model and a gallery that holds them."""
    root = tmp_path_factory.mktemp("place")
    draw_classes(root / "photos", ["red", "green", "blue"], each=8, size=32, seed=0)
    make_model(root / "model")
    assert kedge("create", root / "gallery", "--model", root / "model").returncode == 0
    (root / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    done = kedge("add", root / "gallery", root / "photos", "--json")
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    assert (added["added"], added["updated"], added["unchanged"]) == (24, 0, 0)
    assert [Path(failure["path"]).name for failure in added["failed"]] == ["broken.png"]
    return root


def test_search_json(place):
    query = next((place / "photos" / "green").iterdir())
    done = kedge("search", place / "gallery", query, query, "-k", "3", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["query"] for line in lines] == [str(query)] * 2
    hit = lines[0]["hits"][0]
    assert set(hit) == {"rank", "id", "path", "label", "distance", "anchor"}
    assert (hit["rank"], hit["label"], hit["distance"]) == (1, "green", pytest.approx(0, abs=1e-3))
    assert hit["path"] == str(query)
    assert lines[0]["probed"][0] in ("red", "green", "blue")
    assert 0 < lines[0]["scanned_share"] <= 1


def test_exact_search_filter_and_page(place, tmp_path):
    query = next((place / "photos" / "green").iterdir())
    page = tmp_path / "hits.html"
    done = kedge("search", place / "gallery", query, "--exact", "--where", "label = 'blue'", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "<html" in page.read_text("utf-8")
    assert done.stdout.count("blue") >= 8


def test_info_of_both_kinds(place):
    for name, kind in (("model", "model"), ("gallery", "gallery")):
        said = json.loads(kedge("info", place / name, "--json").stdout)
        assert {"kind", "pictures", "labels", "model", "anchors", "dim"} <= set(said)
        assert said["kind"] == kind
    assert said["pictures"] == 24
    assert "24" in kedge("info", place / "gallery").stdout
    assert scored({"map_l2": 0.98452, "recall_at_1": 1.0}) == "mAP (L2) 98.5 %, R@1 100.0 %"


def test_evaluate_json(place):
    data = place / "photos"
    found = json.loads(kedge("evaluate", place / "model", data, "--json", "--probes", "1,exact").stdout)
    assert {row["probes"] for row in found["search"]} == {None, 1, "exact"}
    assert set(found["per_class"]) == {"red", "green", "blue"}
    assert (place / "model" / "report.html").is_file()
    said = kedge("evaluate", place / "model", data, "--probes", "1,3").stdout
    assert "l2 filed by nearest, probes 1" in said
    assert "probes 3" not in said  # which look at all of 3 buckets
    for name, confusion in found["confusions"].items():
        shown = f"{100 * confusion['share']:.1f} % are {confusion['found']}"
        assert f"hard    {name}: mAP {100 * found['per_class'][name]:.1f}; of the first 20, {shown}" in said


def test_evaluation_by_both_distances_is_shown_once_where_they_agree(capsys):
    anchors, labels = Anchors(("a", "b"), np.eye(2, dtype=np.float32)), np.arange(8) % 2
    angles = np.linspace(0, 1.5, 8)
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    options = {"classes": anchors.names, "distance": "cosine", "probes": (1,)}
    _show_report(evaluate_vectors(vectors, labels, vectors, labels, anchors, **options))
    ways = [line[:42].rstrip() for line in capsys.readouterr().out.splitlines()[2:5]]
    names = ("exhaustive", "filed by nearest, probes 1", "filed by label, probes 1")
    assert ways == [f"l2 = cosine {name}" for name in names]


def test_remove(place, tmp_path, mistake):
    gallery = tmp_path / "gallery"
    kedge("create", gallery, "--model", place / "model")
    kedge("add", gallery, place / "photos")
    assert json.loads(kedge("remove", gallery, "--where", "label = 'red'", "--json").stdout) == {"removed": 8}
    assert "removed 0" in kedge("remove", gallery, "--where", "label = 'red'").stdout
    assert "id" in mistake("remove", gallery)
    assert "none was removed" in mistake("remove", gallery, "--id", "unknown")


def test_mistakes_are_one_line_that_says_what_to_do(place, tmp_path, mistake):
    gallery, query = place / "gallery", next((place / "photos" / "red").glob("0*"))
    assert "digits" in mistake("train", "digit", "--out", tmp_path / "m")
    assert "resnet18" in mistake("train", place / "photos", "--out", tmp_path / "m", "--backbone", "resnet-18")
    assert "exists already" in mistake("train", place / "photos", "--out", place / "model")
    (tmp_path / "run.toml").write_text('out = "m9"')
    said = mistake("train", place / "photos", "--out", tmp_path / "m", "--config", tmp_path / "run.toml")
    assert "no setting is named 'out'" in said
    (tmp_path / "run.toml").unlink()
    assert "cam-sphere" in mistake("train", place / "photos", "--out", tmp_path / "m", "--loss", "camsphere")
    assert "kedge train" in mistake("evaluate", tmp_path / "none", place / "photos")
    assert "kedge create" in mistake("search", tmp_path / "none", query)
    assert "1 or more" in mistake("search", gallery, query, "-k", "0")
    assert "exclude" in mistake("search", gallery, query, "--probes", "2", "--exact")
    assert "order" in mistake("search", gallery, query, "--order", "colour")
    assert "label" in mistake("search", gallery, query, "--where", "lable = 'red'")
    assert "no such file" in mistake("search", gallery, tmp_path / "none.jpg")
    assert "--probes" in mistake("evaluate", place / "model", place / "photos", "--probes", "one")
    assert "none.csv" in mistake("add", gallery, place / "photos", "--labels", tmp_path / "none.csv")
    # Whatever is named in place of a gallery or a model, it is not to be removed.
    for said in (mistake("search", place / "photos", query), mistake("info", place / "photos")):
        assert "no gallery: " in said
        assert "remove" not in said
    assert "is a model, no gallery" in mistake("search", place / "model", query)
    assert "is no model folder" in mistake("evaluate", gallery, place / "photos")
    for words in (("evaluate", query, place / "photos"), ("search", query, query)):
        assert "is a file" in mistake(*words)
    assert "is a file: --out names" in mistake("train", place / "photos", "--out", query / "model")
    assert "give --data for each" in mistake("compare", "--data", "digits,svhn", "--out", tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["search gallery photos/green -k 3", "info gallery"])
def test_a_reader_that_goes_away_is_no_failure(place, words):
    words = words.replace("photos/green", f"'{next((place / 'photos' / 'green').iterdir())}'")
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m kedge {words} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_the_hits(place, tmp_path, monkeypatch, capsys):
    page, query = tmp_path / "hits.html", next((place / "photos" / "green").iterdir())
    page.write_text("the old one")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kedge.atomic_write.os.fsync", full)
    monkeypatch.setattr(sys, "argv", ["kedge", "search", str(place / "gallery"), str(query), "--html", str(page)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert str(query) in said.out
    assert "No space left on device" in said.err
    assert page.read_text() == "the old one"


def test_names_stand_in_one_line_whatever_they_hold(tmp_path, monkeypatch, capsys):
    make_model(tmp_path / "model")
    folder = tmp_path / "a\nb\x1b[31m"
    draw_classes(folder, ["red"], each=2, size=32, seed=0)
    for words in (
        ("create", tmp_path / "g", "--model", tmp_path / "model"),
        ("add", tmp_path / "g", folder),
        ("search", tmp_path / "g", next((folder / "red").iterdir())),
    ):
        monkeypatch.setattr(sys, "argv", ["kedge", *map(str, words)])
        with pytest.raises(SystemExit):
            main()
    said = capsys.readouterr()
    assert r"a\nb\x1b[31m" in said.out
    assert "\x1b" not in said.out + said.err


def test_what_is_left_unused_or_elsewhere_is_said(place, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    gallery, query = place / "gallery", next((place / "photos" / "green").iterdir())
    assert "--cache is of a search with --on-disk" in mistake("search", gallery, query, "--cache", "3")
    assert "0 to 16 bits" in mistake("duplicates", gallery, "--bits", "99")
    assert "a number from 0, not -1.0" in mistake("duplicates", gallery, "--distance", "-1")
    assert "'.' is no name of a file" in mistake("export", gallery, "--to", "npz", "--out", ".")
    assert "s3://bucket/g is not on this machine" in mistake("create", "s3://bucket/g", "--model", place / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_query_may_be_a_url(place):
    query = next((place / "photos" / "green").iterdir())
    done = kedge("search", place / "gallery", f"file://{query}", "-k", "1", "--json")
    (hit,) = json.loads(done.stdout)["hits"]
    assert hit["path"] == str(query)


def test_a_first_search_on_disk_prints_nothing_beside_its_hits(place, tmp_path):
    """Lance logs each anchor that has no picture."""
    query, gallery = next((place / "photos" / "green").iterdir()), tmp_path / "gallery"
    kedge("create", gallery, "--model", place / "model")
    kedge("add", gallery, query)
    done = kedge("search", gallery, query, "-k", "1", "--json", "--on-disk")
    assert (done.returncode, done.stderr) == (0, "")


def test_mistake_in_a_process_of_its_own(tmp_path):
    done = kedge("info", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kedge: ")


def test_a_place_that_cannot_be_written_is_one_line(place, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/mnt/full/gallery")

    monkeypatch.setattr("kedge.Gallery.create", refuse)
    monkeypatch.setattr(sys, "argv", ["kedge", "create", "/mnt/full/gallery", "--model", str(place / "model")])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said == "kedge: /mnt/full/gallery: Permission denied: check that it can be read and written, and has room\n"


def test_a_search_that_finds_nothing_says_why(place, tmp_path, monkeypatch, capsys):
    query = next((place / "photos" / "red").glob("0*"))
    assert kedge("create", tmp_path / "empty", "--model", place / "model").returncode == 0
    for words, said in [
        ((tmp_path / "empty", query), "fill the gallery with `kedge add`"),
        ((place / "gallery", query, "--where", "label = 'ring'"), "no picture is within --where"),
    ]:
        monkeypatch.setattr(sys, "argv", ["kedge", "search", *map(str, words)])
        with pytest.raises(SystemExit):
            main()
        assert f"nothing was found: {said}" in capsys.readouterr().out


def test_a_query_that_cannot_be_read_is_skipped_and_named(place, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    good = sorted((place / "photos" / "red").glob("0*"))[:2]
    words = ("search", place / "gallery", good[0], tmp_path / "bad.jpg", tmp_path / "none.jpg", good[1], "-k", 1)
    done = kedge(*words, "--json", "--html", tmp_path / "hits.html")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == [*map(str, good)]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        f"skipped {tmp_path / name}" for name in ("bad.jpg", "none.jpg")
    ]
    assert (tmp_path / "hits.html").is_file()
    done = kedge("search", place / "gallery", tmp_path / "bad.jpg", tmp_path / "none.jpg")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        f"skipped {tmp_path / 'bad.jpg'}",
        f"skipped {tmp_path / 'none.jpg'}",
        "kedge",
    ]


def test_names_that_the_output_cannot_hold_are_written_by_their_numbers(place, tmp_path, monkeypatch):
    (tmp_path / "寿司").mkdir()
    query = tmp_path / "寿司" / "a.png"
    query.write_bytes(next((place / "photos" / "red").glob("0*")).read_bytes())
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = kedge("search", place / "gallery", query, "-k", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u5bff\u53f8" in done.stdout


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kedge", "--version"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().out) == (0, "kedge 0.1.0\n")


def test_an_evaluation_tells_what_it_cannot_know(place, tmp_path, monkeypatch, capsys):
    draw_classes(tmp_path / "others", ["ring", "star"], each=8, size=32, seed=0)
    broken = sorted((tmp_path / "others" / "ring").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    twice = tmp_path / "others" / "star" / "twice.png"
    shutil.copy(broken.with_name("0001.png"), twice)
    shutil.copytree(place / "model", tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["kedge", "evaluate", str(tmp_path / "model"), str(tmp_path / "others")])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "does not say what it was trained on (no splits.json)" in said
    assert "knows none of these 2 classes" in said
    assert f"left out {broken}: broken: image file is truncated" in said
    assert f"left out {twice}: the same picture stands under 'ring' and 'star'" in said


def test_help_is_instant_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['kedge', '--help']\n"
        "from kedge.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'lance', 'onnxruntime', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.fixture
def said(monkeypatch, capsys):
    """Run a command in this process; return what it printed, as JSON if that was asked for."""

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["kedge", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        found = capsys.readouterr()
        assert (stopped.value.code or 0) == code, found.out + found.err
        lines = found.out.splitlines()
        return [json.loads(line) for line in lines] if "--json" in words else lines

    return run


def test_what_an_add_leaves_out_or_does_not_know_is_said_before_its_counts(tmp_path, monkeypatch, capsys):
    draw_classes(tmp_path / "photos", ["red", "mauve"], each=2, size=32, seed=0)
    for number in range(22):
        (tmp_path / "photos" / "red" / f"broken{number}.png").write_bytes(b"no picture")
    Gallery.create(tmp_path / "gallery", make_model(tmp_path / "model"))
    for expected in ("kedge: the model has no class for these labels: mauve", "skipped 2 more: --json names all"):
        monkeypatch.setattr(sys, "argv", ["kedge", "add", str(tmp_path / "gallery"), str(tmp_path / "photos")])
        with pytest.raises(SystemExit):
            main()
        said = capsys.readouterr()
        assert len([line for line in said.err.splitlines() if line.startswith("skipped")]) == 21
        assert said.err.splitlines()[-1] == expected  # a label that was there already is not said again
        assert "failed 22" in said.out


def test_brackets_in_names_are_no_styles(capsys):
    row = {"l2_map": 0.5, "cosine_map": 0.61, "dataset": "a[/b]", "backbone": "b", "shots": "full", "loss": "cam"}
    with comparison_progress() as told:
        told("a[/b]-cam-0", row, 1, 2)
        told("a[/b]-cam-1", {"failure": "two\nlines of [/red] \x1b[31m"}, 2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "1/2  a[/b]-cam-0  mAP 61.0",
        "2/2  a[/b]-cam-1  two\\nlines of [/red] \\x1b[31m",
    ]


def test_settings_without_a_flag_are_given_by_name(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("kedge.train", lambda *_, **settings: asked.append(settings) or make_model(tmp_path / "model"))
    words = [
        "train",
        "photos",
        "--out",
        "m",
        "--epochs",
        "3",
        "--setting",
        "margin=4",
        "--setting",
        "anchor_start=base",
    ]
    monkeypatch.setattr(sys, "argv", ["kedge", *words])
    with pytest.raises(SystemExit):
        main()
    assert asked == [{"resume": False, "epochs": 3, "margin": 4, "anchor_start": "base"}]
    monkeypatch.setattr(sys, "argv", ["kedge", *words[:-1], "margn=4"])
    with pytest.raises(SystemExit):
        main()
    assert "did you mean 'margin'" in capsys.readouterr().err


def test_what_is_done_to_a_gallery_in_its_life(tmp_path, said):
    gallery, photos = tmp_path / "gallery", tmp_path / "photos"
    draw_classes(photos, ["red", "green", "blue"], each=4, size=32, seed=0)
    model, other = make_model(tmp_path / "model"), make_model(tmp_path / "other", seed=1)
    said("create", gallery, "--model", model.folder)
    said("add", gallery, photos)
    assert said("check", gallery) == ["12 pictures, all whole"]
    (newest,) = said("versions", gallery, "--json")[-1:]
    assert newest["pictures"] == 12
    said("remove", gallery, "--where", "label = 'red'")
    assert said("restore", gallery, newest["number"], "--json") == [{"restored": newest["number"], "pictures": 12}]
    query = next((photos / "red").iterdir())
    in_memory, on_disk = (
        said("search", gallery, query, "-k", 5, "--json", *options) for options in ((), ("--on-disk", "--cache", 4))
    )
    assert in_memory == on_disk
    assert len(said("search", gallery, query, "--max-distance", 0.002, "--half", "--json")[0]["hits"]) == 1
    assert said("duplicates", gallery, "--bits", 0, "--html", tmp_path / "duplicates.html")[-1].startswith("0 groups")
    assert (tmp_path / "duplicates.html").stat().st_size > 1000
    exported = said("export", gallery, "--to", "npz", "--out", tmp_path / "all.npz", "--json")
    assert exported == [{"written": 12, "path": str(tmp_path / "all.npz")}]
    done = said("reindex", gallery, "--model", other.folder, "--json")
    assert done == [{"pictures": 12, "model": other.fingerprint, "failed": []}]
    (space,) = said("compact", gallery, "--json")
    assert space["bytes_after"] <= space["bytes_before"]
    (data,) = (gallery / f"model-{other.fingerprint}" / "pictures.lance" / "data").iterdir()
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    (found,) = said("check", gallery, "--json", code=1)
    assert [damage["path"] for damage in found["damaged"]] == [data.relative_to(gallery).as_posix()]
