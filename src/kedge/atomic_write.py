"""Atomic write: a file stands in its place whole, or what stood there before."""

import os
import re
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

__all__ = ["clear_unfinished", "write_atomically"]

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial")


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its place, text as UTF-8, and rename it once it is on disk.

    A kill leaves what stood there, and perhaps a hidden file beside it: see `clear_unfinished`. Raises OSError, which
    names the file.
    """
    path = path.resolve()  # a link stays one
    # Not by the file's own name, which may be as long as a name can be.
    beside = path.with_name(f".{uuid4().hex}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def clear_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left; call it while nobody else writes there."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
