"""Unfinished run: the folder in which a training's state lies, and whether one that goes on is that which was begun.

settings.json   what the run was asked for, and a digest of the pictures
resume.ckpt     network, loss, optimiser and schedule after the last whole epoch
metrics.jsonl   a line an epoch
.lock           held while a run writes here
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from kedge.atomic_write import clear_unfinished, write_atomically
from kedge.config import READ_OUT, TrainingConfig
from kedge.datasets import Dataset
from kedge.errors import DivergedError, InputError, KedgeError
from kedge.losses import loss_recipe
from kedge.model import Model

__all__ = ["RESUME_FILE", "begin_run", "check_whole", "lock_run"]

SETTINGS_FILE = "settings.json"
RESUME_FILE = "resume.ckpt"


@contextmanager
def begin_run(partial: Path, settings: TrainingConfig, data: str, dataset: Dataset, resume: bool) -> Iterator[None]:
    """Make the folder of the unfinished run, or check that it is this run that goes on, and keep others out of it.

    A run that diverges takes the folder with it: it would diverge again, and be in the way of other settings. So does
    one that fails before its first epoch: there is nothing to go on from.
    """
    asked = json.loads(json.dumps({"data": data, "pictures": _digest(dataset), **settings.model_dump()}))
    path = partial / SETTINGS_FILE
    if resume and path.is_file():
        trained_by = {name: value for name, value in asked.items() if name not in READ_OUT}
        try:
            begun = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path} cannot be read ({error}): remove {partial}, train anew") from error
        _check_same(partial, {name: value for name, value in trained_by.items() if name != "pictures"}, begun)
        if begun.get("pictures") != asked["pictures"]:
            # Pictures may have come to stand in another split: tested on, though trained on.
            raise InputError(f"the pictures of {data} have changed since {partial} was begun: remove it, train anew")
    partial.mkdir(parents=True, exist_ok=True)
    held = lock_run(partial)
    clear_unfinished(partial)
    # In one step: a run that is killed here can go on.
    write_atomically(path, json.dumps(asked, indent=2))
    try:
        with held:
            yield
    except KedgeError as error:
        if isinstance(error, DivergedError) or not (partial / RESUME_FILE).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def lock_run(partial: Path) -> BaseFileLock:
    """Return the lock of an unfinished run, taken; raise InputError when that still runs."""
    found = FileLock(partial / ".lock")
    try:
        found.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"another run writes to {partial}: wait for it, or choose another --out") from error
    return found


def check_whole(out: Path, settings: TrainingConfig, data: str, dataset: Dataset) -> Model:
    """Return the whole model that a resumed run finds; raise InputError when it is of other settings or pictures."""
    model = Model.load(out)
    asked = {"data": data, **settings.model_dump(mode="json")}
    if settings.precision == "auto" or loss_recipe(settings.loss).build is None:
        asked.pop("precision")  # the card says which one it was
    _check_same(out, asked, model.card.trained)
    same = model.card.trained.get("pictures") == dataset.fingerprint
    if not same or model.splits() != dataset.membership():
        raise InputError(f"the pictures of {data} have changed since {out} was trained: remove it, train anew")
    return model


def _digest(dataset: Dataset) -> str:
    """Return what tells whether classes, pictures and their splits are those of another day."""
    splits = (dataset.train, dataset.validation, dataset.test)
    parts = [dataset.fingerprint, *(list(part.hashes) for part in splits)]
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check_same(folder: Path, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise InputError when a run that goes on is asked for with other settings than it has."""
    changed = [name for name in asked if asked[name] != stored.get(name)]
    if changed:
        said = ", ".join(f"{name} was {stored.get(name)!r} and is {asked[name]!r}" for name in changed)
        raise InputError(f"{folder} was begun with other settings ({said}): give the same, or remove it")
