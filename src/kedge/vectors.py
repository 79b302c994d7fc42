"""Ready-made vectors: embeddings that somebody brings to a gallery instead of pictures, checked and given ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kedge.errors import InputError
from kedge.model import Model
from kedge.picture import content_hash
from kedge.sources import Labels, Sources, column_of
from kedge.stores import is_url

__all__ = ["ReadyMade", "check_apart", "check_vectors", "holds_vectors", "read_vectors", "ready_made"]

# A vector of a model that ranks by cosine is unit length, up to rounding in half precision.
_UNIT_TOLERANCE = 1e-3
# So that squared distances, of twice as far, are finite in float32.
LONGEST = 1e18
# Columns of a Parquet file that have their meaning; anchor and filed_by come from an export and are worked out anew.
_NOT_OWN = ("embedding", "id", "path", "label", "anchor", "filed_by")


@dataclass(frozen=True, eq=False)
class ReadyMade:
    """Checked embeddings, shape (n, dim) float32, what is said of each, its id and the hash of its numbers."""

    sources: Sources
    ids: tuple[str, ...]
    contents: tuple[str, ...]
    vectors: npt.NDArray[np.float32]


def check_vectors(vectors: npt.ArrayLike, model: Model) -> npt.NDArray[np.float32]:
    """Return vectors as float32, shape (n, dim); InputError for what `model` cannot have made."""
    given, dim = np.asarray(vectors), model.card.dim
    if given.ndim != 2 or given.shape[1] != dim or given.dtype.kind not in "fiu":
        raise InputError(
            f"embeddings of shape (n, {dim}) are expected, not {given.shape} {given.dtype}: "
            f"embed with the gallery's model ({model.fingerprint})"
        )
    with np.errstate(over="ignore"):
        checked = np.ascontiguousarray(given, dtype=np.float32)
    strange = ~np.isfinite(checked).all(axis=1)
    if strange.any():
        raise InputError(f"embedding {int(strange.argmax())} holds a number that is not finite: leave it out")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(checked, axis=1)
    if lengths.max(initial=0.0) > LONGEST:
        raise InputError(
            f"embedding {int(lengths.argmax())} is longer than {LONGEST:.0e}, where squared distances end: "
            "divide all embeddings by one number"
        )
    if model.card.distance == "cosine" and len(checked):
        row = int(np.abs(lengths - 1.0).argmax())
        if abs(lengths[row] - 1.0) > _UNIT_TOLERANCE:
            raise InputError(
                f"embedding {row} has length {lengths[row]:.4g}, and this gallery's model makes unit vectors: "
                f"divide each embedding by its length, or embed with kedge.Encoder"
            )
    return checked


def ready_made(
    vectors: npt.ArrayLike,
    model: Model,
    *,
    ids: Sequence[str] | None = None,
    paths: Sequence[str | None] | None = None,
    labels: Sequence[str | None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ReadyMade:
    """Check vectors and what is said of them. Without ids, one is known again by its path, else by its numbers."""
    checked = check_vectors(vectors, model)
    count = len(checked)
    for name, values in {"ids": ids, "paths": paths, "labels": labels, **(metadata or {})}.items():
        if values is not None and len(values) != count:
            raise InputError(f"{count} embeddings were given with {len(values)} {name}: give one for each")
    for name, values in {"paths": paths, "labels": labels}.items():
        strange = next((value for value in values or () if not isinstance(value, str | None)), None)
        if strange is not None:
            raise InputError(f"{name} are texts, not {strange!r}: give a text or None for each embedding")
    places = ("",) * count if paths is None else tuple(place or "" for place in paths)
    data, size = checked.tobytes(), checked.itemsize * checked.shape[1]
    contents = tuple(content_hash(data[start : start + size]) for start in range(0, len(data), size))
    if ids is None:
        known = zip(places, contents, strict=True)
        keys = tuple(content_hash(place.encode()) if place else content for place, content in known)
        _check_paths(places, contents)
    else:
        keys = tuple(ids)
        _check_ids(keys)
    said = (None,) * count if labels is None else tuple(label or None for label in labels)
    columns = {name: column_of(name, values) for name, values in (metadata or {}).items()}
    names = tuple(place or key for place, key in zip(places, keys, strict=True))
    return ReadyMade(Sources(names, places, said, columns), keys, contents, checked)


def check_apart(given: Sequence[ReadyMade], files: Sequence[str | Path]) -> None:
    """Raise InputError where two files give one id different embeddings."""
    first: dict[str, tuple[str, str | Path]] = {}
    for vectors, file in zip(given, files, strict=True):
        for key, content in zip(vectors.ids, vectors.contents, strict=True):
            other, before = first.setdefault(key, (content, file))
            if other != content:
                raise InputError(
                    f"the id '{key}' has one embedding in {before} and another in {file}: give one of them"
                )


def holds_vectors(path: str | Path) -> bool:
    """Tell whether a file is one of embeddings: Parquet, unless it lists the paths of pictures instead."""
    if is_url(path) or Path(path).suffix.lower() != ".parquet":
        return False
    try:
        columns = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return True  # reading it says what is wrong
    return "embedding" in columns or "path" not in columns


def read_vectors(path: Path, model: Model, *, labels: Labels, metadata: Mapping[str, Any] | None) -> ReadyMade:
    """Read a Parquet file with a column `embedding`, perhaps `id`, `path`, `label`, and the user's own."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the Parquet files in it")
    if not path.is_file():
        raise InputError(f"no file at {path}: check the path")
    if labels not in ("folder", "none"):
        raise InputError(f"{path}: the labels of embeddings stand in the file's own column `label`, not in {labels}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}): write it again") from error
    columns = table.column_names
    if "embedding" not in columns:
        raise InputError(f"{path} has no column 'embedding', only {', '.join(columns)}: give one, or a list of paths")
    given: dict[str, Any] = {}
    for name in ("id", "path", "label"):
        try:
            given |= {name: table[name].cast(pa.string()).to_pylist()} if name in columns else {}
        except pa.ArrowException as error:
            raise InputError(f"{path}: the column '{name}' holds {table[name].type}, texts are expected") from error
    own = {name: table[name].combine_chunks() for name in columns if name not in _NOT_OWN}
    own |= {name: [value] * len(table) for name, value in (metadata or {}).items()}
    try:
        return ready_made(
            _matrix(table["embedding"], model.card.dim),
            model,
            ids=given.get("id"),
            paths=given.get("path"),
            labels=given.get("label") if labels == "folder" else None,
            metadata=own,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _matrix(column: pa.ChunkedArray, dim: int) -> npt.NDArray[Any]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(f"the column 'embedding' holds {kind}, lists of {dim} numbers are expected")
    lengths = pc.list_value_length(column).unique().to_pylist()
    if len(lengths) > 1 or None in lengths:
        raise InputError(f"the embeddings have different lengths ({lengths[:5]}): give each {dim} numbers")
    flat: npt.NDArray[Any] = pc.list_flatten(column).to_numpy()
    return flat.reshape(len(column), lengths[0] if lengths else dim)


def _check_paths(places: Sequence[str], contents: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for place, content in zip(places, contents, strict=True):
        if place and first.setdefault(place, content) != content:
            raise InputError(f"the path '{place}' is given with different embeddings: give each an id of its own")


def _check_ids(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for key in ids:
        if not isinstance(key, str) or not key:
            raise InputError(f"an id is a text, not {key!r}: give each embedding its own")
        if key in seen:
            raise InputError(f"the id '{key}' is given twice: give each embedding its own")
        seen.add(key)
