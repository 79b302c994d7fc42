"""Prints the tables of docs/results.md from the rows of a comparison.

    python benchmarks/run_tables.py benchmarks/runs/few-tiny20.csv

Of every data set in the file: with all pictures a row a loss, and below it the ratio rows of the summary; with few
pictures the rows and the ratios of all numbers of shots. Percent, mean ± standard deviation over the seeds; the ± of a
ratio is that of each seed's ratio. Ends with versions, date and processor threads of the rows.
"""

import argparse
from pathlib import Path

import numpy as np

from kedge.csv_table import read_rows

READ_OUT = "softmax"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    return parser.parse_args()


def spread(values, form=".1f"):
    said = format(np.mean(values), form)
    return f"{said} ± {format(np.std(values), form.removeprefix('+'))}" if len(values) > 1 else said


def column(rows, name, scale=100):
    """Return a column by seed; `own_` stands for the model's own distance."""
    return {row["seed"]: scale * row[name.replace("own_", f"{row['distance']}_")] for row in rows}


def cell(rows, name):
    return spread([*column(rows, name).values()])


def by_loss(rows, figures):
    """Return rows by loss, the best by the second figure below; the read-out and class anchors stand last."""
    losses = {}
    for row in rows:
        losses.setdefault(row["loss"], []).append(row)

    def place(loss):
        found = losses[loss]
        rank = 2 if found[0]["learns_anchors"] else 1 if loss.startswith(READ_OUT) else 0
        return rank, np.mean([*column(found, figures[1]).values()])

    return {loss: losses[loss] for loss in sorted(losses, key=place)}


def ratio(losses, figure, recall):
    """Return cells: the best with class anchors, the best other, their ratio, R@1 against the best of the others."""
    means = {loss: np.mean([*column(rows, figure).values()]) for loss, rows in losses.items()}
    anchored = [loss for loss in means if losses[loss][0]["learns_anchors"]]
    others = [loss for loss in means if loss not in anchored and not loss.startswith(READ_OUT)]
    best, other = max(anchored, key=means.get), max(others, key=means.get)
    ours, theirs = column(losses[best], figure), column(losses[other], figure)
    each = [ours[seed] / theirs[seed] for seed in ours if seed in theirs]
    first = max(others, key=lambda loss: np.mean([*column(losses[loss], recall).values()]))
    own, their = column(losses[best], recall), column(losses[first], recall)
    points = [own[seed] - their[seed] for seed in own if seed in their]
    said = f"{means[best] / means[other]:.3f}" + (f" ± {np.std(each):.3f}" if len(each) > 1 else "")
    return [f"{best} {means[best]:.1f}", f"{other} {means[other]:.1f}", said, f"{spread(points, '+.1f')} ({first})"]


def line(*cells):
    print("|", " | ".join(map(str, cells)), "|")


def head(*names):
    line(*names)
    print("|" + "---|" * len(names))


def full(data, rows):
    figures = ["l2_map", "cosine_map", "own_p20", "own_p100", "own_r1", "probed_own_map", "probed_own_r1"]
    figures += ["probed_own_scanned", "expanded_map", "expanded_r1"]
    losses = by_loss(rows, figures)
    names = [
        "mAP (L2)",
        "mAP (cosine)",
        "P@20",
        "P@100",
        "R@1",
        "two-stage mAP",
        "R@1",
        "looked at",
        "expanded mAP",
        "R@1",
    ]
    head("loss", *names)
    for loss, found in losses.items():
        line(loss, *(cell(found, figure) for figure in figures))
    anchored = [loss for loss, found in losses.items() if found[0]["learns_anchors"]]
    if not anchored or all(loss in anchored or loss.startswith(READ_OUT) for loss in losses):
        return
    print()
    head("data", "epochs", "by", "best with class anchors", "best other", "ratio", "R@1, points")
    for name, figure, recall in (
        ("L2", "l2_map", "own_r1"),
        ("cosine", "cosine_map", "own_r1"),
        ("cosine, queries expanded", "expanded_map", "expanded_r1"),
    ):
        line(data, rows[0]["epochs"], name, *ratio(losses, figure, recall))


def few(rows):
    figures = ["l2_map", "cosine_map", "own_r1", "shots_l2_map", "shots_cosine_map", "shots_own_r1"]
    by_shots = {}
    for row in rows:
        by_shots.setdefault(int(row["shots"]), []).append(row)
    names = ("mAP (L2)", "mAP (cosine)", "R@1", "gallery of the shots: mAP (L2)", "mAP (cosine)", "R@1")
    head("shots", "loss", *names)
    for shots, found in sorted(by_shots.items()):
        for loss, own in by_loss(found, figures).items():
            line(shots, loss, *(cell(own, figure) for figure in figures))
    print()
    heading = "R@1 against the best, points"
    head("shots", "gallery", "by", "best with class anchors", "best other", "ratio", heading)
    for shots, found in sorted(by_shots.items()):
        for prefix, gallery in (("", "whole"), ("shots_", "the shots")):
            for distance, way in (("L2", "l2"), ("cosine", "cosine")):
                cells = ratio(by_loss(found, figures), f"{prefix}{way}_map", f"{prefix}own_r1")
                line(shots, gallery, distance, *cells)


def main():
    rows = [row for path in parse().rows for row in read_rows(path) if not row.get("failure")]
    if not all("queries" in row for row in rows):
        raise SystemExit("these are tries, which stand in the report of a comparison: give its results.csv")
    for data in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == data]
        print(f"**{data}** ({own[0]['queries']:,} queries, gallery of {own[0]['gallery']:,})\n")
        shots = [row for row in own if row["shots"] != "full"]
        whole = [row for row in own if row["shots"] == "full"]
        if whole:
            full(data, whole)
            print()
        if shots:
            few(shots)
            print()
    for name in ("date", "kedge", "torch", "precision", "device", "threads", "epochs"):
        print(f"{name}: {', '.join(sorted({str(row[name]) for row in rows}))}")


if __name__ == "__main__":
    main()
