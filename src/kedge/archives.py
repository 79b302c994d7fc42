"""Archives: pictures in zip and tar files, each with a path as if the archive were a folder: photos.zip/cats/1.jpg."""

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

from kedge.errors import InputError

__all__ = ["Archive", "find_member", "is_archive", "open_archive"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OPENERS: Mapping[str, Callable[[str], Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)


@dataclass(frozen=True, eq=False)
class Archive:
    """An open archive: sizes of its files by name, and a way to read one, from several threads at once."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def is_archive(path: str | Path) -> bool:
    """Tell by its name whether a file is an archive that can be read."""
    return str(path).lower().endswith(SUFFIXES)


def find_member(path: str) -> tuple[Archive, str, os.stat_result] | None:
    """Return the archive that a path leads into, the name within it and the archive file's state; None for others."""
    place = Path(path)
    for parent in place.parents:
        if is_archive(parent) and parent.is_file():
            name, state = place.relative_to(parent).as_posix(), parent.stat()
            archive = open_archive(parent)
            return (archive, name, state) if name in archive.sizes else None
    return None


def open_archive(path: str | Path) -> Archive:
    """Open an archive; InputError for one that cannot be read. It is kept open while few others are asked for."""
    try:
        state = Path(path).stat()
        return _opened(str(path), state.st_mtime_ns, state.st_size)
    except (*_BROKEN, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as an archive ({error}): unpack it and add the folder") from error


@lru_cache(maxsize=8)
def _opened(path: str, _changed: int, _size: int) -> Archive:
    return _zip(path) if path.lower().endswith(".zip") else _tar(path)


def _zip(path: str) -> Archive:
    opened = zipfile.ZipFile(path)
    entries = {_plain(entry.filename): entry for entry in opened.infolist() if not entry.is_dir()}
    return Archive({name: entry.file_size for name, entry in entries.items()}, lambda name: opened.read(entries[name]))


def _plain(name: str) -> str:
    """Return a name as the path that leads into the archive has it: some hold `./a`, `/a` or `a//b`."""
    return posixpath.normpath(name).lstrip("/")


def _tar(path: str) -> Archive:
    """Index a tar by place, so that threads read it in any order; a compressed one is unpacked to a temporary file."""
    opener = OPENERS.get(Path(path).suffix.lower())
    file: IO[bytes]
    if opener is None:
        file = Path(path).open("rb")  # noqa: SIM115  # stays open as long as the archive
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # stays open as long as the archive
        with opener(path) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.seek(0)
    with tarfile.open(fileobj=file) as listed:
        places = {
            _plain(entry.name): (entry.offset_data, entry.size)
            for entry in listed
            if entry.isreg() and not entry.issparse()
        }
    reading = Lock()

    def read(name: str) -> bytes:
        start, size = places[name]
        with reading:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise EOFError("the archive ends before the file does")
        return content

    return Archive({name: size for name, (_, size) in places.items()}, read)
