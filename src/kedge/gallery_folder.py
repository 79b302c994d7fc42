"""Gallery folder: where a gallery's parts lie, and that they belong together.

    gallery.json      format version, fingerprint of the model, which folder holds the three below ("." at first), and
                      a checksum of all that
    model/            a copy of the model that embeds and files its pictures
    pictures.lance    one row a picture: see `PicturesTable`
    checksums.txt     what each file of these two held when it was written: see `Checksums`
    .writing, .reindexing    lock files: held during a commit, and while a new model's table grows

A gallery is whole or absent: it is made beside its place and renamed. A new model comes with a table and checksums of
its own, all in a folder of their own, and takes over when gallery.json is replaced: in one step.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4
from zlib import crc32

from filelock import FileLock, Timeout

from kedge.atomic_write import clear_unfinished, write_atomically
from kedge.checksums import FILE as CHECKSUMS
from kedge.errors import GalleryError, ModelError, reason_of
from kedge.model import CARD as MODEL_CARD
from kedge.model import Model
from kedge.pictures_table import PicturesTable
from kedge.runtime import Precision

__all__ = ["CARD", "FORMAT_VERSION", "MODEL", "TABLE", "GalleryFolder"]

FORMAT_VERSION = 1
CARD, MODEL, TABLE = "gallery.json", "model", "pictures.lance"
WRITING, REINDEXING = ".writing", ".reindexing"
# The folders that are made for a new model, and what they are called on the way: whatever else lies here is the user's.
_OF_MODELS = re.compile(r"model-[0-9a-f]{16}|\.model-([0-9a-f]{16}\.)?[0-9a-f]{8}")


@dataclass(frozen=True)
class GalleryFolder:
    """A gallery's folder `root`, and the folder within it that holds the model and the table, "." or another."""

    root: Path
    part: str
    model: Model

    @classmethod
    def create(cls, path: str | Path, model: Model, precision: Precision | None = None) -> Self:
        """Make an empty gallery with a copy of a model, which works in `precision` from then on if one is given."""
        root = _local(path)
        model.check_precision(precision or model.card.precision)
        if root.exists():
            raise GalleryError(f"{root} is there already: open it, remove it, or give another name")
        partial = root.parent / f".{root.name}.{uuid4().hex[:8]}.partial"
        try:
            partial.mkdir(parents=True)
            _write_card(partial, _fill(partial, model, precision), ".")
            # Where somebody else made a gallery of that name meanwhile, this fails: their folder is not empty.
            partial.rename(root)
        except OSError as error:
            raise GalleryError(
                f"no gallery can be made at {root} ({reason_of(error)}): give a place that has room and can be written"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(root)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Find a whole gallery; GalleryError for one that is missing, half written, newer, or of another model."""
        root = _local(path)
        if root.is_file():
            raise GalleryError(f"{root} is a file: a gallery is a folder, which `kedge create` makes")
        if not root.is_dir():
            raise GalleryError(f"no gallery at {root}: make one with `kedge create {root} --model MODEL`")
        fingerprint, part = _read_card(root)
        try:
            return cls(root, part, cls._read_model(root, part, fingerprint))
        except GalleryError:
            if _read_card(root)[1] == part:
                raise
        return cls.open(root)  # another model has taken over since the card was read

    @staticmethod
    def _read_model(root: Path, part: str, fingerprint: str) -> Model:
        missing = [name for name in (MODEL, TABLE) if not (root / part / name).exists()]
        if missing:
            raise _not_whole(root, missing)
        place = root / part / MODEL
        try:
            model = Model.load(place)
            found = model.fingerprint
        except (ModelError, OSError) as error:
            raise GalleryError(f"the gallery's model cannot be read ({error}): copy it back to {place}") from error
        if found != fingerprint:
            raise GalleryError(
                f"{root} was made with model {fingerprint}, {place} holds {found}: copy the first one back, "
                f"or create a new gallery with the other and add the pictures again"
            )
        return model

    def open_table(self, part: str | None = None, *, cache_bytes: int | None = None) -> PicturesTable:
        """Open the gallery's table, or that of a new model in another folder."""
        place = self.root / (part or self.part) / TABLE
        check = self.check_current if part is None else _nothing
        try:
            return PicturesTable.open(place, lock=self.root / WRITING, check=check, cache_bytes=cache_bytes)
        except GalleryError:
            check()
            raise

    def check_current(self) -> None:
        """Raise GalleryError when another model has taken over."""
        if _read_card(self.root)[1] != self.part:
            raise GalleryError(f"{self.root} went over to another model meanwhile: open it again")

    @contextmanager
    def reindexing(self) -> Iterator[None]:
        """Keep others from making or removing tables; GalleryError where they do, or where another model took over."""
        try:
            with FileLock(self.root / REINDEXING, blocking=False):
                self.check_current()
                yield
        except Timeout as error:
            raise GalleryError(
                f"another process reindexes or compacts {self.root}: wait until it is done, then call again"
            ) from error

    def switch(self, part: str, model: Model) -> Self:
        """Let the model and the table in another folder take over, in one step; the old ones are removed after it.

        Call it within `reindexing`, and with the old table kept from commits.
        """
        _write_card(self.root, model, part)
        switched = type(self).open(self.root)
        switched.sweep()
        return switched

    def sweep(self) -> None:
        """Remove models and tables that are not, or not yet, the gallery's: of a new model that did not take over.

        Call it within `reindexing`: what grows under another process would go with them.
        """
        clear_unfinished(self.root)
        for path in self.root.iterdir():
            if self.part != "." and path.name == CHECKSUMS:
                path.unlink(missing_ok=True)
            replaced = path.name in (MODEL, TABLE) and self.part != "."
            if replaced or (_OF_MODELS.fullmatch(path.name) and path.name != self.part):
                # What a kill leaves of it must not be taken for a whole one.
                with suppress(OSError):
                    path = path.rename(self.root / f".model-{uuid4().hex[:8]}")
                shutil.rmtree(path, ignore_errors=True)

    def prepare(self, model: Model) -> str:
        """Return the folder for a new model and its table, both made if this was not done before."""
        part = f"model-{model.fingerprint}"
        if not (self.root / part).exists():
            partial = self.root / f".{part}.{uuid4().hex[:8]}"
            partial.mkdir()
            # A gallery stays with its precision, but an int8 graph is what it is.
            own = self.model.card.precision
            _fill(partial, model, None if "int8" in (own, model.card.precision) else own)
            partial.rename(self.root / part)
        return part

    def files(self, table: PicturesTable) -> list[str]:
        """Return the files of the model and the table as they are now, by path within the folder."""
        place = self.root / self.part
        model = sorted(path.relative_to(self.root).as_posix() for path in (place / MODEL).rglob("*") if path.is_file())
        return [*model, *(f"{self.table_path}/{path}" for path in table.files())]

    @property
    def table_path(self) -> str:
        """Where the table lies within the folder."""
        return (Path(self.part) / TABLE).as_posix()


def _fill(place: Path, model: Model, precision: Precision | None) -> Model:
    """Write a copy of a model, in its own or another precision, and an empty table for its embeddings."""
    model.copy_to(place / MODEL)
    PicturesTable.create(place / TABLE, model.card.dim)
    copy = Model.load(place / MODEL)
    if precision and precision != copy.card.precision:
        copy.write_card(copy.card.model_copy(update={"precision": precision}))
    return Model.load(place / MODEL)


def _nothing() -> None:
    """Check nothing: a table that is not the gallery's yet."""


def _local(path: str | Path) -> Path:
    # A Path has one slash left of a URL's two.
    if re.match(r"\w{2,}:/", str(path)):
        url = re.sub(r"^(\w+):/+", r"\1://", str(path))
        raise GalleryError(f"{url} is not on this machine: galleries are kept in local folders for now")
    return Path(path)


def _not_whole(root: Path, missing: list[str]) -> GalleryError:
    if len(missing) == len((CARD, MODEL, TABLE)):
        # Nothing of a gallery is here: it may be somebody's pictures.
        if (root / MODEL_CARD).is_file():
            return GalleryError(f"{root} is a model, no gallery: make one with `kedge create GALLERY --model {root}`")
        return GalleryError(
            f"{root} is no gallery: make one with `kedge create GALLERY --model MODEL`, and add pictures to it"
        )
    return GalleryError(
        f"{root} is no whole gallery: {', '.join(missing)} missing. "
        f"Name another folder, put it back from a backup, or remove it and create it anew"
    )


def _write_card(root: Path, model: Model, part: str) -> None:
    card: dict[str, Any] = {"format_version": FORMAT_VERSION, "model": model.fingerprint, "part": part}
    card["checksum"] = _sum(card)
    write_atomically(root / CARD, json.dumps(card, indent=2) + "\n")


def _sum(card: dict[str, Any]) -> str:
    return f"{crc32(json.dumps(card, sort_keys=True).encode()):08x}"


def _read_card(root: Path) -> tuple[str, str]:
    path = root / CARD
    if not path.is_file():
        raise _not_whole(root, [CARD, *(name for name in (MODEL, TABLE) if not (root / name).exists())])
    try:
        card = json.loads(path.read_text("utf-8"))
        format_version, fingerprint, part = int(card["format_version"]), str(card["model"]), str(card.get("part", "."))
        # Cards of the first galleries have no checksum.
        as_written = card.keys() <= {"format_version", "model", "part"} or card.pop("checksum", None) == _sum(card)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{path} cannot be read ({error}): put it back from a backup") from error
    if format_version > FORMAT_VERSION:
        raise GalleryError(
            f"{path} has format version {format_version}, this Kedge reads up to {FORMAT_VERSION}: update Kedge"
        )
    if not as_written:
        raise GalleryError(f"{path} holds other bytes than were written: put it back from a backup")
    return fingerprint, part
