"""The training loop: what a step computes, how the rates go, what is logged and kept after each epoch."""

import io
import json
import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kedge.atomic_write import write_atomically
from kedge.augmentation import Augmentation, mixed_up
from kedge.batches import LabelledBatches, ShuffledRows, seeded
from kedge.config import TrainingConfig
from kedge.errors import DivergedError, InputError, WorkError, first_line
from kedge.losses import ClassAnchorMargin
from kedge.metrics import leave_one_out_map
from kedge.model import METRICS
from kedge.network import Network
from kedge.torch_device import peak_memory, training_device, training_precision
from kedge.unfinished_run import RESUME_FILE

__all__ = ["EmbeddingTraining", "fit"]

NEAR_ANCHORS = "near_anchors"
# Lightning's names of what networks are trained in; the weights stay float32.
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
# Logged, and not worth a reader's while on the screen.
UNSAID = ("epoch", "seconds", "memory_mb", "validation_map")
# Validation by epoch compares validation pictures among themselves; more of them say nothing new.
MOST_VALIDATED = 2000
# Steps on a GPU between looks at whether the loss is finite.
LOOKED_AT_EVERY = 50


class EmbeddingTraining(lightning.LightningModule):
    """Trains a network by a loss, with the throw-away classifier beside it when `settings.auxiliary` is above 0.

    `augmentation=None`: the inputs are pooled features of a frozen backbone, and only the head is trained.
    """

    def __init__(
        self,
        network: Network,
        loss: nn.Module,
        settings: TrainingConfig,
        num_classes: int,
        augmentation: Augmentation | None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.settings, self.augmentation = network, loss, settings, augmentation
        self.classifier = nn.Linear(network.feature_dim, num_classes) if settings.auxiliary else None
        self.names: tuple[str, ...] = ()
        self.sums = torch.zeros(1)
        self.steps = 0

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed run draws what the uninterrupted one would have drawn."""
        torch.manual_seed(self.settings.seed * 100_003 + self.current_epoch)
        self.random = seeded(self.settings.seed, self.current_epoch, self.device)
        self.sums, self.steps = torch.zeros(1, device=self.device), 0
        if self.augmentation is None:
            self.network.backbone.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the repeller knows of near anchors: without it a resumed run would estimate at first."""
        if isinstance(self.loss, ClassAnchorMargin):
            checkpoint[NEAR_ANCHORS] = vars(self.loss.watch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        if isinstance(self.loss, ClassAnchorMargin):
            vars(self.loss.watch).update(checkpoint.get(NEAR_ANCHORS, {}))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss of one batch."""
        inputs, labels = batch
        views = inputs if self.augmentation is None else self.augmentation(inputs, self.random)
        shown = [(1.0, labels)]
        if self.settings.mixup:
            views, shown = mixed_up(views, labels, self.settings.mixup, self.random)
        pooled = views if self.augmentation is None else self.network.pool(views)
        embeddings = self.network.embed(pooled)
        logits = self.classifier(pooled).float() if self.classifier else None
        loss = embeddings.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        for share, classes in shown:
            own: Tensor = self.loss(embeddings, classes)
            parts = self.loss.step_terms if isinstance(self.loss, ClassAnchorMargin) else {}
            if logits is not None:
                auxiliary = (self.settings.auxiliary or 0.0) * F.cross_entropy(logits, classes)
                parts = {**parts, "auxiliary": auxiliary.detach()}
                own = own + auxiliary
            loss = loss + share * own
            terms |= {name: terms.get(name, 0.0) + share * part for name, part in parts.items()}
        self._count({"loss": loss.detach(), **terms})
        return loss

    def means(self) -> dict[str, float]:
        """Return the loss and its terms, mean over the epoch's steps up to now."""
        return dict(zip(self.names, (self.sums / max(1, self.steps)).tolist(), strict=True))

    def _count(self, terms: Mapping[str, Tensor]) -> None:
        """Add a step's terms to the epoch's; raise DivergedError soon after the loss is not finite any more."""
        self.names = tuple(terms)
        self.sums = self.sums + torch.stack([term.float() for term in terms.values()])
        self.steps += 1
        # A number taken from a GPU waits for it, and the GPU then waits for the next step. Sums keep a NaN.
        looks = self.device.type == "cpu" or self.steps % LOOKED_AT_EVERY == 0 or self.trainer.is_last_batch
        if looks and not math.isfinite(value := float(self.sums[0])):
            raise DivergedError(self._reason(value))

    def _reason(self, value: float) -> str:
        settings = self.settings
        ways = [f"lower learning_rate ({settings.learning_rate:g})"]
        if settings.scale is not None:
            ways.append(f"lower scale ({settings.scale:g})")
        if settings.gradient_clip is None:
            ways.append("set gradient_clip to 1")
        if settings.optimizer != "adamw":
            ways.append("set optimizer to adamw")
        return f"the loss became {value} in epoch {self.current_epoch + 1}: {' or '.join(ways)}"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Decay backbone and head, never anchors and classifiers; warm up linearly, then fall by a cosine."""
        settings = self.settings
        rate = settings.learning_rate or 0.0
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        beside = [*self.loss.parameters(), *(self.classifier.parameters() if self.classifier else ())]
        groups: list[dict[str, Any]] = [{"params": trained, "lr": rate, "weight_decay": settings.weight_decay or 0.0}]
        if beside:
            groups.append({"params": beside, "lr": rate * (settings.anchor_rate or 1.0), "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        else:
            # In float16 gradients are scaled, which a fused step would undo by itself, too late to clip them.
            clipped = settings.precision == "float16" or settings.gradient_clip is not None
            fused = self.device.type != "mps" and not clipped
            optimizer = torch.optim.AdamW(groups, fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(settings.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(eq=False)
class _EpochLog(Callback):
    """Shows a bar, and after each epoch writes the loss's terms and the validation mAP to `metrics.jsonl`."""

    folder: Path
    validation: LabelledBatches | None
    quiet: bool

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        path = self.folder / METRICS
        # A run killed between log and checkpoint repeats that epoch: its line must not stand twice.
        kept = path.read_text("utf-8").splitlines(keepends=True)[: trainer.current_epoch] if path.is_file() else []
        path.write_text("".join(kept), "utf-8")
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, transient=True, disable=self.quiet or not console.is_terminal)
        self.bar.start()
        total = int(trainer.estimated_stepping_batches)
        self.task = self.bar.add_task("", total=total, completed=trainer.global_step, epoch=trainer.current_epoch + 1)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.bar.update(self.task, completed=trainer.global_step, epoch=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, EmbeddingTraining)
        line: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        line |= module.means()
        line["seconds"] = round(time.perf_counter() - self.began, 3)
        line["memory_mb"] = peak_memory()
        if self.validation is not None:
            found = _validation_map(module, self.validation)
            if math.isfinite(found):  # with one picture a class there is none
                line["validation_map"] = found
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if not self.quiet:
            unsaid = {*UNSAID, *({"norm_floor"} if not line.get("norm_floor") else ())}  # most losses have none
            said = "  ".join(f"{name} {value:.4g}" for name, value in line.items() if name not in unsaid)
            if "validation_map" in line:
                said += f"  mAP among the validation pictures {100 * line['validation_map']:.1f} %"
            self.bar.console.print(
                f"epoch {line['epoch']}/{trainer.max_epochs}  {said}", highlight=False, soft_wrap=True
            )
            if line["epoch"] == 1 and line.get("repeller") == 0.0:
                self.bar.console.print("the repeller never acted: the anchors began further apart than 2 x margin")
            if line["epoch"] == 1 and line["loss"] == 0.0:
                self.bar.console.print("the loss is 0: no batch had a pair to learn from, give more pictures a class")

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()

    @property
    def state_key(self) -> str:
        return "epoch-log"


class _CheckpointIO(TorchCheckpointIO):
    """Checkpoints replaced in one step, in their own folder: Lightning's go by the system's, be it another disk."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: Any,
        storage_options: Any = None,  # noqa: ARG002  # Lightning gives it by this name
    ) -> None:
        # In memory first: torch aborts when Ctrl-C closes the file that it writes to.
        whole = io.BytesIO()
        torch.save(checkpoint, whole)
        write_atomically(Path(path), whole.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, *args, **options)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise InputError(
                f"{path} cannot be read ({first_line(error)}): remove {Path(path).parent}, train anew"
            ) from error


def fit(
    training: EmbeddingTraining,
    data: LabelledBatches,
    validation: LabelledBatches | None,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
) -> None:
    """Train to the end; after each epoch `folder` holds all that `resume=True` needs to go on from there.

    Raises DivergedError when the loss is not finite, WorkError when a GPU has too little memory. A resumed run ends
    where the uninterrupted one would have ended.
    """
    settings = training.settings
    device = training_device()
    data, validation = data.beside(device), validation and validation.beside(device)
    rows = ShuffledRows(data.labels, settings.batch_size or len(data), settings.seed, settings.together or 1)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        data,
        sampler=rows,
        batch_size=None,
        num_workers=data.workers,
        persistent_workers=data.workers > 0,
        # Of its own: it would draw from the epoch's, and in the first after a start before that is seeded.
        generator=torch.Generator(),
    )
    checkpoint = folder / RESUME_FILE
    if device.type != "mps":
        # What convolutions are quickest with.
        training.network.to(memory_format=torch.channels_last)
    with _silent_lightning():
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            accelerator=device.type,
            devices=1,
            precision=PRECISIONS[training_precision(settings, training.network)],
            benchmark=device.type == "cuda",
            gradient_clip_val=settings.gradient_clip,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            plugins=[_CheckpointIO()],
            callbacks=[
                _EpochLog(folder, validation, quiet),
                ModelCheckpoint(
                    dirpath=folder,
                    filename=checkpoint.stem,
                    enable_version_counter=False,
                    save_on_train_epoch_end=True,
                ),
            ],
        )
        last = checkpoint if resume and checkpoint.is_file() else None
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(training, loader, ckpt_path=last, weights_only=True)
        except torch.OutOfMemoryError as error:
            raise WorkError(
                f"the GPU has too little memory for batches of {settings.batch_size} pictures of "
                f"{settings.image_size} px: lower batch_size or image_size, or run fewer trainings side by side"
            ) from error
        except SystemExit:
            # Lightning's for Ctrl-C, after which it lets no other through.
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _validation_map(module: EmbeddingTraining, validation: LabelledBatches) -> float:
    """Return the mAP by cosine of validation pictures searched among themselves, each left out of its own ranking."""
    was_training = module.network.training
    module.network.eval()
    vectors, labels = [], []
    with torch.inference_mode():
        for inputs, own_labels in validation.in_order(MOST_VALIDATED):
            moved = inputs.to(module.device)
            pooled = moved if module.augmentation is None else module.network.pool(moved)
            vectors.append(F.normalize(module.network.embed(pooled).float(), dim=1).cpu().numpy())
            labels.append(own_labels.cpu().numpy())
    module.network.train(was_training)
    return leave_one_out_map(np.concatenate(vectors), np.concatenate(labels))


@contextmanager
def _silent_lightning() -> Iterator[None]:
    """Keep Lightning's notices from the user, who did not choose it."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        sys.stderr.flush()
