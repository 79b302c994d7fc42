"""Plots of a report, as SVG text to stand in a page."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kedge.anchors import Anchors, squared_distances

__all__ = ["anchor_distances", "embedding_map", "metric_by_epoch", "precision_recall", "terms_by_epoch"]

ACCENT, INK, SOFT = "#0b6e99", "#1d2126", "#8a93a0"
TERM_COLOURS = {
    "loss": INK,
    "attractor": ACCENT,
    "repeller": "#c2571a",
    "norm_floor": "#7a5ea8",
    "auxiliary": "#3f8f4f",
}
MOST_NAMED = 40


def _axes(width: float = 5.2, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Text stays text; no date, so that equal figures give equal pages.
    with _rc(), warnings.catch_warnings():
        # Names may hold signs that matplotlib has no shape for; the browser has.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _rc() -> Any:
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "kedge"})


def terms_by_epoch(metrics: Sequence[Mapping[str, float]]) -> str:
    """Plot the loss and its terms by epoch."""
    figure, axes = _axes()
    epochs = [line["epoch"] for line in metrics]
    for name, colour in TERM_COLOURS.items():
        values = [line.get(name, np.nan) for line in metrics]
        if np.isfinite(values).any() and np.nanmax(np.abs(values)) > 0:
            axes.plot(epochs, values, color=colour, label=name.replace("_", " "), marker=".", linewidth=1.6)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_xlabel("epoch")
    axes.set_title("Loss and its terms", loc="left", fontsize=11)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def metric_by_epoch(metrics: Sequence[Mapping[str, float]]) -> str:
    """Plot the validation mAP by epoch, in percent."""
    figure, axes = _axes()
    lines = [line for line in metrics if "validation_map" in line]
    values = [100 * line["validation_map"] for line in lines]
    axes.plot([line["epoch"] for line in lines], values, color=ACCENT, marker=".", linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_title("mAP of validation pictures among themselves, %", loc="left", fontsize=11)
    return _svg(figure)


def precision_recall(precision: Sequence[float]) -> str:
    """Plot interpolated precision at evenly spaced recall levels from 0 to 1."""
    figure, axes = _axes()
    recall = np.linspace(0, 100, len(precision))
    axes.plot(recall, 100 * np.asarray(precision), color=ACCENT, linewidth=1.8)
    axes.fill_between(recall, 0, 100 * np.asarray(precision), color=ACCENT, alpha=0.08)
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
    axes.set_title("Precision and recall, mean over queries", loc="left", fontsize=11)
    return _svg(figure)


def embedding_map(
    vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: Sequence[str], anchors: Anchors
) -> str:
    """Plot embeddings (n, d) and anchors in two dimensions, by t-SNE: near stays near, far says little."""
    from sklearn.manifold import TSNE

    points = np.concatenate([vectors, anchors.vectors]).astype(np.float64)
    figure, axes = _axes()
    axes.set_title("Map of the embeddings (t-SNE), anchors as crosses", loc="left", fontsize=11)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if len(points) < 4:
        axes.text(0.5, 0.5, "too few pictures for a map", ha="center", color=SOFT)
        return _svg(figure)
    perplexity = min(30.0, (len(points) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(points)
    pictures, marks = flat[: len(vectors)], flat[len(vectors) :]
    colours = _colours(len(classes))
    axes.scatter(pictures[:, 0], pictures[:, 1], c=colours[labels], s=12, linewidths=0, alpha=0.75)
    colour_of = dict(zip(classes, colours, strict=True))
    named = len(anchors) <= MOST_NAMED
    for name, (across, up) in zip(anchors.names, marks, strict=True):
        colour = colour_of.get(name, INK)
        axes.plot(across, up, marker="x", color=INK, markersize=8, markeredgewidth=2.6)
        axes.plot(across, up, marker="x", color=colour, markersize=7, markeredgewidth=1.4)
        if named:
            axes.annotate(_plain(name), (across, up), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    return _svg(figure)


def anchor_distances(anchors: Anchors) -> str:
    """Plot the Euclidean distances between anchors."""
    distances = np.sqrt(squared_distances(anchors.vectors, anchors.vectors))
    figure, axes = _axes()
    image = axes.imshow(distances, cmap="cividis", vmin=0)
    figure.colorbar(image, ax=axes, shrink=0.8)
    if len(anchors) <= MOST_NAMED:
        names = [_plain(name) for name in anchors.names]
        size = 8 if len(names) <= 20 else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_title("Distances between anchors", loc="left", fontsize=11)
    return _svg(figure)


def _colours(count: int) -> npt.NDArray[np.float64]:
    if count <= 10:
        return np.asarray(colormaps["tab10"](range(count)))
    return colormaps["turbo"](np.linspace(0.03, 0.97, count))


def _plain(name: str, most: int = 18) -> str:
    """Return a class name that matplotlib does not take for a formula."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
