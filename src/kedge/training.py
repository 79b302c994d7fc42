"""Training: labelled pictures -> a model folder, whole or absent, and resumable until it is whole."""

import errno
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kedge.anchors import Anchors
from kedge.augmentation import Augmentation
from kedge.batches import LabelledBatches, PicturesOnDisk
from kedge.calibration import Calibration
from kedge.config import TrainingConfig
from kedge.cores import own_cores
from kedge.datasets import Dataset, Split, load_dataset, place_of
from kedge.defaults import resolve
from kedge.distances import all_the_same, unit_length
from kedge.errors import ConfigError, DatasetError, DivergedError, ModelError, PictureError
from kedge.evaluation import evaluate_dataset
from kedge.export import export_encoder
from kedge.losses import ClassAnchorMargin, LossRecipe, loss_recipe
from kedge.measurement import exhaustive_scores
from kedge.model import ANCHORS, METRICS, REPORT, Distance, Model, ModelCard, Preprocessing, write_splits
from kedge.network import SMALL_BACKBONE, Network, StoredEmbedding, earlier_dim, sharpened
from kedge.page import gather_material, report_page
from kedge.torch_device import training_device, training_precision, whole_float32
from kedge.training_loop import EmbeddingTraining, fit
from kedge.unfinished_run import begin_run, check_whole, lock_run

__all__ = ["train"]

# Pictures that cannot be read are named up to so many.
MOST_NAMED = 20
# Decoded pictures beyond this are read from disk batch by batch.
MOST_IN_MEMORY = 4 << 30
# So many of those at a time, and small, are looked through for what cannot be read.
LOOKED_THROUGH, LEAST_SIDE = 4096, 8


def train(
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    evaluate: bool = True,
    tried: Mapping[str, Any] | None = None,
    state: str | Path | None = None,
    **settings: Any,
) -> Model:
    """Train an embedding on labelled pictures and write it to the model folder `out`.

    data: a data set's name or a folder or list of labelled pictures. settings: see `TrainingConfig`. While it runs its
    state lies in `OUT.partial/`; `resume=True` goes on from there. `evaluate=False` leaves the test pictures alone:
    the report then shows the training only. tried: settings in place of the loss's own ones, fitted to the collection
    as those are (smaller batches of few pictures, less weight decay of many). state: a folder in place of
    `OUT.partial/`, which stays when the model is whole: with `resume=True` the same network is then made another model
    of, by other `READ_OUT` settings. Raises InputError before anything is written, DivergedError when the loss is not
    finite or all embeddings are the same.
    """
    config = TrainingConfig.of(settings)
    recipe = loss_recipe(config.loss)
    if tried:
        recipe.check(TrainingConfig.of(tried).model_dump(exclude_unset=True))
    out = Path(out)
    partial = _unfinished(out, state, resume)
    dataset = load_dataset(
        data,
        seed=config.seed,
        shots=config.shots,
        max_classes=config.classes,
        validation_share=config.validation_share,
    )
    resolved = resolve(config, recipe, dataset, tried)
    if out.exists():
        # Killed after the model was whole, before its unfinished self was cleared away.
        model = check_whole(out, resolved, place_of(data), dataset)
        if not state:
            shutil.rmtree(partial, ignore_errors=True)
        return model
    # torch goes by the machine's cores, also where a container may use few of them.
    torch.set_num_threads(min(torch.get_num_threads(), own_cores()))
    network = _build_network(resolved, recipe, len(dataset.classes))
    loss = recipe.build(len(dataset.classes), network.dim, resolved) if recipe.build else None
    precision = training_precision(resolved, network) if loss is not None else "float32"
    out.parent.mkdir(parents=True, exist_ok=True)
    _say(f"nothing to go on with at {partial}: training from the start", quiet or not resume or partial.exists())
    with begin_run(partial, resolved, place_of(data), dataset, resume):
        for note in dataset.notes:
            _say(note, quiet)
        _say_left_out(dataset.skipped, quiet)
        if not len(dataset.test):
            _say("no picture is left to test on: nothing will be measured", quiet or not evaluate)

        size = resolved.image_size or 0
        training_pictures = _decode(dataset.train, size, quiet)
        validation_pictures = _decode(dataset.validation, size, quiet)
        _check_classes(dataset, training_pictures)
        if loss is not None:
            module = EmbeddingTraining(network, loss, resolved, len(dataset.classes), _augmentation(network, resolved))
            _fit(module, training_pictures, validation_pictures, partial, resume=resume, quiet=quiet)
        stage = partial / "model"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        stored = _stored(network, loss, resolved, training_pictures)
        encoded, held_out = _encode(stored, training_pictures), _encode(stored, validation_pictures)
        _check_embeddings(encoded.inputs)
        learned = _learned_anchors(loss, recipe, resolved)
        if stored.sharpening > 1.0:
            around = torch.from_numpy(_anchors(dataset.classes, learned, encoded, "cosine").vectors)
            stored.anchors = around.to(training_device())
            encoded, held_out = (
                LabelledBatches(sharpened(part.inputs, around, stored.sharpening), part.labels)
                for part in (encoded, held_out)
            )
            learned = None if learned is None else sharpened(learned, around, stored.sharpening)
        distance, scores = _choose_distance(resolved, recipe, held_out, encoded)
        anchors = _anchors(dataset.classes, learned, encoded, distance)
        calibration = _calibrate(held_out, anchors, distance)
        export_encoder(stored, stage, size)
        write_splits(stage, dataset.membership())
        if (partial / METRICS).is_file():
            shutil.copy(partial / METRICS, stage / METRICS)
        trained = {"data": place_of(data), "pictures": dataset.fingerprint, **dataset.describe()}
        trained |= resolved.model_dump(exclude_none=True)
        trained["precision"] = precision
        card = ModelCard(
            kedge_version=version("kedge"),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            classes=anchors.names,
            dim=anchors.dim,
            distance=distance,
            preprocessing=Preprocessing(image_size=size),
            trained=trained,
            scores=scores,
            anchor_distances=calibration.quantiles if calibration else None,
        )
        anchors.save(stage / ANCHORS)
        card.write(stage)
        _say("evaluating on the test pictures", quiet or not evaluate or not len(dataset.test))
        _report(stage, dataset, evaluate, quiet)
        _put(stage, out)
    if not state:
        shutil.rmtree(partial)
    return Model.load(out)


def _unfinished(out: Path, state: str | Path | None, resume: bool) -> Path:
    """Return where the state of a run lies; raise ModelError where its model or another run is in the way."""
    if not out.name:
        raise ModelError(f"'{out}' is no name of a folder to write: give --out one that is not there yet")
    above = next((parent for parent in out.parents if parent.exists()), out.parent)
    if above.is_file():
        raise ModelError(f"{above} is a file: --out names a folder that is not there yet, in another folder")
    partial = Path(state) if state else out.with_name(out.name + ".partial")
    if out.exists() and not resume:
        raise ModelError(f"{out} exists already: choose another --out, or remove it first")
    if partial.exists() and not resume:
        lock_run(partial).release()  # one that still runs is not to be removed
        raise ModelError(f"{partial} holds an unfinished run: go on with --resume, or remove it first")
    return partial


def _report(folder: Path, dataset: Dataset, evaluate: bool, quiet: bool) -> None:
    """Evaluate the staged model on the test pictures, if there are any; add the scores to its card, write its page."""
    model, report, material = Model.load(folder), None, None
    if evaluate and len(dataset.test):
        try:
            report = evaluate_dataset(model, dataset)
        except DatasetError as error:
            # Hours of training are not lost for that.
            _say(f"{error}: nothing was measured", quiet)
    if report:
        tested = {*dataset.test.paths}
        _say_left_out([failure for failure in report.left_out if failure.path in tested], quiet)
        scores = {**model.card.scores, "test": report.headline()}
        model.write_card(model.card.model_copy(update={"scores": scores}))
        model, material = Model.load(folder), gather_material(model, dataset)
    (folder / REPORT).write_text(report_page(model, report, material), "utf-8")


def _put(stage: Path, out: Path) -> None:
    """Move a whole model to its place, in one step there; `train(state=...)` may lie on another file system."""
    try:
        stage.rename(out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
        try:
            shutil.copytree(stage, beside)
            beside.rename(out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(stage)


def _build_network(settings: TrainingConfig, recipe: LossRecipe, classes: int) -> Network:
    torch.manual_seed(settings.seed)
    dim = settings.dim if settings.head == "linear" else None
    if recipe.learns_anchors and dim is not None and settings.anchor_start == "base" and classes > dim:
        raise ConfigError(f"anchor_start = 'base' needs --dim of at least {classes}, the number of classes, not {dim}")
    network = Network(
        settings.backbone or SMALL_BACKBONE,
        image_size=settings.image_size or 0,
        dim=dim,
        pretrained=settings.pretrained,
        on_sphere=recipe.on_sphere,
    )
    if settings.features == "joint":
        earlier_dim(network)  # before it is trained, for what cannot be stored of it
    return network


def _stored(
    network: Network, loss: torch.nn.Module | None, settings: TrainingConfig, pictures: LabelledBatches
) -> StoredEmbedding:
    """Return the trained network as it is read out: what becomes of a picture that is stored."""
    stored = StoredEmbedding(
        network,
        settings.features,
        classifier=_classifier(loss, settings),
        sharpening=settings.sharpening or 1.0,
        mirrored=settings.mirrored,
    )
    stored.to(training_device()).eval()
    if settings.features == "joint":
        _centre(stored, pictures)
    return stored


def _check_embeddings(embeddings: Tensor) -> None:
    """Raise DivergedError for embeddings (n, d) that tell no pictures apart."""
    if not torch.isfinite(embeddings).all():
        raise DivergedError("the trained network makes embeddings that are not finite: lower the learning rate")
    if all_the_same(embeddings.numpy()):
        raise DivergedError(
            "the trained network makes one embedding of all pictures: lower the learning rate or the weight decay"
        )


def _classifier(loss: torch.nn.Module | None, settings: TrainingConfig) -> torch.nn.Linear | None:
    """Return the loss's own classifier where its probabilities are what is stored."""
    if loss is None or settings.features != "softmax":
        return None
    return next(module for module in loss.modules() if isinstance(module, torch.nn.Linear))


def _decode(split: Split, size: int, quiet: bool) -> LabelledBatches:
    """Decode a split once and keep it in memory; one too large for that is read from disk again and again."""
    if 3 * size * size * len(split) > MOST_IN_MEMORY:
        _say(f"reading all {len(split):,} pictures once: they do not fit into memory", quiet)
        parts = [split[start : start + LOOKED_THROUGH] for start in range(0, len(split), LOOKED_THROUGH)]
        failed = [failure for part in parts for failure in part.decode(LEAST_SIDE).failures]
        _say_left_out(failed, quiet)
        unread = {failure.path for failure in failed}
        return PicturesOnDisk(split[np.flatnonzero([path not in unread for path in split.paths])], size)
    decoded = split.decode(size)
    _say_left_out(decoded.failures, quiet)
    return LabelledBatches(torch.from_numpy(decoded.pixels), torch.from_numpy(decoded.labels))


def _say_left_out(failures: Sequence[PictureError], quiet: bool) -> None:
    for failure in failures[:MOST_NAMED]:
        _say(f"left out {failure}", quiet)
    if len(failures) > MOST_NAMED:
        _say(f"left out {len(failures) - MOST_NAMED} more", quiet)


def _check_classes(dataset: Dataset, training: LabelledBatches) -> None:
    """Raise DatasetError for a class of which no training picture could be read: it could have no anchor."""
    counts = np.bincount(training.labels.numpy(), minlength=len(dataset.classes))
    if not counts.all():
        name = dataset.classes[int(counts.argmin())]
        raise DatasetError(f"no training picture of class '{name}' can be read: mend them, or leave the class out")


def _augmentation(network: Network, settings: TrainingConfig) -> Augmentation | None:
    """Return what makes views of training pictures; a frozen backbone has seen each once, as it is."""
    if settings.freeze_backbone:
        return None
    return Augmentation(view_size=network.view_size, flip=bool(settings.flip), brightness=settings.brightness or 0.0)


def _fit(
    module: EmbeddingTraining,
    training: LabelledBatches,
    validation: LabelledBatches,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
) -> None:
    """Train the network and the loss, with its anchors, in place; of a frozen backbone the head alone."""
    network = module.network
    if module.settings.freeze_backbone:
        for parameter in network.backbone.parameters():
            parameter.requires_grad_(False)
        network.to(training_device()).eval()
        training, validation = _encode(network.pool, training), _encode(network.pool, validation)
    fit(module, training, validation if len(validation) > 1 else None, folder, resume=resume, quiet=quiet)


def _encode(function: Callable[[Tensor], Tensor], pictures: LabelledBatches) -> LabelledBatches:
    """Return function(pictures), float32 on the CPU, with the labels."""
    device = training_device()
    vectors, labels = [], []
    with torch.inference_mode(), whole_float32():
        for inputs, own_labels in pictures.in_order():
            vectors.append(function(inputs.to(device)).float().cpu())
            labels.append(own_labels)
    if not vectors:
        return LabelledBatches(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    # Cloned: what was made in inference mode cannot be trained on.
    return LabelledBatches(torch.cat(vectors).clone(), torch.cat(labels))


def _centre(stored: StoredEmbedding, pictures: LabelledBatches) -> None:
    """Set what joint vectors are centred by: the means of the pooled features over the training pictures."""
    network = stored.network
    stages = _encode(lambda inputs: torch.cat(network.pool_stages(inputs), dim=1), pictures).inputs.mean(dim=0)
    network.feature_mean.copy_(stages[: network.feature_dim])
    stored.earlier_mean.copy_(stages[network.feature_dim :])


def _learned_anchors(loss: torch.nn.Module | None, recipe: LossRecipe, settings: TrainingConfig) -> Tensor | None:
    """Return the loss's own anchors, shape (t, d), where they lie among the stored vectors, or else None."""
    if not isinstance(loss, ClassAnchorMargin) or settings.features != "embedding":
        return None
    learned = loss.anchors.detach().cpu()
    return F.normalize(learned, dim=1) if recipe.on_sphere else learned


def _choose_distance(
    settings: TrainingConfig, recipe: LossRecipe, validation: LabelledBatches, training: LabelledBatches
) -> tuple[Distance, dict[str, Any]]:
    """Return the distance with the better mAP of validation queries in the training pictures, and both figures."""
    sharpens = (settings.sharpening or 1.0) > 1.0
    unit_vectors = sharpens or settings.features == "joint" or (recipe.on_sphere and settings.features == "embedding")
    if not len(validation):
        return ("cosine" if settings.distance == "auto" else settings.distance), {}
    vectors = (validation.inputs.numpy(), validation.labels.numpy(), training.inputs.numpy(), training.labels.numpy())
    l2, cosine = (exhaustive_scores(*vectors, measure)[0] for measure in ("l2", "cosine"))
    scores = {"validation": {"map_l2": round(l2, 4), "map_cosine": round(cosine, 4)}}
    if settings.distance != "auto":
        return settings.distance, scores
    # Unit vectors rank alike by both; their distance is called what it was made for.
    return ("cosine" if unit_vectors or cosine >= l2 else "l2"), scores


def _anchors(
    classes: tuple[str, ...], learned: Tensor | None, training: LabelledBatches, distance: Distance
) -> Anchors:
    """Return the anchors that the loss has learned, or class means where it has none."""
    if learned is not None:
        return Anchors(classes, learned.numpy().copy())
    vectors, labels = training.inputs.numpy(), training.labels.numpy()
    if distance == "l2":
        return Anchors.from_means(classes, vectors, labels)
    # The cosine asks for directions alone; L2 figures, which are made as well, for anchors as long as the vectors are.
    directions = Anchors.from_means(classes, unit_length(vectors), labels).vectors
    lengths = Anchors.from_means(classes, np.linalg.norm(vectors, axis=1, keepdims=True), labels).vectors
    return Anchors(classes, directions * lengths)


def _calibrate(held_out: LabelledBatches, anchors: Anchors, distance: Distance) -> Calibration | None:
    """Return how far held-out pictures lie from their nearest anchors, in the space that is searched."""
    if not len(held_out):
        return None
    vectors = held_out.inputs.numpy()
    if distance == "cosine":
        return Calibration.fit(unit_length(vectors), anchors.unit().vectors)
    return Calibration.fit(vectors, anchors.vectors)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr)
