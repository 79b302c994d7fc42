"""What the README and the tutorial say can be typed, can be typed: their commands are run as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import draw_classes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
INSTALLS = ("python -m venv", "pip install", "make ")
CLASSES = ["oak", "maple", "birch"]
# The pictures are few and small: several threads would mostly wait for each other, on a busy machine for very long.
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}
CONTRACT = {"train", "evaluate", "create", "add", "remove", "search", "info", "demo"}


def blocks(text, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """The lines of the plain code blocks that are commands of ours."""
    lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("kedge ")]


def run(line, folder):
    """Run a command line of the docs, with the shell's `*.jpg`; a comparison with one seed and one epoch."""
    words = [
        str(path) for word in shlex.split(line)[1:] for path in (sorted(folder.glob(word)) if "*" in word else [word])
    ]
    if words[0] == "compare":
        words += ["--seed", "0", "--setting", "epochs=1"]
    return subprocess.run(
        [sys.executable, "-m", "kedge", *words], cwd=folder, capture_output=True, text=True, timeout=300, env=ALONE
    )


@pytest.fixture
def workplace(tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=16, size=32, seed=0)
    draw_classes(tmp_path / "more", CLASSES, each=1, size=48, seed=1)
    next((tmp_path / "more" / "oak").iterdir()).rename(tmp_path / "query.jpg")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_commands_run_in_the_order_they_stand(page, workplace):
    found = commands((ROOT / page).read_text("utf-8"))
    assert len(found) >= 6
    for line in found:
        done = run(line, workplace)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), f"{line} printed nothing"
    assert (workplace / "hits.html").stat().st_size > 5000
    assert (workplace / "model" / "report.html").stat().st_size > 20_000


def test_python_of_the_readme_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    whole, alone = blocks(README, "python")
    printed = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, check=True, timeout=300, env=ALONE
    ).stdout
    assert len(printed.splitlines()) == 10
    import torch

    namespace = {"kedge": __import__("kedge"), "labels": torch.tensor([0, 99])}
    namespace["embeddings"] = torch.randn(2, 128, requires_grad=True)
    exec(alone, namespace)
    assert namespace["loss"].anchors.grad.shape == (100, 128)


def test_make_targets_of_the_readme_exist():
    for target in re.findall(r"^make (\w+)$", README, flags=re.MULTILINE):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kedge", "demo", "--out", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=ALONE,
    )
    assert done.returncode == 0, done.stderr
    for page in re.findall(r"\S+\.html", done.stdout):
        assert (tmp_path / page).stat().st_size > 20_000
    assert len(re.findall(r"\S+\.html", done.stdout)) == 2
    card = json.loads((tmp_path / "demo" / "model" / "kedge.json").read_text())
    assert card["scores"]["test"]["map"] >= 0.97
    advice = next(line for line in done.stdout.splitlines() if "kedge search " in line)
    assert run(advice.strip(), tmp_path).returncode == 0


def headings(page):
    """The names by which links go to a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    }


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            if link.startswith("http"):
                continue
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in headings(target), f"{page.name}: {link}#{heading}"


def test_every_command_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    help_text = subprocess.run(
        [sys.executable, "-m", "kedge", "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = help_text.split("Commands:")[1]
    names = re.findall(r"^  (\w[\w-]*)", listed, flags=re.MULTILINE)
    assert set(names) >= CONTRACT
    for name in names:
        assert f"`kedge {name}" in text, name
        shown = subprocess.run(
            [sys.executable, "-m", "kedge", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        for option in set(re.findall(r"--[a-z-]+", shown)) - {"--help"}:
            assert option in text, f"{name} {option}"
