"""Stores: pictures under a URL, such as s3://bucket/prefix, by fsspec: every protocol that it knows can be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from kedge.errors import InputError, MissingPartError, first_line

__all__ = ["Stored", "is_url", "list_store", "read_store", "stored_there"]

# Where the kinds of stores say when a file was last written.
_WRITTEN = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


@dataclass(frozen=True)
class Stored:
    """A file in a store: its URL, size in bytes and time of its last change, where the store says them."""

    url: str
    size: int | None
    modified_at: datetime | None


def is_url(path: object) -> bool:
    """Tell whether something names a place in a store, and not on this machine."""
    return "://" in str(path)


def list_store(url: str) -> list[Stored]:
    """List the files under a prefix, or the one file there, by name; InputError when the store cannot be listed."""
    system, path = _open(url)
    try:
        found: Mapping[str, Mapping[str, Any]] = system.find(path, detail=True)
        if not found:
            system.info(path)  # of some stores only this tells that they cannot be reached
    except FileNotFoundError as error:
        raise InputError(f"nothing is found at {url}: check the address, and that it can be reached") from error
    except Exception as error:  # each kind of store has errors of its own
        raise InputError(f"{url} cannot be listed ({first_line(error)}): check the address and your access") from error
    return [
        Stored(system.unstrip_protocol(name), entry.get("size"), _written(entry))
        for name, entry in sorted(found.items())
        if not any(part.startswith(".") for part in PurePosixPath(name.removeprefix(path)).parts)
    ]


def read_store(url: str, most: int) -> bytes:
    """Return the content of a file of at most so many bytes; FileNotFoundError, or OSError with the reason."""
    system, path = _open(url)
    try:
        if (system.size(path) or 0) > most:
            raise OSError(f"the file is larger than {most >> 20} MiB")
        content: bytes = system.cat_file(path)
    except OSError:
        raise
    except Exception as error:
        raise OSError(first_line(error)) from error
    return content


def stored_there(url: str) -> bool:
    """Tell whether there is a file at a URL."""
    system, path = _open(url)
    try:
        return bool(system.isfile(path))
    except Exception:
        return False


def _open(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise MissingPartError(f"{url} needs more ({error}): pip install 'kedge[stores]'") from error
    except ValueError as error:
        raise InputError(f"{url} cannot be opened ({error}): check the address") from error
    return system, path


def _written(entry: Mapping[str, Any]) -> datetime | None:
    value = next((entry[name] for name in _WRITTEN if entry.get(name)), None)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
