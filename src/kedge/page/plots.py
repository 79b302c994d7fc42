"""Plots of a report, as SVG text to stand in a page; its style sheet gives them their colours, light or dark."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kedge.anchors import Anchors
from kedge.distances import all_the_same, squared_distances
from kedge.page.layout import escape

__all__ = [
    "anchor_distances",
    "embedding_map",
    "metric_by_epoch",
    "metric_by_shots",
    "metric_by_time",
    "precision_recall",
    "terms_by_epoch",
]

# Colours of the page's light scheme. In the SVG they become variables of the style sheet, which follow the scheme.
INK, SOFT, LINE, ACCENT = "#1d2126", "#5d6673", "#dfe3e8", "#0b6e99"
WARM, VIOLET, GREEN = "#c2571a", "#7a5ea8", "#3f8f4f"
VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    WARM: "var(--warm)",
    VIOLET: "var(--violet)",
    GREEN: "var(--green)",
}
TERM_COLOURS = {"loss": INK, "attractor": ACCENT, "repeller": WARM, "norm_floor": VIOLET, "auxiliary": GREEN}
MOST_NAMED = 40
MARKERS = "osD^v*"
# Letters of the legend's size that stand beside each other below a large plot.
LEGEND_WIDTH = 72
SMALL, LARGE = (4.0, 3.2), (5.4, 4.6)
FAR = LinearSegmentedColormap.from_list("far", ["#0a2f42", ACCENT, "#7db9d3", "#dcebf2"])


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(which="both", color=LINE, labelcolor=SOFT, labelsize=9)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    return figure, axes


def _svg(figure: Figure, name: str, colours: Mapping[str, str] = VARIABLES) -> str:
    """Return a figure as SVG for a page: text stays text, and ids begin with `name`, for a page holds several.

    colours: what stands in the page for a colour.
    """
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "kedge"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names may hold signs that matplotlib has no shape for; the browser has.
        warnings.filterwarnings("ignore", message="Glyph")
        # No date, so that equal figures give equal pages.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # What describes the file, and a style that would hold for the whole page.
    text = re.sub(r" <metadata>.*?</metadata>\n| <defs>\n  <style.*?</style>\n </defs>\n", "", text, flags=re.DOTALL)
    return re.sub(r"<[^<>]+>", lambda tag: _for_page(tag[0], name, colours), text[text.index("<svg") :])


def _for_page(tag: str, name: str, colours: Mapping[str, str]) -> str:
    """Return one tag with ids of its own and the page's colours; names of classes stand outside of tags."""
    tag = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", tag)
    return re.sub(r"(fill|stroke): (#\w{6})", lambda found: f"{found[1]}: {colours.get(found[2], found[2])}", tag)


def _epochs(metrics: Sequence[Mapping[str, Any]]) -> list[float]:
    return [line.get("epoch", number) for number, line in enumerate(metrics, start=1)]


def _values(metrics: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    """Return what was logged under a name, NaN where it was not."""
    return np.array([line.get(name) for line in metrics], dtype=np.float64)


def terms_by_epoch(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Plot the loss and its terms by epoch."""
    figure, axes = _axes(SMALL)
    epochs = _epochs(metrics)
    for name, colour in TERM_COLOURS.items():
        values = _values(metrics, name)
        if np.nanmax(np.abs(values[np.isfinite(values)]), initial=0) > 0:
            dashes = "--" if name == "loss" else "-"
            axes.plot(epochs, values, dashes, color=colour, label=name.replace("_", " "), marker=".", linewidth=1.6)
    axes.set_yscale("symlog", linthresh=1e-2, subs=[3])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    _number_epochs(axes)
    if axes.lines:
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, labelcolor=SOFT, ncols=3)
    return _svg(figure, "terms")


def metric_by_epoch(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Plot the validation mAP by epoch, in percent."""
    figure, axes = _axes(SMALL)
    values = 100 * _values(metrics, "validation_map")
    axes.plot(_epochs(metrics), values, color=ACCENT, marker=".", linewidth=1.8)
    axes.set_ylim(0, 102)
    axes.set_ylabel("mAP, %")
    _number_epochs(axes)
    return _svg(figure, "validation")


def _number_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def precision_recall(precision: Sequence[float]) -> str:
    """Plot interpolated precision at evenly spaced recall levels from 0 to 1."""
    figure, axes = _axes(SMALL)
    recall = np.linspace(0, 100, len(precision))
    axes.plot(recall, 100 * np.asarray(precision), color=ACCENT, linewidth=1.8)
    axes.fill_between(recall, 0, 100 * np.asarray(precision), color=ACCENT, alpha=0.1, linewidth=0)
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
    return _svg(figure, "precision")


def metric_by_shots(curves: Mapping[str, Mapping[str, tuple[float, float]]], losses: Sequence[str], name: str) -> str:
    """Plot mAP (mean, deviation), shares, by shots: {loss: {shots: ...}}; each of `losses` has a colour of its own."""
    figure, axes = _axes(LARGE)
    shots = sorted({each for curve in curves.values() for each in curve}, key=_few_first)
    looks = _looks(losses)
    for loss, curve in curves.items():
        own = sorted(curve, key=_few_first)
        places = [shots.index(each) for each in own]
        means, deviations = (100 * np.array(values) for values in zip(*map(curve.__getitem__, own), strict=True))
        axes.errorbar(places, means, deviations, **looks[loss], markersize=5, linewidth=1.6, capsize=3)
    axes.set_xticks(range(len(shots)), shots)
    axes.set(xlabel="pictures a class to train on", ylabel="mAP, %")
    return _with_legend(figure, axes, name)


def _few_first(shots: str) -> float:
    return float("inf") if shots == "full" else int(shots)


def metric_by_time(points: Mapping[str, tuple[float, float, float]], losses: Sequence[str], name: str) -> str:
    """Plot mAP, a share, against the seconds of training: {loss: (seconds, mAP, its standard deviation)}."""
    figure, axes = _axes(LARGE)
    looks = _looks(losses)
    for loss, (seconds, value, spread) in points.items():
        axes.errorbar([seconds], [100 * value], [100 * spread], **looks[loss], linestyle="", markersize=6, capsize=3)
    axes.set(xlabel="seconds of training", ylabel="mAP, %")
    axes.set_xlim(0, 1.1 * max(seconds for seconds, *_ in points.values()) or 1)
    return _with_legend(figure, axes, name)


def _looks(losses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each loss; a marker more once the colours are used up."""
    colours = _colours(10)
    return {
        loss: {"color": colours[number % 10], "marker": MARKERS[number // 10 % len(MARKERS)], "label": _plain(loss, 40)}
        for number, loss in enumerate(losses)
    }


def _with_legend(figure: Figure, axes: Axes, name: str) -> str:
    """Draw with a legend below, its names in full and the figure as much taller as it has rows."""
    # Losses lie close: not from 0, but over 2 points at least.
    least, most = axes.get_ylim()
    least = max(0, min(least, most - 2))
    axes.set_ylim(least, most + 0.04 * (most - least))
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, LEGEND_WIDTH // (max(map(len, labels)) + 5)))
    width, height = LARGE
    figure.set_size_inches(width, height + 0.18 * (-(-len(labels) // columns) - 1))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, labelcolor=SOFT, ncols=columns)
    return _svg(figure, name)


def embedding_map(
    vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: Sequence[str], anchors: Anchors
) -> str:
    """Plot embeddings (n, d) and anchors in two dimensions, by t-SNE: near stays near, far says little.

    Each class has a colour, its anchor and the anchor's name too; what the pointer stands on says its class.
    """
    figure, axes = _axes(LARGE)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    flat = _in_two_dimensions(np.concatenate([vectors, anchors.vectors]))
    if flat is None:
        axes.text(0.5, 0.5, "too few different embeddings for a map", ha="center", color=SOFT)
        return _svg(figure, "map")
    pictures, marks = flat[: len(vectors)], flat[len(vectors) :]
    colours = dict(zip(classes, _colours(len(classes)), strict=True))
    # More ink than colour: a name can be read on the page's ground, light or dark, and a cross among its dots.
    own = [colours.get(name, np.array(to_rgba(INK))) for name in anchors.names]
    inks = [to_hex(0.4 * colour + 0.6 * np.array(to_rgba(INK))) for colour in own]
    mixed = {ink: f"color-mix(in srgb, {to_hex(c)} 40%, var(--ink))" for ink, c in zip(inks, own, strict=True)}
    dots = [colours[classes[label]] for label in labels]
    axes.scatter(pictures[:, 0], pictures[:, 1], c=dots, s=12, linewidths=0, alpha=0.7)
    axes.scatter(marks[:, 0], marks[:, 1], marker="x", c=inks, s=34, linewidths=1.6)
    if len(anchors) <= MOST_NAMED:
        for name, place, ink in zip(anchors.names, marks, inks, strict=True):
            axes.annotate(_plain(name), place, xytext=(5, 4), textcoords="offset points", fontsize=9, color=ink)
    # Nothing but the marks is a <use>, or a path where there are few; they stand in the order they were given.
    names = iter([*(classes[label] for label in labels), *anchors.names])
    svg = _svg(figure, "map", VARIABLES | mixed)

    def titled(mark: re.Match[str]) -> str:
        return f"<{mark[1]}{mark[2]}><title>{escape(next(names))}</title></{mark[1].split()[0]}>"

    return re.sub(r"<(use|path d)\b([^>]*)/>", titled, svg)


def _in_two_dimensions(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """Return points (n, 2) by t-SNE; None for fewer than 4, and where all are the same, of which it would crash."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(vectors) < 4 or all_the_same(vectors):
        return None
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    init = "pca" if vectors.shape[1] > 1 else "random"
    shrink = TSNE(perplexity=perplexity, init=init, random_state=0, max_iter=500)
    # So few points are mapped faster by one thread than by several that wait for each other: 1.4 s, not 20.
    with threadpool_limits(1):
        return shrink.fit_transform(vectors.astype(np.float64))


def anchor_distances(anchors: Anchors) -> str:
    """Plot the Euclidean distances between anchors."""
    distances = np.sqrt(squared_distances(anchors.vectors, anchors.vectors))
    figure, axes = _axes(LARGE)
    axes.spines[:].set_visible(False)
    image = axes.imshow(distances, cmap=FAR, vmin=0)
    scale = figure.colorbar(image, ax=axes, shrink=0.8)
    scale.outline.set_visible(False)
    scale.ax.tick_params(color=LINE, labelcolor=SOFT, labelsize=9)
    axes.set(xticks=[], yticks=[])
    if len(anchors) <= MOST_NAMED:
        names = [_plain(name) for name in anchors.names]
        size = 9 if len(names) <= 20 else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
    return _svg(figure, "distances")


def _colours(count: int) -> npt.NDArray[np.float64]:
    if count <= 10:
        return np.asarray(colormaps["tab10"](range(count)))
    # The ends of this map are too dark to be seen on a dark ground.
    return colormaps["turbo"](np.linspace(0.1, 0.9, count))


def _plain(name: str, most: int = 18) -> str:
    """Return a class name that matplotlib does not take for a formula."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
