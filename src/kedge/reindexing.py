"""Reindexing: the pictures of a gallery embedded and filed anew by another model.

Where only the anchors are others, as after a class was added, the embeddings are kept and filed anew: no picture is
read.

The new model and its table grow in a folder of their own inside the gallery, which goes on answering with the old ones
until the new ones take over in one step. A run that was killed is gone on with: known files are not read again.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kedge.archives import find_member
from kedge.encoder import Encoder
from kedge.errors import InputError, PictureError
from kedge.gallery_folder import MODEL, GalleryFolder
from kedge.intake import COMMIT_VECTORS, AddReport, FileBy, Intake, Progress, filing_columns
from kedge.model import Model
from kedge.pictures_table import OWN_COLUMNS, PicturesTable, matrix
from kedge.runtime import Runtime
from kedge.sources import Sources
from kedge.stores import is_url, stored_there

__all__ = ["reindex"]

FILED_BY: tuple[FileBy, ...] = ("nearest", "label")


def reindex(
    folder: GalleryFolder,
    table: PicturesTable,
    model: Model,
    *,
    drop_missing: bool,
    runtime: Runtime,
    progress: Progress | None,
) -> tuple[GalleryFolder, AddReport]:
    """Embed all pictures of a gallery's table with `model` and let it take over; return the folder and what was done.

    Pictures come from their paths, unless both models embed alike. Where some cannot be read, or were added as vectors,
    InputError is raised and the gallery stays as it is, unless `drop_missing`. GalleryError while another process does
    the same.
    """
    with folder.reindexing():
        part = folder.prepare(model)
        fresh = Model.load(folder.root / part / MODEL)
        # The gallery's own copy may work in another precision than the model it was made of: copies are compared.
        if fresh.fingerprint == folder.model.fingerprint:
            folder.sweep()
            raise InputError(f"the gallery is made with model {model.fingerprint} already: nothing to do")
        new = folder.open_table(part)
        while True:
            table.refresh()
            version = table.version
            # What a run that was cut short has made for columns that are no more, or hold something else now.
            known = table.metadata_columns
            new.drop_columns([name for name, kind in new.metadata_columns.items() if known.get(name) != kind])
            if fresh.encodes_like(folder.model):
                report = _refile(table, new, fresh, progress)
            else:
                report = _bring_up_to_date(
                    table, new, fresh, drop_missing=drop_missing, runtime=runtime, progress=progress
                )
            new.tidy()
            with table.committing("the new model cannot take over"):
                table.refresh()
                if table.version == version:  # nobody has changed the gallery meanwhile, and now nobody can
                    return folder.switch(part, fresh), report


def _refile(old: PicturesTable, new: PicturesTable, model: Model, progress: Progress | None) -> AddReport:
    """Copy a table with its embeddings and file them under the model's anchors."""
    if new.count():
        # A run that was cut short, or a gallery that changed meanwhile: all is copied in less time than compared.
        new.delete("id IS NOT NULL")
    new.add_columns(old.metadata_columns)
    total, done, report = old.count(), 0, AddReport()
    columns = [*OWN_COLUMNS, *old.metadata_columns]
    for rows in old.parts(columns, COMMIT_VECTORS):
        for file_by in FILED_BY:
            own = rows.filter(pc.equal(rows["filed_by"], file_by))
            if not len(own):
                continue
            vectors = matrix(own["embedding"])
            filing = filing_columns(vectors, own["label"].to_pylist(), model.search_anchors, file_by)
            kept = {name: own[name] for name in columns}
            report += AddReport(added=new.insert({**kept, **filing}))
        done += len(rows)
        if progress:
            progress("filing", done, total)
    return report


def _bring_up_to_date(
    old: PicturesTable,
    new: PicturesTable,
    model: Model,
    *,
    drop_missing: bool,
    runtime: Runtime,
    progress: Progress | None,
) -> AddReport:
    """Remove from the second table what the first does not hold or say, and add to it what it lacks."""
    metadata = list(old.metadata_columns)
    rows = old.read(["id", "path", "label", "filed_by", "width", *metadata])
    # What came as a vector has no width: its path, if it has one, is only a name.
    there = pa.array(
        [width is not None and _there(path) for path, width in zip(*_told(rows, "path", "width"), strict=True)],
        pa.bool_(),
    )
    missing = rows.filter(pc.invert(there))
    if len(missing) and not drop_missing:
        named = ", ".join(str(path or key) for path, key in zip(*_told(missing.slice(0, 3), "path", "id"), strict=True))
        raise InputError(
            f"{len(missing)} of {len(rows)} pictures are not at their paths any more, or came as vectors ({named}): "
            "if they have moved, `kedge add` the folder where they are now; put them back, or leave them out for good "
            "with --drop-missing. The gallery is as it was"
        )
    rows, encoder, report = rows.filter(there), Encoder(model, runtime=runtime), AddReport()
    _drop_stale(rows, new)
    for file_by in FILED_BY:
        own = rows.filter(pc.equal(rows["filed_by"], file_by))
        if not len(own):
            continue
        paths, labels = _told(own, "path", "label")
        columns = {name: own[name].combine_chunks() for name in metadata}
        names = tuple(map(str, paths))
        sources = Sources(names, names, tuple(labels), columns)
        report += Intake(new, model.search_anchors, file_by=file_by, progress=progress).add_pictures(sources, encoder)
    if report.failed and not drop_missing:
        raise InputError(
            f"{len(report.failed)} of {len(rows)} pictures cannot be taken over (first: {report.failed[0]}): "
            f"mend them, or leave them out with --drop-missing; the gallery is as it was"
        )
    # What an earlier run has read of them is of files that are no more.
    _remove(new, "path", [failure.path for failure in report.failed])
    gone = (
        PictureError(str(path or key), "it is not at its path any more" if width is not None else "it came as a vector")
        for path, key, width in zip(*_told(missing, "path", "id", "width"), strict=True)
    )
    return report + AddReport(failed=tuple(gone))


def _drop_stale(rows: pa.Table, new: PicturesTable) -> None:
    """Remove what a run that was cut short has left of pictures gone since, or with a label or metadata gone since."""
    columns = ["label", *new.metadata_columns]
    said = {row["path"]: row for row in rows.to_pylist()}

    def is_stale(row: dict[str, Any]) -> bool:
        wanted = said.get(row["path"])
        # What is said now is brought up to date. What is not said would stay.
        return wanted is None or any(row[name] is not None and wanted.get(name) is None for name in columns)

    _remove(new, "id", [row["id"] for row in new.read(["id", "path", *columns]).to_pylist() if is_stale(row)])


def _remove(table: PicturesTable, column: str, values: list[str]) -> None:
    table.refresh()
    if values:
        table.delete(pc.field(column).isin(values))


def _there(path: str | None) -> bool:
    if is_url(path):
        return stored_there(str(path))
    try:
        return bool(path) and (Path(str(path)).is_file() or find_member(str(path)) is not None)
    except InputError:  # an archive that cannot be opened any more
        return False


def _told(rows: pa.Table, *names: str) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in names]
