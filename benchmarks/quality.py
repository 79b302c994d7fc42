"""How well does each loss retrieve? Train and evaluate them side by side, on the same pictures and seeds.

    python benchmarks/quality.py DATA --losses cam-sphere cam cross-entropy --seeds 0 1 2 --runs runs/tiny20

A run is a model folder under --runs; one that is there already is not trained again, so an interrupted benchmark goes
on where it was. `--parallel 2` trains two single-threaded runs side by side. Writes a table in Markdown to stdout.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

CHILD = "import json, sys, kedge; kedge.train(**json.loads(sys.argv[1]))"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--losses", nargs="+", default=["cam-sphere", "cam", "cross-entropy"])
    parser.add_argument("--backbones", nargs="+", default=["resnet10-half"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--settings", type=json.loads, default={}, help="more settings, as JSON")
    return parser.parse_args()


def train_once(options, loss, backbone, seed):
    """Train one model in a process of its own; one that is there already stays as it is."""
    folder = options.runs / f"{loss}-{backbone}-{seed}"
    if not folder.exists():
        options.runs.mkdir(parents=True, exist_ok=True)
        settings = {"loss": loss, "backbone": backbone, "seed": seed, **options.settings}
        call = {"data": options.data, "out": str(folder), "resume": True, "quiet": True, **settings}
        threads = str(max(1, (os.cpu_count() or 1) // options.parallel))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", CHILD, json.dumps(call)], check=True, env=environment)
        print(f"trained {folder.name}", file=sys.stderr, flush=True)


def evaluate_once(options, loss, backbone, seed):
    """Return `kedge evaluate --json` of one run, kept beside it."""
    folder = options.runs / f"{loss}-{backbone}-{seed}"
    path = options.runs / f"{folder.name}.json"
    if not path.exists():
        command = [sys.executable, "-m", "kedge", "evaluate", str(folder), options.data, "--json"]
        path.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return json.loads(path.read_text())


def row_of(report, mode, distance, filed_by=None, probes=None):
    wanted = (mode, distance, filed_by, probes)
    for row in report["search"]:
        if (row["mode"], row["distance"], row["filed_by"], row["probes"]) == wanted:
            return row
    return None


def spread(values, scale=100.0):
    values = [scale * value for value in values]
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def loss_table(reports):
    print("| loss | backbone | mAP (L2) | mAP (cosine) | P@20 | P@100 | R@1 |")
    print("|---|---|---|---|---|---|---|")
    for (loss, backbone), runs in reports.items():
        own = [report["distance"] for report in runs]
        flat = [row_of(report, "exhaustive", distance) for report, distance in zip(runs, own, strict=True)]
        cells = [
            spread([row_of(report, "exhaustive", "l2")["map"] for report in runs]),
            spread([row_of(report, "exhaustive", "cosine")["map"] for report in runs]),
            spread([row["precision_at"]["20"] for row in flat]),
            spread([row["precision_at"]["100"] for row in flat]),
            spread([row["recall_at"]["1"] for row in flat]),
        ]
        print(f"| {loss} | {backbone} | " + " | ".join(cells) + " |")


def two_stage_table(reports):
    print("| loss | backbone | filed by | probes | mAP | P@20 | of exhaustive P@20 | R@1 | share scanned |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (loss, backbone), runs in reports.items():
        for filed_by, probes in [("nearest", 1), ("nearest", 2), ("nearest", 5), ("nearest", "exact"), ("label", 1)]:
            rows, flat = [], []
            for report in runs:
                rows.append(row_of(report, "two-stage", report["distance"], filed_by, probes))
                flat.append(row_of(report, "exhaustive", report["distance"]))
            if None in rows:
                continue
            kept = [
                row["precision_at"]["20"] / base["precision_at"]["20"] for row, base in zip(rows, flat, strict=True)
            ]
            cells = [
                spread([row["map"] for row in rows]),
                spread([row["precision_at"]["20"] for row in rows]),
                f"{np.mean(kept):.3f}",
                spread([row["recall_at"]["1"] for row in rows]),
                spread([row["scanned_share"] for row in rows]) + " %",
            ]
            print(f"| {loss} | {backbone} | {filed_by} | {probes} | " + " | ".join(cells) + " |")


def ratio_table(reports, base="cross-entropy"):
    backbones = dict.fromkeys(backbone for _, backbone in reports)
    if not any(loss == base for loss, _ in reports):
        return
    print(f"| loss | backbone | mAP (L2) / {base} | mAP (cosine) / {base} | R@1 - {base} |")
    print("|---|---|---|---|---|")
    for backbone in backbones:
        if (base, backbone) not in reports:
            continue
        for (loss, of), runs in reports.items():
            if of != backbone or loss == base:
                continue
            cells = []
            for distance in ("l2", "cosine"):
                ours = np.mean([row_of(report, "exhaustive", distance)["map"] for report in runs])
                theirs = np.mean([row_of(r, "exhaustive", distance)["map"] for r in reports[base, backbone]])
                cells.append(f"{ours / theirs:.3f}")
            ours, theirs = (
                np.mean([row_of(r, "exhaustive", r["distance"])["recall_at"]["1"] for r in chosen])
                for chosen in (runs, reports[base, backbone])
            )
            print(f"| {loss} | {backbone} | " + " | ".join(cells) + f" | {100 * (ours - theirs):+.1f} |")
    print()


def main():
    options = parse()
    cells = [
        (loss, backbone, seed) for seed in options.seeds for backbone in options.backbones for loss in options.losses
    ]
    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(lambda cell: train_once(options, *cell), cells))
    reports = {
        (loss, backbone): [evaluate_once(options, loss, backbone, seed) for seed in options.seeds]
        for loss in options.losses
        for backbone in options.backbones
    }
    first = next(iter(reports.values()))[0]
    print(
        f"{first['dataset']}: {first['classes']} classes, {first['queries']} queries, gallery of {first['gallery']}; "
        f"seeds {' '.join(map(str, options.seeds))}, mean ± standard deviation; "
        f"P@k and R@1 by the model's own distance. "
        f"{date.today()}, kedge {version('kedge')}, torch {version('torch')}, {platform.machine()}, "
        f"{os.cpu_count()} cores, "
        f"{options.parallel} runs side by side.\n"
    )
    loss_table(reports)
    print()
    ratio_table(reports)
    two_stage_table(reports)


if __name__ == "__main__":
    main()
