"""Writing: a page stands in its place whole, or what stood there before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kedge.atomic_write import write_atomically
from kedge.errors import InputError

__all__ = ["placing", "write_page"]


def write_page(path: Path, text: str) -> None:
    """Write a page in one step; raise InputError where that cannot be done."""
    with placing(path):
        write_atomically(path, text)


@contextmanager
def placing(path: Path) -> Iterator[None]:
    """Turn what keeps a page from its place into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): give --html a file where you may write, with room for it"
        ) from error
