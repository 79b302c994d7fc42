"""Writing: a page stands in its place whole, or what stood there before."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kedge.errors import InputError

__all__ = ["placing", "write_page"]


def write_page(path: Path, text: str) -> None:
    """Write a page beside its place and rename it; raise InputError where that cannot be done."""
    partial: Path | None = None
    with placing(path):
        try:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
                partial = Path(file.name)
                file.write(text)
            partial.chmod(0o644)
            partial.replace(path)
        except OSError:
            if partial:
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def placing(path: Path) -> Iterator[None]:
    """Turn what keeps a page from its place into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): give --html a file where you may write, with room for it"
        ) from error
