"""Network: a backbone, pooled features and an embedding head, as one graph from uint8 pictures to embeddings."""

from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from kedge.config import Features
from kedge.errors import ConfigError, first_line, nearest_name

__all__ = [
    "SMALL_BACKBONE",
    "Network",
    "StoredEmbedding",
    "accepts_any_size",
    "build_backbone",
    "check_backbone",
    "earlier_dim",
    "least_image_size",
    "sharpened",
]

SMALL_BACKBONE = "resnet10-half"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What timm's models raise for pictures of a size that they cannot read.
MISFITS = (RuntimeError, AssertionError, ValueError, IndexError)
# A last feature map smaller than this leaves nothing to pool.
LEAST_MAP = 4


class Network(nn.Module):
    """Pictures (n, s, s, 3) uint8, or floats in 0..255 -> (embeddings (n, d), pooled features (n, f)).

    The backbone sees the middle `view_size` pixels: what it is trained on are cuts of that size, and on whole pictures
    it does worse (by a tenth of the mAP at 64 px). `dim=None` leaves the head out: the embedding is then the pooled
    features. `on_sphere` makes embeddings unit length as part of the network, as the losses on the sphere mean them.
    """

    mean: Tensor
    std: Tensor
    feature_mean: Tensor

    def __init__(self, backbone: str, *, image_size: int, dim: int | None, pretrained: bool, on_sphere: bool) -> None:
        super().__init__()
        check_backbone(backbone, pretrained=pretrained)
        # 7/8 of the picture where the backbone takes it, a multiple of 4.
        self.view_size = max(8, image_size * 7 // 8 // 4 * 4) if accepts_any_size(backbone) else image_size
        self.backbone = build_backbone(backbone, image_size=self.view_size, pretrained=pretrained)
        self.feature_dim = _feature_dim(self.backbone, backbone, self.view_size)
        self.head = nn.Linear(self.feature_dim, dim) if dim else nn.Identity()
        self.dim = dim or self.feature_dim
        self.on_sphere = on_sphere
        mean, std = _normalisation(backbone)
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, 3, 1, 1))
        # Mean of the pooled features over the training pictures; set after training, used by `joint` vectors.
        self.register_buffer("feature_mean", torch.zeros(self.feature_dim))

    def pool(self, pictures: Tensor) -> Tensor:
        """Return pooled features, shape (n, f)."""
        features: Tensor = self.backbone(self._normalised(pictures))
        return features

    def pool_stages(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features, shape (n, f), and those of the backbone's stage before the last, shape (n, g)."""
        backbone: Any = self.backbone
        last, (earlier,) = backbone.forward_intermediates(self._normalised(pictures), indices=[-2])
        return backbone.forward_head(last), earlier.mean(dim=(2, 3))

    def _normalised(self, pictures: Tensor) -> Tensor:
        """Return the pixels that the backbone sees, shape (n, 3, v, v)."""
        edge = (pictures.shape[1] - self.view_size) // 2
        if edge > 0:
            pictures = pictures[:, edge : edge + self.view_size, edge : edge + self.view_size]
        channels_first = pictures.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (channels_first - self.mean) / self.std

    def embed(self, pooled: Tensor) -> Tensor:
        """Return embeddings, shape (n, d), of pooled features, shape (n, f)."""
        embeddings: Tensor = self.head(pooled)
        return F.normalize(embeddings, dim=1) if self.on_sphere else embeddings

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return (embeddings, pooled features)."""
        pooled = self.pool(pictures)
        return self.embed(pooled), pooled


class StoredEmbedding(nn.Module):
    """The network as it is exported: pictures (n, s, s, 3) uint8 -> the vectors a gallery stores, (n, d) float32.

    features="embedding": the head's output; "pooled": the backbone's pooled features; "joint": the unit vector of
    [e ; f ; g], e the unit embedding, f and g the unit centred pooled features of the backbone's last stage and of the
    one before it, for collections whose classes change; "softmax": the probabilities that `classifier`, a linear layer
    on the embedding, gives the classes.

    `mirrored`: means over a picture and its mirror image in place of what the network makes of the picture. With
    `anchors` (t, d), class anchors among the vectors, these are `sharpened` by the power `sharpening`.
    """

    anchors: Tensor | None
    earlier_mean: Tensor

    def __init__(
        self,
        network: Network,
        features: Features,
        *,
        classifier: nn.Linear | None = None,
        anchors: Tensor | None = None,
        sharpening: float = 1.0,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        if (features == "softmax") != (classifier is not None):
            raise ValueError("a classifier is needed for softmax features, and for no others")
        self.network = network
        self.features = features
        self.classifier = classifier
        self.sharpening = sharpening
        self.mirrored = mirrored
        self.register_buffer("anchors", anchors)
        earlier = earlier_dim(network) if features == "joint" else 0
        if features == "joint":
            # As the network's `feature_mean`, of the stage before the last.
            self.register_buffer("earlier_mean", torch.zeros(earlier))
        self.dim = {
            "embedding": network.dim,
            "pooled": network.feature_dim,
            "joint": network.dim + network.feature_dim + earlier,
            "softmax": classifier.out_features if classifier else 0,
        }[features]

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the stored vectors."""
        vectors = self._vectors(*(self._mirrored(pictures) if self.mirrored else self._parts(pictures)))
        return vectors if self.anchors is None else sharpened(vectors, self.anchors, self.sharpening)

    def _parts(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return (embeddings, pooled features), for joint vectors with those of the stage before."""
        if self.features != "joint":
            embeddings, features = self.network(pictures)
            return embeddings, features
        pooled, earlier = self.network.pool_stages(pictures)
        return self.network.embed(pooled), pooled, earlier

    def _vectors(self, embeddings: Tensor, pooled: Tensor, earlier: Tensor | None = None) -> Tensor:
        if self.features == "pooled":
            return pooled
        if self.classifier is not None:
            probabilities: Tensor = self.classifier(embeddings).softmax(dim=1)
            return probabilities
        if earlier is not None:
            parts = embeddings, pooled - self.network.feature_mean, earlier - self.earlier_mean
            return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1) / len(parts) ** 0.5
        return embeddings

    def _mirrored(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return the same parts, means over pictures and their mirror images."""
        both = self._parts(torch.cat([pictures, pictures.flip(2)]))
        embeddings, *others = (vectors.unflatten(0, (2, -1)).mean(dim=0) for vectors in both)
        return F.normalize(embeddings, dim=1) if self.network.on_sphere else embeddings, *others


def sharpened(vectors: Tensor, anchors: Tensor, power: float) -> Tensor:
    """Return vectors (n, d) turned to the anchors (t, d) that they lie near, unit length, shape (n, d).

    Both are made unit length. With c the anchors' mean, u(x) the unit vector along x - c and cos_j = u(e) . u(a_j), a
    vector e is turned to the direction of sum_j sign(cos_j) |cos_j|^power u(a_j).

    Of pictures that look alike, the squared distance to the own anchor is least at the mean of the anchors weighted by
    how probable their classes are. By cosine, such a picture lies nearest to pictures of the same mixture, and further
    from sure pictures of its most probable class, which are likelier to be relevant. A power above 1 turns it to that
    class's anchor. What all anchors have in common is taken off, or it would be all that high powers leave.
    """
    points = F.normalize(anchors, dim=1)
    centre = points.mean(dim=0)
    points = F.normalize(points - centre, dim=1)
    if len(points) == points.shape[1]:
        # OpenVINO 2026.4 may take a square matrix for its transpose in one of the two products: it gets a row of zeros.
        points = F.pad(points, (0, 0, 0, 1))
    cosines = F.normalize(F.normalize(vectors, dim=1) - centre, dim=1) @ points.T
    # Only their ratios count; high powers of small numbers are 0 in float32, and sooner in int8.
    cosines = cosines / cosines.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    return F.normalize((cosines.sign() * cosines.abs() ** power) @ points, dim=1)


class _HalfResNet10(nn.Module):
    """ResNet of one basic block a stage, 32 to 256 wide, with a 3x3 stride-2 stem: for small pictures from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        widths = (32, 32, 64, 128, 256)
        self.stages = nn.Sequential(*(_stage(before, width) for before, width in pairwise(widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        return self.forward_head(self.stages(self.stem(pictures)))

    def forward_intermediates(self, pictures: Tensor, indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the last stage's map and those of the stages asked for, as timm's backbones do."""
        maps = [self.stem(pictures)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-1], [maps[index] for index in indices]

    def forward_head(self, last: Tensor) -> Tensor:
        return last.mean(dim=(2, 3))


def _stage(before: int, width: int) -> nn.Module:
    if before == width:
        return BasicBlock(before, width)
    shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
    return BasicBlock(before, width, stride=2, downsample=shortcut)


def build_backbone(name: str, *, image_size: int, pretrained: bool) -> nn.Module:
    """Return a backbone, pictures (n, 3, s, s) -> pooled features (n, f), fit for the picture size."""
    check_backbone(name, pretrained=pretrained)
    if name == SMALL_BACKBONE:
        return _HalfResNet10()
    sized = {} if accepts_any_size(name) else {"img_size": image_size}
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except (OSError, *MISFITS) as error:
        if not pretrained:
            raise _misfit(name, image_size, error) from error
        raise ConfigError(
            f"the pretrained weights of {name} could not be had ({first_line(error)}): leave --pretrained out"
        ) from error
    _keep_small_pictures_large(backbone, image_size)
    return backbone


def _feature_dim(backbone: nn.Module, name: str, view_size: int) -> int:
    """Return the length of pooled features: of some of timm's models `num_features` is another."""
    was_training = backbone.training
    try:
        with torch.inference_mode():
            features: Tensor = backbone.eval()(torch.zeros(1, 3, view_size, view_size))
    except MISFITS as error:
        raise _misfit(name, view_size, error) from error
    backbone.train(was_training)
    return features.shape[1]


def _misfit(name: str, size: int, error: BaseException) -> ConfigError:
    if accepts_any_size(name):
        remedy = "give another --image-size (256 makes squares of 224 px, 7/8 of it, which suit most)"
    else:
        remedy = f"give --image-size {timm.get_pretrained_cfg(name).input_size[-1]}, the one it is made for"
    reason = str(error) or type(error).__name__
    return ConfigError(f"{name} cannot read squares of {size} px ({reason}): {remedy}, or another --backbone")


def earlier_dim(network: Network) -> int:
    """Return the length of the pooled features of the stage before the last.

    Raises ConfigError for a backbone of which `pool_stages` cannot be had, as of a few of timm's.
    """
    was_training = network.training
    black = torch.zeros(1, network.view_size, network.view_size, 3, dtype=torch.uint8, device=network.mean.device)
    try:
        with torch.inference_mode():
            expected, (pooled, earlier) = network.eval().pool(black), network.pool_stages(black)
        if pooled.shape != expected.shape or not torch.allclose(pooled, expected, atol=1e-4, equal_nan=True):
            raise ValueError("its last stage is another than it pools")
    except (AttributeError, TypeError, *MISFITS) as error:
        raise ConfigError(
            f"this backbone does not tell its stages apart, of which joint vectors are made ({error}): "
            "give another --backbone, or leave --features out"
        ) from error
    network.train(was_training)
    return earlier.shape[1]


def check_backbone(name: str, *, pretrained: bool) -> None:
    """Raise ConfigError for a backbone that cannot be built, naming the nearest."""
    if name == SMALL_BACKBONE:
        if pretrained:
            raise ConfigError(f"{SMALL_BACKBONE} has no pretrained weights: leave --pretrained out, or take resnet18")
        return
    if not timm.is_model(name):
        hint = nearest_name(name, [SMALL_BACKBONE, *timm.list_models()])
        raise ConfigError(f"no backbone is named '{name}'{hint}; {SMALL_BACKBONE} and all of timm's models can be had")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        model, tag = name.split(".", 1)
        known = timm.list_pretrained(f"{model}.*")
        raise ConfigError(
            f"{model} has no weights '{tag}'{nearest_name(name, known)}: take {' or '.join([model, *known])}"
        ) from error


def _keep_small_pictures_large(backbone: nn.Module, image_size: int) -> None:
    """Take halvings out of a ResNet's stem until its last feature map is LEAST_MAP wide; weights stay usable."""
    stem, pool = getattr(backbone, "conv1", None), getattr(backbone, "maxpool", None)
    if not isinstance(stem, nn.Conv2d) or pool is None:
        return
    if -(-image_size // 32) < LEAST_MAP:
        backbone.maxpool = nn.Identity()
    if -(-image_size // 16) < LEAST_MAP:
        stem.stride = (1, 1)


def accepts_any_size(backbone: str) -> bool:
    """Tell whether a backbone runs on pictures of another size than it was built for."""
    config = None if backbone == SMALL_BACKBONE else timm.get_pretrained_cfg(backbone)
    return config is None or not config.fixed_input_size


def least_image_size(backbone: str) -> int:
    """Return the picture size below which pictures should be enlarged for this backbone."""
    return 32 if backbone == SMALL_BACKBONE or backbone.startswith(("resnet", "resnext", "wide_resnet")) else 64


def _normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = None if backbone == SMALL_BACKBONE else timm.get_pretrained_cfg(backbone)
    return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
