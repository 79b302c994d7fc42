"""Settings of a training run: typed, closed and the same from the command line, a TOML file and Python."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kedge.errors import ConfigError, nearest_name

__all__ = ["READ_OUT", "Features", "TrainingConfig", "with_preset"]

Features = Literal["embedding", "pooled", "joint", "softmax"]

# Settings that say what is stored of a trained network; the training is the same by any of them.
READ_OUT = ("features", "distance", "mirrored", "sharpening")

# Settings known by a name of their own, given as --preset or `preset =` in a TOML file.
PRESETS: dict[str, dict[str, Any]] = {"paper-like": {"loss": "cam", "margin": 2.0, "weight_decay": 0.02}}


class TrainingConfig(BaseModel):
    """What a training run is told. None means: what the loss, the backbone or the pictures ask for.

    The resolved values, without a None, are stored in the model's `kedge.json`.
    """

    # Strict: "20", 20.0 and true are no numbers of epochs, and "yes" is no truth value.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    loss: str = "cam-sphere"
    backbone: str | None = None
    """`resnet10-half` or any timm model; None: `resnet10-half` up to 96 px, `resnet18` above or when pretrained."""
    pretrained: bool = False
    freeze_backbone: bool = False
    """Train the head alone, on features computed once."""
    image_size: int | None = Field(None, ge=8, le=1024)
    """None: the median shorter side of the training pictures, at most 224."""
    head: Literal["linear", "none"] | None = None
    dim: int | None = Field(None, ge=1, le=4096)
    """None: 64, or the number of classes rounded up to the next 64, at most 512."""
    features: Features = "embedding"
    distance: Literal["l2", "cosine", "auto"] = "auto"
    mirrored: bool = False
    """Store the mean over a picture and its mirror image; encoding takes twice the time."""

    epochs: int | None = Field(None, ge=1)
    """None: as many as show 80,000 pictures, 8 to 60; from scratch with pictures up to 96 px 160,000 and 16 to 150."""
    batch_size: int | None = Field(None, ge=2)
    """None: 50 to 200, as the loss has it, or less for few pictures: an epoch has some 16 steps; at least 16."""
    together: int | None = Field(None, ge=1)
    """So many pictures of a class come together, for batches to hold pairs. None: 4 for losses of pairs, where a batch
    has fewer by chance; else 1."""
    seed: int = Field(0, ge=0, lt=2**32)
    shots: int | None = Field(None, ge=1)
    classes: int | None = Field(None, ge=2)
    """Only the first N classes, in sorted order."""
    validation_share: float = Field(0.1, ge=0.0, lt=0.9)

    optimizer: Literal["adamw", "sgd"] | None = None
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    """On backbone and head; anchors and classifiers have none. None: as the loss has it, from scratch less of it where
    more than 9,000 pictures are trained on, in proportion."""
    anchor_rate: float | None = Field(None, gt=0)
    """Learning rate of the loss's parameters, relative to the network's; None: as the loss has it, 1 for most."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls by a cosine after them."""
    gradient_clip: float | None = Field(None, gt=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    flip: bool | None = None
    """Mirror pictures left-right; None: yes, but for digits."""
    brightness: float | None = Field(None, ge=0, lt=1)
    """b: pictures are made darker or brighter by factors from 1 - b to 1 + b. None: 0, but 0.4 for `arcface`,
    with pretrained weights or a frozen backbone, and where few pictures are seen often."""
    mixup: float | None = Field(None, ge=0)
    """Blend pictures of a batch two by two, in shares drawn from Beta(mixup, mixup); 0: not at all.
    None: 0, but 1 for `cam` and `cam-sphere` from scratch with up to 1,600 pictures, in 100 epochs and more."""

    margin: float | None = Field(None, gt=0)
    scale: float | None = Field(None, gt=0)
    """Of the loss: s of arcface, cosface and adaface, alpha of proxy-anchor, beta of multi-similarity, the softmax
    scale of proxy-nca, 1 / temperature of supcon, the weight of center; None: what its tries have chosen."""
    least_norm: float | None = Field(None, ge=0)
    anchor_start: Literal["auto", "base", "simplex", "random"] | None = None
    learnable_anchors: bool | None = None
    reduction: Literal["sum", "mean"] | None = None
    sharpening: float | None = Field(None, ge=1, le=16)
    """Power by which stored vectors are turned to the anchors near them, or to class means; 1: not at all.
    None: 1, but 1.5 for the embedding of `cam-sphere` without shots and of more than two classes."""
    auxiliary: float | None = Field(None, ge=0)
    """Weight of the cross-entropy of a throw-away classifier on the pooled features."""
    label_smoothing: float | None = Field(None, ge=0, lt=1)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Check settings by name; raise ConfigError for an unknown one (naming the nearest) or an impossible value."""
        settings = with_preset(settings)
        for name in settings:
            if name in ("settings", "datasets", "losses", "variants"):
                raise ConfigError(f"'{name}' is of a grid, which `kedge compare` takes: settings stand by themselves")
            if name not in cls.model_fields:
                known = ", ".join(sorted({*cls.model_fields, "preset"}))
                raise ConfigError(
                    f"no setting is named '{name}'{nearest_name(name, cls.model_fields)}; there are {known}"
                )
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"setting '{where}' cannot be {first['input']!r}: {first['msg'].lower()}") from error

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """Return the settings in a TOML file by name, not yet checked; ConfigError for a file that cannot be read."""
        try:
            return tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no settings file at {path}") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of the preset that they name, if they name one; raise ConfigError for no such."""
    settings = dict(settings)
    preset = settings.pop("preset", None)
    if preset is None:
        return settings
    if not isinstance(preset, str) or preset not in PRESETS:
        near = nearest_name(str(preset), PRESETS)
        raise ConfigError(f"no preset is named {preset!r}{near}: there is {', '.join(PRESETS)}")
    own = PRESETS[preset]["loss"]
    if settings.get("loss", own) != own:
        raise ConfigError(f"the preset {preset} is of the loss {own}, not {settings['loss']}: leave one of the two out")
    return {**PRESETS[preset], **settings}
