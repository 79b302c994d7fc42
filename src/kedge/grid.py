"""Grid: what a comparison runs: data sets x backbones x losses x shots x seeds, from a TOML file or flags."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from re import fullmatch
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kedge.config import TrainingConfig, with_preset
from kedge.datasets import PUBLISHED, place_of
from kedge.errors import ConfigError, DatasetError, nearest_name
from kedge.losses import LOSSES, loss_recipe
from kedge.network import check_backbone

__all__ = ["Cell", "Grid", "Shots", "Tries", "name_of"]

LISTS = ("datasets", "backbones", "losses", "shots", "seeds")
# What the grid itself says of a cell; settings leave it alone.
BY_THE_GRID = ("loss", "backbone", "seed", "shots", "classes")
Shots = int | Literal["full"]


@dataclass(frozen=True)
class Cell:
    """One training to be measured."""

    dataset: str
    """The data set's name, or its folder's."""
    backbone: str
    loss: str
    shots: Shots
    seed: int

    @property
    def name(self) -> str:
        """The name of its model's folder."""
        return "-".join(str(part) for part in asdict(self).values())


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tries(_Closed):
    """How settings are chosen: each loss's tries, trained with seed 0 and compared by validation mAP."""

    dataset: str | None = None
    """None: the first of the grid."""
    backbone: str | None = None
    """None: the first of the grid."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all tries, such as fewer epochs."""


class Grid(_Closed):
    """What a comparison runs. Data sets are names, folders or lists; `shots` are numbers, or `full`.

    settings: of every cell. variants: losses by another name and with other settings, such as
    `{"softmax": {"loss": "cross-entropy", "features": "softmax"}}`. unseen_classes: the last classes, in sorted order,
    that are left out of training and measured apart. classes: only the first N, in sorted order; None: all.
    tries: None takes each loss's own settings.
    """

    datasets: tuple[str, ...] = Field(min_length=1)
    backbones: tuple[str, ...] = Field(("resnet10-half",), min_length=1)
    losses: tuple[str, ...] = Field(("cam-sphere", "cam", "cross-entropy"), min_length=1)
    shots: tuple[Shots, ...] = Field(("full",), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    classes: int | None = Field(None, ge=2, strict=True)
    unseen_classes: int = Field(0, ge=0, strict=True)
    settings: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tries: Tries | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Check a grid's values by name; raise ConfigError or DatasetError for what cannot be run."""
        _check_shape(values)
        try:
            grid = cls.model_validate(_with_presets(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"'{where}' of the grid cannot be {first['input']!r}: {first['msg'].lower()}") from error
        grid._check()
        return grid

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """Return the values in a TOML file, not yet checked; folders in it are relative to the file."""
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, and a grid a TOML file: give pictures with --data {path}")
        values = TrainingConfig.read(path)

        def placed(data: Any) -> Any:
            if not isinstance(data, str) or data in PUBLISHED or not data.strip():
                return data
            beside = path.parent / data
            return str(beside) if beside.exists() else data

        if isinstance(values.get("datasets"), list):
            values["datasets"] = [placed(data) for data in values["datasets"]]
        tries = values.get("tries")
        if isinstance(tries, dict) and "dataset" in tries:
            tries["dataset"] = placed(tries["dataset"])
        return values

    def _check(self) -> None:
        for name, variant in self.variants.items():
            # It is part of a folder's name.
            if not fullmatch(r"[^\W_][\w .+=-]*", name):
                raise ConfigError(
                    f"a variant cannot be called '{name}': begin with a letter or digit, and take these, spaces and "
                    ". + = - _"
                )
            if "loss" not in variant:
                raise ConfigError(f"the variant '{name}' names no loss: give it one, such as loss = \"cam-sphere\"")
            loss_recipe(str(variant["loss"]))
            if name in LOSSES and variant["loss"] != name:
                raise ConfigError(f"a variant of {variant['loss']} cannot be called '{name}', as another loss is")
        for name in dict.fromkeys(self.losses):
            known = [*self.variants, *LOSSES]
            if name not in known:
                hint = nearest_name(name, known)
                raise ConfigError(f"no loss or variant is named '{name}'{hint}: there are {', '.join(known)}")
            settings = self.settings_of(name)
            recipe = loss_recipe(str(settings["loss"]))
            for given in (self.settings, self.variants.get(name, {}), self.tries.settings if self.tries else {}):
                recipe.check(given)
            if self.tries and {**settings, **self.tries.settings}.get("validation_share") == 0:
                raise ConfigError("tries need validation pictures: leave validation_share = 0 out")
        shared = (self.settings, self.tries.settings if self.tries else {})
        for given in (*shared, *self.variants.values()):
            taken = [name for name in BY_THE_GRID if name in given and (name != "loss" or given in shared)]
            if taken:
                raise ConfigError(f"'{taken[0]}' stands in the grid's settings: the grid itself says it, leave it out")
            TrainingConfig.of(given)
        for data in (*self.datasets, *([self.tries.dataset] if self.tries and self.tries.dataset else [])):
            if data not in PUBLISHED and not (data.strip() and Path(data).exists()):
                hint = " (one set at a time: give --data for each)" if "," in data else nearest_name(data, PUBLISHED)
                raise DatasetError(
                    f"no data at '{data}'{hint}: give a folder, a list, or one of {', '.join(PUBLISHED)}"
                )
        names = [name_of(data) for data in dict.fromkeys(map(place_of, self.datasets))]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"two data sets are called '{twice}': rename one folder, results go by the name")
        for shots in self.shots:
            if shots != "full" and shots < 1:
                raise ConfigError(f"shots cannot be {shots}: give numbers from 1, or full")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ConfigError(f"a seed cannot be {seed}: give numbers from 0, below {2**32}")
        tried_on = [self.tries.backbone] if self.tries and self.tries.backbone else []
        for backbone in {*self.backbones, *tried_on} - {"auto"}:
            check_backbone(backbone, pretrained=bool(self.settings.get("pretrained")))

    def after(self, begun: "Grid | None") -> Self:
        """Return all that was asked for so far: of this grid, and of that which a comparison was begun with.

        Rows go by names. Raises ConfigError where one stands for other pictures or settings than before.
        """
        datasets = tuple(map(place_of, self.datasets))
        grid = self.model_copy(update={"datasets": datasets})
        if grid.tries:
            # What it leaves open is as it was, or the first of the grid.
            known = (begun and begun.tries) or Tries(dataset=datasets[0], backbone=self.backbones[0])
            place = place_of(grid.tries.dataset) if grid.tries.dataset else known.dataset
            filled = {"dataset": place, "backbone": grid.tries.backbone or known.backbone}
            grid = grid.model_copy(update={"tries": grid.tries.model_copy(update=filled)})
        if begun is None:
            return grid
        before, now = begun.model_dump(), grid.model_dump()
        changes = {name: (before[name], now[name]) for name in ("settings", "classes", "unseen_classes", "tries")}
        for loss in {*begun.losses} & {*grid.losses}:
            changes[f"settings of '{loss}'"] = begun.variants.get(loss), grid.variants.get(loss)
        places = {name_of(data): data for data in begun.datasets}
        for data in datasets:
            changes[f"pictures called '{name_of(data)}'"] = places.get(name_of(data), data), data
        for what, (was, asked) in changes.items():
            if was != asked:
                raise ConfigError(
                    f"the comparison was begun with other {what} ({was!r}, now {asked!r}): choose another --out, or "
                    "remove it"
                )
        joined = {name: tuple(dict.fromkeys((*before[name], *now[name]))) for name in LISTS}
        run = {loss: each.variants[loss] for each in (begun, grid) for loss in each.losses if loss in each.variants}
        return grid.model_copy(update={**joined, "variants": run})

    def cells(self) -> list[Cell]:
        """Return every cell, seed by seed, so that a comparison cut short compares like with like."""
        places = product(
            dict.fromkeys(self.seeds),
            dict.fromkeys(self.datasets),
            dict.fromkeys(self.backbones),
            dict.fromkeys(self.shots),
            dict.fromkeys(self.losses),
        )
        return [Cell(name_of(data), backbone, loss, shots, seed) for seed, data, backbone, shots, loss in places]

    def data(self, name: str) -> str:
        """Return a data set as it was given, by its name."""
        return next(data for data in self.datasets if name_of(data) == name)

    def settings_of(self, loss: str) -> dict[str, Any]:
        """Return the settings of a loss or variant, with the loss's name."""
        classes = {} if self.classes is None else {"classes": self.classes}
        if loss in self.variants:
            return {**self.settings, **self.variants[loss], **classes}
        return {**self.settings, **classes, "loss": loss}


def _check_shape(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for names and lists that a grid cannot have, in the words of its file."""
    settings = {*TrainingConfig.model_fields}
    for name, value in values.items():
        if name not in Grid.model_fields and name in settings:
            raise ConfigError(f"'{name}' is a setting of cells: it stands below [settings], or in a variant")
        if name not in Grid.model_fields:
            known = ", ".join(Grid.model_fields)
            raise ConfigError(f"a grid has no '{name}'{nearest_name(name, Grid.model_fields)}; it has {known}")
        if name in LISTS and not isinstance(value, list | tuple):
            raise ConfigError(f"'{name}' of the grid is a list: write {name} = [{json.dumps(value, default=str)}]")
    for name, word, words in (("shots", "numbers from 1, or full", ("full",)), ("seeds", "numbers from 0", ())):
        wrong = [
            each
            for each in values.get(name, ())
            if not (isinstance(each, int) and not isinstance(each, bool)) and each not in words
        ]
        if wrong:
            raise ConfigError(f"{name} cannot be {wrong[0]!r}: give {word}, separated by commas")
    tries = values.get("tries")
    misplaced = settings & {*tries} - {*Tries.model_fields} if isinstance(tries, Mapping) else set()
    if misplaced:
        raise ConfigError(f"'{min(misplaced)}' is a setting of tries: it stands below [tries.settings]")
    if isinstance(tries, Mapping) and (unknown := {*tries} - {*Tries.model_fields}):
        hint = nearest_name(min(unknown), Tries.model_fields)
        raise ConfigError(f"tries have no '{min(unknown)}'{hint}; they have {', '.join(Tries.model_fields)}")


def _with_presets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a grid's values with the settings of presets in the presets' place, wherever settings stand."""

    def expanded(settings: Any) -> Any:
        return with_preset(settings) if isinstance(settings, Mapping) else settings

    def of_all(settings: Any) -> Any:
        found = expanded(settings)
        if isinstance(settings, Mapping) and "preset" in settings and "loss" in found:
            raise ConfigError(
                f"the preset '{settings['preset']}' names a loss, so it cannot be a setting of all: make it a variant, "
                f'such as [variants.NAME] with preset = "{settings["preset"]}"'
            )
        return found

    found = {name: of_all(value) if name == "settings" else value for name, value in values.items()}
    if isinstance(found.get("variants"), Mapping):
        found["variants"] = {name: expanded(variant) for name, variant in found["variants"].items()}
    if isinstance(found.get("tries"), Mapping) and "settings" in found["tries"]:
        found["tries"] = {**found["tries"], "settings": of_all(found["tries"]["settings"])}
    return found


def name_of(data: str) -> str:
    """Return what a data set is called in tables: its name, its folder's, or that of its list without the suffix."""
    place = Path(place_of(data))
    # By the suffix: rows of pictures that have been moved away since keep their name.
    return place.stem if place.suffix.lower() in (".csv", ".parquet") and not place.is_dir() else place.name
