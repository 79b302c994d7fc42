"""Export: a gallery's vectors in files that other programs read: Parquet, NumPy's npz, and FAISS.

Files are written beside their places and renamed, so that they are whole or absent.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kedge.anchors import Anchors
from kedge.errors import InputError, MissingPartError, reason_of

__all__ = ["ExportFormat", "export_rows"]

ExportFormat = Literal["faiss", "npz", "parquet"]


def export_rows(rows: pa.Table, anchors: Anchors, path: Path, to: ExportFormat) -> None:
    """Write rows (id, path, label, anchor, filed_by, embedding and the user's columns) to a file of that format."""
    writers: dict[str, Callable[[pa.Table, Anchors, Path], None]] = {
        "faiss": _write_faiss,
        "npz": _write_npz,
        "parquet": _write_parquet,
    }
    if to not in writers:
        raise InputError(f"a gallery is exported to {', '.join(writers)}, not to '{to}'")
    if not path.name:
        raise InputError(f"'{path}' is no name of a file to write: give one that is not there yet")
    # FAISS knows numbers alone: the id of row i stands on line i of a file beside it.
    ids = path.with_name(path.name + ".ids.json") if to == "faiss" else None
    for place in filter(None, (path, ids)):
        if place.exists():
            raise InputError(f"{place} is there already: remove it, or give another name")
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}{path.suffix}")
    partial_ids = partial.with_name(partial.name + ".ids.json")
    try:
        writers[to](rows, anchors, partial)
        if ids:
            partial_ids.write_text(json.dumps(rows["id"].to_pylist()), "utf-8")
            partial_ids.rename(ids)
        partial.rename(path)
    except (OSError, RuntimeError) as error:  # FAISS raises the latter, with the line of its source
        if ids:
            ids.unlink(missing_ok=True)  # it was not there before
        reason = reason_of(error) if isinstance(error, OSError) else str(error).rpartition("failed: ")[2]
        raise InputError(f"{path} cannot be written ({reason}): give another place, or make room") from error
    finally:
        partial.unlink(missing_ok=True)
        partial_ids.unlink(missing_ok=True)


def _vectors(rows: pa.Table, anchors: Anchors) -> npt.NDArray[np.float32]:
    flat = rows["embedding"].combine_chunks().flatten()
    return np.ascontiguousarray(flat.to_numpy(), dtype=np.float32).reshape(len(rows), anchors.dim)


def _buckets(rows: pa.Table, anchors: Anchors) -> npt.NDArray[np.int64]:
    return np.asarray([anchors.rows[name] for name in rows["anchor"].to_pylist()], dtype=np.int64)


def _write_parquet(rows: pa.Table, _anchors: Anchors, path: Path) -> None:
    pq.write_table(rows.replace_schema_metadata(), path)


def _write_npz(rows: pa.Table, anchors: Anchors, path: Path) -> None:
    # Without a row NumPy would not know that they are texts.
    said = {name: np.asarray([*rows[name].fill_null("").to_pylist()], "U") for name in ("id", "path", "label")}
    with path.open("wb") as file:
        np.savez(
            file,
            ids=said["id"],
            paths=said["path"],
            labels=said["label"],
            embeddings=_vectors(rows, anchors),
            buckets=_buckets(rows, anchors),
            anchors=anchors.vectors,
            anchor_names=np.asarray(anchors.names),
        )


def _write_faiss(rows: pa.Table, anchors: Anchors, path: Path) -> None:
    try:
        import faiss
    except ImportError as error:
        raise MissingPartError("exporting to faiss needs it: pip install 'kedge[faiss]'") from error
    quantizer = faiss.IndexFlatL2(anchors.dim)
    quantizer.add(np.ascontiguousarray(anchors.vectors))
    index = faiss.IndexIVFFlat(quantizer, anchors.dim, len(anchors))
    vectors, numbers, buckets = _vectors(rows, anchors), np.arange(len(rows), dtype=np.int64), _buckets(rows, anchors)
    # The lists are the buckets as they are, also where pictures were filed by label.
    index.add_core(len(rows), faiss.swig_ptr(vectors), faiss.swig_ptr(numbers), faiss.swig_ptr(buckets))
    faiss.write_index(index, str(path))
