"""Commands that fill, search and tend galleries."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

import kedge
from kedge.cli.options import Expand, Json, Runtime, shown
from kedge.errors import InputError, PictureError, WorkError

if TYPE_CHECKING:
    from kedge.export_gallery import ExportFormat
    from kedge.hits import SearchResult
    from kedge.intake import FileBy
    from kedge.runtime import Precision
    from kedge.runtime import Runtime as RuntimeName
    from kedge.search import Order

__all__ = ["commands"]

commands = typer.Typer()

# Pictures that could not be taken, and labels, are named up to so many: --json has all.
MOST_NAMED = 20


@commands.command()
def create(
    gallery: Annotated[Path, typer.Argument(help="The gallery folder to make.")],
    model: Annotated[Path, typer.Option(help="The model that will embed its pictures.")],
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8, for good; default as the model.")
    ] = None,
) -> None:
    """Make an empty gallery."""
    with kedge.Gallery.create(gallery, model, precision=cast("Precision | None", precision)):
        print(f"made {gallery}: fill it with `kedge add {quote(str(gallery))} PICTURES`")


@commands.command()
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
    from kedge.cli.progress import progress_bar

    running = cast("RuntimeName", runtime)
    with kedge.Gallery.open(gallery, runtime=running) as opened, progress_bar("adding") as progress:
        before = opened.info()["labels"]
        report = opened.add(*paths, labels=labels, file_by=cast("FileBy", file_by), progress=progress)
        strange = opened.info()["labels"].keys() - before.keys() - {*opened.model.card.classes}
    if json_:
        failed = [{"path": failure.path, "reason": failure.reason} for failure in report.failed]
        counts = {"added": report.added, "updated": report.updated, "unchanged": report.unchanged}
        print(json.dumps({**counts, "failed": failed}))
        return
    _say_failures("skipped", report.failed)
    if strange:
        named = ", ".join(map(shown, sorted(strange)[:MOST_NAMED])) + ", …" * (len(strange) > MOST_NAMED)
        print(f"kedge: the model has no class for these labels: {named}", file=sys.stderr)
    print(f"added {report.added}, updated {report.updated}, unchanged {report.unchanged}, failed {len(report.failed)}")


@commands.command()
def reindex(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    model: Annotated[Path, typer.Option(help="The model folder to go over to.")],
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out pictures that cannot be read again.")
    ] = False,
    runtime: Runtime = "auto",
    json_: Json = False,
) -> None:
    """Embed a gallery's pictures anew with another model, which takes over when all is done."""
    from kedge.cli.progress import progress_bar

    running = cast("RuntimeName", runtime)
    with kedge.Gallery.open(gallery, runtime=running) as opened, progress_bar("embedding") as progress:
        report = opened.reindex(model, drop_missing=drop_missing, progress=progress)
        pictures, fingerprint = opened.count(), opened.model.fingerprint
    if json_:
        failed = [{"path": failure.path, "reason": failure.reason} for failure in report.failed]
        print(json.dumps({"pictures": pictures, "model": fingerprint, "failed": failed}))
        return
    _say_failures("left out", report.failed)
    print(f"{pictures} pictures, model {fingerprint}")


@commands.command()
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


@commands.command()
def search(
    gallery: Annotated[Path, typer.Argument(help="A gallery folder.")],
    pictures: Annotated[list[str], typer.Argument(help="The pictures to search with, or their URLs.")],
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
    cache: Annotated[int | None, typer.Option(help="MiB that a search on disk keeps in memory; default 256.")] = None,
    runtime: Runtime = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a contact sheet of the results.")] = None,
    json_: Json = False,
) -> None:
    """Find the pictures that show the same thing, best first."""
    if exact and probes is not None:
        raise InputError("--probes and --exact exclude each other: give one of them")
    if cache is not None and not on_disk:
        raise InputError("--cache is of a search with --on-disk: give both, or leave it out")
    running, held = cast("RuntimeName", runtime), 256 if cache is None else cache
    with kedge.Gallery.open(gallery, half=half, on_disk=on_disk, cache=held, runtime=running) as opened:
        chosen: int | Literal["exact"] = "exact" if exact else 1 if probes is None else probes

        def find(some: Sequence[str]) -> "list[SearchResult]":
            return opened.search_many(
                some, k, chosen, order=cast("Order", order), expand=expand, where=where, max_distance=max_distance
            )

        try:
            results = find(pictures)
        except PictureError:
            pictures = _readable(pictures)
            results = find(pictures)
        limits = [name for name, value in (("--where", where), ("--max-distance", max_distance)) if value is not None]
        none = f"no picture is within {' and '.join(limits)}" if opened.count() else "fill the gallery with `kedge add`"
        for result in results:
            if json_:
                print(json.dumps(asdict(result)))
            else:
                _show(result, none)
        if html:
            _write_contact_sheet(opened, pictures, results, html)
            if not json_:
                print(f"page    {html}")


@commands.command()
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
            from kedge.page import duplicates_page, shown_on_page, write_page

            write_page(html, duplicates_page(groups, opened.thumbnails(shown_on_page(groups))))
    for number, group in enumerate(groups, start=1):
        if json_:
            print(json.dumps(asdict(group)))
            continue
        print(f"{number}  {group.kind}, {len(group.ids)} pictures, embeddings within {group.distance:.3g}")
        for key, path in zip(group.ids, group.paths, strict=True):
            print(f"      {key}  {shown(path or '-')}")
    if not json_:
        spare = sum(len(group.ids) - 1 for group in groups)
        page = f"; page {html}" if html else ""
        plural = "" if len(groups) == 1 else "s"
        print(f"{len(groups)} group{plural}, {spare} pictures that may be left out after a look{page}")


@commands.command()
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


@commands.command()
def compact(gallery: Annotated[Path, typer.Argument(help="A gallery folder.")], json_: Json = False) -> None:
    """Give back the space of removed pictures, and drop older versions; while nobody else uses the gallery."""
    with kedge.Gallery.open(gallery) as opened:
        before, after = opened.compact()
    said = f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now"
    print(json.dumps({"bytes_before": before, "bytes_after": after}) if json_ else said)


@commands.command()
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


@commands.command()
def versions(gallery: Annotated[Path, typer.Argument(help="A gallery folder.")], json_: Json = False) -> None:
    """List the states that a gallery can go back to."""
    with kedge.Gallery.open(gallery) as opened:
        kept = opened.versions()
    for version in kept:
        said = {**asdict(version), "written_at": version.written_at.isoformat(timespec="seconds")}
        line = f"{version.number:>6}  {said['written_at']}  {version.pictures:>9} pictures  {version.change}"
        print(json.dumps(said) if json_ else line)


@commands.command()
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


def _show(result: "SearchResult", none: str) -> None:
    """Print what a query found, or why nothing was."""
    probed = ", ".join(map(shown, result.probed)) or "nothing"
    print(f"{shown(result.query)}  probed {probed}  looked at {result.scanned_share:.1%}")
    if result.known is False:
        print(f"      perhaps of no known class: {result.percentile:.0f} % of known pictures lie nearer to an anchor")
    if not result.hits:
        print(f"      nothing was found: {none}")
    for hit, distance in zip(result.hits, result.distances(), strict=True):
        print(f"{hit.rank:>4}  {distance:<9} {shown(hit.label or '-'):<16} {shown(hit.path or '-')}")


def _say_failures(what: str, failures: Sequence[PictureError]) -> None:
    for failure in failures[:MOST_NAMED]:
        print(f"{what} {shown(failure)}", file=sys.stderr)
    if len(failures) > MOST_NAMED:
        print(f"{what} {len(failures) - MOST_NAMED} more: --json names all", file=sys.stderr)


def _readable(pictures: Sequence[str]) -> list[str]:
    """Return the pictures that can be read, and name the others; InputError when none can."""
    left = []
    for picture in pictures:
        try:
            kedge.read_picture(picture)
            left.append(picture)
        except PictureError as error:
            if len(pictures) == 1:
                raise
            print(f"skipped {shown(error)}", file=sys.stderr)
    if not left:
        raise InputError(f"none of the {len(pictures)} pictures can be read: name others")
    return left


def _write_contact_sheet(
    gallery: "kedge.Gallery", pictures: Sequence[str], results: "Sequence[SearchResult]", path: Path
) -> None:
    from kedge.page import contact_sheet, write_page
    from kedge.picture import thumbnail

    # One at a time is held as it was read.
    asked = [thumbnail(kedge.read_picture(picture).image) for picture in pictures]
    found = gallery.thumbnails([hit.id for result in results for hit in result.hits])
    write_page(path, contact_sheet(results, asked, found))
