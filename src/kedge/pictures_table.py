"""PicturesTable: the Lance table of a gallery. Its columns, its writes, and what to say when they fail.

Every write is one commit: after a kill at any instant the table holds all of it or nothing. Lance tells no reader and
no writer about the others; writers of the same picture are kept apart by the mark on the column `id`. A lock is held
during each commit, so that none goes to a table whose place another takes meanwhile.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from lance.commit import CommitConflictError

from kedge.errors import GalleryError, InputError, WorkError
from kedge.row_filter import filter_error, whole_condition

__all__ = ["OWN_COLUMNS", "PicturesTable", "Version", "is_lost", "matrix"]

# Without this mark on its schema two writers of one picture at the same instant store it twice.
_KEY = {b"lance-schema:unenforced-primary-key": b"true"}
_RETRIES, _PATIENCE = 100, timedelta(minutes=5)
# Seconds between looks at a lock that another writer holds: a commit takes some ten milliseconds.
_POLLED = 0.005
# Small fragments are made into bigger ones a tier at a time, so that a picture is rewritten twice, not at every add.
_TIERS, _MANY = ((0, 256), (256, 65536)), 32
# Older versions stay for so long, but no more than so many, to go back to; other processes need them for seconds. Each
# makes every commit a little slower, and dropping some takes a look at all: it waits until a quarter more are there.
_KEPT, _MOST_KEPT, _SLACK = timedelta(days=1), 1000, 1.25
# What Lance calls its commits, where the number of pictures does not say it; the others rewrite what is there.
_CHANGES = {
    "Overwrite": "created",
    "Update": "pictures updated",
    "Delete": "pictures removed",
    "Merge": "columns added",
    "Restore": "restored",
}
_LOST = re.compile(r"not found", re.IGNORECASE)
_CONFLICT = re.compile(r"commit conflict", re.IGNORECASE)
_BY_FILTER = re.compile(r"user input|applying filter|logical expression")
_PLACE = re.compile(r",? ?/\S+\.rs:\d+(:\d+)?.*$", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FAILURES = (OSError, ValueError, RuntimeError, CommitConflictError)


def _schema(dim: int) -> pa.Schema:
    moment = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),
            pa.field("path", pa.string()),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("anchor", pa.string(), nullable=False),
            pa.field("filed_by", pa.string(), nullable=False),
            pa.field("rho", pa.float32(), nullable=False),
            pa.field("gap", pa.float32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("thumbnail", pa.binary()),
            pa.field("perceptual_hash", pa.int64()),
            pa.field("file_size", pa.int64()),
            pa.field("modified_at", moment),
            pa.field("added_at", moment, nullable=False),
        ]
    )


OWN_COLUMNS = tuple(_schema(1).names)


@dataclass(frozen=True)
class Version:
    """A state of the table that can be gone back to, and by what it came about."""

    number: int
    written_at: datetime
    pictures: int
    change: str


class PicturesTable:
    """One open version of the table; `refresh` goes on to the newest."""

    def __init__(self, dataset: "lance.LanceDataset", lock: Path, check: Callable[[], None]) -> None:
        self._dataset, self._lock, self._check = dataset, lock, check

    @classmethod
    def create(cls, folder: Path, dim: int) -> None:
        """Make an empty table of d-dimensional embeddings."""
        schema = _schema(dim)
        with _writing("the gallery's table cannot be made"):
            lance.write_dataset(schema.empty_table(), str(folder), schema=schema)

    @classmethod
    def open(cls, folder: Path, *, lock: Path, check: Callable[[], None], cache_bytes: int | None = None) -> Self:
        """Open the newest version; GalleryError when there is none that can be read.

        lock: the file that whoever commits holds; it lies anywhere but in the table's folder. check: called before each
        commit and whenever the table's folder is gone, raises GalleryError when another table has taken its place.
        cache_bytes bounds what is kept in memory of the index, and of what describes the files, each; None leaves it
        to Lance.
        """
        try:
            return cls(
                lance.dataset(str(folder), index_cache_size_bytes=cache_bytes, metadata_cache_size_bytes=cache_bytes),
                lock,
                check,
            )
        except _FAILURES as error:
            raise GalleryError(
                f"{folder} cannot be read ({_reason(error)}): "
                f"put the folder back from a backup, or create the gallery anew"
            ) from error

    @property
    def version(self) -> int:
        """Number of the open version."""
        return int(self._dataset.version)

    @property
    def fragments(self) -> int:
        """Number of files that the rows are spread over."""
        return len(self._dataset.get_fragments())

    def files(self) -> list[str]:
        """Return the files that the open version is made of, by path within the table's folder."""
        found = [f"_versions/{2**64 - 1 - self.version:020d}.manifest"]
        for fragment in self._dataset.get_fragments():
            found += [f"data/{file.path}" for file in fragment.data_files()]
            removed = fragment.deletion_file()
            found += [removed] if removed else []
        for index in self._dataset.list_indices():
            parts = Path(self._dataset.uri, "_indices", index["uuid"]).glob("*")
            found += sorted(f"_indices/{index['uuid']}/{part.name}" for part in parts)
        return found

    def versions(self) -> list[Version]:
        """Return the versions that are kept, oldest first."""
        listed: list[Version] = []
        with _reading():
            found = self._dataset.versions()
            commits = [type(self._dataset.read_transaction(each["version"]).operation).__name__ for each in found]
        for version, commit in zip(found, commits, strict=True):
            number, pictures = version["version"], int(version["metadata"]["total_rows"])
            more = pictures - listed[-1].pictures if listed else 0
            if commit in ("Update", "Delete") and more:
                change = f"{abs(more)} {'added' if more > 0 else 'removed'}"
            else:
                change = _CHANGES.get(commit, "tidied")
            # Lance tells the local time, without its zone.
            listed.append(Version(number, version["timestamp"].astimezone(UTC), pictures, change))
        return listed

    def restore(self, version: int) -> None:
        """Make an older version the newest again, in one commit."""
        kept = [there.number for there in self.versions()]
        if version not in kept:
            raise InputError(f"no version {version} is kept, there are {kept[0]} to {kept[-1]}: see `kedge versions`")
        with self.committing("the version cannot be restored"):
            self._dataset.checkout_version(version).restore()
        self.refresh()

    @property
    def metadata_columns(self) -> dict[str, pa.DataType]:
        """The user's own columns and their types."""
        return {field.name: field.type for field in self._dataset.schema if field.name not in OWN_COLUMNS}

    def refresh(self) -> None:
        """Go on to the newest version, also when another process wrote it; GalleryError when the table is no more."""
        if not Path(self._dataset.uri).exists():
            self._check()
        with _reading():
            if self._dataset.latest_version != self._dataset.version:
                self._dataset.checkout_latest()

    @contextmanager
    def committing(self, trouble: str) -> Iterator[None]:
        """Keep other writers out, and the table where it is; WorkError with the trouble for what fails."""
        with _writing(trouble), FileLock(self._lock).acquire(poll_interval=_POLLED):
            self._check()
            yield

    def count(self, where: str | None = None) -> int:
        """Return the number of rows, or of those that match an SQL filter."""
        with self._filtering(where) as condition:
            return int(self._dataset.count_rows(condition))

    def read(self, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False) -> pa.Table:
        """Return columns of all rows, or of those that match an SQL filter, in the table's order."""
        with self._filtering(where) as condition:
            return self._dataset.scanner(
                columns=list(columns), filter=condition, with_row_id=row_ids, scan_in_order=True
            ).to_table()

    def embeddings(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the embeddings of all rows in the table's order, in parts of shape (n, d)."""
        with self._filtering(None):
            for batch in self._dataset.scanner(columns=["embedding"], scan_in_order=True).to_batches():
                yield matrix(pa.chunked_array([batch.column(0)]))

    def parts(self, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """Yield columns of all rows in the table's order, at least so many rows at a time but for the last."""
        batches: list[pa.RecordBatch] = []
        with self._filtering(None):
            for batch in self._dataset.scanner(columns=list(columns), scan_in_order=True).to_batches():
                batches.append(batch)
                if sum(map(len, batches)) >= rows:
                    yield pa.Table.from_batches(batches)
                    batches = []
        if batches:
            yield pa.Table.from_batches(batches)

    def count_by(self, column: str, where: str | None = None) -> dict[str, int]:
        """Return how many rows, or of those that match an SQL filter, hold each value of a column of texts."""
        counts: Counter[str] = Counter()
        with self._filtering(where) as condition:
            for batch in self._dataset.scanner(columns=[column], filter=condition).to_batches():
                for entry in batch.column(0).value_counts().to_pylist():
                    counts[entry["values"]] += entry["counts"]
        return counts

    def index_embeddings(self, anchors: npt.NDArray[np.float32]) -> None:
        """Make Lance's index of the embeddings with the anchors, (t, d), as centroids, unless there is one."""
        for attempt in range(_RETRIES):
            if not len(self._dataset) or any("embedding" in index["fields"] for index in self._dataset.list_indices()):
                return
            try:
                with _writing("the index cannot be made"):
                    self._dataset.create_index(
                        "embedding",
                        "IVF_FLAT",
                        metric="l2",
                        num_partitions=len(anchors),
                        ivf_centroids=anchors,
                        replace=True,
                    )
            except WorkError as error:
                # Another process was faster, perhaps with this very index: look again.
                if attempt == _RETRIES - 1 or not _CONFLICT.search(str(error.__cause__)):
                    raise
            self.refresh()

    def nearest(
        self,
        query: npt.NDArray[np.float32],
        k: int,
        *,
        anchors: Sequence[str] | None,
        where: str | None,
        probes: int | None,
    ) -> pa.Table:
        """Return the k rows nearest to a query, (d,), by float32 arithmetic, in any order.

        anchors: those under which the rows are filed, None: any. probes: how many partitions of the index are looked
        into, beside rows that it does not hold yet; None: none of it is used.
        """
        under = None
        if anchors is not None:
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in anchors)
            under = f"anchor IN ({listed})"
        near = {"column": "embedding", "q": query, "k": k, "use_index": probes is not None}
        if probes is not None:
            near["nprobes"] = probes
        columns = ["id", "path", "label", "anchor", "embedding", "_distance"]
        with self._filtering(where) as condition:
            both = " AND ".join(filter(None, (condition, under))) or None
            return self._dataset.scanner(
                columns=columns, filter=both, prefilter=True, nearest=near, with_row_id=True
            ).to_table()

    def row_ids(self, where: str) -> npt.NDArray[np.uint64]:
        """Return the numbers of the rows that match an SQL filter; they hold for the open version only."""
        numbers: npt.NDArray[np.uint64] = self.read([], where, row_ids=True)["_rowid"].to_numpy()
        return numbers

    def find(self, column: str, values: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return columns of the rows whose `column` holds one of the values."""
        if not values:
            return self._dataset.schema.empty_table().select(list(columns))
        chosen = pc.field(column).isin(list(values))
        with self._filtering(None):
            return self._dataset.scanner(columns=list(columns), filter=chosen).to_table()

    def insert(self, rows: Mapping[str, Any]) -> int:
        """Store rows whose id is not there yet, in one commit; return how many that were.

        A column of `rows` is an Arrow array or a sequence; the user's columns that are not named stay null.
        """
        with self.committing("the pictures cannot be stored"):
            done = self._merge(rows, lambda merge: merge.when_not_matched_insert_all(), whole=True)
        return int(done["num_inserted_rows"])

    def update(self, rows: Mapping[str, Any]) -> int:
        """Change the named columns of the rows with these ids, in one commit; return how many rows there were."""
        with self.committing("the pictures cannot be updated"):
            done = self._merge(rows, lambda merge: merge.when_matched_update_all(), whole=False)
        return int(done["num_updated_rows"])

    def delete(self, chosen: "str | pc.Expression") -> int:
        """Remove the rows that match an SQL filter or an Arrow expression; return how many that were.

        Where none does nothing is committed: that would be one more version to go back to, and the same as before.
        """
        with self._filtering(chosen if isinstance(chosen, str) else None) as condition:
            chosen = condition or chosen
            if not self._dataset.count_rows(chosen):
                return 0
        with self.committing("the pictures cannot be removed"):
            done = self._dataset.delete(chosen, conflict_retries=_RETRIES, retry_timeout=_PATIENCE)
        return int(done["num_deleted_rows"])

    def check_columns(
        self, columns: Mapping[str, pa.Array], coming: Mapping[str, pa.DataType] | None = None
    ) -> dict[str, pa.Array]:
        """Return the user's columns as the table would hold them; InputError for a name or type that it cannot hold.

        coming: columns that the table will have before these. What is no number (NaN) says nothing, as null does, and
        a column that says nothing at all is left out until it is known what it holds.
        """
        there, checked = {**(coming or {}), **self.metadata_columns}, {}
        taken = {name.lower(): name for name in (*OWN_COLUMNS, *there)}
        for name, values in columns.items():
            if not _NAME.fullmatch(name) or name.startswith("_row"):
                raise InputError(f"'{name}' cannot be a column: a name is letters, digits and _, at most 64")
            if taken.get(name.lower(), name) in OWN_COLUMNS or taken.get(name.lower(), name) != name:
                raise InputError(f"the column '{taken[name.lower()]}' is there already: give '{name}' another name")
            if pa.types.is_null(values.type) and name not in there:
                continue
            taken[name.lower()] = name
            wanted = there.get(name) or _metadata_type(values.type)
            try:
                if pa.types.is_floating(values.type):
                    values = values.cast(pa.float64())
                    values = pc.if_else(pc.is_nan(values), None, values)
                if pa.types.is_boolean(wanted) and pa.types.is_integer(values.type):
                    raise pa.ArrowInvalid("numbers are no truth values")
                checked[name] = values.cast(wanted)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(
                    f"the column '{name}' holds values of type {wanted}, some given are not ({_reason(error)}): "
                    f"give such values or another name"
                ) from error
        return checked

    def add_columns(self, columns: Mapping[str, pa.DataType]) -> None:
        """Make columns that are not there yet; they are null in the rows that are."""
        for _ in range(_RETRIES):
            self.refresh()
            missing = [pa.field(name, kind) for name, kind in columns.items() if name not in self.metadata_columns]
            if not missing:
                return
            try:
                with self.committing("the columns cannot be made"):
                    self._dataset.add_columns(pa.schema(missing))
            except WorkError as error:
                # Another process was faster, perhaps with the same column: look again.
                if not isinstance(error.__cause__, CommitConflictError):
                    raise
        raise WorkError(f"other writers kept this one from making the columns {', '.join(columns)}: try again")

    def drop_columns(self, names: Sequence[str]) -> None:
        """Remove columns of the user's own, with what they hold."""
        if names:
            with self.committing("the columns cannot be removed"):
                self._dataset.drop_columns(list(names))

    def tidy(self, is_whole: Callable[[Sequence[str]], bool] = lambda _: True) -> bool:
        """Make many small fragments into few, where that pays; leave it to the next time when others are writing.

        is_whole: told the files that would be written anew, by path within the table's folder; where one of them is
        damaged, which the new ones would hide, nothing is done. Returns whether something was.

        Big ones are put together as they are, which takes a tenth of the memory that writing them anew does; of small
        ones that would leave pages of a single row, which every write reads through.
        """
        done = False
        try:
            for least, most in _TIERS:
                found = self._dataset.get_fragments()
                some = [each for each in found if least <= each.metadata.physical_rows < most]
                files = [f"data/{file.path}" for each in some for file in each.data_files()]
                if len(some) > _MANY and is_whole(files):
                    mode = "try_binary_copy" if least else "reencode"
                    self._dataset.optimize.compact_files(target_rows_per_fragment=most, compaction_mode=mode)
                    self._drop_old_versions()
                    done = True
        except _FAILURES:
            with suppress(GalleryError):  # another model has taken over, and has all that was stored here
                self.refresh()
        return done

    def _drop_old_versions(self) -> None:
        written = [entry.stat().st_mtime for entry in os.scandir(Path(self._dataset.uri, "_versions"))]
        if len(written) > _SLACK * _MOST_KEPT:
            self._dataset.cleanup_old_versions(retain_versions=_MOST_KEPT)
        elif time.time() - min(written) > _SLACK * _KEPT.total_seconds():
            self._dataset.cleanup_old_versions(older_than=_KEPT)

    def compact(self) -> None:
        """Make one fragment of many, drop removed rows and all older versions, and give back their space."""
        with self.committing("the gallery cannot be compacted now"):
            self.refresh()
            self._dataset.optimize.compact_files(materialize_deletions_threshold=0.0)
            self._dataset.optimize.optimize_indices()
            self._dataset.cleanup_old_versions(older_than=timedelta(0))

    def _merge(self, rows: Mapping[str, Any], kind: Callable[[Any], Any], *, whole: bool) -> Mapping[str, int]:
        for _ in range(_RETRIES):
            source = self._source(rows, whole=whole)
            merge = kind(self._dataset.merge_insert()).conflict_retries(_RETRIES).retry_timeout(_PATIENCE)
            try:
                done: Mapping[str, int] = merge.execute(source)
                return done
            except _FAILURES as error:
                before = self.version
                self.refresh()
                # The version this was based on is gone: another process compacted. The newest has the same pictures.
                if self.version == before or not _LOST.search(str(error)):
                    raise
        raise WorkError("the gallery was compacted again and again meanwhile: compact it while nobody adds")

    def _source(self, rows: Mapping[str, Any], *, whole: bool) -> pa.Table:
        count = len(rows["id"])
        fields = [field for field in self._dataset.schema if whole or field.name in rows]
        arrays = [
            _array(rows[field.name], field.type) if field.name in rows else pa.nulls(count, field.type)
            for field in fields
        ]
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    @contextmanager
    def _filtering(self, where: str | None) -> Iterator[str | None]:
        """Give a filter as Lance is to have it; turn what is wrong with it into an error of ours."""
        condition = None if where is None else whole_condition(where, self._dataset.schema.names)
        try:
            yield condition
        except _FAILURES as error:
            if where is None or not _BY_FILTER.search(str(error)):
                raise _unreadable(error) from error
            raise filter_error(where, _reason(error), self._dataset.schema.names) from error


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a column of embeddings as an array of shape (n, d)."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)


def is_lost(error: BaseException) -> bool:
    """Say whether a read failed because another process cleaned the open version away."""
    return error.__cause__ is not None and bool(_LOST.search(str(error.__cause__)))


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> WorkError:
    return WorkError(
        f"the gallery cannot be read ({_reason(error)}): open it again, and if it says the same then, "
        f"`kedge check` names the file that is damaged"
    )


@contextmanager
def _writing(trouble: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise WorkError(
            f"{trouble} ({_reason(error)}): what was stored before is whole; try again once that is mended"
        ) from error


def _reason(error: BaseException) -> str:
    """The cause alone, without the places in Lance's sources."""
    first = _PLACE.sub("", str(error)).splitlines()[0:1]
    return (first[0] if first else type(error).__name__).removeprefix("Invalid user input: ")


def _metadata_type(given: pa.DataType) -> pa.DataType:
    if pa.types.is_boolean(given):
        return pa.bool_()
    if pa.types.is_integer(given):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(given) else pa.string()


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)
