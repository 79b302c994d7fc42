"""Sources: the list of pictures that somebody asks a gallery to add, with what is said of each.

A list (CSV or Parquet) has a column `path`, relative to the list's own folder, perhaps `label`, and any others, which
become the gallery's own columns. A picture found in a folder is labelled by the nearest folder above it that is called
as a class, else by the one it lies in; a picture named by itself or by a list says nothing of its label unless the list
does.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kedge.archives import is_archive, open_archive
from kedge.errors import InputError, first_line, nearest_name
from kedge.picture import SUFFIXES, find_pictures
from kedge.stores import is_url, list_store

__all__ = ["Labels", "Sources", "Stamp", "column_of", "list_sources"]

Labels = Literal["folder", "none"] | str | Path


@dataclass(frozen=True, eq=False)
class Sources:
    """n pictures to add: `names` as the user wrote them, absolute `paths` (empty: none), `labels` (None: none is said).

    `metadata` holds the user's own columns, each an Arrow array of n values; null says nothing.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    metadata: Mapping[str, pa.Array]
    stamps: tuple["Stamp | None", ...] = ()
    """Size and time of each file where they were told with it; empty, or None: the file is to be asked."""

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> "Sources":
        """Return the pictures from `start` up to `stop`."""
        return Sources(
            self.names[start:stop],
            self.paths[start:stop],
            self.labels[start:stop],
            {name: values[start:stop] for name, values in self.metadata.items()},
            self.stamps[start:stop],
        )


@dataclass(frozen=True)
class Stamp:
    """Size in bytes and time of a file's last change; both None for a vector, whose path is only a name."""

    file_size: int | None = None
    modified_at: datetime | None = None


_NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class _Source:
    """A picture found; there may be millions of them."""

    name: str
    label: str | None
    row: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    stamp: Stamp | None = None


def list_sources(
    paths: Sequence[str | Path],
    *,
    labels: Labels = "folder",
    metadata: Mapping[str, Any] | None = None,
    classes: Collection[str] = (),
) -> Sources:
    """List the pictures of folders, files and lists, each path once; InputError when one of these is not there.

    `labels` is "folder", "none", or a list of path,label, which then says all labels. `metadata` is said
    of each picture. `classes`: names that folders above a picture's own are known by, up to the one that is listed.
    """
    found: dict[str, _Source] = {}
    for path in paths:
        for source in _found(path, frozenset(classes) if labels == "folder" else None):
            first = found.setdefault(_absolute(source.name), source)
            if first is not source:
                _join(first, source)
    if labels == "none":
        for source in found.values():
            source.label = None
    elif labels != "folder":
        _label_by_list(found, Path(labels))
    of_all = metadata or {}
    columns = dict.fromkeys(name for source in found.values() for name in (*source.row, *of_all))
    return Sources(
        tuple(source.name for source in found.values()),
        tuple(found),
        tuple(source.label for source in found.values()),
        {
            name: column_of(
                name, [of_all[name] if name in of_all else source.row.get(name) for source in found.values()]
            )
            for name in columns
        },
        tuple(source.stamp for source in found.values()),
    )


def read_list(path: Path) -> list[dict[str, Any]]:
    """Read a CSV or Parquet file with a column `path`; paths come back joined to its folder, empty labels as None."""
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    texts = {"path": pa.string(), "label": pa.string()}
    try:
        if kind == "Parquet":
            table = pq.read_table(path)
            for name in texts.keys() & set(table.column_names):
                table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
        else:
            # Nothing but an empty cell says nothing: a class may be called NA or null.
            options = pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
            table = pa.csv.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as {kind} ({first_line(error)}): give a list with the columns path,label"
        ) from error
    if "path" not in table.column_names:
        raise InputError(
            f"{path} has no column 'path', only {', '.join(table.column_names)}: name it so, and separate columns by "
            "commas"
        )
    # An empty text is a value, but an empty path or label is none.
    rows = [row for row in table.to_pylist() if row["path"]]
    for row in rows:
        row["path"] = row["path"] if is_url(row["path"]) else str(path.parent / row["path"])
        if "label" in row:
            row["label"] = row["label"] or None
    return rows


def _found(path: str | Path, classes: frozenset[str] | None) -> list[_Source]:
    """List the pictures of one path; classes=None: without labels."""
    if path == "":
        raise InputError("one of the paths is empty: name a folder, a picture or a list")
    if is_url(path):
        return _found_in_store(str(path), classes)
    place = Path(path)
    if place.is_dir():
        # A file of the current folder is listed without a name of the folder, or with dots for it.
        top = Path(_absolute(place)).name
        found = [
            _Source(str(file), _folder_label((top, *file.parts[len(place.parts) : -1]), classes))
            for file in find_pictures(place)
        ]
        if not found:
            raise InputError(f"{place} holds no pictures: name a folder that does")
        return found
    if not place.is_file():
        raise InputError(f"no file or folder at {place}{_nearby(place)}: check the path")
    if is_archive(place):
        return _found_inside(place, classes)
    if place.suffix.lower() not in (".csv", ".parquet"):
        return [_Source(str(place), None)]
    rows = read_list(place)
    if not rows:
        raise InputError(f"{place} lists no picture: give one a row in the column 'path'")
    return [_Source(row.pop("path"), row.pop("label", None), row) for row in rows]


def _found_in_store(url: str, classes: frozenset[str] | None) -> list[_Source]:
    """List the pictures under a URL, as those of a folder are; a picture named by itself gets no label."""
    stored = [file for file in list_store(url) if PurePosixPath(file.url).suffix.lower() in SUFFIXES]
    if not stored:
        raise InputError(f"{url} holds no pictures: name a prefix that does")
    alone = PurePosixPath(url).suffix.lower() in SUFFIXES
    above = len(PurePosixPath(url).parts) - 1
    return [
        _Source(
            file.url,
            None if alone else _folder_label(_below(PurePosixPath(file.url).parent.parts, above), classes),
            # Where the store does not say when a file was written, its content decides.
            stamp=Stamp(file.size, file.modified_at) if file.modified_at else Stamp(),
        )
        for file in stored
    ]


def _below(folders: tuple[str, ...], above: int) -> tuple[str, ...]:
    """Leave out so many folders, but for the last: a store may call its files otherwise than the URL that was given."""
    return folders[min(above, len(folders) - 1) :]


def _found_inside(place: Path, classes: frozenset[str] | None) -> list[_Source]:
    """List the pictures of an archive, as those of a folder are."""
    names = sorted(
        name
        for name in open_archive(place).sizes
        if Path(name).suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
    )
    if not names:
        raise InputError(f"{place} holds no pictures: name an archive that does")
    stem = place.name[:1] + place.name[1:].split(".", 1)[0]
    return [
        _Source(f"{place}/{name}", _folder_label((stem, *PurePosixPath(name).parent.parts), classes)) for name in names
    ]


def _join(first: _Source, again: _Source) -> None:
    """Add what is said where a picture is named again; InputError where that is something else."""
    said = {"label": (first.label, again.label)}
    said |= {name: (first.row.get(name), value) for name, value in again.row.items()}
    for name, (one, other) in said.items():
        if None not in (one, other) and one != other:
            remedy = "give one of them, or all labels by --labels LIST" if name == "label" else "give one of them"
            raise InputError(f"{again.name} is named twice, with the {name} '{one}' and '{other}': {remedy}")
    first.label = first.label if first.label is not None else again.label
    first.row = {**first.row, **{name: value for name, value in again.row.items() if value is not None}}
    first.stamp = first.stamp or again.stamp


def _label_by_list(found: Mapping[str, _Source], path: Path) -> None:
    if not path.is_file():
        raise InputError(f"no file of labels at {path}: give 'folder', 'none' or a list with the columns path,label")
    rows = read_list(path)
    if rows and "label" not in rows[0]:
        raise InputError(f"{path} has no column 'label': give a list with the columns path,label")
    said = {_absolute(row.pop("path")): row for row in rows}
    if found and not said.keys() & found.keys():
        raise InputError(f"{path} names none of the pictures given: its paths are relative to {path.parent}")
    for place, source in found.items():
        row = said.get(place, {})
        source.label = row.pop("label", None)
        source.row = {**source.row, **row}


def _folder_label(folders: Sequence[str], classes: frozenset[str] | None) -> str | None:
    """Return the last of the folders that is a class, else the last."""
    if classes is None:
        return None
    return sys.intern(next((name for name in reversed(folders) if name in classes), folders[-1]))


def _absolute(path: str | Path) -> str:
    if is_url(path):
        return str(path)
    absolute = os.path.abspath(path)  # noqa: PTH100  # resolve() would follow links: labels are the folders they lie in
    return path if absolute == path else absolute


def column_of(name: str, values: Sequence[Any]) -> pa.Array:
    """Return values, None where nothing is said, as an Arrow array; InputError when their kinds do not go together."""
    try:
        return values if isinstance(values, pa.Array) else pa.array(values)
    except OverflowError as error:
        raise InputError(f"the column '{name}' holds a whole number of more than 64 bits: give it as a text") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"the column '{name}' mixes kinds of values: give numbers only, or texts only") from error


def _nearby(path: Path) -> str:
    try:
        return nearest_name(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""
