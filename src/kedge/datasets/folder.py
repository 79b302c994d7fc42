"""A folder of labelled pictures as a listing: a sub-folder a class, with or without splits above."""

from collections.abc import Iterator
from pathlib import Path

from kedge.datasets.dataset import Listed, Listing, SplitName
from kedge.errors import DatasetError
from kedge.picture import SUFFIXES, find_pictures

__all__ = ["list_folder", "list_tiny_imagenet"]

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
TINY_IMAGENET_LABELS = Path("val") / "val_annotations.txt"


def list_folder(root: Path) -> Listing:
    """List `train/<class>/…` with `test/<class>/…` (and `val/<class>/…`), or `<class>/…` alone."""
    if (root / TINY_IMAGENET_LABELS).is_file():
        return list_tiny_imagenet(root)
    name = root.resolve().name
    folders = _class_folders(root)
    # Whatever its spelling: Train/ beside Test/ would be two classes.
    divided = [(entry, SPLIT_FOLDERS[entry.name.lower()]) for entry in folders if entry.name.lower() in SPLIT_FOLDERS]
    if "train" in (split for _, split in divided):
        rows = [row for entry, split in divided for row in _list_classes(entry, split)]
        classes = {entry.name for top, _ in divided for entry in _class_folders(top)}
    else:
        _refuse_loose_pictures(root)
        rows = list(_list_classes(root, None))
        classes = {entry.name for entry in folders}
    if not rows:
        raise DatasetError(f"no picture under {root}: expected {root}/<class>/<picture>, a folder a class")
    return Listing(name, tuple(rows), classes=tuple(sorted(classes)))


def _list_classes(root: Path, split: SplitName | None) -> Iterator[Listed]:
    _refuse_loose_pictures(root)
    for entry in _class_folders(root):
        next(entry.iterdir(), None)  # a whole class that cannot be read is more than pictures left out
        yield from (Listed(str(path), entry.name, split) for path in find_pictures(entry))


def _class_folders(root: Path) -> list[Path]:
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]


def _refuse_loose_pictures(root: Path) -> None:
    shown = (entry for entry in sorted(root.iterdir()) if not entry.name.startswith("."))
    loose = [entry for entry in shown if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    if loose:
        raise DatasetError(
            f"{loose[0]} lies outside any class folder, as {len(loose)} pictures do: move them into {root}/<class>/"
        )


def list_tiny_imagenet(root: Path) -> Listing:
    """List Tiny ImageNet as it is published; its `val/` pictures, labelled by a file, are the test pictures."""
    rows = [
        Listed(str(path), folder.name, "train")
        for folder in _class_folders(root / "train")
        for path in find_pictures(folder)
    ]
    for number, line in enumerate((root / TINY_IMAGENET_LABELS).read_text("utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if not file or not wnid:
            raise DatasetError(
                f"{root / TINY_IMAGENET_LABELS}: line {number} is not a file, a tab and a wnid: unpack the set again"
            )
        rows.append(Listed(str(root / "val" / "images" / file), wnid, "test"))
    return Listing("tiny-imagenet", tuple(rows))
