"""Draws the tables of searches in a page of results: a panel a set, a line an engine, the time of one query.

    python benchmarks/search_chart.py docs/results.md docs/images/search-speed.png

A table counts when a line such as **300000x256/1000**: 300,000 x 256 stands above it and it has the columns `engine`,
`probes`, `recall@100` and `one query, µs`. A recall below 0.9995 stands beside its dot.
"""

import argparse
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, SOFT, LINE = "#1d2126", "#5d6673", "#dfe3e8"
OURS, THEIRS = "#0b6e99", "#8b949f"
NEEDED = {"engine", "probes", "recall@100", "one query, µs"}
# From this on a recall is 1 to three places.
WHOLE = 0.9995


def tables(text):
    """Yield (title, [(engine and probes, µs, recall)]) of each table of searches."""
    for name, size, header, body in re.findall(
        r"^\*\*(\S+)\*\*: ([^;]+?)(?:, [\d,]+ queries[^;]*);.*(?:\n.+)*\n\n(\|.+\|)\n\|[-|]+\|\n((?:\|.+\|\n)+)",
        text,
        re.M,
    ):
        names = [cell.strip() for cell in header.strip("|").split("|")]
        if not set(names) >= NEEDED:
            continue
        rows = []
        for row in body.splitlines():
            cells = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=False))
            probes = cells["probes"]
            said = f", {probes} probe{'s' * (probes != '1')}" if probes.isdigit() else f", {probes}" * bool(probes)
            micros = float(cells["one query, µs"].replace(",", ""))
            rows.append((cells["engine"] + said, micros, float(cells["recall@100"])))
        yield f"{'synthetic' if '/' in name else 'real embeddings'}: {size}", rows


def draw(panels):
    """Return a figure with a panel for each table, engines from the top as the table has them."""
    page = Figure(figsize=(6.4 * len(panels), 0.9 + 0.23 * max(len(rows) for _, rows in panels)), layout="constrained")
    FigureCanvasAgg(page)
    for axes, (title, rows) in zip(page.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=SOFT, labelsize=8)
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        for place, (engine, micros, recall) in enumerate(rows):
            axes.plot(micros, place, "o", markersize=6, color=OURS if engine.startswith("Kedge") else THEIRS)
            if recall < WHOLE:
                axes.annotate(
                    f"{recall:.3f}",
                    (micros, place),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=SOFT,
                )
        axes.set_yticks(range(len(rows)), [engine for engine, *_ in rows])
        axes.invert_yaxis()
        axes.set(xscale="log")
        least, most = axes.get_xlim()
        axes.set_xlim(least, 1.6 * most)
        axes.set_xlabel("one query, µs", fontsize=8, color=SOFT)
    key = "left is faster; blue: Kedge, grey: the others; beside a dot its recall@100 where it is below 1"
    page.supxlabel(key, fontsize=9, color=SOFT)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="*", default=["300,000 x 256", "99,953 x 128"], help="which, by their sizes")
    options = parser.parse_args()
    panels = [
        found for found in tables(options.page.read_text("utf-8")) if any(size in found[0] for size in options.sets)
    ]
    draw(panels).savefig(options.out, dpi=110)
    print(f"{options.out}: {'; '.join(title for title, _ in panels)}")


if __name__ == "__main__":
    main()
