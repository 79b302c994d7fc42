"""Everything Kedge raises on purpose.

KedgeError
├── InputError               what the user gave cannot be used; nothing was changed (exit code 2)
│   ├── PictureError         one picture cannot be read; names its path and the reason
│   ├── DatasetError         a folder, list or data set name does not hold labelled pictures
│   ├── ConfigError          an unknown or impossible setting; names the nearest one
│   ├── ModelError           a model folder is missing, half written or of another format
│   └── GalleryError         a gallery is missing, half written or made by another model
├── WorkError                the work was begun and could not be finished (exit code 1)
│   └── DivergedError        training reached a loss that is not a number, or tells nothing apart
└── MissingPartError         an optional part is not installed; names the command that installs it (exit code 2)

Each message says what was found, what was expected and what to do.
"""

import difflib
import shutil
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DatasetError",
    "DivergedError",
    "GalleryError",
    "InputError",
    "KedgeError",
    "MissingPartError",
    "ModelError",
    "PictureError",
    "WorkError",
    "first_line",
    "nearest_name",
    "reason_of",
]


class KedgeError(Exception):
    """Base of every error that Kedge raises on purpose."""

    exit_code = 1


class InputError(KedgeError):
    """What the user gave cannot be used; nothing was changed."""

    exit_code = 2


class PictureError(InputError):
    """One picture cannot be read.

    `path` is the picture as the user named it, `reason` the cause in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["PictureError"], tuple[str, str]]:
        # Exceptions travel between processes by their constructor's arguments.
        return (PictureError, (self.path, self.reason))


class DatasetError(InputError):
    """A folder, list or data set name does not hold labelled pictures."""


class ConfigError(InputError):
    """An unknown or impossible setting."""


class ModelError(InputError):
    """A model folder is missing, half written or of another format."""


class GalleryError(InputError):
    """A gallery is missing, half written or made by another model."""


class WorkError(KedgeError):
    """The work was begun and could not be finished."""


class DivergedError(WorkError):
    """Training reached a loss that is not a number, or a network that makes one embedding of all pictures."""


class MissingPartError(KedgeError):
    """An optional part is not installed."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or what it is called if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason_of(error: OSError) -> str:
    """Return what went wrong and where, in a line; of a folder that could not be copied, the first thing."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, place, reason = error.args[0][0]
        return reason if str(place) in str(reason) else f"{place}: {reason}"
    # Of a copy it is where it goes that has no room or is not to be written.
    place = error.filename2 or error.filename
    return ": ".join(filter(None, (place and str(place), error.strerror or str(error))))


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name most like `name`, or an empty string."""
    by_small = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(by_small), n=1, cutoff=0.5)
    return f" (did you mean '{by_small[close[0]]}'?)" if close else ""
