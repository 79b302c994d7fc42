"""Intake: one call of `Gallery.add`, from files or ready-made vectors to committed rows.

A picture is known again by its content, a file that has not changed by its path, size and time without being read.
Work goes in chunks, one commit each, so that a kill loses the chunk in flight and the next add does the rest.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kedge.anchors import Anchors
from kedge.archives import Archive, find_member
from kedge.cores import own_cores
from kedge.encoder import Encoder
from kedge.errors import InputError, PictureError
from kedge.filing import file_vectors, labelled_buckets
from kedge.picture import is_text, perceptual_hash, read_for_encoder, square, thumbnail
from kedge.pictures_table import PicturesTable, matrix
from kedge.sources import Sources, Stamp
from kedge.vectors import ReadyMade

__all__ = ["COMMIT_VECTORS", "AddReport", "FileBy", "Intake", "Progress", "filing_columns"]

FileBy = Literal["nearest", "label"]
Progress = Callable[[str, int, int], None]

COMMIT_PICTURES = 1024
READ_PICTURES = 64
COMMIT_VECTORS = 65536

_SAID = ("id", "path", "label", "filed_by", "content_hash", "file_size", "modified_at")
# What a picture has and a vector has not.
_READ = ("width", "height", "thumbnail", "perceptual_hash")


@dataclass(frozen=True)
class AddReport:
    """What an add did: pictures stored, changed in path, label, filing or metadata, known already, and left out.

    A file whose content changed counts as added; what stood at its path before is removed.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: tuple[PictureError, ...] = ()

    def __add__(self, other: "AddReport") -> "AddReport":
        return AddReport(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.failed + other.failed,
        )


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is kept of a decoded picture."""

    content_hash: str
    width: int
    height: int
    thumbnail: bytes
    perceptual_hash: int


@dataclass(eq=False)
class _Chunk:
    """Pictures of one commit: what is said of each, and what is found out about it on the way."""

    sources: Sources
    stamps: list[Stamp]
    ids: list[str | None]
    contents: list[str | None]
    readings: dict[int, _Reading] = field(default_factory=dict)
    embeddings: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    are_pictures: bool = True


class Intake:
    """Adds pictures or vectors to a table, under a model's anchors."""

    def __init__(
        self, table: PicturesTable, anchors: Anchors, *, file_by: FileBy = "nearest", progress: Progress | None = None
    ) -> None:
        if file_by not in ("nearest", "label"):
            raise InputError(f"pictures are filed by 'nearest' or 'label', not '{file_by}'")
        self._table, self._anchors, self._file_by = table, anchors, file_by
        self._progress: Progress = progress or _silent
        # First come of each content in this add, by id: a second copy changes nothing, a second label is refused.
        self._seen: dict[str, tuple[str, str | None]] = {}
        # Those of them that came as vectors: their pictures have more to say.
        self._vectors_seen: set[str] = set()
        # Which content each file holds now, by path.
        self._standing: dict[str, str] = {}
        # The user's columns in what was checked, which the table may not have yet.
        self._columns: dict[str, pa.DataType] = {}

    def check(self, sources: Sources) -> None:
        """Raise InputError when these pictures cannot be filed or their columns cannot be kept; nothing is changed."""
        if self._file_by == "label":
            missing = sum(label is None for label in sources.labels)
            if missing:
                raise InputError(f"{missing} of {len(sources)} pictures have no label to be filed by: file by nearest")
            names = sorted(set(filter(None, sources.labels)))
            labelled_buckets(names, self._anchors)
        columns = self._table.check_columns(sources.metadata, self._columns)
        self._columns |= {name: values.type for name, values in columns.items()}

    def add_pictures(self, sources: Sources, encoder: Encoder) -> AddReport:
        """Read, encode, file and store pictures."""
        self.check(sources)
        sources = self._with_columns(sources)
        report = AddReport()
        with ThreadPoolExecutor(own_cores()) as readers:
            for start in range(0, len(sources), COMMIT_PICTURES):
                part = sources.part(start, start + COMMIT_PICTURES)
                self._table.refresh()
                chunk, failed = self._read(part, encoder, readers, start, len(sources))
                report += self._store(chunk, failed)
                self._standing |= {path: key for path, key in zip(part.paths, chunk.ids, strict=True) if key}
        self._drop_replaced()
        return report

    def add_vectors(self, given: ReadyMade) -> AddReport:
        """File and store ready-made vectors."""
        self.check(given.sources)
        sources = self._with_columns(given.sources)
        report = AddReport()
        for start in range(0, len(sources), COMMIT_VECTORS):
            stop = min(start + COMMIT_VECTORS, len(sources))
            vectors = given.vectors[start:stop]
            chunk = _Chunk(
                sources.part(start, stop),
                [Stamp()] * (stop - start),
                list(given.ids[start:stop]),
                list(given.contents[start:stop]),
                embeddings=dict(enumerate(vectors)),
                are_pictures=False,
            )
            self._table.refresh()
            report += self._store(chunk, {})
            self._progress("adding", stop, len(sources))
        return report

    def _with_columns(self, sources: Sources) -> Sources:
        columns = self._table.check_columns(sources.metadata)
        self._table.add_columns({name: values.type for name, values in columns.items()})
        return replace(sources, metadata=columns)

    def _read(
        self, part: Sources, encoder: Encoder, readers: ThreadPoolExecutor, done: int, total: int
    ) -> tuple[_Chunk, dict[int, PictureError]]:
        """Find out the id of each picture, and the embedding of each whose content is not in the table."""
        told = part.stamps or (None,) * len(part)
        stamps = [stamp or _stamp(path) for stamp, path in zip(told, part.paths, strict=True)]
        chunk = _Chunk(part, stamps, [None] * len(part), [None] * len(part))
        failed = {
            row: PictureError(part.names[row], "its name is not UTF-8: rename it")
            for row, path in enumerate(part.paths)
            if not is_text(path)
        }
        told_of = [path for row, path in enumerate(part.paths) if row not in failed]
        there = self._table.find("path", told_of, ("id", "path", "file_size", "modified_at")).to_pylist()
        known = {(row["path"], row["file_size"], row["modified_at"]): row["id"] for row in there}
        unread = []
        for row, (path, stamp) in enumerate(zip(part.paths, stamps, strict=True)):
            # Without a time the content decides.
            if stamp.modified_at is not None:
                chunk.ids[row] = known.get((path, stamp.file_size, stamp.modified_at))
            if chunk.ids[row] is None and row not in failed:
                unread.append(row)
        self._progress("adding", done + len(part) - len(unread), total)
        blocks = [unread[start : start + READ_PICTURES] for start in range(0, len(unread), READ_PICTURES)]

        def begin(rows: Sequence[int]) -> Iterator[tuple[_Reading, npt.NDArray[np.uint8]] | PictureError]:
            return readers.map(_reading, [(part.paths[row], part.names[row], encoder.image_size) for row in rows])

        upcoming = begin(blocks[0]) if blocks else iter(())
        for number, rows in enumerate(blocks):
            found = list(upcoming)
            # The next block is read while this one is encoded, and no more than that waits in memory.
            upcoming = begin(blocks[number + 1]) if number + 1 < len(blocks) else iter(())
            squares = {}
            for row, reading in zip(rows, found, strict=True):
                if isinstance(reading, PictureError):
                    failed[row] = reading
                else:
                    chunk.readings[row], squares[row] = reading
                    chunk.ids[row] = chunk.contents[row] = chunk.readings[row].content_hash
            self._encode(chunk, squares, encoder, failed)
            self._progress("adding", done + len(part) - sum(map(len, blocks[number + 1 :])), total)
        return chunk, failed

    def _encode(
        self,
        chunk: _Chunk,
        squares: Mapping[int, npt.NDArray[np.uint8]],
        encoder: Encoder,
        failed: dict[int, PictureError],
    ) -> None:
        """Embed each content once, unless the table has it."""
        contents = {chunk.readings[row].content_hash for row in squares}
        done = set(self._table.find("id", sorted(contents), ("id",))["id"].to_pylist()) | self._seen.keys()
        new = [row for row in squares if chunk.readings[row].content_hash not in done]
        if not new:
            return
        for row, embedding in zip(new, encoder.encode(np.stack([squares[row] for row in new])), strict=True):
            if np.isfinite(embedding).all():
                chunk.embeddings[row] = embedding
            else:
                name = chunk.sources.names[row]
                failed[row] = PictureError(name, "the model gives it an embedding that is not finite")
                chunk.ids[row] = None

    def _store(self, chunk: _Chunk, failed: dict[int, PictureError]) -> AddReport:
        """Commit a chunk: new rows in one commit, changed ones in another."""
        rows = self._rows_to_store(chunk, failed)
        ids = [str(chunk.ids[row]) for row in rows]
        # Vectors are most often new, and the insertion leaves out what is there: they are looked up where one is known,
        # for an insertion of none would be a version of its own.
        alike = len(chunk.embeddings) == len(chunk.ids) and not len(self._table.find("id", ids[:1], ("id",)))
        there = {} if alike else self._rows(ids, chunk)
        # What was known when it was read, and another process has removed meanwhile, stays removed.
        new = [row for row in rows if chunk.ids[row] not in there and row in chunk.embeddings]
        added = self._insert(chunk, new) if new else 0
        if added < len(new):
            # Known already, or another process was faster with some of them: what was said of them may differ.
            self._table.refresh()
            there = self._rows(ids, chunk)
        changed = [row for row in rows if chunk.ids[row] in there]
        updated = self._update(chunk, changed, there)
        unchanged = len(chunk.sources) - len(failed) - added - updated
        return AddReport(added, updated, unchanged, tuple(failed[row] for row in sorted(failed)))

    def _rows_to_store(self, chunk: _Chunk, failed: dict[int, PictureError]) -> list[int]:
        """Return a row of each content that is new to this add: the first with a label, else the first of all."""
        chosen: dict[str, int] = {}
        for row, key in enumerate(chunk.ids):
            if key is None:
                continue
            name, label = chunk.sources.names[row], chunk.sources.labels[row]
            first, other = self._seen.get(key, (name, None))
            if None not in (label, other) and label != other:
                failed[row] = PictureError(name, f"same content as {first}, which is labelled '{other}': remove one")
                continue
            becomes = chunk.are_pictures and key in self._vectors_seen
            if key not in self._seen or becomes or (other is None and label is not None):
                self._seen[key] = name, label or other
                chosen[key] = row
                if chunk.are_pictures:
                    self._vectors_seen.discard(key)
                else:
                    self._vectors_seen.add(key)
        return sorted(chosen.values())

    def _rows(self, ids: Sequence[str], chunk: _Chunk) -> dict[str, dict[str, Any]]:
        found = self._table.find("id", ids, (*_SAID, "width", *chunk.sources.metadata))
        return {row["id"]: row for row in found.to_pylist()}

    def _insert(self, chunk: _Chunk, new: Sequence[int]) -> int:
        vectors = np.stack([chunk.embeddings[row] for row in new])
        labels = [chunk.sources.labels[row] for row in new]
        stamps = [chunk.stamps[row] for row in new]
        take = pa.array(new, pa.int64())
        return self._table.insert(
            {
                "id": [chunk.ids[row] for row in new],
                "path": [chunk.sources.paths[row] or None for row in new],
                "content_hash": [chunk.contents[row] for row in new],
                "label": labels,
                **self._filing(vectors, labels),
                "embedding": vectors,
                **_read_columns([chunk.readings.get(row) for row in new]),
                "file_size": [stamp.file_size for stamp in stamps],
                "modified_at": [stamp.modified_at for stamp in stamps],
                "added_at": [datetime.now(UTC)] * len(new),
                **{name: values.take(take) for name, values in chunk.sources.metadata.items()},
            }
        )

    def _update(self, chunk: _Chunk, rows: Sequence[int], there: Mapping[str, Mapping[str, Any]]) -> int:
        """Bring what the table says of known pictures up to what is said now; return how many that changed."""
        said = {name: values.to_pylist() for name, values in chunk.sources.metadata.items()}
        changed: list[tuple[int, dict[str, Any]]] = []
        touched = set()
        # What is a picture stays one, with its content and its file; only its embedding is that of the vector now.
        pictures = {row for row in rows if not chunk.are_pictures and there[str(chunk.ids[row])]["width"] is not None}
        embedded_anew = self._embedded_anew(chunk, pictures)
        for row in rows:
            old = there[str(chunk.ids[row])]
            new = dict(old)
            new["label"] = chunk.sources.labels[row] or old["label"]
            # Of copies with one label that which is stored stays, as long as it is there: each add would move it.
            if chunk.sources.paths[row] not in ("", old["path"]) and (new["label"] != old["label"] or not _stands(old)):
                new["path"] = chunk.sources.paths[row]
            new["filed_by"] = self._file_by
            new["content_hash"] = (None if row in pictures else chunk.contents[row]) or old["content_hash"]
            new |= {name: values[row] for name, values in said.items() if values[row] is not None}
            if old["width"] is None and row in chunk.readings:
                # A vector under the name of this content, as an export gives it, becomes the picture that it is of.
                new["width"] = chunk.readings[row].width
            if new == old and row not in embedded_anew:
                touched.add(row)
            # A file that was only touched is none that changed, but the next add need not read it.
            if row not in pictures and new["path"] == chunk.sources.paths[row]:
                new["file_size"], new["modified_at"] = chunk.stamps[row].file_size, chunk.stamps[row].modified_at
            if new != old or row in embedded_anew:
                changed.append((row, new))
        vectors = self._vectors(chunk, [(row, new["id"]) for row, new in changed])
        # What another process has removed meanwhile stays removed.
        changed = [(row, new) for row, new in changed if row in vectors]
        # The rows of one commit have the same columns: those that become pictures have more.
        for becomes in (False, True):
            part = [(row, new) for row, new in changed if (new["width"] != there[new["id"]]["width"]) is becomes]
            if part:
                filed = np.stack([vectors[row] for row, _ in part])
                columns = {name: [new[name] for _, new in part] for name in (*_SAID, *said)}
                columns |= self._filing(filed, [new["label"] for _, new in part])
                columns |= _read_columns([chunk.readings[row] for row, _ in part]) if becomes else {}
                self._table.update({**columns, "embedding": filed})
        return sum(row not in touched for row, _ in changed)

    def _embedded_anew(self, chunk: _Chunk, rows: set[int]) -> set[int]:
        """Return the rows whose vectors are other than those in the table."""
        stored = self._stored([str(chunk.ids[row]) for row in rows])
        return {row for row in rows if not np.array_equal(chunk.embeddings[row], stored.get(str(chunk.ids[row]), []))}

    def _stored(self, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        stored = self._table.find("id", ids, ("id", "embedding"))
        return dict(zip(stored["id"].to_pylist(), matrix(stored["embedding"]), strict=True))

    def _vectors(self, chunk: _Chunk, rows: Sequence[tuple[int, str]]) -> dict[int, npt.NDArray[np.float32]]:
        """The embeddings of known pictures by row, from the table unless they were given anew."""
        by_id = self._stored([key for row, key in rows if row not in chunk.embeddings])
        return {row: by_id[key] for row, key in rows if key in by_id} | {
            row: chunk.embeddings[row] for row, _ in rows if row in chunk.embeddings
        }

    def _filing(self, vectors: npt.NDArray[np.float32], labels: Sequence[str | None]) -> dict[str, Any]:
        return filing_columns(vectors, labels, self._anchors, self._file_by)

    def _drop_replaced(self) -> None:
        """Remove what stood at a path before, where the file there now holds another picture."""
        paths, now = list(self._standing), self._standing
        gone: list[str] = []
        columns = ("id", "path", "width", "file_size", "modified_at")
        for start in range(0, len(paths), COMMIT_PICTURES):
            there = self._table.find("path", paths[start : start + COMMIT_PICTURES], columns).to_pylist()
            # What came as a vector has no width: its path is only a name.
            others = [row for row in there if row["width"] and now[row["path"]] != row["id"]]
            # The file may have changed since it was read here, and another process may have read that.
            newer = {row["path"] for row in others if _stands(row)}
            gone += [row["id"] for row in others if row["path"] not in newer]
            gone += [row["id"] for row in there if row["path"] in newer and now[row["path"]] == row["id"]]
        if gone:
            self._table.delete(pc.field("id").isin(gone))


def filing_columns(
    vectors: npt.NDArray[np.float32], labels: Sequence[str | None], anchors: Anchors, file_by: FileBy
) -> dict[str, Any]:
    """Return what the table says of where vectors, (n, d), stand, by column."""
    buckets = labelled_buckets(labels, anchors) if file_by == "label" else None
    filing = file_vectors(vectors, anchors.vectors, buckets)
    return {
        "anchor": [anchors.names[anchor] for anchor in filing.anchors],
        "filed_by": [file_by] * len(vectors),
        "rho": filing.rho,
        "gap": filing.gap,
    }


def _reading(place: tuple[str, str, int]) -> tuple[_Reading, npt.NDArray[np.uint8]] | PictureError:
    path, name, size = place
    try:
        picture = read_for_encoder(path, size, name=name)
    except PictureError as error:
        return error
    image = picture.image
    reading = _Reading(picture.content_hash, picture.width, picture.height, thumbnail(image), perceptual_hash(image))
    return reading, square(image, size)


def _read_columns(readings: Sequence[_Reading | None]) -> dict[str, list[Any]]:
    """Return what the table keeps of pictures as they were read, by column; nothing of vectors."""
    return {name: [reading and getattr(reading, name) for reading in readings] for name in _READ}


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _stamp(path: str) -> Stamp:
    try:
        state = os.stat(path)  # noqa: PTH116  # a Path for each of a million files takes longer than its stat
        size = state.st_size
    except (OSError, ValueError):  # the latter for a path that no file can have
        inside = _member(path)
        if inside is None:
            # Reading it will fail, and say why.
            return Stamp()
        archive, name, state = inside
        size = archive.sizes[name]
    return Stamp(size, datetime.fromtimestamp(state.st_mtime_ns // 1000 / 1e6, UTC))


def _stands(row: Mapping[str, Any]) -> bool:
    """Say whether the file of a stored picture is there as it was stored."""
    return row["modified_at"] is not None and _stamp(row["path"]) == Stamp(row["file_size"], row["modified_at"])


def _member(path: str) -> tuple[Archive, str, os.stat_result] | None:
    try:
        return find_member(path)
    except InputError:
        return None
