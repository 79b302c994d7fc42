"""The losses by name: how each is built, and the settings it is best trained with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kedge.config import TrainingConfig
from kedge.errors import ConfigError, nearest_name
from kedge.losses.adaface import AdaFace
from kedge.losses.center import CenterLoss
from kedge.losses.class_anchor_margin import ClassAnchorMargin, LossTerms
from kedge.losses.cross_entropy import CrossEntropy
from kedge.losses.metric_learning import metric_learning_loss

__all__ = [
    "LOSSES",
    "AdaFace",
    "CenterLoss",
    "ClassAnchorMargin",
    "CrossEntropy",
    "LossRecipe",
    "LossTerms",
    "loss_recipe",
]


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


def _center(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
    return CenterLoss(num_classes, dim, label_smoothing=settings.label_smoothing or 0.0)


def _adaface(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
    return AdaFace(num_classes, dim, margin=0.4 if settings.margin is None else settings.margin)


def _of_library(name: str) -> Callable[[int, int, TrainingConfig], nn.Module]:
    def build(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
        return metric_learning_loss(name, num_classes, dim, settings.margin)

    return build


# A recipe's batch size is the largest: small collections take smaller batches.
_SHARED = {"optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.5, "head": "linear", "batch_size": 100}
# What works for class anchors from scratch, until each rival is given tries of its own.
_RIVAL = {**_SHARED, "auxiliary": 0.0}
# Proxies learn a hundred times as fast as the network, as their authors have them.
_PROXIES = {**_RIVAL, "anchor_rate": 100.0}
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
            "center",
            "cross-entropy, and every picture drawn to a learned center of its class",
            "Wen et al., ECCV 2016",
            _center,
            {**_RIVAL, "label_smoothing": 0.1},
        ),
        LossRecipe(
            "contrastive",
            "pairs of a class drawn together, others pushed a margin apart",
            "Hadsell et al., CVPR 2006",
            _of_library("contrastive"),
            _RIVAL,
        ),
        LossRecipe(
            "triplet",
            "semi-hard triplets: the own class nearer than another by a margin",
            "arXiv:1503.03832",
            _of_library("triplet"),
            _RIVAL,
        ),
        LossRecipe(
            "arcface",
            "softmax over angles, an added angle as margin",
            "arXiv:1801.07698",
            _of_library("arcface"),
            _RIVAL,
        ),
        LossRecipe(
            "cosface",
            "softmax over cosines, a lower own cosine as margin",
            "arXiv:1801.09414",
            _of_library("cosface"),
            _RIVAL,
        ),
        LossRecipe(
            "adaface", "softmax over angles, a margin by the embedding's norm", "arXiv:2204.00964", _adaface, _RIVAL
        ),
        LossRecipe(
            "proxy-anchor",
            "a proxy a class, which draws and pushes all pictures of a batch",
            "arXiv:2003.13911",
            _of_library("proxy-anchor"),
            _PROXIES,
        ),
        LossRecipe(
            "proxy-nca",
            "a proxy a class, the own one nearer than the others",
            "arXiv:1703.07464",
            _of_library("proxy-nca"),
            _PROXIES,
        ),
        LossRecipe(
            "supcon",
            "each picture against all of its class in the batch, by softmax",
            "arXiv:2004.11362",
            _of_library("supcon"),
            _RIVAL,
        ),
        LossRecipe(
            "multi-similarity",
            "pairs weighted by how they compare with the others",
            "arXiv:1904.06627",
            _of_library("multi-similarity"),
            _RIVAL,
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
