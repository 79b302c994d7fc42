"""What a step of each loss costs: forward and backward, by the number of classes.

    python benchmarks/loss_step.py --classes 100 1000 10000 100000

Embeddings of a batch, a loss, its gradient, one AdamW step of the loss's parameters apart. Each cell runs in a process
of its own, so that its peak memory is its own: what the process holds beyond what it held before the loss was built.
`cam-sphere` is the loss alone; with `+classifier` the linear classifier that is trained beside it is part of the step.
With `--device cuda` one process measures all, and memory is what torch held of the GPU. Writes a table in Markdown.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version

LOSSES = (
    "cam",
    "cam-sphere",
    "cam-sphere+classifier",
    "arcface",
    "cosface",
    "adaface",
    "cross-entropy",
    "center",
    "proxy-anchor",
    "proxy-nca",
    "triplet",
    "contrastive",
    "supcon",
    "multi-similarity",
    "fixed-anchors",
)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=LOSSES)
    parser.add_argument("--classes", nargs="+", type=int, default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each cell is measured for, at least")
    parser.add_argument("--rounds", type=int, default=3, help="how often each cell is measured; the median counts")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def peak_bytes(device):
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def now(device):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(cell, options):
    """Return milliseconds of forward and backward, of the optimiser, and MB, of one loss at one number of classes."""
    import torch

    from kedge.config import TrainingConfig
    from kedge.losses import loss_recipe

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Random pictures of random classes; the anchors wander as they do in training, by AdamW at the usual rate.
    classes = cell["classes"]
    # The first optimiser imports what a compiler would need, 160 MB: no loss is to blame for that.
    spare = torch.nn.Linear(1, 1, device=options.device)
    spare(torch.ones(1, 1, device=options.device)).sum().backward()
    torch.optim.AdamW(spare.parameters()).step()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes(options.device)
    name, _, beside = cell["loss"].partition("+")
    recipe = loss_recipe(name)
    loss = recipe.build(classes, options.dim, TrainingConfig.of(dict(recipe.settings))).to(options.device)
    classifier = torch.nn.Linear(options.dim, classes, device=options.device) if beside else None
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    parameters += classifier.parameters() if classifier else []
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.0) if parameters else None
    times, steps, exact = [], [], []
    started = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < options.seconds:
        # Each class has some four pictures in the batch, so that there are pairs and triplets to mine.
        labels = torch.randint(0, classes, (options.batch // 4,), device=options.device).repeat(4)
        embeddings = torch.randn(len(labels), options.dim, device=options.device).requires_grad_()
        features = torch.randn(len(labels), options.dim, device=options.device).requires_grad_()
        begun = now(options.device)
        value = loss(embeddings, labels)
        if classifier:
            weight = recipe.settings["auxiliary"]
            value = value + weight * torch.nn.functional.cross_entropy(classifier(features), labels)
        value.backward()
        middle = now(options.device)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        times.append(middle - begun)
        steps.append(now(options.device) - middle)
        exact.append(getattr(loss, "exact", True))
    # The first steps allocate.
    middle = sorted(times[2:])[len(times[2:]) // 2]
    found = {
        "ms": 1000 * middle,
        "mean_ms": 1000 * sum(times[2:]) / len(times[2:]),
        "optimizer_ms": 1000 * sorted(steps)[len(steps) // 2],
    }
    return {
        **found,
        "mb": (peak_bytes(options.device) - before) / 1e6,
        "exact": sum(exact) / len(exact),
        "steps": len(times),
    }


def place(options):
    """Return what the losses ran on."""
    import torch

    return torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} thread(s)"


def apart(cell):
    """Measure a cell in a process of its own."""
    run = subprocess.run([sys.executable, *sys.argv, "--cell", json.dumps(cell)], capture_output=True, text=True)
    if not run.returncode:
        return json.loads(run.stdout)
    said = (run.stderr.strip().splitlines() or [""])[-1]
    return {"failure": said or f"signal {-run.returncode}"}


def main():
    options = parse()
    if options.cell:
        print(json.dumps(measure(options.cell, options)))
        return
    cells = [(loss, classes) for classes in options.classes for loss in options.losses]
    found = {cell: [] for cell in cells}
    # Round by round, so that a noisy minute falls on all losses alike.
    for number in range(options.rounds):
        for loss, classes in cells:
            cell = {"loss": loss, "classes": classes}
            found[loss, classes].append(measure(cell, options) if options.device == "cuda" else apart(cell))
            print(number, loss, classes, found[loss, classes][-1], file=sys.stderr, flush=True)
    print(
        f"Batch {options.batch}, d = {options.dim}, {place(options)}, median of {options.rounds} rounds; "
        f"{date.today()}, kedge {version('kedge')}, torch {version('torch')}, {platform.machine()}.\n"
    )
    print(
        "| classes | loss | step, ms | of ArcFace's | mean step, ms | optimiser, ms | peak memory, MB | exact steps |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for loss, classes in cells:
        runs = [run for run in found[loss, classes] if "failure" not in run]
        if not runs:
            print(f"| {classes:,} | {loss} | {found[loss, classes][0]['failure'][:80]} | | | | | |")
            continue
        middle = {name: sorted(run[name] for run in runs)[len(runs) // 2] for name in runs[0]}
        theirs = sorted(run["ms"] for run in found.get(("arcface", classes), ()) if "ms" in run)
        ratio = f"{middle['ms'] / theirs[len(theirs) // 2]:.2f}x" if theirs else ""
        share = f"{100 * middle['exact']:.0f} %" if loss.startswith("cam") or loss == "fixed-anchors" else ""
        print(
            f"| {classes:,} | {loss} | {middle['ms']:.1f} | {ratio} | {middle['mean_ms']:.1f} | "
            f"{middle['optimizer_ms']:.1f} | {middle['mb']:.0f} | {share} |"
        )


if __name__ == "__main__":
    main()
