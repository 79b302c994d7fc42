"""Dataset and Split: labelled pictures, divided so that equal content never stands on both sides."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from kedge.cores import own_cores
from kedge.errors import DatasetError, PictureError
from kedge.picture import content_hash, is_text, read_bytes, read_for_encoder, square

__all__ = ["Dataset", "Decoded", "Listed", "Listing", "Split", "SplitName", "divide"]

SplitName = Literal["train", "validation", "test"]
TEST_SHARE = 0.2
# The same test pictures for every seed: settings chosen with one seed must not have seen those of another.
TEST_SEED = 0
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Listed:
    """One row of a listing. `split` is None where the source does not say it."""

    path: str
    label: str
    split: SplitName | None = None


@dataclass(frozen=True)
class Listing:
    """What every source of pictures is read into: name, rows, and whether pictures may be mirrored left-right."""

    name: str
    rows: tuple[Listed, ...]
    mirror: bool = True
    classes: tuple[str, ...] | None = None
    """Class names that must have pictures; None: those that the rows have."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pictures of a split as the encoder takes them, (m, size, size, 3) uint8; those that failed are left out."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    paths: tuple[str, ...]
    hashes: tuple[str, ...]
    failures: tuple[PictureError, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures, not yet decoded: paths, class numbers (n,) and content hashes, row by row."""

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> "Split":
        """Return the split of some of the rows."""
        chosen = np.arange(len(self))[rows]
        paths, hashes = (tuple(names[row] for row in chosen) for names in (self.paths, self.hashes))
        return Split(paths, self.labels[chosen], hashes)

    def decode(self, size: int) -> Decoded:
        """Read and preprocess all pictures, on all cores; what cannot be read is named in `failures`."""

        def read(path: str) -> npt.NDArray[np.uint8] | PictureError:
            try:
                return square(read_for_encoder(path, size).image, size)
            except PictureError as error:
                return error

        pixels = np.empty((len(self), size, size, 3), dtype=np.uint8)
        kept: list[int] = []
        failures: list[PictureError] = []
        for row, found in enumerate(_parallel(read, self.paths)):
            if isinstance(found, PictureError):
                failures.append(found)
            else:
                pixels[len(kept)] = found
                kept.append(row)
        readable = self[np.array(kept, dtype=np.int64)]
        return Decoded(pixels[: len(kept)], readable.labels, readable.paths, readable.hashes, tuple(failures))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled pictures in splits.

    `gallery` is the whole training set: train and validation, before a few-shot draw.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    gallery: Split
    mirror: bool
    skipped: tuple[PictureError, ...]
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return its name and counts."""
        counts = {f"{name}_pictures": len(getattr(self, name)) for name in ("train", "validation", "test", "gallery")}
        return {"dataset": self.name, "class_count": len(self.classes), **counts}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether pictures, classes and what is tested on are those of another day.

        The same for every seed, number of shots and share to validate on.
        """
        parts = [
            sorted({(content, int(label)) for content, label in zip(part.hashes, part.labels, strict=True)})
            for part in (self.gallery, self.test)
        ]
        return sha256(json.dumps([self.classes, *parts]).encode()).hexdigest()[:16]

    def membership(self) -> dict[str, SplitName]:
        """Return the split of each content; those that a few-shot draw left out count as train."""
        splits: dict[str, SplitName] = dict.fromkeys(self.gallery.hashes, "train")
        return splits | dict.fromkeys(self.validation.hashes, "validation") | dict.fromkeys(self.test.hashes, "test")

    def of_classes(self, names: Collection[str]) -> "Dataset":
        """Return the pictures of some of the classes; the others' are left out, and classes numbered anew."""
        kept = [number for number, name in enumerate(self.classes) if name in names]
        number_of = {before: now for now, before in enumerate(kept)}

        def part(split: Split) -> Split:
            chosen = split[np.flatnonzero(np.isin(split.labels, kept))]
            return replace(chosen, labels=np.array([number_of[label] for label in chosen.labels], dtype=np.int64))

        return replace(
            self,
            classes=tuple(self.classes[number] for number in kept),
            train=part(self.train),
            validation=part(self.validation),
            test=part(self.test),
            gallery=part(self.gallery),
        )


@dataclass(frozen=True)
class _Row:
    """A listed picture whose content was read."""

    path: str
    label: str
    split: SplitName | None
    content: str


def divide(
    listing: Listing,
    *,
    seed: int,
    shots: int | None,
    max_classes: int | None,
    validation_share: float,
    membership: Mapping[str, SplitName],
) -> Dataset:
    """Divide a listing into train, validation and test; raise DatasetError where a class has too few pictures."""
    classes = _classes(listing, max_classes)
    listed = [row for row in listing.rows if row.label in set(classes)]
    rows, skipped = _read_contents(listed)
    rows, contradictory = _without_contradictions(rows)
    skipped += contradictory
    rows = _with_splits(rows, membership)
    train = [row for row in rows if row.split == "train"]
    tested = {row.content for row in rows if row.split == "test"}
    held_out = {row.content for row in rows if row.split == "validation"} - tested
    copies = [row for row in train if row.content in tested or row.content in held_out]
    notes = []
    if copies:
        count = len(copies)
        notes.append(f"{count} training pictures stand among the test or validation pictures too: left out of training")
    train = [row for row in train if row.content not in tested and row.content not in held_out]
    validation = [row for row in rows if row.split == "validation" and row.content not in tested]
    _check_classes(classes, train, membership, _reasons(listed, skipped, copies))
    if not held_out:
        train, validation = _take(train, validation_share, seed + 1, most=shots)
    gallery = [row for row in rows if row.split in ("train", "validation") and row.content not in tested]
    if shots is not None:
        train = _draw(train, shots, seed + 2)

    def split(chosen: Sequence[_Row]) -> Split:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[row.label] for row in chosen], dtype=np.int64)
        return Split(tuple(row.path for row in chosen), labels, tuple(row.content for row in chosen))

    test = [row for row in rows if row.split == "test"]
    parts = (split(train), split(validation), split(test), split(gallery))
    return Dataset(listing.name, classes, *parts, listing.mirror, tuple(skipped), tuple(notes))


def _classes(listing: Listing, most: int | None) -> tuple[str, ...]:
    found = sorted({row.label for row in listing.rows if row.split != "test"} or {row.label for row in listing.rows})
    for name in (listing.name, *found):
        if not is_text(name):
            raise DatasetError(f"the name {os.fsencode(name)!r} is not UTF-8: rename the folder")
    missing = sorted(set(listing.classes or ()) - {row.label for row in listing.rows})
    if missing:
        raise DatasetError(f"{listing.name}: class '{missing[0]}' has no picture: add some, or remove its folder")
    unknown = sorted({row.label for row in listing.rows if row.split == "test"} - set(found))
    if unknown:
        raise DatasetError(f"{listing.name}: class '{unknown[0]}' has test pictures but no training picture")
    if most is not None and most > len(found):
        raise DatasetError(f"{listing.name} has {len(found)} classes, fewer than the {most} asked for")
    classes = tuple(found[:most])
    if len(classes) < 2:
        raise DatasetError(f"{listing.name} has {len(classes)} class: at least 2 are needed, by folders or labels")
    return classes


def _read_contents(listed: Sequence[Listed]) -> tuple[list[_Row], list[PictureError]]:
    """Hash every file, on all cores; what cannot be opened is returned as a failure."""

    def read(row: Listed) -> _Row | PictureError:
        try:
            return _Row(row.path, row.label, row.split, content_hash(read_bytes(row.path)))
        except PictureError as error:
            return error

    found = list(_parallel(read, listed))
    return [row for row in found if isinstance(row, _Row)], [row for row in found if isinstance(row, PictureError)]


def _without_contradictions(rows: Sequence[_Row]) -> tuple[list[_Row], list[PictureError]]:
    """Leave out pictures whose content stands under two labels: nobody can say which is right."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.content].add(row.label)
    left_out = [
        PictureError(row.path, "the same picture stands under " + " and ".join(map(repr, sorted(labels[row.content]))))
        for row in rows
        if len(labels[row.content]) > 1
    ]
    return [row for row in rows if len(labels[row.content]) == 1], left_out


def _with_splits(rows: Sequence[_Row], membership: Mapping[str, SplitName]) -> list[_Row]:
    """Give every row its split: as the model remembers it, else as the source says, else by chance."""
    known = [replace(row, split=membership.get(row.content, row.split)) for row in rows]
    undivided = [row for row in known if row.split is None]
    train, test = _take(undivided, TEST_SHARE, TEST_SEED, most=None)
    split_of: dict[str, SplitName] = {row.path: "train" for row in train}
    split_of |= {row.path: "test" for row in test}
    return [replace(row, split=row.split or split_of[row.path]) for row in known]


def _take(rows: Sequence[_Row], share: float, seed: int, *, most: int | None) -> tuple[list[_Row], list[_Row]]:
    """Take a share of each class's contents by seed, at most `most` a class; one is always left behind."""
    taken: set[str] = set()
    for contents in _contents_by_class(rows).values():
        count = min(round(share * len(contents)), len(contents) - 1)
        if share > 0 and len(contents) > 2:
            count = max(1, count)
        if most is not None:
            count = min(count, most)
        taken.update(_shuffled(contents, seed)[:count])
    return [row for row in rows if row.content not in taken], [row for row in rows if row.content in taken]


def _draw(rows: Sequence[_Row], shots: int, seed: int) -> list[_Row]:
    drawn: set[str] = set()
    for label, contents in _contents_by_class(rows).items():
        if len(contents) < shots:
            raise DatasetError(
                f"class '{label}' has {len(contents)} pictures to train on, fewer than the {shots} shots asked for: "
                f"ask for at most {len(contents)}, or add pictures"
            )
        drawn.update(_shuffled(contents, seed)[:shots])
    once = {row.content: row for row in reversed(rows)}
    return [row for row in rows if row.content in drawn and once[row.content] is row]


def _contents_by_class(rows: Iterable[_Row]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.label].add(row.content)
    # In the order of the content's name, so that a draw does not depend on what the files are called.
    return {label: sorted(found[label]) for label in sorted(found)}


def _shuffled(contents: Sequence[str], seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(contents))
    return [contents[position] for position in order]


def _reasons(listed: Sequence[Listed], skipped: Sequence[PictureError], copies: Sequence[_Row]) -> dict[str, str]:
    """Return by class why pictures of it are left out of training: the first that cannot be used, else a copy."""
    among = "stands among the test or validation pictures too"
    reasons = {row.label: f"{row.path} {among}" for row in reversed(copies)}
    label_of = {row.path: row.label for row in listed}
    return reasons | {label_of[failure.path]: str(failure) for failure in reversed(skipped)}


def _check_classes(
    classes: Sequence[str], train: Sequence[_Row], membership: Mapping[str, SplitName], reasons: Mapping[str, str]
) -> None:
    # Copies of one picture count once: they have nothing else to be compared with.
    counts = Counter(label for label, _ in {(row.label, row.content) for row in train})
    for name in classes:
        if counts[name] == 0:
            why = f" ({reasons[name]})" if name in reasons else ""
            raise DatasetError(
                f"class '{name}' has no training picture that can be used{why}: add some, or remove the class"
            )
        if counts[name] == 1 and not membership:
            raise DatasetError(
                f"class '{name}' has one training picture, and nothing to compare it with: add more, or remove it"
            )


def _parallel(function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
    """Map in threads, in order: reading and decoding leave the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(32, own_cores() + 2)) as pool:
        # In blocks, so that a million pictures do not wait as a million futures.
        for start in range(0, len(items), 1024):
            yield from pool.map(function, items[start : start + 1024])
