"""Gallery: a durable collection of filed pictures, and the search in it.

Its parts lie in a folder: see `GalleryFolder`. Every write to the table is one commit. The index that answers queries
is derived from the table when it is first needed, and again when the table has changed, also by another process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kedge.calibration import nearest_anchor_distances
from kedge.checksums import Checksums, Damage
from kedge.disk_search import DiskIndex
from kedge.duplicates import DuplicateGroup, check_near, duplicate_groups
from kedge.encoder import Encoder
from kedge.errors import GalleryError, InputError, ModelError, PictureError, WorkError
from kedge.export_gallery import ExportFormat, export_rows
from kedge.gallery_folder import TABLE, GalleryFolder
from kedge.hits import Found, Hit, SearchResult
from kedge.intake import AddReport, FileBy, Intake, Progress
from kedge.memory_search import MemoryIndex
from kedge.model import Model
from kedge.picture import square
from kedge.pictures_table import Version, is_lost
from kedge.queries import Query, read_query
from kedge.reindexing import reindex
from kedge.runtime import Precision, Runtime, describe_runtime
from kedge.search import Order, Probes, check_search
from kedge.sources import Labels, list_sources
from kedge.vectors import check_apart, check_vectors, holds_vectors, read_vectors, ready_made

__all__ = ["AddReport", "Gallery"]

# MiB: more than any machine has, less than Lance can count.
MOST_CACHE = 1 << 24


class Gallery:
    """A folder of filed pictures; use it in a `with` block, from one thread at a time.

    Several processes may read and write one gallery at once.
    """

    def __init__(
        self,
        folder: GalleryFolder,
        *,
        half: bool = False,
        on_disk: bool = False,
        cache: int = 256,
        runtime: Runtime = "auto",
    ) -> None:
        self.folder, self._runtime = folder.root, runtime
        self._half, self._on_disk, self._cache = half, on_disk, cache << 20
        self._take(folder)

    def _take(self, folder: GalleryFolder) -> None:
        self._folder, self.model = folder, folder.model
        self._checksums = Checksums(folder.root, folder.part)
        self._table = folder.open_table(cache_bytes=self._cache if self._on_disk else None)
        self._anchors = folder.model.search_anchors
        self._encoder: Encoder | None = None
        self._index: MemoryIndex | DiskIndex | None = None
        self._indexed = -1

    @classmethod
    def create(cls, path: str | Path, model: Model | str | Path, *, precision: Precision | None = None) -> Self:
        """Make an empty gallery for pictures as `model` embeds them; the model is copied into it.

        precision: bfloat16 lets the copy work in it, on every machine that uses the gallery; None: as the model says.
        Raises GalleryError for a folder that exists, ModelError for a model that cannot be had or told so.
        """
        opened = Model.of(model)
        made = cls(GalleryFolder.create(path, opened, precision))
        made._sum()
        return made

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        half: bool = False,
        on_disk: bool = False,
        cache: int = 256,
        runtime: Runtime = "auto",
    ) -> Self:
        """Open a gallery; GalleryError for one that is missing, half written, newer, or whose model was changed.

        half: hold the vectors in half precision for search, in half the memory. on_disk: hold none, and search through
        an index on disk, with a cache of so many MiB. runtime: what runs the model, "auto" the fastest here.
        """
        if half and on_disk:
            raise InputError("a gallery is searched in half precision or on disk, not both: leave one out")
        if not 1 <= cache <= MOST_CACHE:
            raise InputError(f"the cache holds 1 to {MOST_CACHE} MiB, not {cache}")
        return cls(GalleryFolder.open(path), half=half, on_disk=on_disk, cache=cache, runtime=runtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is held in memory; the gallery on disk is whole at any time."""
        self._index = self._encoder = None

    @property
    def encoder(self) -> Encoder:
        """The encoder of the gallery's model."""
        if self._encoder is None:
            try:
                self._encoder = Encoder(self.model, runtime=self._runtime)
            except ModelError:
                self._folder.check_current()
                raise
        return self._encoder

    # Writing

    def add(
        self,
        *paths: str | Path,
        labels: Labels = "folder",
        file_by: FileBy = "nearest",
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add the pictures of folders, files, lists (CSV, Parquet), or vectors (Parquet with a column `embedding`).

        A picture found in a folder is labelled by the folder it lies in; `labels` is "folder", "none", or a list of
        path,label. Known pictures keep a label that nothing is said of. `metadata` sets the user's own columns for
        every picture; further columns of a CSV or Parquet file do so for each. A picture that cannot be read is left
        out and named in the report. What is wrong with the call raises InputError before anything is changed.
        """
        if not paths:
            raise InputError(
                "nothing to add: name a folder, a picture, a list of paths or a Parquet file of embeddings"
            )
        tables = [path for path in paths if holds_vectors(path)]
        files = [path for path in paths if path not in tables]
        intake = Intake(self._table, self._anchors, file_by=file_by, progress=progress)
        self._table.refresh()
        # All of it is looked at before the first part is written.
        ready = [read_vectors(Path(path), self.model, labels=labels, metadata=metadata) for path in tables]
        check_apart(ready, tables)
        sources = (
            list_sources(files, labels=labels, metadata=metadata, classes=self.model.card.classes) if files else None
        )
        for said in [given.sources for given in ready] + ([sources] if sources else []):
            intake.check(said)
        report = AddReport()
        for given in ready:
            report += intake.add_vectors(given)
        if sources:
            report += intake.add_pictures(sources, self.encoder)
        self._sum()
        self._tidy()
        return report

    def add_vectors(
        self,
        embeddings: npt.ArrayLike,
        *,
        ids: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        file_by: FileBy = "nearest",
        metadata: Mapping[str, Sequence[Any]] | None = None,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add ready-made embeddings, shape (n, dim), as the gallery's model makes them.

        Where the model's distance is cosine they must be unit length. Without `ids` an embedding is known again by its
        path, without paths by its numbers. Other shapes, numbers that are not finite, and an id given twice raise
        InputError; nothing is changed then.
        """
        given = ready_made(embeddings, self.model, ids=ids, paths=paths, labels=labels, metadata=metadata)
        self._table.refresh()
        report = Intake(self._table, self._anchors, file_by=file_by, progress=progress).add_vectors(given)
        self._sum()
        self._tidy()
        return report

    def remove(self, ids: Sequence[str] | None = None, *, where: str | None = None) -> int:
        """Remove pictures by id, or those that match an SQL filter; return how many that were.

        Raises InputError, with none removed, for an id that no picture has and a filter that cannot be used.
        """
        if (ids is None) == (where is None):
            raise InputError("say what to remove: either ids (--id) or a filter (--where)")
        self._table.refresh()
        removed = self._table.delete(where) if where is not None else self._remove_ids(ids or ())
        self._sum()
        return removed

    def _remove_ids(self, ids: Sequence[str]) -> int:
        wanted = [ids] if isinstance(ids, str) else list(ids)
        strange = [key for key in wanted if not isinstance(key, str)]
        if strange:
            raise InputError(f"an id is a text, not {strange[0]!r}: none was removed")
        known = set(self._table.find("id", wanted, ("id",))["id"].to_pylist())
        unknown = [name for name in wanted if name not in known]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise InputError(
                f"no picture has the id {', '.join(unknown[:5])}{more}: `kedge search --json` names the ids; none was "
                "removed"
            )
        return self._table.delete(pc.field("id").isin(wanted)) if wanted else 0

    def compact(self) -> tuple[int, int]:
        """Give back the space of removed pictures and drop older versions; return the bytes on disk before and after.

        Do it while nobody else uses the gallery. WorkError where a file is not what was written: it would be written
        anew as it is, and the versions without the damage dropped.
        """
        before = self._bytes()
        self._table.refresh()
        damages = self._checksums.verify(self._files())
        if damages:
            raise WorkError(
                f"{self.folder} is damaged ({damages[0].path} {damages[0].reason}): put the files back from a backup, "
                "or restore a version without them; nothing was compacted"
            )
        with self._folder.reindexing():
            self._folder.sweep()
        self._table.compact()
        self._checksums.record(self._files())
        self._checksums.keep(self._files())
        return before, self._bytes()

    def reindex(
        self, model: Model | str | Path, *, drop_missing: bool = False, progress: Progress | None = None
    ) -> AddReport:
        """Embed all pictures anew, from their paths, with another model, which then takes over in one step.

        Until then the gallery answers with the old one; after a kill the same call goes on where it was. InputError
        when pictures are not at their paths any more, or came as vectors, unless `drop_missing` leaves them out.
        """
        fresh = Model.of(model)
        folder, report = reindex(
            self._folder, self._table, fresh, drop_missing=drop_missing, runtime=self._runtime, progress=progress
        )
        self._take(folder)
        self._sum()
        return report

    def versions(self) -> list[Version]:
        """Return the states that can be gone back to, oldest first: of the last day, at most some thousand."""
        self._table.refresh()
        return self._table.versions()

    def restore(self, version: int) -> None:
        """Go back to an older version, as a new one: what came after it can be gone back to as well.

        Raises InputError for a version that `versions` does not return.
        """
        self._table.refresh()
        self._table.restore(version)
        self._sum()

    def check(self) -> list[Damage]:
        """Return what is wrong with the gallery's files: each is compared with the checksum it was written with.

        The rows are read as well: embeddings must be finite, anchors those of the model.
        """
        self._table.refresh()
        damages = self._checksums.verify(self._files())
        if not damages:
            damages = self._check_rows()
            self._checksums.record(self._files())
        return damages

    def _check_rows(self) -> list[Damage]:
        table = f"{TABLE}/data"
        try:
            strange = set(self._table.read(["anchor"])["anchor"].unique().to_pylist()) - set(self._anchors.names)
            if strange:
                return [Damage(table, f"pictures are filed under anchors that the model lacks: {sorted(strange)[:5]}")]
            for vectors in self._table.embeddings():
                if not np.isfinite(vectors).all():
                    return [Damage(table, "an embedding is not finite")]
        except WorkError as error:
            return [Damage(table, str(error))]
        return []

    def _files(self) -> list[str]:
        return self._folder.files(self._table)

    def _sum(self) -> None:
        """Take the checksums of files that a commit has made."""
        try:
            self._table.refresh()
        except GalleryError:
            return  # Another model has taken over, with all that was committed and checksums of its own.
        try:
            self._checksums.record(self._files())
        except OSError as error:
            raise WorkError(f"the pictures are stored, their checksums are not ({error}): run `kedge check`") from error

    def _tidy(self) -> None:
        prefix = self._folder.table_path

        def is_whole(files: Sequence[str]) -> bool:
            return not self._checksums.verify([f"{prefix}/{file}" for file in files])

        if self._table.tidy(is_whole):
            self._sum()

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    # Reading

    def search(
        self,
        picture: Query,
        k: int = 20,
        probes: Probes = 1,
        *,
        order: Order = "distance",
        expand: bool = False,
        where: str | None = None,
        max_distance: float | None = None,
    ) -> SearchResult:
        """Return the k pictures nearest to a picture, best first.

        The pictures filed under the `probes` nearest anchors are compared with it, and those under the next anchors
        until there are k; "exact" finds the k nearest of all. `expand` turns the query to the anchors of the classes it
        looks like: more hits of its class, and distances from there. `where` is an SQL filter such as "label = 'cat'".
        Hits farther than `max_distance` are left out. Raises PictureError for a picture that cannot be read, InputError
        for a search that cannot be done, ModelError where `expand` is asked of a model that searches by L2.
        """
        return self.search_many(
            [picture], k, probes, order=order, expand=expand, where=where, max_distance=max_distance
        )[0]

    def search_many(
        self,
        pictures: Sequence[Query],
        k: int = 20,
        probes: Probes = 1,
        *,
        order: Order = "distance",
        expand: bool = False,
        where: str | None = None,
        max_distance: float | None = None,
    ) -> list[SearchResult]:
        """Search with each of several pictures, which is faster than one by one; see `search`."""
        _check(k, probes, order, max_distance)
        if isinstance(pictures, str | bytes):
            raise InputError(f"several pictures are searched with in a list, not '{pictures!s}': `search` takes one")
        side = self.encoder.image_size
        names, squares = [], np.empty((len(pictures), side, side, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            # One large picture at a time is held.
            name, image = read_query(picture, side)
            names.append(name or f"picture {row + 1}")
            squares[row] = square(image, side)
        vectors = self.encoder.encode(squares)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise PictureError(names[int(finite.argmin())], "the model gives it an embedding that is not finite")
        return self.search_vectors(
            vectors,
            k,
            probes,
            order=order,
            expand=expand,
            where=where,
            max_distance=max_distance,
            names=names,
        )

    def search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int = 20,
        probes: Probes = 1,
        *,
        order: Order = "distance",
        expand: bool = False,
        where: str | None = None,
        max_distance: float | None = None,
        names: Sequence[str] | None = None,
    ) -> list[SearchResult]:
        """Search with ready-made embeddings, shape (queries, dim), as the gallery's model makes them; see `search`.

        Raises InputError for other shapes, and numbers that are not finite.
        """
        _check(k, probes, order, max_distance)
        vectors = check_vectors(queries, self.model)
        names = names or [f"vector {row + 1}" for row in range(len(vectors))]
        doubts = self._doubts(vectors)
        if expand:
            vectors = self.model.expand(vectors)
        total, found = self._find(vectors, k, probes, order, where)
        results = []
        for name, one, doubt in zip(names, found, doubts, strict=True):
            near = one.distances <= (np.inf if max_distance is None else max_distance)
            told = one.said.filter(pa.array(near)).to_pylist()
            hits = tuple(
                Hit(rank, row["id"], row["path"], row["label"], float(distance), row["anchor"])
                for rank, (row, distance) in enumerate(zip(told, one.distances[near], strict=True), start=1)
            )
            probed = tuple(self._anchors.names[anchor] for anchor in one.probed)
            results.append(SearchResult(name, hits, probed, one.scanned / max(1, total), *doubt))
        return results

    def _find(
        self, vectors: npt.NDArray[np.float32], k: int, probes: Probes, order: Order, where: str | None
    ) -> tuple[int, list[Found]]:
        """Return the number of pictures, and what each query found, in the newest version."""
        for attempt in range(3):
            self._table.refresh()
            try:
                index = self._newest_index()
                return index.total, index.search(vectors, k, probes, where=where, order=order)
            except WorkError as error:
                # Another process compacted the gallery under our hands: the next version has the same pictures.
                if attempt == 2 or not is_lost(error):
                    raise
        raise AssertionError("unreachable")

    def _newest_index(self) -> MemoryIndex | DiskIndex:
        if self._index is None or self._indexed != self._table.version:
            self._index = None  # Two of them need not fit into memory.
            if self._on_disk:
                self._index = DiskIndex(self._table, self._anchors)
                self._sum()
            else:
                self._index = MemoryIndex(self._table, self._anchors, half=self._half)
            self._indexed = self._table.version
        return self._index

    def _doubts(self, vectors: npt.NDArray[np.float32]) -> list[tuple[bool | None, float | None]]:
        """Return (known, percentile) of each query."""
        calibration = self.model.calibration
        if calibration is None:
            return [(None, None)] * len(vectors)
        distances = nearest_anchor_distances(vectors, self._anchors.vectors)
        known, percentiles = calibration.known(distances), calibration.percentiles(distances)
        return list(zip(known.tolist(), percentiles.tolist(), strict=True))

    def duplicates(self, *, bits: int = 4, distance: float | None = None) -> list[DuplicateGroup]:
        """Return groups of pictures that show the same, the largest group first.

        Pictures are near when their perceptual hashes differ in at most `bits` of 64 bits, their embeddings lie within
        `distance` of each other (half the median distance of a picture to its anchor, if none is given), and their
        thumbnails look alike. In a group all are near the first.
        """
        check_near(bits, distance)
        self._table.refresh()
        rows = self._table.read(["id", "path", "label", "content_hash", "perceptual_hash", "rho"])
        if not len(rows):
            return []
        vectors = np.concatenate(list(self._table.embeddings()))
        return duplicate_groups(
            rows["id"].to_pylist(),
            rows["path"].to_pylist(),
            rows["label"].to_pylist(),
            rows["content_hash"].to_pylist(),
            rows["perceptual_hash"].to_pylist(),
            vectors,
            bits=bits,
            distance=float(np.median(rows["rho"].to_numpy())) / 2 if distance is None else distance,
            thumbnails=self.thumbnails,
        )

    def export(self, path: str | Path, to: ExportFormat) -> int:
        """Write all vectors, and what is said of them, to a file that is not there yet; return how many.

        parquet: a row a picture, as `add` takes it. npz: arrays by name. faiss: an IndexIVFFlat with the anchors as
        quantizer, and beside it PATH.ids.json, the id of each of its numbers. Raises InputError for a file that exists
        or cannot be written, MissingPartError where FAISS is not installed.
        """
        self._table.refresh()
        columns = ["id", "path", "label", "anchor", "filed_by", "embedding", *self._table.metadata_columns]
        rows = self._table.read(columns)
        export_rows(rows, self._anchors, Path(path), to)
        return len(rows)

    def count(self, where: str | None = None) -> int:
        """Return the number of pictures, or of those that match an SQL filter; InputError for a wrong one."""
        self._table.refresh()
        return self._table.count(where)

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return thumbnails (JPEG) by id; pictures that came as vectors have none."""
        self._table.refresh()
        rows = self._table.find("id", list(ids), ("id", "thumbnail")).to_pylist()
        return {row["id"]: row["thumbnail"] for row in rows if row["thumbnail"] is not None}

    def info(self) -> dict[str, Any]:
        """Return what the gallery holds: counts of pictures, of each label and of anchors, dimensions, the model."""
        self._table.refresh()
        labels = self._table.read(["label"])["label"].value_counts().to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in labels}
        return {
            "kind": "gallery",
            "pictures": sum(counts.values()),
            "labels": {label: counts[label] for label in sorted(filter(None, counts))},
            "unlabelled": counts.get(None, 0),
            "model": {"fingerprint": self.model.fingerprint, "path": str(self.model.folder)},
            "anchors": len(self._anchors),
            "dim": self._anchors.dim,
            "distance": self.model.card.distance,
            "precision": self.model.card.precision,
            "runtime": describe_runtime(self.model.card.precision, has_weights=self.model.has_weights),
            "columns": list(self._table.metadata_columns),
            "version": self._table.version,
        }


def _check(k: int, probes: Probes, order: Order, max_distance: float | None) -> None:
    check_search(k, probes, order)
    if max_distance is not None and not max_distance >= 0:
        raise InputError(f"the largest distance is a number from 0, not {max_distance!r}")
