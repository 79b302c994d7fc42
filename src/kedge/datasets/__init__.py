"""Labelled pictures: published sets by name, folders and lists, divided into splits."""

from collections.abc import Mapping
from pathlib import Path

from kedge.datasets.dataset import Dataset, Listing, Split, SplitName, divide
from kedge.datasets.folder import list_folder
from kedge.datasets.published import PUBLISHED, cache_folder
from kedge.datasets.table import list_table
from kedge.errors import ConfigError, DatasetError, nearest_name

__all__ = [
    "PUBLISHED",
    "Dataset",
    "Split",
    "cache_folder",
    "load_dataset",
    "place_of",
]


def load_dataset(
    data: str | Path,
    *,
    seed: int = 0,
    shots: int | None = None,
    max_classes: int | None = None,
    validation_share: float = 0.1,
    membership: Mapping[str, SplitName] | None = None,
) -> Dataset:
    """Load labelled pictures by a published set's name, or from a folder or a CSV or Parquet list.

    Of a source without splits a fifth of each class is held out to test on, the same whatever the `seed`, by which
    `validation_share` of the training pictures is held out to validate on, unless the source says which. `shots` draws
    that many training pictures a class. `max_classes` takes the first classes in sorted order. `membership` says, by
    content hash, which split a picture was in before, and goes over everything else. Raises DatasetError naming what is
    wrong and where, and ConfigError for a number that cannot be.
    """
    if shots is not None and shots < 1:
        raise ConfigError(f"shots is {shots}: draw at least 1 picture a class")
    if max_classes is not None and max_classes < 2:
        raise ConfigError(f"max_classes is {max_classes}: at least 2 are needed")
    if not 0 <= validation_share < 1:
        raise ConfigError(f"validation_share is {validation_share}: give a share from 0 up to, not with, 1")
    return divide(
        _list(data),
        seed=seed,
        shots=shots,
        max_classes=max_classes,
        validation_share=validation_share,
        membership=membership or {},
    )


def place_of(data: str | Path) -> str:
    """Return a published set's name, or where a folder or list lies, whatever the working folder."""
    return str(data) if str(data) in PUBLISHED else str(Path(data).resolve())


def _list(data: str | Path) -> Listing:
    path = Path(data)
    if not str(data).strip():
        # A shell's variable that is not set would mean the working folder.
        raise DatasetError("the name of the data is empty: give a folder, a list, or a published set's name")
    if str(data) in PUBLISHED:
        return PUBLISHED[str(data)]()
    if path.is_dir():
        try:
            return list_folder(path)
        except OSError as error:
            raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error
    if path.is_file() and path.suffix.lower() in (".csv", ".parquet"):
        return list_table(path)
    if path.is_file():
        raise DatasetError(f"{path} is a file, not a data set: give a folder, a .csv or a .parquet list")
    hint = nearest_name(str(data), PUBLISHED)
    raise DatasetError(
        f"no data at '{data}'{hint}: give a folder of pictures, a CSV or Parquet list, or one of {', '.join(PUBLISHED)}"
    )
