"""Batches: labelled pictures, or features of them, in memory or on disk, in a seeded order or as they lie."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kedge.cores import own_cores
from kedge.datasets import Split

__all__ = ["LabelledBatches", "PicturesOnDisk", "ShuffledRows", "seeded"]

ENCODED_AT_ONCE = 128
# Share of a GPU's memory that pictures may take.
MOST_OF_A_GPU = 0.1


class LabelledBatches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches by their row numbers: (inputs[rows], labels[rows]); inputs are pictures or pooled features."""

    workers = 0

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[rows], self.labels[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def beside(self, device: torch.device) -> "LabelledBatches":
        """Return the same kept on a GPU, where they take little of its memory: no batch need then be copied there."""
        size = self.inputs.element_size() * self.inputs.numel()
        if self.workers or device.type != "cuda" or size > MOST_OF_A_GPU * torch.cuda.mem_get_info(device)[1]:
            return self
        return LabelledBatches(self.inputs.to(device), self.labels.to(device))

    def in_order(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows in blocks, or at most so many from all over."""
        count = len(self)
        rows = (
            torch.arange(count)
            if most is None or most >= count
            else torch.linspace(0, count - 1, most, dtype=torch.float64).long()
        )
        for block in rows.split(ENCODED_AT_ONCE):
            yield self[block]


class PicturesOnDisk(LabelledBatches):
    """The same for a split too large for memory: pictures are decoded batch by batch, in processes beside training.

    Those that cannot be read are left out of their batch.
    """

    workers = own_cores()

    def __init__(self, split: Split, image_size: int) -> None:
        super().__init__(torch.empty(0), torch.from_numpy(split.labels))
        self.split, self.image_size = split, image_size

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        decoded = self.split[rows.numpy()].decode(self.image_size)
        return torch.from_numpy(decoded.pixels), torch.from_numpy(decoded.labels)


class ShuffledRows(Sampler[Tensor]):
    """Row numbers in batches, in an order that depends on seed and epoch alone, so that a resumed run repeats it.

    labels: of the rows, (n,). together: so many rows of a class follow each other, each row still once an epoch.
    The numbers lie on the labels' device: a batch copied to a GPU would wait for all that it has yet to do.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int, together: int = 1) -> None:
        self.count, self.batch_size, self.seed, self.epoch = len(labels), min(batch_size, len(labels)), seed, 0
        self.labels, self.together, self.device = labels.cpu(), together, labels.device

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        draw = seeded(self.seed, self.epoch, torch.device("cpu"))
        order = torch.randperm(self.count, generator=draw)
        if self.together > 1:
            order = self._in_groups(order, draw)
        order = order.to(self.device)
        # A last batch that is not full is left out: its rows come first in another epoch.
        yield from order[: len(self) * self.batch_size].split(self.batch_size)

    def _in_groups(self, order: Tensor, draw: torch.Generator) -> Tensor:
        """Return the rows so that those of a class come in groups, of `together` but for its last, in random order."""
        by_class = order[self.labels[order].argsort(stable=True)]
        labels, counts = self.labels[by_class], torch.bincount(self.labels)
        place = torch.arange(self.count) - (counts.cumsum(0) - counts)[labels]
        groups = -(-counts // self.together)
        group = (groups.cumsum(0) - groups)[labels] + place // self.together
        shuffled = torch.randperm(int(groups.sum()), generator=draw)
        return by_class[shuffled[group].argsort(stable=True)]

    def __len__(self) -> int:
        return self.count // self.batch_size


def seeded(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """Return a generator that draws the same in one epoch of one seed, whether the run was resumed before it or not."""
    return torch.Generator(device=device).manual_seed(seed * 1_000_003 + epoch)
