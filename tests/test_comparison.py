"""Comparisons: cells in processes of their own, gone on with after a kill, failures told."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

import kedge
from kedge import cell, comparison, jobs
from kedge.cell import measure, validate
from kedge.cli import main
from kedge.csv_table import put_row
from kedge.datasets import load_dataset
from kedge.errors import ConfigError, DatasetError, InputError
from kedge.evaluation import encode_split
from kedge.grid import Grid
from kedge.measurement import exhaustive_scores
from kedge.page import comparison_page, comparison_summary, comparison_tables
from kedge.training import train
from tests.models import make_model
from tests.pictures import draw_classes

SETTINGS = {"image_size": 32, "epochs": 1, "batch_size": 16, "dim": 8}


def draw_birds(root):
    """Pictures for cells that are not really trained."""
    draw_classes(root, ["circle", "square"], each=4, size=8, seed=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "007"  # a name that looks like a number
    draw_classes(root, ["circle", "square", "cross", "ring", "star"], each=15, size=32, seed=0)
    return root


@pytest.fixture(scope="module")
def compared(photos, tmp_path_factory):
    """Cells of five classes, two left out: three that work, two of them by one network, and one that cannot."""
    grid = Grid.of(
        {
            "datasets": [str(photos)],
            "losses": ["cam-sphere", "cross-entropy", "softmax", "impossible"],
            "variants": {
                "softmax": {"loss": "cross-entropy", "features": "softmax"},
                "impossible": {"loss": "cam", "anchor_start": "simplex", "dim": 1},
            },
            "shots": [4],
            "seeds": [0],
            "settings": SETTINGS,
            "classes": 5,
            "unseen_classes": 2,
        }
    )
    out = tmp_path_factory.mktemp("out") / "compared"
    seen = []
    found = kedge.compare(grid, out, parallel=2, on_row=lambda name, _, *counts: seen.append((name, *counts)))
    return grid, out, found, seen


def test_every_cell_has_its_row_and_a_failed_one_its_reason(compared):
    _, out, found, seen = compared
    assert [row["loss"] for row in found.rows] == ["cam-sphere", "cross-entropy", "softmax", "impossible"]
    assert sorted(done for _, done, _ in seen) == [1, 2, 3, 4]
    (failed,) = found.failed
    assert "simplex" in failed["failure"]
    for row in found.rows[:3]:
        assert json.loads(row["settings"])["batch_size"] == 16
        assert 0 < row["l2_map"] <= 1
        assert 0 < row["unseen_cosine_map"] <= 1
        assert 0 < row["shots_probed_l2_scanned"] <= 1
        assert row["classes"] == 3
        assert row["train_pictures"] == 12
        assert row["step_ms"] > 0
    assert (out / "models" / "007-resnet10-half-cam-sphere-4-0" / "kedge.json").is_file()


def test_figures_are_those_of_evaluate(compared, photos):
    _, out, found, _ = compared
    for row in found.rows[1:3]:
        report = kedge.evaluate(out / "models" / f"007-resnet10-half-{row['loss']}-4-0", photos, probes=(1,))
        for distance in ("l2", "cosine"):
            probed = report.figures("two-stage", distance, "nearest", 1)
            assert row[f"probed_{distance}_scanned"] == pytest.approx(probed.scanned_share, abs=1e-4)
            for way, figures in (("", report.figures("exhaustive", distance)), ("probed_", probed)):
                shares = {"map": figures.map, "r1": figures.recall_at["1"]}
                shares |= {f"p{k}": figures.precision_at[k] for k in ("20", "100")}
                assert {name: row[f"{way}{distance}_{name}"] for name in shares} == pytest.approx(shares, abs=1e-4)
    model = kedge.Model.load(out / "models" / "007-resnet10-half-cam-sphere-4-0")
    expanded = kedge.evaluate(model, photos, probes=(1,), expand=True).figures("exhaustive", "cosine")
    assert found.rows[0]["expanded_map"] == pytest.approx(expanded.map, abs=1e-4)
    assert found.rows[0]["expanded_r1"] == pytest.approx(expanded.recall_at["1"], abs=1e-4)


def test_figures_of_the_classes_left_out_are_of_these_alone(compared, photos):
    _, out, found, _ = compared
    model = kedge.Model.load(out / "models" / "007-resnet10-half-cam-sphere-4-0")
    whole = load_dataset(photos, seed=0, validation_share=model.card.trained["validation_share"])
    queries, gallery = (
        encode_split(kedge.Encoder(model), split[np.flatnonzero(split.labels >= 3)])
        for split in (whole.test, whole.gallery)
    )
    reached = exhaustive_scores(queries.vectors, queries.labels, gallery.vectors, gallery.labels, "cosine")
    assert found.rows[0]["unseen_cosine_map"] == pytest.approx(reached[0], abs=1e-4)


def test_a_try_leaves_the_same_classes_out_and_says_what_it_reached_on_validation_pictures(tmp_path, monkeypatch):
    draw_classes(tmp_path / "photos", ["circle", "square", "cross", "ring"], each=8, size=32, seed=0)
    models = []
    monkeypatch.setattr(cell, "train", lambda *told, **settings: models.append(train(*told, **settings)) or models[-1])
    settings = {**SETTINGS, "loss": "cross-entropy", "seed": 0}
    found = validate(str(tmp_path / "photos"), str(tmp_path / "model"), settings, {}, unseen_classes=2)
    (model,) = models
    assert len(model.card.classes) == 2
    scores = model.card.scores["validation"]
    assert scores["map_l2"] != scores["map_cosine"]
    assert found["validation_l2_map"] == scores["map_l2"]
    assert found["validation_cosine_map"] == scores["map_cosine"]


def test_what_training_took_by_hand(tmp_path):
    model = make_model(tmp_path / "model")
    trained = {"train_pictures": 40, "batch_size": 16, "precision": "float32"}
    model.write_card(model.card.model_copy(update={"trained": trained}))
    lines = [{"seconds": seconds, "memory_mb": held} for seconds, held in ((3.0, 7), (2.0, 9), (1.0, 8))]
    (model.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cost = cell._cost(kedge.Model.load(model.folder))
    assert (cost["epochs"], cost["train_seconds"], cost["memory_mb"]) == (3, 6.0, 9)
    assert cost["step_ms"] == 1000.0  # two whole batches an epoch


def test_pages_say_what_was_measured_and_what_failed(compared):
    _, out, found, _ = compared
    tables, page = (out / "results.md").read_text(), (out / "report.html").read_text()
    for text in (tables, page):
        assert "007, resnet10-half, 4 shots" in text
        assert "gallery of the pictures trained on" in text
        assert "classes never trained on" in text
        assert "Cells that failed" in text
    row = found.rows[0]
    assert f"| cam-sphere | {100 * row['l2_map']:.1f} | {100 * row['cosine_map']:.1f} |" in tables.replace("**", "")
    with (out / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_what_is_stored_of_one_network_is_trained_once(compared):
    _, out, found, _ = compared
    _, cross_entropy, softmax, _ = found.rows
    assert softmax["train_seconds"] == cross_entropy["train_seconds"]
    assert (softmax["features"], cross_entropy["features"]) == ("softmax", "embedding")
    assert not list(out.glob("models/*cross-entropy*.partial"))


def test_what_is_done_is_not_done_again_and_what_failed_is_tried_again(compared, tmp_path):
    grid, before, found, _ = compared
    out, seen = tmp_path / "out", []
    shutil.copytree(before, out)
    again = kedge.compare(grid, out, on_row=lambda name, *_: seen.append(name))
    assert seen == ["007-resnet10-half-impossible-4-0"]
    assert [row["l2_map"] for row in again.rows[:3]] == [row["l2_map"] for row in found.rows[:3]]
    fewer = Grid.of({**grid.model_dump(), "losses": ["cam-sphere"]})
    assert len(kedge.compare(fewer, out).rows) == 1
    assert "| cross-entropy |" in (out / "results.md").read_text()  # the pages show all that was asked for so far


def test_changed_pictures_are_refused(compared, photos):
    grid, out, _, _ = compared
    picture = next((photos / "circle").iterdir())
    content = picture.read_bytes()
    try:
        picture.unlink()
        with pytest.raises(ConfigError, match="have changed since"):
            kedge.compare(grid, out)
    finally:
        picture.write_bytes(content)


def test_classes_left_out_without_a_picture_to_ask_with_are_named_before_training(tmp_path):
    draw_classes(tmp_path / "photos", ["circle", "square", "cross", "ring"], each=8, size=32, seed=0)
    for name in ("ring", "square"):
        for picture in sorted((tmp_path / "photos" / name).iterdir())[2:]:
            picture.unlink()
    with pytest.raises(DatasetError, match=r"no test picture .* \('ring', 'square'\)"):
        measure(str(tmp_path / "photos"), str(tmp_path / "model"), SETTINGS, unseen_classes=2)
    assert not (tmp_path / "model.partial").exists()


def test_pictures_that_cannot_be_read_are_counted(tmp_path):
    draw_classes(tmp_path / "photos", ["circle", "square", "cross"], each=8, size=32, seed=0)
    (tmp_path / "photos" / "square" / "broken.png").write_bytes(b"no picture")
    grid = Grid.of({"datasets": [str(tmp_path / "photos")], "losses": ["none"], "seeds": [0], "settings": SETTINGS})
    (row,) = kedge.compare(grid, tmp_path / "out").rows
    assert row["left_out"] == 1
    assert "1 that cannot be used left out" in (tmp_path / "out" / "report.html").read_text()


def test_a_loss_that_had_nothing_to_learn_from_is_a_failure(tmp_path):
    draw_classes(tmp_path / "data", ["circle", "square"], each=6, size=32, seed=0)
    with pytest.raises(DatasetError, match="the loss triplet was 0 in every epoch: no batch had a pair"):
        measure(str(tmp_path / "data"), str(tmp_path / "model"), {**SETTINGS, "loss": "triplet", "shots": 1})


def test_another_comparison_is_refused(compared, tmp_path):
    grid, out, _, _ = compared
    before = (out / "results.csv").read_bytes()
    with pytest.raises(ConfigError, match="begun with other settings"):
        kedge.compare(Grid.of({**grid.model_dump(), "settings": {**SETTINGS, "epochs": 2}}), out)
    for name in ("classes", "unseen_classes"):
        with pytest.raises(ConfigError, match=f"begun with other {name}"):
            kedge.compare(Grid.of({**grid.model_dump(), name: 3}), out)
    assert (out / "results.csv").read_bytes() == before
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match="no comparison"):
        kedge.compare(grid, tmp_path)


def test_pictures_that_change_while_they_are_compared_are_a_failure(tmp_path):
    draw_classes(tmp_path / "birds", ["circle", "square"], each=8, size=32, seed=0)
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["none"], "seeds": [0, 1], "settings": SETTINGS})
    lost = next((tmp_path / "birds" / "circle").iterdir())
    found = kedge.compare(grid, tmp_path / "out", on_row=lambda *_: lost.unlink(missing_ok=True))
    assert found.rows[0]["l2_map"] > 0
    assert "have changed since the comparison was begun" in found.rows[1]["failure"]


def test_tries_are_of_the_same_pictures_as_all(tmp_path, monkeypatch):
    for name in ("birds", "others"):
        draw_birds(tmp_path / name)
    grid = Grid.of(
        {"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "tries": {"dataset": str(tmp_path / "others")}}
    )

    def stopped(_, told, *__):
        (job,) = told
        if job["tried"]["optimizer"] == "sgd":
            raise KeyboardInterrupt
        return [{"pictures": job["pictures"], **TRIED}]

    monkeypatch.setattr(jobs.Runner, "_one", stopped)
    with pytest.raises(KeyboardInterrupt):
        kedge.compare(grid, tmp_path / "out")
    next((tmp_path / "others" / "circle").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"the pictures of .*others have changed since"):
        kedge.compare(grid, tmp_path / "out")


def test_tries_may_be_of_a_set_of_the_same_name_without_test_pictures(tmp_path, unmeasured):
    for place in ("left", "right"):
        draw_classes(tmp_path / place / "birds" / "train", ["circle", "square"], each=4, size=8, seed=len(place))
    draw_classes(tmp_path / "left" / "birds" / "test", ["circle", "square"], each=2, size=8, seed=2)
    draw_classes(tmp_path / "right" / "birds" / "val", ["circle", "square"], each=2, size=8, seed=3)
    left, right = (str(tmp_path / place / "birds") for place in ("left", "right"))
    grid = Grid.of({"datasets": [left], "losses": ["cam"], "seeds": [0], "tries": {"dataset": right}})
    assert not kedge.compare(grid, tmp_path / "out").failed
    assert {job["data"]: job["pictures"] for job in unmeasured} == {
        data: load_dataset(data).fingerprint for data in (left, right)
    }
    # Once all tries are done their pictures may be gone.
    shutil.rmtree(right)
    again = Grid.of({"datasets": [left], "losses": ["cam"], "seeds": [0, 1], "tries": {}})
    assert len(kedge.compare(again, tmp_path / "out").rows) == 2


def test_tries_choose_the_best_of_each_stage_and_go_on(photos, tmp_path, monkeypatch):
    # What a try reaches is made up here, so that the choice is known by hand.
    def scored(_, told, *__):
        (job,) = told
        assert (job["data"], job["settings"]["backbone"], job["unseen_classes"]) == (str(photos), "resnet10-half", 2)
        given = job["tried"]
        score = (
            given["weight_decay"] + 10 * given["learning_rate"] + given.get("auxiliary", 0) - given["batch_size"] / 1e4
        )
        return [{"validation_l2_map": score / 10, "validation_cosine_map": 0.0}]

    monkeypatch.setattr(jobs.Runner, "_one", scored)
    given = {"datasets": [str(photos)], "losses": ["cam-sphere", "none"], "tries": {}, "unseen_classes": 2}
    grid = Grid.of(given).after(None)
    told, out = [], tmp_path
    runner = jobs.Runner("kedge.cell", 1, 0, lambda _name, _row, done, total: told.append((done, total)))
    work = comparison._Work(grid, out, runner, {})
    chosen = comparison._choose_settings(work)
    assert told == [(done, 12) for done in range(1, 13)]
    best = {"optimizer": "adamw", "learning_rate": 0.004, "weight_decay": 0.5, "batch_size": 50, "auxiliary": 1.0}
    best["brightness"] = 0.0
    assert chosen == ({"cam-sphere": best, "none": {}}, {})
    with (out / "tries.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    monkeypatch.setattr(jobs.Runner, "_one", lambda *_: pytest.fail("a try was done again"))
    assert comparison._choose_settings(work) == chosen


MEASURED = {
    "features": "embedding",
    "distance": "cosine",
    "device": "cpu",
    **dict.fromkeys(("learns_anchors", "queries", "gallery", "epochs", "threads"), 1),
    **dict.fromkeys(("train_seconds", "step_ms", "memory_mb"), 1),
    **{
        f"{way}_{name}": 0.5
        for way in ("l2", "cosine", "probed_l2", "probed_cosine")
        for name in ("map", "r1", "p20", "p100", "scanned")
    },
}
TRIED = {"validation_l2_map": 0.5, "validation_cosine_map": 0.5}


def test_settings_that_are_given_are_not_tried(tmp_path, unmeasured):
    draw_birds(tmp_path / "birds")
    given = {"datasets": [str(tmp_path / "birds")], "losses": ["cam", "mine"], "seeds": [0]}
    given |= {"settings": {"learning_rate": 1e-3}, "variants": {"mine": {"loss": "cam", "margin": 2.0}}}
    kedge.compare(Grid.of({**given, "tries": {"settings": {"batch_size": 32}}}), tmp_path / "out")
    tried = [(job["settings"].get("margin"), job["tried"]) for job in unmeasured if job["validate"]]
    assert all({"learning_rate", "batch_size"} & {*each} == set() for _, each in tried)
    assert {each.get("margin") for margin, each in tried if margin is None} == {8.0, 4.0, 16.0}
    assert all("margin" not in each for margin, each in tried if margin)
    # Two optimisers with three decays each, and the other brightness.
    assert sum(each["brightness"] == 0.0 for margin, each in tried if margin) == 6
    assert sum(each["brightness"] == 0.4 for margin, each in tried if margin) == 1


@pytest.mark.parametrize("better", ["l2", "cosine"])
def test_tries_are_of_one_seed_and_compared_by_their_better_distance(tmp_path, monkeypatch, better):
    draw_birds(tmp_path / "birds")
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [3], "tries": {}})

    def run(_, told, *__):
        (job,) = told
        assert job["settings"]["seed"] == (0 if job["validate"] else 3)
        best = job["tried"]["optimizer"] == "sgd"
        return [{**TRIED, f"validation_{better}_map": 0.9 if best else 0.5} if job["validate"] else MEASURED]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    (row,) = kedge.compare(grid, tmp_path / "out").rows
    assert json.loads(row["tried"])["optimizer"] == "sgd"


def test_a_loss_whose_tries_have_all_failed_is_not_measured(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    given = {"datasets": [str(tmp_path / "birds")], "losses": ["cam", "none"], "seeds": [0]}
    measured, broken = [], True

    def run(_, told, *__):
        (job,) = told
        if job["validate"]:
            return [{"failure": "no validation pictures"} if broken else TRIED]
        measured.append(job["out"])
        return [MEASURED]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    found = kedge.compare(Grid.of({**given, "tries": {}}), tmp_path / "out")
    (failed,) = found.failed
    assert failed["failure"] == "none of its tries succeeded: no validation pictures"
    assert len(measured) == 1
    assert "none of its tries succeeded" in (tmp_path / "out" / "report.html").read_text()
    broken = False
    assert not kedge.compare(Grid.of({**given, "tries": {}}), tmp_path / "out").failed
    assert len(measured) == 2


@pytest.fixture
def unmeasured(monkeypatch):
    """Cells that are said to be measured, with nothing trained: the jobs that would have run."""
    asked = []

    def run(_, told, *__):
        asked.extend(told)
        return [TRIED if job["validate"] else MEASURED for job in told]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    return asked


@pytest.mark.parametrize("killed", [True, False])
def test_what_is_of_settings_that_a_mended_try_has_beaten_is_made_again(tmp_path, monkeypatch, killed):
    draw_birds(tmp_path / "birds")
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0], "tries": {}})
    broken, measured = True, []

    def run(_, told, *__):
        (job,) = told
        if not job["validate"]:
            measured.append((job["tried"]["optimizer"], Path(job["out"]).exists(), Path(job["state"]).exists()))
            for folder in ("out", "state"):
                Path(job[folder]).mkdir(parents=True)
            return [{"failure": "killed"} if killed else MEASURED]
        best = job["tried"]["optimizer"] == "sgd"
        return [{"failure": "killed"} if best and broken else {**TRIED, "validation_l2_map": 0.9 if best else 0.5}]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    kedge.compare(grid, tmp_path / "out")
    broken, killed = False, False
    (row,) = kedge.compare(grid, tmp_path / "out").rows
    kedge.compare(grid, tmp_path / "out")
    # Neither the model of before nor the network that was begun for it is taken up.
    assert measured == [("adamw", False, False), ("sgd", False, False)]
    assert not list((tmp_path / "out" / "models").glob("*.partial"))
    assert json.loads(row["tried"])["optimizer"] == "sgd"


def test_a_network_stays_until_all_that_it_is_stored_as_is_measured(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    grid = {"datasets": [str(tmp_path / "birds")], "losses": ["cross-entropy", "softmax"], "seeds": [0]}
    grid["variants"] = {"softmax": {"loss": "cross-entropy", "features": "softmax"}}
    broken = True

    def run(_, told, *__):
        for job in told:
            Path(job["state"]).mkdir(parents=True, exist_ok=True)
        rows = [{"failure": "killed"} if broken and "softmax" in job["out"] else MEASURED for job in told]
        assert len(rows) == (2 if broken else 1)
        return rows

    monkeypatch.setattr(jobs.Runner, "_one", run)
    kedge.compare(Grid.of(grid), tmp_path / "out")
    (state,) = (tmp_path / "out" / "models").glob("*.partial")
    broken = False
    kedge.compare(Grid.of(grid), tmp_path / "out")
    assert not state.exists()


@pytest.mark.parametrize("kept", [True, False])
def test_models_that_are_not_to_be_kept_go_once_they_are_measured(tmp_path, monkeypatch, kept):
    draw_birds(tmp_path / "birds")
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0]})

    def run(_, told, *__):
        (job,) = told
        Path(job["out"]).mkdir(parents=True)
        return [MEASURED]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    kedge.compare(grid, tmp_path / "out", keep_models=kept)
    assert any((tmp_path / "out" / "models").iterdir()) == kept


def test_what_was_begun_stays_until_all_that_was_asked_for_is_measured(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    grid, out = {"datasets": [str(tmp_path / "birds")], "losses": ["cam", "triplet"], "seeds": [0]}, tmp_path / "out"
    broken = True

    def run(_, told, *__):
        (job,) = told
        Path(job["state"]).mkdir(parents=True, exist_ok=True)
        return [{"failure": "killed"} if broken and "triplet" in job["out"] else MEASURED]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    kedge.compare(Grid.of(grid), out)
    kedge.compare(Grid.of({**grid, "losses": ["cam"]}), out)  # which is done
    (state,) = (out / "models").glob("*.partial")
    assert "triplet" in state.name
    broken = False
    kedge.compare(Grid.of({**grid, "losses": ["triplet"]}), out)
    assert not state.exists()


def test_rows_are_never_taken_for_other_pictures_or_settings(tmp_path, unmeasured):
    for name in ("a/birds.v1", "a/birds.v2", "b/birds.v1"):
        draw_birds(tmp_path / name)
    first, second, other = (str(tmp_path / name) for name in ("a/birds.v1", "a/birds.v2", "b/birds.v1"))
    out = tmp_path / "out"
    mine = {"variants": {"mine": {"loss": "cam", "margin": 2.0}}, "seeds": [0]}

    def begin(**values):
        unmeasured.clear()
        found = kedge.compare(Grid.of({"datasets": [first], **mine, **values}), out)
        return [row["dataset"] + " " + row["loss"] for row in found.rows], len(unmeasured)

    assert begin(losses=["mine", "cam"]) == (["birds.v1 mine", "birds.v1 cam"], 2)
    assert begin(datasets=[second], losses=["cam"]) == (["birds.v2 cam"], 1)
    with pytest.raises(ConfigError, match=r"other pictures called 'birds\.v1'"):
        begin(datasets=[other], losses=["cam"])
    changed = {"mine": {"loss": "cam", "margin": 16.0}, "cam": {"loss": "cam", "margin": 4.0}}
    for losses in (["mine"], ["cam"]):
        with pytest.raises(ConfigError, match=f"other settings of '{losses[0]}'"):
            begin(losses=losses, variants=changed)
    # A variant that did not run may change.
    assert begin(losses=["cam-sphere"], variants=changed) == (["birds.v1 cam-sphere"], 1)
    assert begin(losses=["mine", "cam"]) == (["birds.v1 mine", "birds.v1 cam"], 0)


def test_only_what_is_stored_may_differ_between_models_of_one_network(tmp_path, unmeasured):
    draw_birds(tmp_path / "birds")
    variants = {
        "softmax": {"loss": "cross-entropy", "features": "softmax"},
        "wider": {"loss": "cross-entropy", "features": "softmax", "dim": 9},
        "plain": {"loss": "cam-sphere", "sharpening": 1.0},
    }
    grid = {"datasets": [str(tmp_path / "birds")], "seeds": [0, 1], "variants": variants}
    out = tmp_path / "out"
    kedge.compare(Grid.of({**grid, "losses": ["cross-entropy"], "seeds": [0]}), out)
    kedge.compare(Grid.of({**grid, "losses": ["cross-entropy", *variants, "cam-sphere"]}), out)
    state = {Path(job["out"]).name: Path(job["state"]).stem for job in unmeasured}
    of = "birds-resnet10-half-{}-full-{}".format
    # One that has its row already is still what the others' state goes by.
    assert state == {
        of(loss, seed): of(first, seed)
        for seed in (0, 1)
        for loss, first in [
            ("cross-entropy", "cross-entropy"),
            ("softmax", "cross-entropy"),
            ("wider", "wider"),
            ("plain", "plain"),
            ("cam-sphere", "plain"),
        ]
    }


def test_tries_stay_those_of_the_set_they_were_made_on(tmp_path, unmeasured):
    for name in ("first", "second"):
        draw_birds(tmp_path / name)
    first, second, out = str(tmp_path / "first"), str(tmp_path / "second"), tmp_path / "out"
    grid = {"datasets": [first], "losses": ["cam"], "seeds": [0], "tries": {}}
    kedge.compare(Grid.of(grid), out)
    assert {job["data"] for job in unmeasured} == {first}
    unmeasured.clear()
    kedge.compare(Grid.of({**grid, "datasets": [second, first]}), out)
    assert [(job["data"], job["tried"]) for job in unmeasured] == [(second, unmeasured[0]["tried"])]
    assert unmeasured[0]["tried"]["optimizer"] == "adamw"
    with pytest.raises(ConfigError, match="other tries"):
        kedge.compare(Grid.of({**grid, "tries": {"dataset": second}}), out)


def test_a_comparison_of_which_all_has_failed_may_be_asked_for_something_else(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    fails = [True]
    monkeypatch.setattr(
        jobs.Runner, "_one", lambda _, told, *__: [{"failure": "too few"} if fails[0] else MEASURED for _ in told]
    )
    grid = {"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0]}
    assert kedge.compare(Grid.of({**grid, "settings": {"epochs": 1}}), tmp_path / "out").failed
    fails[0] = False
    assert not kedge.compare(Grid.of(grid), tmp_path / "out").failed
    with pytest.raises(ConfigError, match="other settings"):
        kedge.compare(Grid.of({**grid, "settings": {"epochs": 1}}), tmp_path / "out")


def test_more_classes_left_out_than_there_are_is_told_before_anything_is_written(tmp_path):
    draw_birds(tmp_path / "birds")
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "unseen_classes": 99})
    with pytest.raises(ConfigError, match="99 left out leave fewer than 2"):
        kedge.compare(grid, tmp_path / "out")
    with pytest.raises(ConfigError, match="of 1 class left out every picture is relevant"):
        kedge.compare(Grid.of({**grid.model_dump(), "unseen_classes": 1}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_copies_the_gallery_of_the_shots_shows_one(tmp_path, monkeypatch):
    draw_classes(tmp_path / "photos" / "train", ["circle", "square", "cross"], each=6, size=32, seed=0)
    draw_classes(tmp_path / "photos" / "test", ["circle", "square", "cross"], each=2, size=32, seed=1)
    for picture in [*(tmp_path / "photos" / "train").rglob("*.png")]:
        shutil.copy(picture, picture.with_name(f"copy-{picture.name}"))
    shown = {}
    monkeypatch.setattr(cell, "_columns", lambda _m, _d, _q, gallery, prefix: shown.update({prefix: gallery}) or {})
    measure(str(tmp_path / "photos"), str(tmp_path / "model"), {**SETTINGS, "shots": 4})
    drawn = load_dataset(tmp_path / "photos", seed=0, shots=4).train.hashes
    assert sorted(shown["shots_"].hashes) == sorted(set(drawn))
    assert len(shown["shots_"]) == len(shown["shots_"].vectors) < len(shown[""])
    assert {*shown["shots_"].labels} == {0, 1, 2}


@pytest.mark.usefixtures("unmeasured")
def test_every_cell_of_the_table_that_the_pages_need_is_asked_for(tmp_path):
    """A row with a blank cell is named, or the pages are written without it: there is no traceback."""
    draw_classes(tmp_path / "birds", ["circle", "square", "cross", "ring"], each=4, size=8, seed=0)
    given = {"datasets": [str(tmp_path / "birds")], "losses": ["cam", "center"], "seeds": [0], "unseen_classes": 2}
    out, grid = tmp_path / "out", Grid.of(given)
    whole = dict.fromkeys((*comparison.MEASURED, *(f"unseen_{each}" for each in comparison.RETRIEVED)), 0.5)
    needed = {*whole, "distance", *comparison.KEY} - {"dataset"}
    whole |= {f"{part}expanded_{figure}": 0.5 for part in ("", "unseen_") for figure in ("map", "r1")}
    whole |= {"validation_cosine_map": 0.5, "left_out": 0, "features": "embedding", "device": "cpu", "threads": 1}
    whole |= {"distance": "cosine", "settings": '{"margin": 4.0}', "tried": "{}", "queries": 1, "gallery": 1}
    kedge.compare(grid, out)  # with figures of classes that were left out from here on
    rows = [
        {**dict.fromkeys(comparison.KEY, 0), "dataset": "birds", "backbone": "resnet10-half", "shots": "full"}
        | {**whole, "loss": loss, "learns_anchors": int(loss == "cam")}
        for loss in ("cam", "center")
    ]
    table = out / "results.csv"

    def written(**changed):
        table.unlink()
        put_row(table, rows[1], comparison.KEY)
        put_row(table, {**rows[0], **changed}, comparison.KEY)

    written()
    kedge.compare(grid, out)
    for name in rows[0]:
        written(**{name: ""})
        if name in needed:
            with pytest.raises(InputError, match=f"says '' for '{name}' in the row of "):
                kedge.compare(grid, out)
        elif name != "dataset":
            assert "| cam |" in (kedge.compare(grid, out).folder / "results.md").read_text()
    wrong = {"settings": "{", "tried": "[]", "distance": "L2", "left_out": "some", "train_seconds": "nan"}
    for name, value in (wrong | {"expanded_map": "much", "unseen_l2_map": "inf"}).items():
        written(**{name: value})
        with pytest.raises(InputError, match=f"for '{name}' in the row of birds"):
            kedge.compare(grid, out)


def test_what_is_no_comparison_any_more_is_named(tmp_path, unmeasured):
    draw_birds(tmp_path / "birds")
    out = tmp_path / "out"
    grid = Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0]})
    with pytest.raises(ConfigError, match="--parallel cannot be 0"):
        kedge.compare(grid, out, parallel=0)
    out.write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        kedge.compare(grid, out)
    out.unlink()
    out.mkdir()
    (out / ".lock").touch()  # left by one killed before it had begun
    kedge.compare(grid, out)
    whole = (out / "results.csv").read_text()
    (out / "results.csv").write_text(whole.replace(",", ";"))  # as some spreadsheets save it
    with pytest.raises(InputError, match=r"results\.csv has no column"):
        kedge.compare(grid, out)
    (out / "results.csv").write_text(whole)
    (out / "grid.json").write_text("{")
    with pytest.raises(InputError, match=r"grid\.json cannot be read"):
        kedge.compare(grid, out)
    assert len(unmeasured) == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:-30], "line 2 of .* has .* cells and the first"),
        (lambda whole: whole + b"birds,resn\n", "line 3 of .* has 2 cells"),
        (lambda whole: whole + whole.splitlines()[1] + b",9,9\n", "line 3 of .* cells"),
        (lambda whole: whole.replace(b"birds", b"\xff"), "no table any more"),
        (lambda whole: whole.replace(b",full,", b",xx,"), "says 'xx' for 'shots' in the row of birds, resnet10-half"),
        (lambda whole: whole.replace(b",0.5", b",0.5x", 1), "says '0.5x' for '.*'"),
        (lambda whole: whole.replace(b",0.5", b",", 1), "says '' for '.*'"),
    ],
)
def test_a_damaged_table_is_named_and_a_row_taken_out_is_measured_again(damage, said, tmp_path, unmeasured):
    draw_birds(tmp_path / "birds")
    out, grid = tmp_path / "out", Grid.of({"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0]})
    kedge.compare(grid, out)
    table = out / "results.csv"
    whole = table.read_bytes()
    table.write_bytes(damage(whole))
    with pytest.raises(InputError, match=said):
        kedge.compare(grid, out)
    table.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))  # as a spreadsheet saves it
    assert len(kedge.compare(grid, out).rows) == len(unmeasured) == 1
    table.write_bytes(whole.splitlines(keepends=True)[0])
    assert len(kedge.compare(grid, out).rows) == 1
    assert len(unmeasured) == 2


def test_each_row_is_kept_as_soon_as_its_cell_is_measured(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    given = {"datasets": [str(tmp_path / "birds")], "losses": ["cam-sphere", "mirrored"], "seeds": [0]}
    given["variants"] = {"mirrored": {"loss": "cam-sphere", "mirrored": True}}
    out, seen = tmp_path / "out", Event()

    def run(*_):
        yield MEASURED
        assert seen.wait(30)
        yield MEASURED

    def look(*_):
        seen.set()
        rows = (out / "results.csv").read_text().splitlines()[1:]
        lengths.append(len(rows))
        assert "cam-sphere" in (out / "report.html").read_text()

    lengths = []
    monkeypatch.setattr(jobs.Runner, "_one", run)
    kedge.compare(Grid.of(given), out, on_row=look)
    assert lengths == [1, 2]


@pytest.mark.parametrize(
    ("given", "seen"), [(None, ["0", "1", "0"]), ("2,3", ["2", "3", "2"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a"])]
)
def test_cells_use_the_gpus_that_were_given(given, seen, monkeypatch):
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(jobs, "_answer", lambda *_: [])
    started = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, env, **__: started.append(env) or len(started))
    runner = jobs.Runner("kedge.cell", 3, 2, lambda *_: None)
    for place in range(3):
        list(runner._one([], [place], set()))
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == seen


@pytest.mark.parametrize(("parallel", "threads"), [(1, "7"), (3, "2"), (9, "1")])
def test_cells_side_by_side_share_the_cores(monkeypatch, parallel, threads):
    monkeypatch.setattr(jobs, "own_cores", lambda: 7)
    monkeypatch.setattr(jobs, "_answer", lambda *_: [])
    started = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, env, **__: started.append(env) or len(started))
    list(jobs.Runner("kedge.cell", parallel, 0, lambda *_: None)._one([], [0], set()))
    assert [(env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) for env in started] == [(threads, threads)]


def test_an_interrupt_ends_what_runs_beside(monkeypatch):
    program = "import json, sys, time\nfor job in json.loads(sys.stdin.readline()):\n"
    program += "    time.sleep(job['seconds'])\n    print('{}', flush=True)"
    started, both, processes = jobs._started, Barrier(2), []

    def start(_, environment):
        both.wait(30)
        processes.append(started(["-c", program], environment))
        return processes[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_started", start)
    lists = [[jobs.Job(str(seconds), {"seconds": seconds}, lambda row: row)] for seconds in (0, 60)]
    with pytest.raises(KeyboardInterrupt):
        jobs.Runner("kedge.cell", 2, 0, interrupt).run(lists, 0, 2)
    # One that has slept to its end was not ended.
    assert -signal.SIGKILL in [process.returncode for process in processes]


def test_a_job_that_ends_its_process_takes_no_other_along(monkeypatch):
    """Three jobs of one network, the second of which is killed: a process does the first, another the third."""
    program = """
import json, os, sys
for job in json.loads(sys.stdin.readline()):
    if job["number"] == 2:
        os.kill(os.getpid(), 9)
    print(json.dumps({"map": job["number"]}), flush=True)
"""
    started = jobs._started
    monkeypatch.setattr(jobs, "_started", lambda _, environment: started(["-c", program], environment))
    kept = []
    list_ = [jobs.Job(str(number), {"number": number}, lambda row: kept.append(row) or row) for number in (1, 2, 3)]
    jobs.Runner("kedge.cell", 2, 0, lambda *_: None).run([list_, list_[:1]], 0, 4)
    assert sorted(map(str, kept)) == sorted(
        map(str, [{"map": 1}, {"map": 1}, {"failure": "ended by signal 9"}, {"map": 3}])
    )


def test_what_failed_and_is_not_asked_for_any_more_is_on_no_page(tmp_path, monkeypatch):
    draw_birds(tmp_path / "birds")
    grid = {"datasets": [str(tmp_path / "birds")], "losses": ["cam"], "seeds": [0]}

    def run(_, told, *__):
        return [{"failure": "too few pictures"} if job["settings"].get("shots") == 500 else MEASURED for job in told]

    monkeypatch.setattr(jobs.Runner, "_one", run)
    assert kedge.compare(Grid.of({**grid, "shots": ["full", 500]}), tmp_path / "out").failed
    assert "too few pictures" in (tmp_path / "out" / "report.html").read_text()
    kedge.compare(Grid.of(grid), tmp_path / "out")
    assert "failed" not in (tmp_path / "out" / "report.html").read_text()


def test_pictures_that_cannot_be_measured_are_told_before_anything_is_trained(tmp_path, unmeasured):
    (tmp_path / "empty").mkdir()
    for split in ("train", "val"):
        draw_classes(tmp_path / "photos" / split, ["circle", "square"], each=4, size=8, seed=len(split))
    for name, said in (("empty", "no picture under"), ("photos", "has no test pictures .* below test/<class>/")):
        with pytest.raises(DatasetError, match=said):
            kedge.compare(Grid.of({"datasets": [str(tmp_path / name)]}), tmp_path / "out")
    with pytest.raises(DatasetError, match="has no validation pictures, on which settings are chosen"):
        validate(str(tmp_path / "photos" / "val"), str(tmp_path / "model"), {"validation_share": 0.0, "seed": 0}, {})
    assert not unmeasured
    assert not (tmp_path / "out").exists()


def test_a_killed_comparison_leaves_nothing_running_and_goes_on(photos, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kedge", "compare", "--data", str(photos), "--out", str(out), "--json"]
    command += ["--loss", "cam, supcon", "--seed", "0"]
    for name, value in SETTINGS.items():
        command += ["--setting", f"{name}={value}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (out / "results.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the second cell has begun
    children = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, children))
    done = (out / "results.csv").read_text().splitlines()[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["loss"] for row in rows] == ["cam", "supcon"]
    assert done in (out / "results.csv").read_text().splitlines()
    assert run.stderr.count("mAP") == 1  # only the second was measured


def test_a_row_cut_off_is_no_row_and_the_cell_failed():
    torn = 'import os, sys; sys.stdin.readline(); os.write(1, b\'{"map": 1}\\n{"map": 0\'); os.kill(os.getpid(), 9)'
    assert _answered(torn, count=2) == [{"map": 1}, {"failure": "ended by signal 9"}]


def test_what_a_native_library_prints_is_no_row(tmp_path):
    """It writes to the file descriptor, past Python's own stdout."""
    loud = (
        "import os; from kedge import cell; cell.measure = lambda **_: {'printed': os.write(1, b'loud ')}; cell.main()"
    )
    assert _answered(loud, count=2, out=str(tmp_path / "model")) == [{"printed": 5}] * 2


def test_words_that_are_not_utf8_are_no_failure():
    foreign = "import os, sys; sys.stdin.readline(); os.write(2, b'caf\\xe9'); print('{}')"
    assert _answered(foreign, count=1) == [{}]
    assert _answered(foreign, count=2)[1] == {"failure": "exit code 0: caf\ufffd"}


def test_a_cell_may_read_pictures_in_processes_of_its_own(tmp_path):
    """As it does where they do not fit into memory; its watch over stdin must not hold them up."""
    reads = "len(list(DataLoader([1, 2], num_workers=1, timeout=30)))"
    program = "from torch.utils.data import DataLoader; from kedge import cell\n"
    program += f"cell.measure = lambda **_: {{'read': {reads}}}; cell.main()"
    assert _answered(program, count=1, out=str(tmp_path / "model")) == [{"read": 2}]


def _answered(program, count, **told):
    """Return the rows that a comparison reads from a process that runs `program`."""
    process = jobs._started(["-c", program], os.environ)
    return list(jobs._answer(process, [{**told, "validate": False}] * count))


def _children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def _runs(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")  # one that ended may still wait to be asked how


def test_the_command_names_what_is_missing(tmp_path, monkeypatch, capsys):
    for given, said in [
        (["--out", str(tmp_path / "a")], "nothing to compare on"),
        (["--out", str(tmp_path / "a"), "--data", "digits", "--setting", "epochs"], "name=value"),
        (["--out", str(tmp_path / "a"), "--data", "digits", "--loss", "cams"], "did you mean 'cam'"),
        (["--out", str(tmp_path / "a"), "--data", "digits", "--loss", ""], "--loss is empty"),
        (["--out", str(tmp_path / "a"), "--data", "digits", "--seed", ",", "--loss", "cam"], "--seed is empty"),
        (["--out", str(tmp_path / "a"), "--data", "digits", "--loss", "16"], "no loss or variant is named '16'"),
    ]:
        monkeypatch.setattr("sys.argv", ["kedge", "compare", *given])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_tables_by_hand():
    def row(loss, seed, shots, l2, cosine, anchors, features="embedding"):
        shares = {
            f"{way}{name}_{figure}": 0.5
            for way in ("", "probed_")
            for name in ("l2", "cosine")
            for figure in ("map", "p20", "p100", "r1", "scanned")
        }
        shares |= {f"probed_l2_{figure}": 0.25 for figure in ("map", "p20", "p100", "r1")}
        shares |= {f"probed_cosine_{figure}": 0.26 for figure in ("map", "p20", "p100", "r1")}
        shares |= {"l2_map": l2, "cosine_map": cosine, "l2_r1": l2 / 2, "cosine_r1": cosine}
        return {
            "dataset": "birds",
            "backbone": "net",
            "loss": loss,
            "shots": shots,
            "seed": seed,
            "distance": "cosine",
            "learns_anchors": anchors,
            "features": features,
            "train_seconds": 60,
            "step_ms": 2.0,
            "memory_mb": 9,
            "epochs": 3,
            "queries": 7,
            "gallery": 11,
            "device": "cpu",
            "threads": 1,
            **shares,
        }

    rows = [
        {**row("cam", 0, "full", 0.60, 0.66, 1), "tried": '{"margin": 4.0}'},
        row("cam", 1, "full", 0.64, 0.70, 1),
        row("triplet", 0, "full", 0.40, 0.50, 0),
        row("triplet", 1, "full", 0.40, 0.54, 0),
        row("read-out", 0, "full", 0.50, 0.50, 0, "softmax"),
    ]
    rows.append({"dataset": "birds", "backbone": "net", "loss": "broken", "shots": "full", "seed": 0, "failure": "why"})
    tables = comparison_tables(rows, {"read-out": {"loss": "cross-entropy", "features": "softmax"}})
    assert "1 of 6 cells failed" in tables
    assert "## birds, net, all pictures (1 to 2 seeds, 7 queries, gallery of 11)" in tables
    assert "### Exhaustive search" in tables
    # The best is bold, and what is level with it.
    assert "| cam | **62.0 ± 2.0** | **68.0 ± 2.0** | **50.0 ± 0.0** |" in tables
    assert "| triplet | 40.0 ± 0.0 | 52.0 ± 2.0 | **50.0 ± 0.0** |" in tables
    assert "### Two-stage search" in tables
    assert f"| cam |{' **25.0 ± 0.0** | **26.0 ± 0.0** |' * 4} 50.0 ± 0.0 | cosine |" in tables
    assert "### Cost on cpu, 1 thread\n" in tables
    assert tables.index("- **own distance**: ") > tables.index("## Variants")
    assert "| mAP (L2) | cam 62.0 | triplet 40.0 | 1.550 ± 0.050 | 0.633 ± 0.033 | +11.0 ± 1.0 |" in tables
    assert "| mAP (cosine) | cam 68.0 | triplet 52.0 | 1.308 ± 0.012 | 0.667 ± 0.014 | +16.0 ± 0.0 |" in tables
    said = "| mAP (cosine), class probabilities | cam 68.0 | read-out 50.0 | 1.360 | 0.640 | +18.0 |"
    assert said in tables  # one seed in common
    assert '| cam | {"margin": 4.0} |' in tables
    assert '| read-out | {"loss": "cross-entropy", "features": "softmax"} |' in tables
    assert comparison_summary(rows).splitlines() == [
        "birds, net, all pictures (1 to 2 seeds, 7 queries in 11)",
        "loss      mAP (L2)    mAP (cosine)  R@1",
        "cam       62.0 ± 2.0  68.0 ± 2.0    68.0 ± 2.0",
        "triplet   40.0 ± 0.0  52.0 ± 2.0    52.0 ± 2.0",
        "read-out  50.0        50.0          50.0",
        "",
        "failed: broken, seed 0, birds, net, all pictures: why",
    ]
    settings = [
        {"margin": 4.0, "weight_decay": 0.5, "flip": True},
        {"margin": 8.0, "weight_decay": 0.49, "flip": True},
        {"weight_decay": 0.5, "flip": True},
    ]
    for told, given in zip(rows, settings, strict=False):
        told["settings"] = json.dumps(given)
    tables = comparison_tables(rows, {})
    assert "the seeds of cam were trained with different margin, as after an update" in tables
    assert (
        "| all | flip True |\n| cam | margin 4 or 8, weight_decay 0.5 or 0.49 |\n| triplet | weight_decay 0.5 |"
        in tables
    )
    rows[2] |= {"l2_map": 1.0}
    rows[3] |= {"l2_map": 1.0}
    assert "| mAP (L2) | cam 62.0 | triplet 100.0 | 0.620 ± 0.020 | - |" in comparison_tables(rows, {})
    page = comparison_page("A <title>", rows, {})
    assert "A &lt;title&gt;" in page
    assert [*re.findall("<h2>([^<]+)", page)] == [
        "birds, net, all pictures (1 to 2 seeds, 7 queries, gallery of 11)",
        "Cells that failed",
        "Settings chosen on validation pictures",
        "What the words mean",
    ]
    assert "<td><b>68.0 ± 2.0</b></td>" in page
    assert "<td>52.0 ± 2.0</td>" in page
    assert page.count("tabindex='0' role='region'") == page.count("<table") == 7
    assert page.count("<svg") == 1  # one number of shots: time, and nothing against shots
