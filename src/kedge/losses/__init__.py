"""The losses by name: how each is built, and the settings it is best trained with."""

from collections.abc import Callable, Iterable, Mapping
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
    "USUAL_BRIGHTNESS",
    "AdaFace",
    "CenterLoss",
    "ClassAnchorMargin",
    "CrossEntropy",
    "LossRecipe",
    "LossTerms",
    "loss_recipe",
]


# Every loss gets the same tries of optimiser, rate and decay, its own among them; then two of its main setting, then a
# smaller batch (a larger one for losses of pairs, which find more of them there), then the brightness of views that
# its recipe has not: as many for each, none of them twice.
OPTIMISER_TRIES: tuple[Mapping[str, Any], ...] = tuple(
    {"optimizer": optimizer, "learning_rate": rate, "weight_decay": decay, "batch_size": 100}
    for optimizer, rate, decay in (
        ("adamw", 4e-3, 0.5),
        ("adamw", 4e-3, 0.25),
        ("adamw", 4e-3, 0.1),
        ("adamw", 1e-3, 0.5),
        ("adamw", 1e-3, 0.1),
        ("sgd", 0.05, 0.02),
        ("sgd", 0.05, 0.01),
        ("sgd", 0.05, 0.005),
    )
)
SMALL_BATCH, LARGE_BATCH = 50, 200

# Range of brightness in training views, where a loss's recipe has none of its own.
USUAL_BRIGHTNESS = 0.4


@dataclass(frozen=True)
class LossRecipe:
    """A loss by name. `build(num_classes, dim, settings)` makes it; None: nothing is trained.

    `settings` are the TrainingConfig values that this loss is best trained with, chosen on validation pictures;
    `few_picture_settings` go over them where few pictures are seen often.
    `on_sphere`: its embedding is the unit vector. `learns_anchors`: it has anchors of its own; class means serve else.
    """

    name: str
    summary: str
    source: str
    build: Callable[[int, int, TrainingConfig], nn.Module] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    few_picture_settings: Mapping[str, Any] = field(default_factory=dict)
    on_sphere: bool = False
    learns_anchors: bool = False
    classifies: bool = False
    """It has a linear classifier on the embedding, whose probabilities can be stored: `features="softmax"`."""
    reads: tuple[str, ...] = ()
    """Which of the settings that not every loss has go into it."""
    own_tries: tuple[Mapping[str, Any], ...] = ()
    """Other values of its main setting, tried when settings are chosen on validation pictures."""
    batch_try: int = SMALL_BATCH
    """Another size of batches to try then; all else is tried with 100."""

    def check(self, given: Iterable[str]) -> None:
        """Raise ConfigError when one of the settings given by name goes into other losses alone."""
        foreign = sorted({*given} & ({name for recipe in LOSSES.values() for name in recipe.reads} - {*self.reads}))
        if foreign:
            known = f"of these it has {', '.join(self.reads)}" if self.reads else "it has none of the kind"
            raise ConfigError(f"'{foreign[0]}' is no setting of the loss {self.name}: leave it out; {known}")

    def tries(self) -> tuple[tuple[Mapping[str, Any], ...], ...]:
        """Return the settings to try, stage by stage: the best of a stage is kept for the next."""
        if not self.build:
            return ()
        brightness = self.settings.get("brightness", USUAL_BRIGHTNESS)
        # What later stages change is stated from the first: with few pictures or a pretrained network defaults differ.
        varied = {name for tried in self.own_tries for name in tried}
        stated = {name: value for name, value in self.settings.items() if name in varied} | {"brightness": brightness}
        optimisers = tuple({**stated, **tried} for tried in OPTIMISER_TRIES)
        other = 0.0 if brightness else USUAL_BRIGHTNESS
        return optimisers, self.own_tries, ({"batch_size": self.batch_try},), ({"brightness": other},)


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
    weight = 0.003 if settings.scale is None else settings.scale
    return CenterLoss(num_classes, dim, weight=weight, label_smoothing=settings.label_smoothing or 0.0)


def _adaface(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
    margin, scale = settings.margin or 0.4, settings.scale or 64.0
    return AdaFace(num_classes, dim, margin=margin, scale=scale)


def _of_library(name: str) -> Callable[[int, int, TrainingConfig], nn.Module]:
    def build(num_classes: int, dim: int, settings: TrainingConfig) -> nn.Module:
        return metric_learning_loss(name, num_classes, dim, margin=settings.margin, scale=settings.scale)

    return build


# A recipe's batch size is the largest: small collections take smaller batches.
_SHARED = {"optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.5, "head": "linear", "batch_size": 100}
# The best of each loss's tries on validation pictures (docs/experiments.md).
_RIVAL = {**_SHARED, "auxiliary": 0.0}
_SGD = {**_RIVAL, "optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.005}
# In batches drawn at random hardly a picture of many classes would meet another of its own.
_PAIRS = {"together": 4, "brightness": 0.0}
_FEW = {"optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.5}
# Squared distances to anchors underfit: views as bright as the pictures are get further than varied ones.
_ANCHORS = {"margin": 8.0, "anchor_start": "auto", "learnable_anchors": True, "brightness": 0.0}
_ANCHORS_READ = ("margin", "anchor_start", "learnable_anchors", "reduction")

LOSSES: dict[str, LossRecipe] = {
    recipe.name: recipe
    for recipe in (
        LossRecipe(
            "cam-sphere",
            "class-anchor margin on a sphere, with a throw-away classifier beside it (the default)",
            "this project, after arXiv:2306.00630",
            _class_anchor_margin(sphere=True),
            {**_SHARED, **_ANCHORS, "auxiliary": 0.3, "batch_size": 50, "weight_decay": 0.25},
            few_picture_settings={"mixup": 1.0, "weight_decay": 0.5},
            on_sphere=True,
            learns_anchors=True,
            reads=_ANCHORS_READ,
            own_tries=({"auxiliary": 0.1}, {"auxiliary": 1.0}),
        ),
        LossRecipe(
            "cam",
            "class-anchor margin, the paper's formula",
            "arXiv:2306.00630",
            _class_anchor_margin(sphere=False),
            {**_SHARED, **_ANCHORS, "auxiliary": 0.0},
            few_picture_settings={"mixup": 1.0},
            learns_anchors=True,
            reads=(*_ANCHORS_READ, "least_norm"),
            own_tries=({"margin": 4.0}, {"margin": 16.0}),
        ),
        LossRecipe(
            "cross-entropy",
            "softmax cross-entropy of a linear classifier",
            "the usual classifier",
            _cross_entropy,
            {
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "weight_decay": 0.01,
                "label_smoothing": 0.2,
                "brightness": 0.0,
                "head": "none",
                "auxiliary": 0.0,
                "batch_size": 100,
            },
            few_picture_settings={"weight_decay": 0.02, "label_smoothing": 0.1},
            reads=("label_smoothing",),
            own_tries=({"label_smoothing": 0.0}, {"label_smoothing": 0.1}),
            classifies=True,
        ),
        LossRecipe(
            "center",
            "cross-entropy, and every picture drawn to a learned center of its class",
            "Wen et al., ECCV 2016",
            _center,
            {**_SGD, "label_smoothing": 0.1, "scale": 0.01, "brightness": 0.0},
            few_picture_settings=_FEW,
            reads=("scale", "label_smoothing"),
            own_tries=({"scale": 0.001}, {"scale": 0.003}),
            classifies=True,
        ),
        LossRecipe(
            "contrastive",
            "pairs of a class drawn together, others pushed a margin apart",
            "Hadsell et al., CVPR 2006, hinges not squared",
            _of_library("contrastive"),
            {**_SGD, **_PAIRS},
            few_picture_settings={"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
            reads=("margin",),
            own_tries=({"margin": 0.5}, {"margin": 1.4}),
            batch_try=LARGE_BATCH,
        ),
        LossRecipe(
            "triplet",
            "semi-hard triplets: the own class nearer than another by a margin",
            "arXiv:1503.03832, distances not squared",
            _of_library("triplet"),
            {**_RIVAL, **_PAIRS, "learning_rate": 1e-3, "margin": 0.1},
            reads=("margin",),
            own_tries=({"margin": 0.2}, {"margin": 0.5}),
            batch_try=LARGE_BATCH,
        ),
        LossRecipe(
            "arcface",
            "softmax over angles, an added angle as margin",
            "arXiv:1801.07698",
            _of_library("arcface"),
            _SGD,
            few_picture_settings={"weight_decay": 0.02},
            reads=("margin", "scale"),
            own_tries=({"scale": 16.0}, {"scale": 32.0}),
        ),
        LossRecipe(
            "cosface",
            "softmax over cosines, a lower own cosine as margin",
            "arXiv:1801.09414",
            _of_library("cosface"),
            {**_RIVAL, "scale": 4.0, "weight_decay": 0.25, "brightness": 0.0},
            few_picture_settings={"weight_decay": 0.5},
            reads=("margin", "scale"),
            own_tries=({"scale": 2.0}, {"scale": 8.0}),
        ),
        LossRecipe(
            "adaface",
            "softmax over angles, a margin by the embedding's norm",
            "arXiv:2204.00964",
            _adaface,
            {**_RIVAL, "scale": 4.0, "weight_decay": 0.25, "brightness": 0.0},
            few_picture_settings={"weight_decay": 0.5},
            reads=("margin", "scale"),
            own_tries=({"scale": 2.0}, {"scale": 8.0}),
        ),
        LossRecipe(
            "fixed-anchors",
            "squared distance to anchors that stay where they start, nothing else",
            "after arXiv:1804.08087, from its description: the paper was not at hand",
            _class_anchor_margin(sphere=False),
            {**_RIVAL, **_ANCHORS, "learnable_anchors": False, "weight_decay": 0.1, "batch_size": 50},
            learns_anchors=True,
            reads=(*_ANCHORS_READ, "least_norm"),
            own_tries=({"margin": 4.0}, {"margin": 16.0}),
        ),
        LossRecipe(
            "proxy-anchor",
            "a proxy a class, which draws and pushes all pictures of a batch",
            "arXiv:2003.13911",
            _of_library("proxy-anchor"),
            {**_RIVAL, "anchor_rate": 100.0, "scale": 8.0, "brightness": 0.0},
            few_picture_settings={**_SGD, "batch_size": 50},
            reads=("margin", "scale"),
            own_tries=({"scale": 16.0}, {"anchor_rate": 10.0}),
        ),
        LossRecipe(
            "proxy-nca",
            "a proxy a class, the own one nearer than the others",
            "arXiv:1703.07464, the own proxy in the sum",
            _of_library("proxy-nca"),
            # Proxies learn ten times as fast as the network.
            {**_SGD, "anchor_rate": 10.0, "scale": 1.5, "brightness": 0.0},
            few_picture_settings={**_FEW, "batch_size": 50, "scale": 3.0},
            reads=("scale",),
            own_tries=({"scale": 3.0}, {"anchor_rate": 100.0}),
        ),
        LossRecipe(
            "supcon",
            "each picture against all of its class in the batch, by softmax",
            "arXiv:2004.11362",
            _of_library("supcon"),
            {**_RIVAL, **_PAIRS, "weight_decay": 0.1, "batch_size": LARGE_BATCH},
            reads=("scale",),
            own_tries=({"scale": 5.0}, {"scale": 20.0}),
            batch_try=LARGE_BATCH,
        ),
        LossRecipe(
            "multi-similarity",
            "pairs weighted by how they compare with the others",
            "arXiv:1904.06627",
            _of_library("multi-similarity"),
            {**_RIVAL, **_PAIRS, "scale": 5.0, "batch_size": LARGE_BATCH},
            reads=("scale",),
            own_tries=({"scale": 2.5}, {"scale": 20.0}),
            batch_try=LARGE_BATCH,
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
