"""Defaults: what the user left open is filled in by the loss's recipe, the backbone and the pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kedge.config import TrainingConfig
from kedge.datasets import Dataset, Split
from kedge.errors import ConfigError, DatasetError, PictureError
from kedge.losses import USUAL_BRIGHTNESS, LossRecipe
from kedge.network import SMALL_BACKBONE, accepts_any_size, check_backbone, least_image_size
from kedge.picture import read_picture

__all__ = ["resolve"]

# Up to this side, in pixels, pictures are small: a half-width network reads them, and training from scratch is quick.
SMALL_SIDE = 96

# Pictures shown in a whole training run, and the least and most epochs, when the number of epochs is left to us. From
# scratch length is worth more than any other setting (docs/experiments.md); with large pictures it would take hours.
SHOWN_SMALL, SHOWN_OTHERWISE = (160_000, 16, 150), (80_000, 8, 60)

# Batches of large pictures are no larger: memory.
LARGE_PICTURES_AT_ONCE = 100

# A network from scratch that sees so few pictures so often is trained by the loss's settings for that. They win with
# 1,000 pictures and 150 epochs, by other pictures of the training split, not with 2,000 and 80 (docs/experiments.md).
FEW_PICTURES, MANY_EPOCHS = 1_600, 100

# So many training pictures the recipes were chosen on. Weights average over the last 1 / (rate x decay) steps, and what
# counts is over how many epochs (X. Wang, L. Aitchison, arXiv:2405.13698): the more pictures, the less decay. With five
# times as many two of three losses gain a fifth of their mAP by it, or more (docs/experiments.md). Fewer: not tried.
CHOSEN_ON = 9_000

# Power that wins mAP on validation pictures across data sets; more wins a little more, and costs R@1 and strange
# classes (docs/experiments.md).
USUAL_SHARPENING = 1.5


def resolve(
    config: TrainingConfig, recipe: LossRecipe, dataset: Dataset, tried: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Return the settings with every open one filled in; raise ConfigError for those that exclude each other.

    tried: settings in place of the recipe's, which are fitted to the collection as those are.
    """
    count, classes = len(dataset.train), len(dataset.classes)
    side = config.image_size or _usual_side(dataset.train)
    small = side <= SMALL_SIDE and not config.pretrained
    backbone = config.backbone or (SMALL_BACKBONE if small else "resnet18")
    check_backbone(backbone, pretrained=config.pretrained)
    from_scratch = not (config.pretrained or config.freeze_backbone)
    image_size = max(side, least_image_size(backbone))
    shown, least, most = SHOWN_SMALL if from_scratch and image_size <= SMALL_SIDE else SHOWN_OTHERWISE
    epochs = config.epochs or min(most, max(least, -(-shown // max(1, count))))
    open_settings: dict[str, Any] = {"brightness": USUAL_BRIGHTNESS, **recipe.settings}
    if from_scratch and count <= FEW_PICTURES and epochs >= MANY_EPOCHS:
        open_settings |= {"brightness": USUAL_BRIGHTNESS, **recipe.few_picture_settings}
    if not from_scratch:
        open_settings["brightness"] = USUAL_BRIGHTNESS
    by_recipe = from_scratch and accepts_any_size(backbone)
    if not by_recipe:
        # Weight decay of 0.5 and a rate of 4e-3 are for small convolutional networks from scratch.
        open_settings |= {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05}
    if config.freeze_backbone:
        open_settings |= {"auxiliary": 0.0, "head": "linear", "learning_rate": 1e-3}
    if image_size > SMALL_SIDE:
        open_settings["batch_size"] = min(open_settings["batch_size"], LARGE_PICTURES_AT_ONCE)
    open_settings |= tried or {}
    if by_recipe and "weight_decay" in open_settings:
        open_settings["weight_decay"] *= min(1.0, CHOSEN_ON / max(1, count))
    open_settings |= {
        "backbone": backbone,
        "image_size": image_size,
        "dim": min(512, 64 * -(-classes // 64)),
        "epochs": epochs,
        "batch_size": min(open_settings["batch_size"], max(16, count // 16)),
        "flip": dataset.mirror,
    }
    together = open_settings.get("together")
    if together and (config.batch_size or open_settings["batch_size"]) >= together * classes:
        open_settings["together"] = 1  # a batch holds as many of each class by chance
    recipe.check(config.model_dump(exclude_none=True))
    for name in ("flip", "brightness"):
        if config.freeze_backbone and getattr(config, name) is not None:
            raise ConfigError(f"a frozen backbone is shown each picture once, as it is: leave {name} out")
    if config.freeze_backbone and config.auxiliary:
        raise ConfigError("a frozen backbone learns nothing from a classifier beside the loss: leave auxiliary out")
    if recipe.build is None and (config.features != "embedding" or config.freeze_backbone):
        raise ConfigError("the loss none takes the backbone as it is: leave features and freeze_backbone out")
    if recipe.build is None and config.head == "linear":
        raise ConfigError("the loss none trains no head: leave head out")
    if config.freeze_backbone and (config.head == "none" or config.features == "pooled"):
        raise ConfigError(
            "a frozen backbone has its head trained, and nothing else: leave head and features out, "
            "or take its features as they are with the loss none"
        )
    if config.features == "softmax" and not recipe.classifies:
        raise ConfigError(
            f"the loss {recipe.name} learns no classifier: features softmax goes with cross-entropy or center"
        )
    if classes <= 2 and (config.sharpening or 1.0) > 1.0:
        raise ConfigError("sharpening would turn all pictures of two classes to one of two points: leave it out")
    # The few pictures of shots lie at their anchors; the rest of a gallery does not, and would lose R@1.
    sharpens = recipe.on_sphere and config.features == "embedding" and not config.shots and classes > 2
    open_settings["sharpening"] = USUAL_SHARPENING if sharpens else 1.0
    given = config.model_dump(exclude_none=True)
    if "image_size" in given:
        given["image_size"] = image_size
    if config.mirrored and not given.get("flip", dataset.mirror):
        raise ConfigError("mirror images of these pictures are not trained on (flip): leave mirrored out")
    if "dim" in given and recipe.build is not None:
        if config.head == "none":
            raise ConfigError('head = "none" makes embeddings of the pooled features as they are: leave --dim out')
        open_settings["head"] = "linear"
    merged = {**open_settings, **given}
    if merged.get("head") == "none":
        merged.pop("dim")
    return TrainingConfig.model_validate(merged)


def _usual_side(split: Split) -> int:
    """Return the median shorter side of some of the pictures, a multiple of 8 from 8 to 224."""
    sides: list[int] = []
    reason = ""
    for path in split.paths[:: max(1, len(split) // 64)]:
        try:
            picture = read_picture(path)
        except PictureError as error:
            reason = reason or str(error)
            continue
        sides.append(min(picture.width, picture.height))
    if not sides:
        raise DatasetError(f"none of the training pictures can be read, such as {reason}: give others")
    return int(min(224, max(8, round(float(np.median(sides)) / 8) * 8)))
