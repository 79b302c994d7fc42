"""CSV table: rows by column name, replaced by their key, always whole on disk."""

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedge.atomic_write import write_atomically
from kedge.errors import InputError

__all__ = ["Row", "put_row", "read_header", "read_rows"]

Row = dict[str, Any]
# Columns that hold words, also where these look like numbers.
TEXTS = frozenset(
    (
        "dataset",
        "backbone",
        "loss",
        "shots",
        "settings",
        "tried",
        "failure",
        "pictures",
        "device",
        "precision",
        "kedge",
        "torch",
        "date",
    )
)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a table; numbers as numbers, empty cells left out. Raises InputError for a damaged line."""
    header, *lines = _lines(path) or [(1, [])]
    columns, rows = header[1], []
    for number, cells in lines:
        if len(cells) != len(columns):
            raise InputError(
                f"line {number} of {path} has {len(cells)} cells and the first {len(columns)}: remove that line, and "
                "what stood there is measured again"
            )
        named = zip(columns, cells, strict=True)
        rows.append({name: value if name in TEXTS else _number(value) for name, value in named if value})
    return rows


def read_header(path: Path) -> list[str]:
    """Return the names of the columns; none where there is no file."""
    lines = _lines(path)
    return lines[0][1] if lines else []


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the cells of each line that is not empty, with the line's number; none where there is no file."""
    if not path.is_file():
        return []
    try:
        # With the mark that spreadsheets put first, or without.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table any more ({error}): mend it, or remove it") from error


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        with suppress(ValueError):
            return float(text)
        return text


def put_row(path: Path, row: Row, key: Sequence[str]) -> None:
    """Add a row in place of one with the same key, and its columns where they are new; on disk when this returns."""
    rows = [known for known in read_rows(path) if any(str(known.get(part)) != str(row[part]) for part in key)]
    columns = list(dict.fromkeys([*read_header(path), *row]))
    table = io.StringIO(newline="")
    # The module quotes what its own line ends are part of, and reads others as line ends, too.
    returns = any("\r" in str(value) for each in (*rows, row) for value in each.values())
    writer = csv.DictWriter(
        table, columns, restval="", lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomically(path, table.getvalue())
