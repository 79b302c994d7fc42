"""The command line: a command parses, calls one function and prints.

Results go to stdout, progress to stderr. A user's mistake is one line that says the remedy: exit code 2 for input that
cannot be used, 1 for work that failed.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

import kedge
from kedge.errors import InputError, KedgeError, WorkError

if TYPE_CHECKING:
    from kedge.export_gallery import ExportFormat
    from kedge.intake import FileBy
    from kedge.queries import Order
    from kedge.runtime import Precision
    from kedge.runtime import Runtime as RuntimeName

__all__ = ["app", "main"]

app = typer.Typer(
    name="kedge",
    help="Image retrieval with learned class anchors: train, evaluate, index and search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What only `kedge[train]` brings.
TRAINING_PARTS = (
    "lightning",
    "onnx",
    "onnxscript",
    "pytorch_metric_learning",
    "timm",
    "torch",
    "torchvision",
)

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]

Expand = Annotated[bool, typer.Option("--expand", help="Turn queries to the anchors of the classes they look like.")]

Runtime = Annotated[str, typer.Option(help="What runs the model: auto (the fastest), onnxruntime, openvino or torch.")]


def main() -> None:
    """Run the command line; turn Kedge's errors into one line and an exit code."""
    try:
        app()
    except KedgeError as error:
        print(f"kedge: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_PARTS:
            raise
        print(f"kedge: this needs {error.name}: pip install 'kedge[train]'", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        # Typer's for Ctrl-C, of which it says nothing.
        if end.code == 130:
            print("kedge: stopped; what was finished is kept (`kedge train` goes on with --resume)", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        said = ": ".join(filter(None, (error.filename and str(error.filename), error.strerror or str(error))))
        print(f"kedge: {said}: check that it can be read and written, and has room", file=sys.stderr)
        sys.exit(1)


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="A data set's name, a folder of pictures, or a CSV or Parquet list.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    loss: Annotated[
        str | None, typer.Option(help="cam-sphere (default), cam, or another that `kedge losses` lists.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="resnet10-half or any timm model.")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Start from the published weights.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of a picture in pixels; default: as the data.")] = None,
    dim: Annotated[
        int | None, typer.Option(help="Length of an embedding; default 64, or more for many classes.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures; default by their number.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures a step; default by their number, at most 100.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Train on K pictures a class only.")] = None,
    classes: Annotated[int | None, typer.Option(help="Use the first N classes only.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, draws and training; default 0.")] = None,
    distance: Annotated[
        str | None, typer.Option(help="l2, cosine or auto (default): the better on validation.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="What is stored: embedding (default), pooled, joint or softmax.")
    ] = None,
    mirrored: Annotated[
        bool | None, typer.Option("--mirrored", help="Store the mean over a picture and its mirror image.")
    ] = None,
    sharpening: Annotated[
        float | None, typer.Option(help="Turn what is stored to anchors or class means, by this power; 1: not.")
    ] = None,
    freeze_backbone: Annotated[
        bool | None, typer.Option("--freeze-backbone", help="Train the head alone, on features computed once.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate; default by loss.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On backbone and head; default by loss.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd; default by loss.")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="Clip the gradient's norm.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings by name: paper-like.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; flags go over it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    json_: Json = False,
) -> None:
    """Train an embedding on labelled pictures and write a model folder with its report."""
    flags: dict[str, Any] = {
        "loss": loss,
        "backbone": backbone,
        "pretrained": pretrained,
        "image_size": image_size,
        "dim": dim,
        "epochs": epochs,
        "batch_size": batch_size,
        "shots": shots,
        "classes": classes,
        "seed": seed,
        "distance": distance,
        "features": features,
        "mirrored": mirrored,
        "sharpening": sharpening,
        "freeze_backbone": freeze_backbone,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "gradient_clip": gradient_clip,
        "preset": preset,
    }
    from kedge.config import TrainingConfig

    settings = TrainingConfig.read(config) if config else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    model = kedge.train(data, out, resume=resume, **settings)
    if json_:
        print(json.dumps({"model": str(model.folder), "fingerprint": model.fingerprint, **model.card.model_dump()}))
        return
    print(f"model   {model.folder}")
    print(f"report  {model.folder / 'report.html'}")
    for split, figures in model.card.scores.items():
        print(f"{split:<11} {_listed(figures)}")


@app.command()
def losses(json_: Json = False) -> None:
    """List the losses that `kedge train --loss` takes."""
    from kedge.losses import LOSSES

    for recipe in LOSSES.values():
        told = {"name": recipe.name, "summary": recipe.summary, "source": recipe.source, "settings": recipe.reads}
        print(json.dumps(told) if json_ else f"{recipe.name:<17} {recipe.summary} ({recipe.source})")


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="The folder to write; what stands in it already is not done again.")],
    grid: Annotated[
        Path | None, typer.Argument(help="A TOML file that says what to compare; flags go over it.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="A data set's name, folder or list.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="A loss that `kedge losses` lists, or a variant.")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="A backbone, or auto: as the pictures ask for.")] = None,
    shots: Annotated[list[str] | None, typer.Option(help="Pictures a class to train on, or full.")] = None,
    seed: Annotated[list[str] | None, typer.Option(help="A seed; default 0, 1 and 2.")] = None,
    classes: Annotated[int | None, typer.Option(help="Use the first N classes only.")] = None,
    unseen_classes: Annotated[
        int | None, typer.Option(help="Leave the last N classes out of training, and measure them apart.")
    ] = None,
    tries: Annotated[
        bool, typer.Option("--tries", help="Choose each loss's settings on validation pictures first.")
    ] = False,
    setting: Annotated[list[str] | None, typer.Option(help="A setting of every cell, such as epochs=20.")] = None,
    parallel: Annotated[
        int | None, typer.Option(help="Cells side by side, each with its share of the cores; default one a GPU.")
    ] = None,
    drop_models: Annotated[
        bool, typer.Option("--drop-models", help="Remove each model folder once it is measured.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train and measure losses side by side; lists are separated by commas. Goes on where it was stopped."""
    from kedge.grid import Grid
    from kedge.progress import comparison_progress

    flags: dict[str, Any] = {
        "datasets": data,
        "losses": _comma_list(loss),
        "backbones": _comma_list(backbone),
        "seeds": _comma_list(seed),
        "shots": _comma_list(shots),
        "classes": classes,
        "unseen_classes": unseen_classes,
    }
    if grid and not grid.exists():
        raise InputError(f"no grid file at {grid}: give a TOML file; lists go by commas, such as --loss cam,center")
    values = Grid.read(grid) if grid else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if setting:
        values["settings"] = {**values.get("settings", {}), **_settings(setting)}
    if tries:
        values.setdefault("tries", {})
    if "datasets" not in values:
        raise InputError("nothing to compare on: give --data, or a TOML file with `datasets`")
    with comparison_progress() as on_row:
        found = kedge.compare(Grid.of(values), out, parallel=parallel, keep_models=not drop_models, on_row=on_row)
    if json_:
        for row in found.rows:
            print(json.dumps(row))
    else:
        print((out / "results.md").read_text("utf-8"))
        print(f"page    {out / 'report.html'}")
    if found.failed:
        raise WorkError(f"{len(found.failed)} of {len(found.rows)} cells failed, see {out / 'results.md'}")


@app.command()
def add_class(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    name: Annotated[str, typer.Argument(help="The new class's name.")],
    pictures: Annotated[list[Path], typer.Argument(help="Examples of it: one will do, five are better.")],
    json_: Json = False,
) -> None:
    """Add a class to a model without training: its anchor is the mean of a few examples."""
    _, added = kedge.add_class(model, name, pictures)
    if json_:
        print(json.dumps({**asdict(added), "crowded": added.crowded}))
        return
    print(
        f"added '{name}' from {added.examples} picture{'s' * (added.examples > 1)}, at {added.spread:.3f} from its "
        f"anchor on average; the nearest other anchor, '{added.nearest}', is at {added.distance:.3f}"
    )
    if added.crowded:
        within = added.margin is not None and added.distance < added.margin
        print(
            f"kedge: that is {f'within the margin of {added.margin:.3g}' if within else 'nearer than the examples'}: "
            f"expect pictures of '{name}' and '{added.nearest}' under either; train with both classes to part them",
            file=sys.stderr,
        )
    print(f"galleries take it over with `kedge reindex GALLERY --model {model}`, which reads no picture")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    data: Annotated[str, typer.Argument(help="A data set's name, folder or list.")],
    probes: Annotated[str, typer.Option(help="Numbers of anchors to probe, and `exact`.")] = "1,2,5,exact",
    expand: Expand = False,
    runtime: Runtime = "auto",
    json_: Json = False,
) -> None:
    """Measure how well a model retrieves: test pictures are the queries, training pictures the gallery."""
    from kedge.page import evaluate_to_page

    running = cast("RuntimeName", runtime)
    report = evaluate_to_page(model, data, probes=_probes_list(probes), expand=expand, runtime=running)
    if json_:
        print(json.dumps(report.to_json()))
        return
    _show_report(report)
    print(f"report  {model / 'report.html'}")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    data: Annotated[str, typer.Argument(help="The pictures it was trained on: a data set's name, folder or list.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    json_: Json = False,
) -> None:
    """Write a model that works with 8-bit numbers: faster on most CPUs, and a little less exact."""
    written, cost = kedge.quantize(model, data, out)
    if json_:
        print(json.dumps({"model": str(written.folder), "fingerprint": written.fingerprint, **asdict(cost)}))
        return
    print(
        f"mAP of {cost.queries} {cost.split} pictures: {100 * cost.map_float32:.1f} before, "
        f"{100 * cost.map_int8:.1f} with int8 ({100 * (cost.map_int8 - cost.map_float32):+.1f})"
    )
    print(f"model   {written.folder}")
    print(f"a gallery goes over to it with `kedge reindex GALLERY --model {written.folder}`")


@app.command()
def create(
    gallery: Annotated[Path, typer.Argument(help="The gallery folder to make.")],
    model: Annotated[Path, typer.Option(help="The model that will embed its pictures.")],
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8, for good; default as the model.")
    ] = None,
) -> None:
    """Make an empty gallery."""
    with kedge.Gallery.create(gallery, model, precision=cast("Precision | None", precision)):
        print(f"made {gallery}: fill it with `kedge add {gallery} PICTURES`")


@app.command()
def add(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    paths: Annotated[
        list[str],
        typer.Argument(help="Folders, archives, pictures, their URLs, lists (CSV, Parquet), or embeddings (Parquet)."),
    ],
    labels: Annotated[str, typer.Option(help="folder, none, or a list (CSV, Parquet) of path,label.")] = "folder",
    file_by: Annotated[str, typer.Option(help="nearest: the nearest anchor; label: the label's anchor.")] = "nearest",
    runtime: Runtime = "auto",
    json_: Json = False,
) -> None:
    """Embed pictures and file them in a gallery; those that cannot be read are skipped and named."""
    from kedge.progress import progress_bar

    running = cast("RuntimeName", runtime)
    with kedge.Gallery.open(gallery, runtime=running) as opened, progress_bar("adding") as progress:
        report = opened.add(*paths, labels=labels, file_by=cast("FileBy", file_by), progress=progress)
    if json_:
        failed = [{"path": failure.path, "reason": failure.reason} for failure in report.failed]
        counts = {"added": report.added, "updated": report.updated, "unchanged": report.unchanged}
        print(json.dumps({**counts, "failed": failed}))
        return
    print(f"added {report.added}, updated {report.updated}, unchanged {report.unchanged}, failed {len(report.failed)}")
    for failure in report.failed:
        print(f"skipped {failure}", file=sys.stderr)


@app.command()
def reindex(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    model: Annotated[Path, typer.Option(help="The model folder to go over to.")],
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out pictures that cannot be read again.")
    ] = False,
    json_: Json = False,
) -> None:
    """Embed a gallery's pictures anew with another model, which takes over when all is done."""
    from kedge.progress import progress_bar

    with kedge.Gallery.open(gallery) as opened, progress_bar("embedding") as progress:
        report = opened.reindex(model, drop_missing=drop_missing, progress=progress)
        pictures, fingerprint = opened.count(), opened.model.fingerprint
    if json_:
        failed = [{"path": failure.path, "reason": failure.reason} for failure in report.failed]
        print(json.dumps({"pictures": pictures, "model": fingerprint, "failed": failed}))
        return
    print(f"{pictures} pictures, model {fingerprint}")
    for failure in report.failed:
        print(f"left out {failure}", file=sys.stderr)


@app.command()
def remove(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    ids: Annotated[list[str] | None, typer.Option("--id", help="A picture's id; may be given several times.")] = None,
    where: Annotated[str | None, typer.Option(help="An SQL condition, such as \"label = 'cat'\".")] = None,
    json_: Json = False,
) -> None:
    """Remove pictures from a gallery, by id or by a condition; the files themselves stay."""
    with kedge.Gallery.open(gallery) as opened:
        removed = opened.remove(ids=ids, where=where)
    print(json.dumps({"removed": removed}) if json_ else f"removed {removed}")


@app.command()
def search(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    pictures: Annotated[list[Path], typer.Argument(help="The pictures to search with.")],
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 20,
    probes: Annotated[
        int | None, typer.Option(help="How many of the nearest anchors to look under; default 1.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Find what exhaustive search would find.")] = False,
    order: Annotated[str, typer.Option(help="distance, or bucket: the nearest anchor's pictures first.")] = "distance",
    expand: Expand = False,
    where: Annotated[str | None, typer.Option(help="An SQL condition on the hits.")] = None,
    max_distance: Annotated[float | None, typer.Option(help="Leave out hits farther than this.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Hold vectors in half precision: half the memory.")] = False,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Hold no vectors, search an index on disk.")] = False,
    cache: Annotated[int, typer.Option(help="MiB that a search on disk keeps in memory.")] = 256,
    runtime: Runtime = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a contact sheet of the results.")] = None,
    json_: Json = False,
) -> None:
    """Find the pictures that show the same thing, best first."""
    if exact and probes is not None:
        raise InputError("--probes and --exact exclude each other: give one of them")
    running = cast("RuntimeName", runtime)
    with kedge.Gallery.open(gallery, half=half, on_disk=on_disk, cache=cache, runtime=running) as opened:
        chosen: int | Literal["exact"] = "exact" if exact else 1 if probes is None else probes
        results = opened.search_many(
            pictures, k, chosen, order=cast("Order", order), expand=expand, where=where, max_distance=max_distance
        )
        if html:
            _write_contact_sheet(opened, pictures, results, html)
    for result in results:
        if json_:
            print(json.dumps(asdict(result)))
            continue
        print(f"{result.query}  probed {', '.join(result.probed)}  looked at {result.scanned_share:.1%}")
        if result.known is False:
            print(
                f"      perhaps of no known class: {result.percentile:.0f} % of known pictures lie nearer to an anchor"
            )
        for hit in result.hits:
            print(f"{hit.rank:>4}  {hit.distance:<9.4g} {hit.label or '-':<16} {hit.path}")
    if html and not json_:
        print(f"page    {html}")


@app.command()
def duplicates(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    bits: Annotated[int, typer.Option(help="How many of 64 bits near pictures' hashes differ in at most.")] = 4,
    distance: Annotated[
        float | None, typer.Option(help="How far near embeddings lie apart at most; default by the gallery.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of the pictures.")] = None,
    json_: Json = False,
) -> None:
    """List pictures of a gallery that show the same, by perceptual hash and embedding."""
    with kedge.Gallery.open(gallery) as opened:
        groups = opened.duplicates(bits=bits, distance=distance)
        if html:
            from kedge.page import MOST_SHOWN, duplicates_page

            shown = [key for group in groups[:MOST_SHOWN] for key in group.ids]
            _write_page(html, duplicates_page(groups, opened.thumbnails(shown)))
    for number, group in enumerate(groups, start=1):
        if json_:
            print(json.dumps(asdict(group)))
            continue
        print(f"{number}  {group.kind}, {len(group.ids)} pictures, embeddings within {group.distance:.3g}")
        for key, path in zip(group.ids, group.paths, strict=True):
            print(f"      {key}  {path or '-'}")
    if not json_:
        spare = sum(len(group.ids) - 1 for group in groups)
        page = f"; page {html}" if html else ""
        print(f"{len(groups)} groups, {spare} pictures that may be left out after a look{page}")


@app.command()
def export(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    to: Annotated[str, typer.Option(help="faiss, npz or parquet.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    json_: Json = False,
) -> None:
    """Write a gallery's vectors to a file that other programs read."""
    with kedge.Gallery.open(gallery) as opened:
        written = opened.export(out, cast("ExportFormat", to))
    print(json.dumps({"written": written, "path": str(out)}) if json_ else f"wrote {written} vectors to {out}")


@app.command()
def compact(gallery: Annotated[Path, typer.Argument(help="A gallery folder.")], json_: Json = False) -> None:
    """Give back the space of removed pictures, and drop older versions; while nobody else uses the gallery."""
    with kedge.Gallery.open(gallery) as opened:
        before, after = opened.compact()
    said = f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now"
    print(json.dumps({"bytes_before": before, "bytes_after": after}) if json_ else said)


@app.command()
def check(gallery: Annotated[Path, typer.Argument(help="A gallery folder.")], json_: Json = False) -> None:
    """Compare a gallery's files with the checksums they were written with; exit code 1 when one differs."""
    with kedge.Gallery.open(gallery) as opened:
        damages = opened.check()
        pictures = opened.count()
    if json_:
        print(json.dumps({"pictures": pictures, "damaged": [asdict(damage) for damage in damages]}))
    else:
        print("\n".join(f"{damage.path} {damage.reason}" for damage in damages) or f"{pictures} pictures, all whole")
    if damages:
        raise WorkError(f"{gallery} is damaged: put the files back from a backup, or restore a version without them")


@app.command()
def versions(gallery: Annotated[Path, typer.Argument(help="A gallery folder.")], json_: Json = False) -> None:
    """List the states that a gallery can go back to."""
    with kedge.Gallery.open(gallery) as opened:
        kept = opened.versions()
    for version in kept:
        said = {**asdict(version), "written_at": version.written_at.isoformat(timespec="seconds")}
        print(json.dumps(said) if json_ else f"{version.number:>6}  {said['written_at']}  {version.pictures} pictures")


@app.command()
def restore(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    version: Annotated[int, typer.Argument(help="A number that `kedge versions` lists.")],
    json_: Json = False,
) -> None:
    """Go back to an older version of a gallery; what came after it is kept as versions too."""
    with kedge.Gallery.open(gallery) as opened:
        opened.restore(version)
        pictures = opened.count()
    print(json.dumps({"restored": version, "pictures": pictures}) if json_ else f"restored, {pictures} pictures")


@app.command()
def info(
    target: Annotated[Path, typer.Argument(help="A model or a gallery folder.")],
    json_: Json = False,
) -> None:
    """Say what a model or a gallery holds."""
    said = _info(target)
    if json_:
        print(json.dumps(said))
        return
    scores = {f"{split} scores": figures for split, figures in said.pop("scores", {}).items()}
    for name, value in (said | scores).items():
        print(f"{name:<17} {_listed(value)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo"),
) -> None:
    """Run the main job on handwritten digits: train, evaluate, file, search; prints where to look."""
    from kedge.demo import run_demo

    run_demo(out)


def _info(target: Path) -> dict[str, Any]:
    from kedge.model import CARD

    if (target / CARD).is_file():
        return kedge.Model.load(target).info()
    with kedge.Gallery.open(target) as gallery:
        return gallery.info()


def _write_contact_sheet(gallery: Any, pictures: list[Path], results: list[Any], path: Path) -> None:
    from kedge.page import contact_sheet

    images = [kedge.read_picture(picture).image for picture in pictures]
    thumbnails = gallery.thumbnails([hit.id for result in results for hit in result.hits])
    _write_page(path, contact_sheet(results, images, thumbnails))


def _write_page(path: Path, page: str) -> None:
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _probes_list(text: str) -> tuple[int | Literal["exact"], ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "exact" or (part.isdigit() and int(part) > 0) for part in parts):
        raise InputError(f"--probes takes numbers from 1 and 'exact', separated by commas, not '{text}'")
    return tuple("exact" if part == "exact" else int(part) for part in parts)


def _comma_list(given: list[str] | None) -> list[int | str] | None:
    """Return the parts of lists separated by commas; whole numbers as such, None for nothing given."""
    parts = [part.strip() for text in given or () for part in text.split(",") if part.strip()]
    return [int(part) if part.isdigit() else part for part in parts] or None


def _settings(given: list[str]) -> dict[str, Any]:
    """Read `name=value`, with values as TOML writes them; words need no quotes."""
    import tomllib

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--setting takes name=value, such as epochs=20, not '{text}'")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value.strip()
    return found


def _show_report(report: Any) -> None:
    print(
        f"{report.queries} queries{', expanded,' if report.expanded else ''} in a gallery of {report.gallery}, "
        f"{report.classes} classes, {report.dim} dimensions"
    )
    print(f"{'search':<37} {'mAP':>6} {'P@20':>6} {'P@100':>6} {'R@1':>6} {'scanned':>8} {'ms':>7}")
    for row in report.search:
        filed = f", filed by {row.filed_by}, probes {row.probes}" if row.mode == "two-stage" else ""
        name = f"{row.distance} {row.mode}{filed}".replace("two-stage, ", "")
        figures = (row.map, row.precision_at["20"], row.precision_at["100"], row.recall_at["1"])
        shown = " ".join(f"{100 * value:6.1f}" for value in figures)
        print(f"{name:<37} {shown} {100 * row.scanned_share:7.1f}% {row.milliseconds_per_query:7.3f}")


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(inner)}" for name, inner in value.items()) or "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else _figure(value)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
