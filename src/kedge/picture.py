"""Picture: an image file read safely, and the few things made of it: square, thumbnail, hashes."""

import hashlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from kedge.archives import find_member
from kedge.errors import InputError, PictureError
from kedge.stores import is_url, read_store

__all__ = [
    "SUFFIXES",
    "Picture",
    "content_hash",
    "find_pictures",
    "is_text",
    "perceptual_hash",
    "read_bytes",
    "read_for_encoder",
    "read_picture",
    "square",
    "thumbnail",
]

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Pillow's names of what files with these suffixes hold. It reads more, and some of that by other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# More pixels than any camera makes; a file of a few kilobytes can claim a hundred times as many.
MOST_PIXELS = 150_000_000
MOST_BYTES = 1 << 30
THUMBNAIL_SIDE = 256


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: RGB, turned as its EXIF data say. width and height are those of the whole picture, turned."""

    path: str
    image: Image.Image
    content_hash: str
    width: int
    height: int


def content_hash(data: bytes) -> str:
    """Return the name of a file's content: the first 32 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def read_picture(source: str | Path | bytes, *, name: str | None = None, at_least: int | None = None) -> Picture:
    """Read a picture from a path or from bytes (then `name` is its path); raise PictureError with the reason.

    at_least: a JPEG is decoded at a reduced scale (1/2, 1/4, 1/8), as long as its shorter side stays at least that.
    """
    path = name or ("(bytes)" if isinstance(source, bytes) else os.fspath(source))
    data = source if isinstance(source, bytes) else read_bytes(os.fspath(source), name=path)
    if not data:
        raise PictureError(path, "the file is empty")
    try:
        with _pillow_is_quiet, Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise PictureError(path, f"more than the {MOST_PIXELS:,} pixels allowed: scale it down")
            if at_least is not None:
                opened.draft("RGB", (at_least, at_least))
            if opened.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # turned by a quarter
                width, height = height, width
            image = _to_rgb(ImageOps.exif_transpose(opened))
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(path, f"more than the {MOST_PIXELS:,} pixels allowed: scale it down") from error
    except UnidentifiedImageError as error:
        raise PictureError(path, "not a picture that can be read") from error
    except MemoryError as error:
        raise PictureError(path, "too large for the memory there is") from error
    except Exception as error:  # Pillow's decoders raise anything from struct.error to SyntaxError on broken files
        raise PictureError(path, f"broken: {str(error) or type(error).__name__}") from error
    return Picture(path, image, content_hash(data), width, height)


def read_for_encoder(source: str | Path | bytes, size: int, *, name: str | None = None) -> Picture:
    """Read a picture as all are read that become embeddings, in training, filing and searching, before `square`.

    size: the side of the encoder's input. Large JPEGs are decoded at a reduced scale, with detail left for `thumbnail`.
    """
    return read_picture(source, name=name, at_least=max(size, THUMBNAIL_SIDE))


def is_text(path: str) -> bool:
    """Tell whether a path is made of characters; a file's name may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_bytes(place: str, *, name: str | None = None) -> bytes:
    """Return the content of a file, in an archive or a store too; PictureError with the reason, of no endless file."""
    name, path = name or place, Path(place)
    try:
        if is_url(place):
            return _read_stored(name, place)
        if path.is_dir():
            os.scandir(path).close()
            raise PictureError(name, "a folder, not a picture")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(name, "not a regular file")  # reading a pipe could wait for ever
        if status.st_size > MOST_BYTES:
            raise PictureError(name, f"the file is larger than {MOST_BYTES >> 20} MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        content = None if is_url(place) else _read_member(name, path)
        if content is None:
            raise PictureError(name, "no such file") from error
        return content
    except (OSError, ValueError) as error:
        raise PictureError(name, getattr(error, "strerror", None) or str(error)) from error


def _read_stored(name: str, url: str) -> bytes:
    try:
        return read_store(url, MOST_BYTES)
    except InputError as error:  # one wrong address of many
        raise PictureError(name, str(error).removeprefix(f"{url} ")) from error


def _read_member(name: str, path: Path) -> bytes | None:
    """Return the content of a file inside an archive; None when the path leads into none."""
    try:
        found = find_member(str(path))
    except InputError as error:  # one broken archive of many
        raise PictureError(name, str(error)) from error
    if found is None:
        return None
    archive, member, _ = found
    if archive.sizes[member] > MOST_BYTES:
        raise PictureError(name, f"the file is larger than {MOST_BYTES >> 20} MiB")
    try:
        return archive.read(member)
    except Exception as error:  # a broken or locked member raises anything from BadZipFile to RuntimeError
        raise PictureError(name, f"cannot be read from its archive: {error}") from error


class _Quiet:
    """Pillow's warnings (large pictures, odd metadata) off while any thread reads.

    `warnings.catch_warnings` alone is not made for threads: the last to leave would restore what another had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._caught.__exit__(None, None, None)


_pillow_is_quiet = _Quiet()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: 16-bit values are scaled, what is transparent shows white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # Pillow opens 16-bit grey as I;16 or I; a 32-bit picture without a stated range is scaled by its own.
        top = 65535.0 if image.mode.startswith("I") and values.max(initial=0) <= 65535 else float(values.max(initial=1))
        scaled = np.clip(values * (255.0 / max(top, 1e-12)), 0, 255)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    converted = image.convert("RGB")
    converted.load()
    return converted


def square(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Return the encoder's input, (size, size, 3) uint8: shorter side resized to `size`, the middle cut out.

    The one preprocessing of training, filing and searching. Bicubic, antialiased as Pillow's resize is.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(image, dtype=np.uint8)


def thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG whose longer side is at most 256 pixels; small pictures keep their size."""
    scale = min(1.0, THUMBNAIL_SIDE / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    # Hamming: as sharp as bicubic when scaling down, in two thirds of the time.
    small = image.resize((width, height), Image.Resampling.HAMMING, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88 if max(small.size) > 64 else 95)
    return buffer.getvalue()


def perceptual_hash(image: Image.Image) -> int:
    """Return a 64-bit difference hash, as a signed number: near pictures differ in few bits.

    Each bit says whether one of 8 x 8 grey cells is brighter than its right neighbour.
    """
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(cells[:, :-1] > cells[:, 1:])
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def find_pictures(root: Path) -> Iterator[Path]:
    """Yield the files under a folder that are pictures by their suffix, sorted; hidden ones are left out.

    Links to folders are followed once: a folder that was seen is not entered again. A folder that cannot be read comes
    itself, so that whoever reads it is told why.
    """
    yield from _walk(root, set())


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError:
        yield folder
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder:
            yield from _walk(Path(entry.path), seen)
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            yield Path(entry.path)
