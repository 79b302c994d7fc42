"""Draws the tables of losses in a page of results: a panel a table, a pair of bars a loss, mAP by L2 and by cosine.

    python benchmarks/loss_chart.py docs/results.md docs/images/losses.png

A table counts when a line such as **CIFAR-100, 20 classes** stands above it and it has the columns `loss`, `mAP (L2)`
and `mAP (cosine)`. Left out are rows that begin with …, which are variants, all but ALWAYS and the best of a table by
cosine, tables whose heading stood before, and those where all losses reach 95.
"""

import argparse
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, SOFT, LINE = "#1d2126", "#5d6673", "#dfe3e8"
# Light for L2 and dark for cosine, of the losses with class anchors and of the others.
ANCHORED, OTHER = ("#9cc7da", "#0b6e99"), ("#d5d9df", "#8b949f")
WITH_ANCHORS = ("cam-sphere", "cam", "fixed-anchors")
COLUMNS = 3
MOST = 8
# The loss that everybody knows, and the best of those without class anchors by L2 on most sets.
ALWAYS = "cross-entropy"
CROWDED_BELOW = 95.0


def tables(text):
    """Yield (heading, {loss: [(mean, deviation) by L2, by cosine]}) of each table of losses."""
    for heading, header, body in re.findall(
        r"^\*\*(.+?)\*\*.*(?:\n.+)*\n\n(\|.+\|)\n\|[-|]+\|\n((?:\|.+\|\n)+)", text, re.M
    ):
        names = [cell.strip() for cell in header.strip("|").split("|")]
        if not {"loss", "mAP (L2)", "mAP (cosine)"} <= set(names):
            continue
        found = {}
        for row in body.splitlines():
            cells = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
            if not cells["loss"].startswith("…"):
                found[cells["loss"]] = [figure(cells[name]) for name in ("mAP (L2)", "mAP (cosine)")]
        yield heading, found


def figure(cell):
    """Return (mean, deviation) of a cell such as `58.0 ± 0.6` or `58.0`."""
    mean, _, deviation = cell.partition("±")
    return float(mean), float(deviation or 0.0)


def draw(panels):
    """Return a figure with a panel for each table, best loss on top."""
    rows = -(-len(panels) // COLUMNS)
    page = Figure(figsize=(11, 0.6 + 3.3 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(page)
    for number, (heading, losses) in enumerate(panels):
        axes = page.add_subplot(rows, COLUMNS, number + 1)
        axes.set_title(heading, loc="left", fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=SOFT, labelsize=9)
        ranked = sorted(losses, key=lambda name: losses[name][1][0])
        names = [name for name in ranked if name == ALWAYS or name in ranked[-MOST + (ALWAYS in ranked[:-MOST]) :]]
        for place, name in enumerate(names):
            shades = ANCHORED if name in WITH_ANCHORS else OTHER
            for shift, shade, (mean, deviation) in zip(
                (-0.2, 0.2), reversed(shades), reversed(losses[name]), strict=True
            ):
                axes.barh(place - shift, mean, 0.38, xerr=deviation, color=shade, error_kw={"ecolor": INK, "lw": 1})
                axes.annotate(
                    f"{mean:.1f}",
                    (mean + deviation, place - shift),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                    color=SOFT,
                )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1.15 * max(mean for name in names for mean, _ in losses[name]))
        axes.set_xlabel("mAP, %", fontsize=8, color=SOFT)
    key = (
        "blue: class anchors; grey: the others; dark: by cosine; light: by L2; "
        f"the {MOST} best of a set by cosine, {ALWAYS} always among them"
    )
    page.supxlabel(key, fontsize=9, color=SOFT)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    panels = {}
    for heading, losses in tables(options.page.read_text("utf-8")):
        if min(cosine for _, (cosine, _) in losses.values()) < CROWDED_BELOW:
            panels.setdefault(heading, losses)
    draw(list(panels.items())).savefig(options.out)
    print(f"{options.out}: {'; '.join(panels)}")


if __name__ == "__main__":
    main()
