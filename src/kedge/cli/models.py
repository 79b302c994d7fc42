"""Commands that make and measure models."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

import kedge
from kedge.cli.options import Expand, Json, Runtime, scored, shown
from kedge.errors import InputError, WorkError

if TYPE_CHECKING:
    from kedge.runtime import Runtime as RuntimeName

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
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
        int | None, typer.Option(help="Pictures a step; default by their number, at most 200.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Train on K pictures a class only.")] = None,
    classes: Annotated[int | None, typer.Option(help="Use the first N classes only.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of validation pictures, draws and training; default 0.")
    ] = None,
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
    setting: Annotated[list[str] | None, typer.Option(help="Any other setting, such as margin=4.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; flags go over it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    json_: Json = False,
) -> None:
    """Train an embedding on labelled pictures and write a model folder with its report."""
    given = locals()
    from kedge.config import TrainingConfig

    settings = TrainingConfig.read(config) if config else {}
    flags = {name: given[name] for name in ("preset", *TrainingConfig.model_fields) if name in given}
    settings |= {name: value for name, value in flags.items() if value is not None} | _settings(setting or [])
    TrainingConfig.of(settings)  # A file may hold anything: what is no setting would reach other parameters.
    model = kedge.train(data, out, resume=resume, **settings)
    if json_:
        print(json.dumps({"model": str(model.folder), "fingerprint": model.fingerprint, **model.card.model_dump()}))
        return
    print(f"model   {model.folder}")
    print(f"report  {model.folder / 'report.html'}")
    for split, figures in model.card.scores.items():
        print(f"{split:<11} {scored(figures)}")


@commands.command()
def losses(json_: Json = False) -> None:
    """List the losses that `kedge train --loss` takes."""
    from kedge.losses import LOSSES

    for recipe in LOSSES.values():
        told = {"name": recipe.name, "summary": recipe.summary, "source": recipe.source, "settings": recipe.reads}
        print(json.dumps(told) if json_ else f"{recipe.name:<17} {recipe.summary} ({recipe.source})")


@commands.command()
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
    from kedge.cli.progress import comparison_progress
    from kedge.grid import Grid
    from kedge.page import comparison_summary

    flags: dict[str, Any] = {
        "datasets": data,
        "losses": _comma_list("--loss", loss),
        "backbones": _comma_list("--backbone", backbone),
        "seeds": _whole_numbers(_comma_list("--seed", seed)),
        "shots": _whole_numbers(_comma_list("--shots", shots)),
        "classes": classes,
        "unseen_classes": unseen_classes,
    }
    if grid and not grid.exists():
        raise InputError(f"no grid file at {grid}: give a TOML file; lists go by commas, such as --loss cam,center")
    values = Grid.read(grid) if grid else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if setting and isinstance(values.setdefault("settings", {}), dict):
        values["settings"] |= _settings(setting)
    if tries:
        values.setdefault("tries", {})
    if "datasets" not in values and not {*values} - {*Grid.model_fields}:
        raise InputError("nothing to compare on: give --data, or a TOML file with `datasets`")
    with comparison_progress() as on_row:
        found = kedge.compare(Grid.of(values), out, parallel=parallel, keep_models=not drop_models, on_row=on_row)
    if json_:
        for row in found.rows:
            print(json.dumps(row))
    else:
        print("\n".join(map(shown, comparison_summary(found.rows).split("\n"))))
        print(f"tables  {out / 'results.md'}")
        print(f"page    {out / 'report.html'}")
    if found.failed:
        raise WorkError(f"{len(found.failed)} of {len(found.rows)} cells failed, see {out / 'results.md'}")


@commands.command()
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
        if added.margin is not None and added.distance < added.margin:
            reason = f"within the margin of {added.margin:.3g}"
        elif added.distance < added.spread:
            reason = "nearer than the examples"
        else:
            reason = f"where pictures of '{added.nearest}' lie, up to {added.reach:.3g} from it"
        print(
            f"kedge: that is {reason}: expect pictures of '{name}' and '{added.nearest}' under either; "
            "train with both classes to part them",
            file=sys.stderr,
        )
    print(f"galleries take it over with `kedge reindex GALLERY --model {quote(str(model))}`, which reads no picture")


@commands.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    data: Annotated[str, typer.Argument(help="A data set's name, folder or list.")],
    probes: Annotated[str, typer.Option(help="Numbers of anchors to probe, and `exact`.")] = "1,2,5,exact",
    expand: Expand = False,
    runtime: Runtime = "auto",
    html: Annotated[Path | None, typer.Option(help="Write the page there, not over the model's report.")] = None,
    json_: Json = False,
) -> None:
    """Measure how well a model retrieves: test pictures are the queries, training pictures the gallery."""
    from kedge.page import evaluate_to_page

    running = cast("RuntimeName", runtime)
    opened = kedge.Model.load(model)
    report = evaluate_to_page(model, data, html, probes=_probes_list(probes), expand=expand, runtime=running)
    if not opened.splits():
        print(
            f"kedge: {model} does not say what it was trained on (no splits.json): it may have been tested on that",
            file=sys.stderr,
        )
    if not {*report.per_class} & {*opened.card.classes}:
        print(f"kedge: {model} knows none of these {report.classes} classes", file=sys.stderr)
    for failure in report.left_out:
        print(f"left out {shown(failure)}", file=sys.stderr)
    if json_:
        print(json.dumps(report.to_json()))
        return
    _show_report(report)
    print(f"report  {html or model / 'report.html'}")


@commands.command()
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
    print(f"a gallery goes over to it with `kedge reindex GALLERY --model {quote(str(written.folder))}`")


def _probes_list(text: str) -> tuple[int | Literal["exact"], ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "exact" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise InputError(f"--probes takes numbers from 1 and 'exact', separated by commas, not '{text}'")
    return tuple("exact" if part == "exact" else int(part) for part in parts)


def _comma_list(flag: str, given: list[str] | None) -> list[str] | None:
    """Return the parts of lists separated by commas, None for nothing given."""
    parts = [part.strip() for text in given or () for part in text.split(",") if part.strip()]
    if given and not parts:
        raise InputError(f"{flag} is empty: name what to compare, or leave it out")
    return parts or None


def _whole_numbers(parts: list[str] | None) -> list[int | str] | None:
    """Return whole numbers as such, and leave the words to be refused."""
    return None if parts is None else [int(part) if part.isdecimal() else part for part in parts]


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
    left_out = f"; left out, because they cannot be used: {len(report.left_out)}" if report.left_out else ""
    print(
        f"{report.queries} queries{', expanded,' if report.expanded else ''} in a gallery of {report.gallery}, "
        f"{report.classes} classes, {report.dim} dimensions, searched by {report.distance}{left_out}"
    )
    print(f"{'search':<42} {'mAP':>6} {'P@20':>6} {'P@100':>6} {'R@1':>6} {'scanned':>8} {'ms':>7}")
    alike = report.distances_agree()
    for row in report.distinct():
        filed = f", filed by {row.filed_by}, probes {row.probes}" if row.mode == "two-stage" else ""
        name = f"{'l2 = cosine' if alike else row.distance} {row.mode}{filed}".replace("two-stage, ", "")
        figures = (row.map, row.precision_at["20"], row.precision_at["100"], row.recall_at["1"])
        percents = " ".join(f"{100 * value:6.1f}" for value in figures)
        print(f"{name:<42} {percents} {100 * row.scanned_share:7.1f}% {row.milliseconds_per_query:7.3f}")
    confused = sorted((report.per_class[name] or 0.0, name) for name in report.confusions)
    for ap, name in confused[:3]:
        other = report.confusions[name]
        among = f"of the first 20, {100 * other.share:.1f} % are {shown(other.found)}"
        print(f"hard    {shown(name)}: mAP {100 * ap:.1f}; {among}")
