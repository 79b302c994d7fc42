"""The losses by name: how each is built, and the settings it is best trained with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kedge.config import TrainingConfig
from kedge.errors import ConfigError, nearest_name
from kedge.losses.class_anchor_margin import ClassAnchorMargin, LossTerms
from kedge.losses.cross_entropy import CrossEntropy

__all__ = ["LOSSES", "ClassAnchorMargin", "CrossEntropy", "LossRecipe", "LossTerms", "loss_recipe"]


@dataclass(frozen=True)
class LossRecipe:
    """A loss by name. `build(num_classes, dim, settings)` makes it; None: nothing is trained.

    `settings` are the TrainingConfig values that this loss is best trained with, chosen on validation pictures.
    `on_sphere`: its embedding is the unit vector. `learns_anchors`: it has anchors of its own; class means serve else.
    """

    name: str
    summary: str
    source: str
    build: Callable[[int, int, TrainingConfig], nn.Module] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_sphere: bool = False
    learns_anchors: bool = False


def _class_anchor_margin(sphere: bool) -> Callable[[int, int, TrainingConfig], nn.Module]:
    def build(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
        return ClassAnchorMargin(
            num_classes,
            dim,
            sphere=sphere,
            margin=settings.margin or 8.0,
            least_norm=1.0 if settings.least_norm is None else settings.least_norm,
            reduction=settings.reduction or "sum",
            start=settings.anchor_start or "auto",
            learnable=settings.learnable_anchors is not False,
        )

    return build


def _cross_entropy(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
    return CrossEntropy(num_classes, dim, label_smoothing=settings.label_smoothing or 0.0)


# A recipe's batch size is the largest: small collections take smaller batches.
_SHARED = {"optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.5, "head": "linear", "batch_size": 100}
_ANCHORS = {"margin": 8.0, "least_norm": 1.0, "anchor_start": "auto", "learnable_anchors": True}

LOSSES: dict[str, LossRecipe] = {
    recipe.name: recipe
    for recipe in (
        LossRecipe(
            "cam-sphere",
            "class-anchor margin on a sphere, with a throw-away classifier beside it (the default)",
            "this project, after arXiv:2306.00630",
            _class_anchor_margin(sphere=True),
            {**_SHARED, **_ANCHORS, "auxiliary": 0.3, "batch_size": 50},
            on_sphere=True,
            learns_anchors=True,
        ),
        LossRecipe(
            "cam",
            "class-anchor margin, the paper's formula",
            "arXiv:2306.00630",
            _class_anchor_margin(sphere=False),
            {**_SHARED, **_ANCHORS, "auxiliary": 0.0},
            learns_anchors=True,
        ),
        LossRecipe(
            "cross-entropy",
            "softmax cross-entropy of a linear classifier",
            "the usual classifier",
            _cross_entropy,
            {
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "weight_decay": 0.02,
                "label_smoothing": 0.1,
                "head": "none",
                "auxiliary": 0.0,
                "batch_size": 100,
            },
        ),
        LossRecipe(
            "none",
            "the backbone's pooled features as they are; class means serve as anchors",
            "no training",
            None,
            {"head": "none", "auxiliary": 0.0, "batch_size": 100},
        ),
    )
}


def loss_recipe(name: str) -> LossRecipe:
    """Return a loss by name; raise ConfigError naming the nearest."""
    if name not in LOSSES:
        raise ConfigError(f"no loss is named '{name}'{nearest_name(name, LOSSES)}: there are {', '.join(LOSSES)}")
    return LOSSES[name]
