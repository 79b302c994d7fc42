"""What bfloat16 is worth on a CPU, by backbone: a network's forward and backward, in float32 and in bfloat16.

    python benchmarks/precision_step.py

Both by turns, the median of several rounds of each. Says also which of the two `kedge train` takes by itself on a CPU
that multiplies in bfloat16. Writes a table in Markdown.
"""

import argparse
import time
from datetime import date
from importlib.metadata import version

import numpy as np
import torch

from kedge.config import TrainingConfig
from kedge.network import Network
from kedge.torch_device import training_precision

# Batch size and side in pixels of each.
BACKBONES = {
    "resnet10-half": (50, 64),
    "resnet18": (8, 128),
    "resnet50": (8, 128),
    "resnext50_32x4d": (8, 128),
    "efficientnet_b0": (8, 128),
    "mobilenetv3_large_100": (8, 128),
    "convnext_tiny": (8, 128),
    "swin_tiny_patch4_window7_224": (4, 224),
    "vit_small_patch16_224": (4, 224),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def seconds(network, pictures, precision):
    """Return what one forward and backward takes."""
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        embeddings, _ = network(pictures)
    embeddings.float().square().sum().backward()
    network.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print(f"{date.today()}, kedge {version('kedge')}, torch {version('torch')}, {arguments.threads} thread(s).\n")
    print("| backbone | batch, side | float32, ms | bfloat16, ms | | trained in |\n|---|---|---|---|---|---|")
    for name in arguments.backbones:
        batch, side = BACKBONES[name]
        network = Network(name, image_size=side, dim=64, pretrained=False, on_sphere=True).train()
        network.to(memory_format=torch.channels_last)
        pictures = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
        took = {"float32": [], "bfloat16": []}
        for number in range(arguments.rounds + 1):
            for precision, times in took.items():
                times.append(seconds(network, pictures, precision))
                if number == 0:
                    times.clear()  # kernels are chosen in the first
        single, half = (1000 * float(np.median(times)) for times in took.values())
        taken = training_precision(TrainingConfig(), network)
        print(
            f"| {name} | {batch}, {side} px | {single:.0f} | {half:.0f} | {half / single:.2f} x | {taken} |", flush=True
        )


if __name__ == "__main__":
    main()
