"""A CSV or Parquet file of path,label[,split] as a listing."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from kedge.datasets.dataset import Listed, Listing, SplitName
from kedge.errors import DatasetError, first_line

__all__ = ["list_table"]

COLUMNS = ("path", "label", "split")
SPLITS = {name: name for name in get_args(SplitName)} | {"val": "validation", "valid": "validation"}


def list_table(path: Path) -> Listing:
    """List a file with the columns path, label and, if there is one, split; paths are relative to the file's folder."""
    columns = _read_columns(path)
    splits = columns.get("split", [""] * len(columns["path"]))
    rows = []
    for number, (picture, label, split) in enumerate(zip(columns["path"], columns["label"], splits, strict=True), 1):
        if not picture or not label:
            raise DatasetError(
                f"{path}: row {number} has no {'path' if not picture else 'label'}: fill it in or remove it"
            )
        if split and split not in SPLITS:
            raise DatasetError(f"{path}: row {number} has split '{split}': expected train, validation or test")
        rows.append(Listed(str(path.parent / picture), label, SPLITS.get(split)))
    if not rows:
        raise DatasetError(f"{path} lists no picture")
    given = [bool(row.split) for row in rows]
    if any(given) and not all(given):
        raise DatasetError(
            f"{path}: row {given.index(False) + 1} has no split, others have: fill it in for all or for none"
        )
    return Listing(path.stem, tuple(rows))


def _read_columns(path: Path) -> dict[str, list[str]]:
    """Return the columns of a file as text; raise DatasetError naming what is missing and what there is."""
    try:
        columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, csv.Error, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as a table ({first_line(error)}): give a CSV in UTF-8 or a Parquet file"
        ) from error
    for name in ("path", "label"):
        if name not in columns:
            there = ", ".join(columns) or "none"
            raise DatasetError(f"{path} has no column '{name}' (it has: {there}): name the columns path, label")
    return columns


def _check_once(names: Sequence[str]) -> None:
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise ValueError(f"it has the column '{twice[0]}' twice")


def _text(value: Any) -> str:
    """Return a value as text; what is no number says nothing, as null does."""
    if value is None or value != value:
        return ""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
        _check_once(reader.fieldnames or ())
        return {name: [row[name] or "" for row in rows] for name in reader.fieldnames or ()}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_once(names)
        # Other columns, embeddings say, may be far larger: they are named, not read.
        table = file.read(columns=[name for name in names if name in COLUMNS])
        return {name: [_text(value) for value in table[name].to_pylist()] if name in COLUMNS else [] for name in names}
