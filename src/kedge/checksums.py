"""Checksums: what each file of a gallery held when it was written, so that a flipped byte is found and named.

Lance reads a changed byte silently. Its files never change once they are written, so each is summed once, after the
commit that made it. The sums stand in one text file that is only appended to, a line at a time: writers of several
processes do not disturb each other, and of a line that a kill cut short nothing is believed. A kill between a commit
and its sum leaves a file without one; it gets it at the next write or check.
"""

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kedge.atomic_write import write_atomically

__all__ = ["FILE", "Checksums", "Damage"]

FILE = "checksums.txt"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Damage:
    """A file of the gallery that is not what was written: `path` within the gallery, and what is wrong with it."""

    path: str
    reason: str


class Checksums:
    """The sums of a folder's files, by path within the folder; they stand in `part` of it."""

    def __init__(self, folder: Path, part: str = ".") -> None:
        self.folder, self._file = folder, folder / part / FILE
        self._known: dict[str, tuple[int, int]] | None = None

    def record(self, paths: Iterable[str]) -> int:
        """Sum the files that have no sum yet; return how many that were. Files that are gone are left out."""
        known = self._read()
        lines = []
        for path in paths:
            if path in known:
                continue
            try:
                known[path] = _sum(self.folder / path)
            except FileNotFoundError:
                continue  # another process compacted
            size, crc = known[path]
            lines.append(f"\n{crc:08x} {size} {path}\n")
        if lines:
            # One write each, appended: lines of other processes stay whole. Each begins anew after a torn one.
            with self._file.open("ab", buffering=0) as file:
                for line in lines:
                    file.write(line.encode())
                os.fsync(file.fileno())
        return len(lines)

    def verify(self, paths: Iterable[str]) -> list[Damage]:
        """Return which files are not what they were when they were summed; those without a sum pass."""
        known = self._read(anew=True)
        found = []
        for path in paths:
            try:
                size, crc = _sum(self.folder / path)
            except FileNotFoundError:
                found.append(Damage(path, "is missing"))
                continue
            except OSError as error:
                found.append(Damage(path, f"cannot be read ({error.strerror})"))
                continue
            written = known.get(path, (size, crc))
            if size != written[0]:
                found.append(Damage(path, f"has {size} bytes, {written[0]} were written"))
            elif crc != written[1]:
                found.append(Damage(path, "holds other bytes than were written"))
        return found

    def keep(self, paths: Iterable[str]) -> None:
        """Forget the sums of all other files: they were compacted away."""
        wanted, known = set(paths), self._read(anew=True)
        self._known = {path: found for path, found in known.items() if path in wanted}
        # What another process appended meanwhile is lost with this, and summed again at the next write.
        write_atomically(self._file, "".join(f"{crc:08x} {size} {path}\n" for path, (size, crc) in self._known.items()))

    def _read(self, *, anew: bool = False) -> dict[str, tuple[int, int]]:
        if self._known is not None and not anew:
            return self._known
        self._known = {}
        text = self._file.read_bytes().decode("utf-8", "replace") if self._file.is_file() else ""
        for line in text.splitlines(keepends=True):
            parts = line.rstrip("\n").split(" ", 2)
            if line.endswith("\n") and len(parts) == 3 and len(parts[0]) == 8 and parts[1].isdigit():
                # The first sum counts: a damaged file must not be summed again.
                self._known.setdefault(parts[2], (int(parts[1]), int(parts[0], 16)))
        return self._known


def _sum(path: Path) -> tuple[int, int]:
    """Return (bytes, CRC-32) of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
