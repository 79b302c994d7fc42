"""Two processes (DDP over gloo), each with half of a batch: the gradients are those of one process with all of it."""

import os
import sys

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from kedge.config import TrainingConfig
from kedge.losses import loss_recipe

CLASSES, DIM, BATCH = 6, 8, 16
# Those that take each picture by itself. What compares the pictures of a batch sees its own process's alone.
LOSSES = ("cam", "cam-sphere", "cross-entropy", "center", "arcface")


class Trained(torch.nn.Module):
    """What DDP wraps: a head and the loss with its own parameters."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(DIM, DIM)
        self.loss = loss_recipe(name).build(CLASSES, DIM, TrainingConfig(margin=0.5))
        if name in ("cam", "cam-sphere"):
            # They begin exactly so far apart that they do not repel each other.
            self.loss.anchors.data += 0.3 * torch.randn(CLASSES, DIM)

    def forward(self, inputs, labels):
        return self.loss(self.head(inputs), labels)


def batch():
    torch.manual_seed(1)
    return torch.randn(BATCH, DIM), torch.arange(BATCH) % CLASSES


def gradients(module):
    return {name.removeprefix("module."): parameter.grad for name, parameter in module.named_parameters()}


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    inputs, labels = batch()
    own = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for name in LOSSES:
        module = DistributedDataParallel(Trained(name))
        module(inputs[own], labels[own]).backward()
        if rank == 0:
            torch.save(gradients(module), f"{folder}/{name}.pt")
    distributed.destroy_process_group()
    # DDP keeps the group alive beyond that, and now and then gloo's threads abort the interpreter as it winds down
    # ("terminate called without an active exception"): with all saved, the process ends without winding down.
    os._exit(0)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file there under other rules")
def test_two_processes_learn_what_one_does(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for name in LOSSES:
        alone = Trained(name)
        alone(*batch()).backward()
        together = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for part, gradient in gradients(alone).items():
            torch.testing.assert_close(together[part], gradient, atol=1e-6, rtol=1e-4)
            assert torch.isfinite(gradient).all()
