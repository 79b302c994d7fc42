"""`pip install kedge` alone: filing, searching and evaluating work where nothing of `kedge[train]` can be imported."""

import os
import subprocess
import sys

import pytest

from kedge.cli import TRAINING_PARTS
from tests.models import make_model
from tests.pictures import draw_classes

CLASSES = ["red", "green", "blue"]
# Put in front of everything that is imported, as if these packages were not installed.
BLOCKER = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING_PARTS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def alone(tmp_path):
    """Run kedge's command line without the training parts."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hook"), "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = [sys.executable, "-m", "kedge", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return run


def test_filing_searching_and_evaluating_need_no_torch(alone, tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=8, size=32, seed=0)
    make_model(tmp_path / "model", classes=CLASSES)
    query = next((tmp_path / "photos" / "red").iterdir())
    for words in (
        ["evaluate", "model", "photos"],
        ["create", "gallery", "--model", "model"],
        ["add", "gallery", "photos"],
        ["search", "gallery", query, "--exact", "--html", "hits.html"],
        ["duplicates", "gallery"],
        ["info", "gallery"],
        ["add-class", "model", "crimson", query],
        ["reindex", "gallery", "--model", "model"],
        ["export", "gallery", "--to", "npz", "--out", "all.npz"],
    ):
        done = alone(*words)
        assert done.returncode == 0, f"{words}\n{done.stderr}"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "digits", "--out", "new"],
        ["losses"],
        ["compare", "--data", "digits", "--out", "new"],
        ["demo"],
    ],
)
def test_what_trains_names_the_install(alone, words, tmp_path):
    done = alone(*words)
    assert done.returncode == 2
    assert "pip install 'kedge[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
