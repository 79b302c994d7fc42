"""The demo: the main job on handwritten digits, from pictures to pages, in a minute or two."""

import shutil
import sys
import time
from pathlib import Path

from kedge.datasets import load_dataset
from kedge.errors import InputError
from kedge.gallery import Gallery
from kedge.page import contact_sheet
from kedge.picture import read_picture, thumbnail
from kedge.training import train

__all__ = ["run_demo"]

QUERIES = 12


def run_demo(out: Path) -> None:
    """Train on the digits, evaluate, file them in a gallery and search it with digits never trained on."""
    if out.exists():
        raise InputError(f"{out} exists already, of a demo before: remove it, or choose another folder with --out")
    started = time.monotonic()
    _say("1/3  training on 8x8 pictures of handwritten digits")
    model = train("digits", out / "model", image_size=32, epochs=12)
    dataset = load_dataset("digits", membership=model.splits())

    _say("2/3  filing the training pictures in a gallery")
    with Gallery.create(out / "gallery", model) as gallery:
        gallery.add(Path(dataset.gallery.paths[0]).parents[1])
        _say("3/3  searching it with test pictures")
        queries = [Path(path) for path in dataset.test.paths[:: len(dataset.test) // QUERIES][:QUERIES]]
        results = gallery.search_many(queries, k=6)
        thumbnails = gallery.thumbnails([hit.id for result in results for hit in result.hits])
    asked = [thumbnail(read_picture(query).image) for query in queries]
    page = out / "search.html"
    page.write_text(contact_sheet(results, asked, thumbnails), "utf-8")

    scores = model.card.scores["test"]
    took = time.monotonic() - started
    print(f"Done in {took:.0f} s. mAP of {len(dataset.test)} test digits: {100 * scores['map']:.1f} %.")
    print("Look at")
    print(f"  {page}   queries and what they found")
    print(f"  {out / 'model' / 'report.html'}   how well it retrieves, and how it learned")
    print("and try")
    print(f"  {_program()} search {out / 'gallery'} {queries[0]}")


def _program() -> str:
    """Return what `kedge` is typed as here: `make demo` installs it where a shell does not look."""
    installed = Path(sys.executable).with_name("kedge")
    if shutil.which("kedge") or not installed.is_file():
        return "kedge"
    return str(installed.relative_to(Path.cwd())) if installed.is_relative_to(Path.cwd()) else str(installed)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
