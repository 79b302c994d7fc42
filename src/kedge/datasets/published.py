"""The data sets known by name: fetched once, checked, and kept as files in the cache folder."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kedge.datasets.dataset import Listed, Listing, SplitName
from kedge.datasets.folder import list_folder, list_tiny_imagenet
from kedge.errors import MissingPartError, WorkError

__all__ = ["PUBLISHED", "cache_folder"]

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# Mirrored digits are other signs, or none.
DIGIT_SETS = ("digits", "svhn")


def cache_folder() -> Path:
    """Return where downloaded and unpacked data sets are kept: KEDGE_CACHE, or ~/.cache/kedge."""
    return Path(os.environ.get("KEDGE_CACHE") or Path.home() / ".cache" / "kedge")


def _digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey; a fifth of each, drawn once, is the test split."""
    folder = cache_folder() / "digits"
    if not folder.exists():
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(labels))
        tested = set(order[: len(labels) // 5].tolist())
        _write_pictures(
            folder,
            (
                ("test" if row in tested else "train", str(label), pixels[row])
                for row, label in enumerate(labels.tolist())
            ),
        )
    return _named("digits", folder)


def _cifar100() -> Listing:
    """CIFAR-100: 100 classes x (500 + 100), 32 x 32, labelled finely."""
    folder = cache_folder() / "cifar100"
    if not folder.exists():
        source = _torchvision("CIFAR100")
        parts = {
            split: _download("cifar100", source, download=True, train=split == "train") for split in ("train", "test")
        }
        _write_pictures(
            folder,
            (
                (split, part.classes[label], pixels)
                for split, part in parts.items()
                for pixels, label in zip(part.data, part.targets, strict=True)
            ),
        )
    return _named("cifar100", folder)


def _svhn() -> Listing:
    """SVHN, cropped digits: 73,257 + 26,032, 32 x 32."""
    folder = cache_folder() / "svhn"
    if not folder.exists():
        source = _torchvision("SVHN")
        parts = {split: _download("svhn", source, download=True, split=split) for split in ("train", "test")}
        _write_pictures(
            folder,
            (
                (split, str(label), pixels.transpose(1, 2, 0))
                for split, part in parts.items()
                for pixels, label in zip(part.data, part.labels.tolist(), strict=True)
            ),
        )
    return _named("svhn", folder)


def _food101() -> Listing:
    """Food-101: 101 dishes x (750 + 250), photographs up to 512 px; split as its `meta/` files say."""
    folder = cache_folder() / "food101"
    if not folder.exists():
        # Unpacked here: torchvision takes a folder whose unpacking was cut short for a whole one.
        published = _torchvision("Food101")
        _download("food101", _torchvision("utils").download_url, url=published._URL, md5=published._MD5)
        with _whole_or_absent(folder) as stage, tarfile.open(_downloads() / Path(published._URL).name) as archive:
            archive.extractall(stage, filter="data")
    root = folder / "food-101"
    rows = []
    for split in ("train", "test"):
        for line in (root / "meta" / f"{split}.txt").read_text("utf-8").split():
            rows.append(Listed(str(root / "images" / f"{line}.jpg"), line.split("/")[0], split))
    return Listing("food101", tuple(rows))


def _tiny_imagenet() -> Listing:
    """Tiny ImageNet: 200 classes x (500 + 50), 64 x 64; its validation pictures are the test split."""
    folder = cache_folder() / "tiny-imagenet-200"
    if not folder.exists():
        archive = _downloads() / "tiny-imagenet-200.zip"
        if not archive.exists():
            _fetch(TINY_IMAGENET_URL, archive, TINY_IMAGENET_MD5)
        _check(archive, TINY_IMAGENET_MD5, f"{archive}", "remove the file and try again")
        with _whole_or_absent(folder) as stage, zipfile.ZipFile(archive) as opened:
            opened.extractall(stage)
            for entry in (stage / "tiny-imagenet-200").iterdir():
                entry.rename(stage / entry.name)
    return list_tiny_imagenet(folder)


PUBLISHED: dict[str, Callable[[], Listing]] = {
    "cifar100": _cifar100,
    "digits": _digits,
    "food101": _food101,
    "svhn": _svhn,
    "tiny-imagenet": _tiny_imagenet,
}


def _named(name: str, folder: Path) -> Listing:
    return Listing(name, list_folder(folder).rows, mirror=name not in DIGIT_SETS)


def _downloads() -> Path:
    folder = cache_folder() / "downloads"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    return folder


def _torchvision(name: str) -> Any:
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise MissingPartError(f"{name} is fetched by torchvision: pip install 'kedge[train]'") from error
    return getattr(datasets, name)


def _download(name: str, source: Callable[..., Any], **options: Any) -> Any:
    """Let torchvision download and check a data set; say in one line what to do when it cannot."""
    folder = _downloads()
    try:
        return source(root=folder, **options)
    except (OSError, RuntimeError) as error:
        raise WorkError(
            f"{name} could not be fetched ({error}): check the network, or put the published files into {folder}"
        ) from error


def _fetch(url: str, path: Path, md5: str) -> None:
    """Download a file beside its place, check it and rename it: half a download is never taken for a whole one."""
    unfinished = path.with_suffix(".unfinished")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, unfinished.open("wb") as file:
            shutil.copyfileobj(response, file)
        _check(unfinished, md5, f"what {url} gave", f"try again, or put the published file at {path}")
        unfinished.rename(path)
    except (OSError, HTTPException) as error:
        raise WorkError(
            f"{url} could not be fetched ({error}): check the network, or put the file at {path}"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _check(path: Path, md5: str, name: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise WorkError(f"{name} has MD5 {found}, {md5} is expected: {remedy}")


def _write_pictures(folder: Path, pictures: Iterable[tuple[SplitName | str, str, npt.NDArray[np.uint8]]]) -> None:
    """Write (split, class, pixels) as PNG files, <split>/<class>/<number>.png; the folder is whole or absent."""
    with _whole_or_absent(folder) as stage:
        for number, (split, label, pixels) in enumerate(pictures):
            place = stage / split / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number:06}.png")


@contextmanager
def _whole_or_absent(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside the wanted one, renamed at the end; another process may have been faster."""
    stage = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield stage
        if not folder.exists():
            stage.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise _not_written(folder, error) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> WorkError:
    return WorkError(
        f"{folder} could not be written ({error.strerror or error}): make room, or name another place in KEDGE_CACHE"
    )
