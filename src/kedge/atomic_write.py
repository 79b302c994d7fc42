"""Atomic write: a file stands in its place whole, or what stood there before."""

import os
from pathlib import Path
from uuid import uuid4

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its place, text as UTF-8, and rename it once it is on disk.

    A kill leaves what stood there, and perhaps a hidden file beside it. Raises OSError, which names the file.
    """
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
        beside.unlink(missing_ok=True)
