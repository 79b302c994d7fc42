"""Training: labelled pictures -> a model folder, whole or absent, and resumable until it is whole."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kedge.anchors import Anchors, unit_length
from kedge.augmentation import Augmentation
from kedge.config import TrainingConfig
from kedge.datasets import Dataset, Split, load_dataset
from kedge.errors import ConfigError, DatasetError, InputError, ModelError, PictureError
from kedge.evaluation import evaluate_dataset, exhaustive_map
from kedge.export import export_encoder, write_card
from kedge.losses import ClassAnchorMargin, LossRecipe, loss_recipe
from kedge.model import METRICS, REPORT, SPLITS, Distance, Model
from kedge.network import SMALL_BACKBONE, Network, StoredEmbedding, accepts_any_size, check_backbone, least_image_size
from kedge.page import gather_material, report_page
from kedge.picture import read_picture
from kedge.training_loop import EmbeddingTraining, LabelledBatches, PicturesOnDisk, fit

__all__ = ["train"]

SETTINGS_FILE = "settings.json"
# Decoded pictures beyond this are read from disk batch by batch.
MOST_IN_MEMORY = 4 << 30
# Pictures shown in a whole training run, when the number of epochs is left to us.
SHOWN_PICTURES, LEAST_EPOCHS, MOST_EPOCHS = 80_000, 8, 60


def train(
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Model:
    """Train an embedding on labelled pictures and write it to the model folder `out`.

    data: a data set's name or a folder or list of labelled pictures. settings: see `TrainingConfig`. While it runs its
    state lies in `OUT.partial/`; `resume=True` goes on from there. Raises InputError before anything is written,
    DivergedError when the loss is not finite.
    """
    out = Path(out)
    config = TrainingConfig.of(settings)
    recipe = loss_recipe(config.loss)
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        if resume:
            # Killed after the model was whole, before its unfinished self was cleared away.
            shutil.rmtree(partial, ignore_errors=True)
            return Model.load(out)
        raise ModelError(f"{out} exists already: choose another --out, or remove it first")
    if partial.exists() and not resume:
        raise ModelError(f"{partial} holds an unfinished run: go on with --resume, or remove it first")

    dataset = load_dataset(
        data,
        seed=config.seed,
        shots=config.shots,
        max_classes=config.classes,
        validation_share=config.validation_share,
    )
    resolved = _resolve(config, recipe, dataset)
    network = _build_network(resolved, recipe, len(dataset.classes))
    _begin(partial, resolved, str(data), resume)
    for note in dataset.notes:
        _say(note, quiet)

    image_size = resolved.image_size or 0
    training_pictures = _decode(dataset.train, image_size, quiet)
    validation_pictures = _decode(dataset.validation, image_size, quiet)
    loss = _train_network(
        network, recipe, resolved, dataset, training_pictures, validation_pictures, partial, resume, quiet
    )

    stage = partial / "model"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    stored = StoredEmbedding(network.to(_device()).eval(), resolved.features)
    if resolved.features == "joint":
        network.feature_mean.copy_(_encode(network.pool, training_pictures).inputs.mean(dim=0))
    encoded, held_out = _encode(stored, training_pictures), _encode(stored, validation_pictures)
    vectors, labels = encoded.inputs.numpy(), encoded.labels.numpy()

    def anchors_for(distance: Distance) -> Anchors:
        if isinstance(loss, ClassAnchorMargin) and resolved.features == "embedding":
            learned = loss.anchors.detach().cpu().numpy()
            return Anchors(dataset.classes, unit_length(learned) if recipe.on_sphere else learned.copy())
        return Anchors.from_means(dataset.classes, unit_length(vectors) if distance == "cosine" else vectors, labels)

    unit_vectors = (recipe.on_sphere and resolved.features == "embedding") or resolved.features == "joint"
    distance, scores = _choose_distance(
        resolved,
        unit_vectors,
        held_out.inputs.numpy(),
        held_out.labels.numpy(),
        vectors,
        labels,
    )
    export_encoder(stored, stage, image_size)
    trained = {"data": str(data), **dataset.describe(), **resolved.model_dump(exclude_none=True)}
    anchors = anchors_for(distance)
    write_card(stage, anchors, distance=distance, image_size=image_size, trained=trained, scores=scores)
    _write_splits(stage, dataset)
    if (partial / METRICS).is_file():
        shutil.copy(partial / METRICS, stage / METRICS)

    model = Model.load(stage)
    report, material = None, None
    if len(dataset.test):
        _say("evaluating on the test pictures", quiet)
        report = evaluate_dataset(model, dataset)
        scores = {**scores, "test": report.headline()}
        write_card(stage, anchors, distance=distance, image_size=image_size, trained=trained, scores=scores)
        model = Model.load(stage)
        material = gather_material(model, dataset)
    (stage / REPORT).write_text(report_page(model, report, material), "utf-8")
    stage.rename(out)
    shutil.rmtree(partial)
    return Model.load(out)


def _resolve(config: TrainingConfig, recipe: LossRecipe, dataset: Dataset) -> TrainingConfig:
    """Fill in what the user left open: by the loss's recipe, the backbone and the pictures."""
    count, classes = len(dataset.train), len(dataset.classes)
    side = config.image_size or _usual_side(dataset.train)
    small = side <= 96 and not config.pretrained
    backbone = config.backbone or (SMALL_BACKBONE if small else "resnet18")
    check_backbone(backbone, pretrained=config.pretrained)
    open_settings: dict[str, Any] = dict(recipe.settings)
    if config.pretrained or not accepts_any_size(backbone):
        # Weight decay of 0.5 and a rate of 4e-3 are for small convolutional networks from scratch.
        open_settings |= {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05}
    if config.freeze_backbone:
        open_settings |= {"auxiliary": 0.0, "head": "linear", "optimizer": "adamw"}
        open_settings |= {"learning_rate": 1e-3, "weight_decay": 0.05}
    passes = -(-SHOWN_PICTURES // max(1, count))
    open_settings |= {
        "backbone": backbone,
        "image_size": max(side, least_image_size(backbone)),
        "dim": min(512, 64 * -(-classes // 64)),
        "epochs": min(MOST_EPOCHS, max(LEAST_EPOCHS, passes)),
        "batch_size": min(100, max(16, count // 16)),
        "flip": dataset.mirror,
    }
    if recipe.build is None and (config.features != "embedding" or config.freeze_backbone):
        raise ConfigError("--loss none takes the backbone as it is: leave --features and --freeze-backbone out")
    given = config.model_dump(exclude_none=True)
    merged = {**open_settings, **given}
    if merged.get("head") == "none":
        merged.pop("dim")
    return TrainingConfig.model_validate(merged)


def _usual_side(split: Split) -> int:
    """Return the median shorter side of some of the pictures, a multiple of 8 from 8 to 224."""
    sides = []
    for path in split.paths[:: max(1, len(split) // 64)]:
        try:
            picture = read_picture(path)
        except PictureError:
            continue
        sides.append(min(picture.width, picture.height))
    if not sides:
        raise DatasetError("none of the training pictures can be read")
    return int(min(224, max(8, round(float(np.median(sides)) / 8) * 8)))


def _build_network(settings: TrainingConfig, recipe: LossRecipe, classes: int) -> Network:
    torch.manual_seed(settings.seed)
    dim = settings.dim if settings.head == "linear" else None
    if recipe.learns_anchors and dim is not None and settings.anchor_start == "base" and classes > dim:
        raise ConfigError(f"--anchor-start base needs --dim of at least {classes}, the number of classes, not {dim}")
    return Network(
        settings.backbone or SMALL_BACKBONE,
        image_size=settings.image_size or 0,
        dim=dim,
        pretrained=settings.pretrained,
        on_sphere=recipe.on_sphere,
    )


def _begin(partial: Path, settings: TrainingConfig, data: str, resume: bool) -> None:
    """Make the folder of the unfinished run, or check that it is this run that goes on."""
    asked = json.loads(json.dumps({"data": data, **settings.model_dump()}))
    path = partial / SETTINGS_FILE
    if resume and path.is_file():
        stored = json.loads(path.read_text("utf-8"))
        changed = [name for name in asked if asked[name] != stored.get(name)]
        if changed:
            said = ", ".join(f"{name} was {stored.get(name)!r} and is {asked[name]!r}" for name in changed)
            raise InputError(f"{partial} was begun with other settings ({said}): give the same, or remove it")
        return
    partial.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=2), "utf-8")


def _decode(split: Split, size: int, quiet: bool) -> LabelledBatches:
    """Decode a split once and keep it in memory; one too large for that is read from disk again and again."""
    if 3 * size * size * len(split) > MOST_IN_MEMORY:
        return PicturesOnDisk(split, size)
    decoded = split.decode(size)
    for failure in decoded.failures:
        _say(f"left out {failure}", quiet)
    return LabelledBatches(torch.from_numpy(decoded.pixels), torch.from_numpy(decoded.labels))


def _train_network(
    network: Network,
    recipe: LossRecipe,
    settings: TrainingConfig,
    dataset: Dataset,
    training: LabelledBatches,
    validation: LabelledBatches,
    folder: Path,
    resume: bool,
    quiet: bool,
) -> torch.nn.Module | None:
    """Train the network in place and return the loss, with its anchors; None when there is nothing to train."""
    if recipe.build is None:
        return None
    if len(training) < 2:
        raise DatasetError(f"{len(training)} training pictures can be read; at least 2 are needed")
    loss = recipe.build(len(dataset.classes), network.dim, settings)
    augmentation: Augmentation | None = Augmentation(
        view_size=network.view_size, flip=bool(settings.flip), brightness=settings.brightness
    )
    if settings.freeze_backbone:
        for parameter in network.backbone.parameters():
            parameter.requires_grad_(False)
        network.to(_device()).eval()
        training, validation = _encode(network.pool, training), _encode(network.pool, validation)
        augmentation = None
    module = EmbeddingTraining(network, loss, settings, len(dataset.classes), augmentation)
    fit(module, training, validation if len(validation) > 1 else None, folder, resume=resume, quiet=quiet)
    return loss


def _encode(function: Callable[[Tensor], Tensor], pictures: LabelledBatches) -> LabelledBatches:
    """Return function(pictures), float32 on the CPU, with the labels."""
    device = _device()
    vectors, labels = [], []
    with torch.inference_mode():
        for inputs, own_labels in pictures.in_order():
            vectors.append(function(inputs.to(device)).float().cpu())
            labels.append(own_labels)
    if not vectors:
        return LabelledBatches(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    # Cloned: what was made in inference mode cannot be trained on.
    return LabelledBatches(torch.cat(vectors).clone(), torch.cat(labels))


def _choose_distance(
    settings: TrainingConfig,
    unit_vectors: bool,
    queries: npt.NDArray[np.float32],
    query_labels: npt.NDArray[np.int64],
    gallery: npt.NDArray[np.float32],
    gallery_labels: npt.NDArray[np.int64],
) -> tuple[Distance, dict[str, Any]]:
    """Return the distance with the better mAP of validation queries in the training pictures, and both figures."""
    if not len(queries):
        return ("cosine" if settings.distance == "auto" else settings.distance), {}
    measures: tuple[Distance, ...] = ("l2", "cosine")
    figures = {name: exhaustive_map(queries, query_labels, gallery, gallery_labels, name) for name in measures}
    scores = {"validation": {f"map_{name}": round(value, 4) for name, value in figures.items()}}
    if settings.distance != "auto":
        return settings.distance, scores
    if unit_vectors:
        return "cosine", scores
    return ("l2" if figures["l2"] > figures["cosine"] else "cosine"), scores


def _write_splits(folder: Path, dataset: Dataset) -> None:
    """Write which content was in which split; with shots, pictures not drawn count as train: nothing tests on them."""
    tested, held_out = set(dataset.test.hashes), set(dataset.validation.hashes)
    trained = [content for content in dataset.gallery.hashes if content not in held_out]
    stored: dict[str, Sequence[str]] = {
        "train": sorted(set(trained)),
        "validation": sorted(held_out),
        "test": sorted(tested),
    }
    (folder / SPLITS).write_text(json.dumps(stored), "utf-8")


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr)
