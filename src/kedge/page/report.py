"""Report page: what was measured of a model, with its protocol, plots and example pictures."""

import errno
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kedge.anchors import Anchors
from kedge.datasets import Dataset
from kedge.encoder import Encoder
from kedge.errors import PictureError
from kedge.evaluation import evaluate_dataset, load_for
from kedge.figures import Confusion, Probes, Report, SearchFigures
from kedge.measurement import DEFAULT_PROBES
from kedge.model import REPORT, Model
from kedge.page import plots
from kedge.page.layout import escape, frame, glossary, percent, picture_tag, scroller
from kedge.page.writing import placing, write_page
from kedge.picture import THUMBNAIL_SIDE, read_picture, thumbnail
from kedge.runtime import Runtime

__all__ = ["ReportMaterial", "evaluate_to_page", "gather_material", "report_page"]

MOST_MAPPED, EXAMPLES, SHOWN_CLASSES = 600, 6, 5
GLOSSARY = {
    "mAP": "mean average precision: for each query, the precision at the rank of every relevant picture, summed and "
    "divided by the number of relevant pictures in the gallery; mean over queries. What is not returned is missed.",
    "P@k": "share of relevant pictures among the first k; always divided by k.",
    "R@k": "share of queries with a relevant picture among the first k.",
    "relevant": "a gallery picture is relevant when it has the query's class.",
    "probes": "how many of the nearest anchors the search looks under. Evaluation never looks under more. So many that "
    "all pictures are looked at have no line: they find what exhaustive search finds.",
    "exact": "finds what exhaustive search finds, and leaves out what bounds show to be too far.",
    "looked at": "share of the gallery's pictures that a query was compared with, in a search for 100.",
}


@dataclass(frozen=True, eq=False)
class ReportMaterial:
    """What a report draws: a sample of test vectors (n, d), their labels (n,), the anchors, example JPEGs by class."""

    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    anchors: Anchors
    examples: Mapping[str, Sequence[bytes]]


def gather_material(model: Model, dataset: Dataset, *, runtime: Runtime = "auto") -> ReportMaterial:
    """Encode a sample of the test pictures, spread evenly over them, and read a few of each class to show."""
    encoder = Encoder(model, runtime=runtime)
    rows = np.unique(np.linspace(0, len(dataset.test) - 1, min(MOST_MAPPED, len(dataset.test))).astype(np.int64))
    decoded = dataset.test[rows].decode(encoder.image_size)
    examples: dict[str, list[bytes]] = {}
    for path, label in zip(dataset.test.paths, dataset.test.labels, strict=True):
        shown = examples.setdefault(dataset.classes[label], [])
        if len(shown) < EXAMPLES:
            try:
                shown.append(thumbnail(read_picture(path, at_least=THUMBNAIL_SIDE).image))
            except PictureError:
                continue
    vectors = encoder.encode(decoded.pixels)
    return ReportMaterial(vectors, decoded.labels, dataset.classes, model.search_anchors, examples)


def evaluate_to_page(
    model: str | Path,
    data: str | Path,
    page: str | Path | None = None,
    *,
    probes: Sequence[Probes] = DEFAULT_PROBES,
    expand: bool = False,
    runtime: Runtime = "auto",
) -> Report:
    """Measure a model as `kedge.evaluate` does, and write the page: None takes the report in the model folder."""
    opened = Model.load(model)
    place = opened.folder / REPORT if page is None else Path(page)
    # Whether the page can be written is better known before minutes of measuring.
    with placing(place), tempfile.NamedTemporaryFile(dir=place.parent):
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    dataset = load_for(opened, data)
    report = evaluate_dataset(opened, dataset, probes=probes, expand=expand, runtime=runtime)
    write_page(place, report_page(opened, report, gather_material(opened, dataset, runtime=runtime)))
    return report


def report_page(model: Model, report: Report | None, material: ReportMaterial | None) -> str:
    """Return the page; without a report or material, the parts that need them are left out."""
    trained = model.card.trained
    name = report.dataset if report else str(trained.get("dataset", "pictures"))
    title = f"{name}: how well does it retrieve?"
    how = " on ".join(str(trained[part]) for part in ("loss", "backbone") if part in trained)
    numbers = "" if model.card.precision == "float32" else f"in {model.card.precision}"
    made = ", ".join(filter(None, (f"Model {model.fingerprint}", how, numbers)))
    parts = [
        f"<h1>{escape(title)}</h1>\n<p class='soft'>{escape(made)}, made {escape(model.card.created_at[:10])}.</p>"
    ]
    if report:
        parts += [_headline(report), _protocol(report, unseen=bool(model.splits())), _search_table(report)]
    else:
        parts.append("<p>Not measured on test pictures: <code>kedge evaluate</code> does it, where there are some.</p>")
    parts.append(_plots(model, report, material))
    if report and material:
        parts.append(_classes(report, material))
    parts += [_settings(trained), glossary(GLOSSARY)]
    return frame(title, "\n".join(part for part in parts if part))


def _headline(report: Report) -> str:
    row = report.figures("exhaustive", report.distance)
    figures = [
        (percent(row.map), "mAP: how far up the ranking the right pictures stand"),
        (percent(row.precision_at["20"]), "of the first 20 pictures found show the same class"),
        (percent(row.recall_at["1"]), "of the queries find their class with the first picture"),
    ]
    probed = _find(report, "nearest", 1)
    if probed:
        found = f"of the gallery looked at when one anchor is probed, which finds a mAP of {percent(probed.map)}"
        figures.append((percent(probed.scanned_share), found))
    cards = "".join(
        f"<div class='card'><b>{value}</b><span class='soft'>{text}</span></div>" for value, text in figures
    )
    return f"<div class='figures'>{cards}</div>"


def _protocol(report: Report, *, unseen: bool) -> str:
    lonely = report.queries_without_relevant
    left_out = f" {lonely} queries have no relevant picture and are left out of the means." if lonely else ""
    expanded = " Queries are expanded: turned to the anchors of the classes they look like." if report.expanded else ""
    distance = "Euclidean distance (L2)" if report.distance == "l2" else "cosine"
    unused = f" Left out, because they cannot be used: {len(report.left_out):,}." if report.left_out else ""
    return (
        f"<p>{report.queries:,} test pictures{', never trained on,' if unseen else ''} searched among "
        f"{report.gallery:,} training pictures "
        f"of {report.classes:,} classes. A picture counts as right when it has the query's class. Vectors have "
        f"{report.dim} dimensions; the figures above rank all pictures by {distance}, the model's own "
        f"distance.{expanded}{left_out}{unused}</p>"
    )


def _search_table(report: Report) -> str:
    groups = [
        (None, "Exhaustive: the query is compared with every picture"),
        ("nearest", "Two-stage, pictures filed under their nearest anchor: needs no label"),
        ("label", "Two-stage, pictures filed under their label's anchor: this turns retrieval into classification"),
    ]
    alike = report.distances_agree()
    heads = "".join(f"<th scope='col'>{head}</th>" for head in _COLUMNS)
    rows = ""
    for filed_by, text in groups:
        chosen = [row for row in report.distinct() if row.filed_by == filed_by]
        if chosen:
            rows += f"<tr class='group'><th colspan='{len(_COLUMNS)}' scope='colgroup'><span>{text}</span></th></tr>"
            rows += "".join(_search_row(row, report, alike=alike) for row in chosen)
    said = "By L2 and by cosine all figures are the same." if alike else "Lines by the model's own distance are tinted."
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h2>Ways to search</h2><p class='soft'>{said}</p>{scroller('Ways to search', table)}"


_COLUMNS = ("search", "mAP, %", "P@20", "P@100", "R@1", "R@5", "R@10", "looked at", "ms a query")


def _search_row(row: SearchFigures, report: Report, *, alike: bool) -> str:
    way = "all" if row.probes is None else "exact" if row.probes == "exact" else f"probes {row.probes}"
    name = f"{'L2 = cosine' if alike else 'L2' if row.distance == 'l2' else 'cosine'}, {way}"
    own = row.distance == report.distance and not alike
    shares = (row.map, row.precision_at["20"], row.precision_at["100"], *(row.recall_at[k] for k in ("1", "5", "10")))
    cells = [f"{100 * share:.1f}" for share in shares]
    cells += [percent(row.scanned_share), f"{row.milliseconds_per_query:.2f}"]
    values = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr{' class=own' if own else ''}><th scope='row'>{name}</th>{values}</tr>"


def _plots(model: Model, report: Report | None, material: ReportMaterial | None) -> str:
    metrics = model.metrics()
    narrow, wide = [], []
    if report and report.precision_recall:
        text = "Exhaustive search by the model's own distance, mean over queries"
        narrow.append(("Precision by recall", text, plots.precision_recall(report.precision_recall)))
    if any(line.get("validation_map") is not None for line in metrics):
        text = "Validation pictures searched among themselves"
        narrow.append(("mAP by epoch", text, plots.metric_by_epoch(metrics)))
    if metrics:
        narrow.append(("Loss and its terms by epoch", "Logarithmic scale", plots.terms_by_epoch(metrics)))
    if material and len(material.vectors):
        map_ = plots.embedding_map(material.vectors, material.labels, material.classes, material.anchors)
        text = f"{len(material.vectors)} test pictures by t-SNE in their classes' colours, anchors as crosses: "
        text += "near stays near, far says little"
        wide.append(("Map of the embeddings", text, map_))
    text = "Euclidean; dark is close, and what is close is easily confused"
    wide.append(("Distances between anchors", text, plots.anchor_distances(model.search_anchors)))
    third = " third" if len(narrow) == 3 else ""
    figures = "".join(_figure(*drawn, third) for drawn in narrow) + "".join(_figure(*drawn) for drawn in wide)
    return f"<h2>Plots</h2><div class='plots'>{figures}</div>"


def _figure(heading: str, text: str, svg: str, width: str = "") -> str:
    return (
        f"<figure class='card{width}'><figcaption><b>{heading}</b><span class='soft'>{escape(text)}</span></figcaption>"
        f"<div role='img' aria-label='{heading}'>{svg}</div></figure>"
    )


def _classes(report: Report, material: ReportMaterial) -> str:
    scored = sorted(((ap, name) for name, ap in report.per_class.items() if ap is not None), reverse=True)
    if not scored:
        return ""
    shown = min(SHOWN_CLASSES, max(1, len(scored) // 2))
    parts = [("Best classes", scored[:shown]), ("Worst classes", scored[::-1][:shown])] if len(scored) > 1 else []
    strips = "".join(
        f"<div class='card'><h3 style='margin-top:0'>{heading}</h3>"
        + "".join(
            _class_strip(name, ap, report.confusions.get(name), material.examples.get(name, ())) for ap, name in chosen
        )
        + "</div>"
        for heading, chosen in parts or [("Classes", scored)]
    )
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{100 * ap:.1f}</td>{_confused(report.confusions.get(name))}</tr>"
        for ap, name in scored
    )
    table = (
        f"<details><summary>All {len(scored)} classes</summary><table class='named'><thead><tr>"
        f"<th scope='col'>class</th><th scope='col'>AP, %</th><th scope='col'>finds most beside itself</th>"
        f"<th scope='col'>% of the first 20</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )
    return f"<h2>Classes, by average precision</h2><div class='plots'>{strips}</div>{table}"


def _class_strip(name: str, ap: float, confusion: Confusion | None, examples: Sequence[bytes]) -> str:
    pictures = "".join(picture_tag(jpeg, f"a test picture of {name}") for jpeg in examples)
    also = f"; of the first 20, {percent(confusion.share)} are {escape(confusion.found)}" if confusion else ""
    said = f"<span class='soft'>{percent(ap)}{also}</span>"
    return f"<h3>{escape(name)} {said}</h3><div class='strip'>{pictures}</div>"


def _confused(confusion: Confusion | None) -> str:
    cells = (escape(confusion.found), f"{100 * confusion.share:.1f}") if confusion else ("", "")
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _settings(trained: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(name.replace('_', ' '))}</th><td>{escape(value)}</td></tr>"
        for name, value in trained.items()
    )
    if not rows:
        return ""
    return (
        "<h2>How it was trained</h2><details><summary>All settings and counts</summary>"
        f"<table class='named settings'><tbody>{rows}</tbody></table></details>"
    )


def _find(report: Report, filed_by: str, probes: Probes) -> SearchFigures | None:
    wanted = (report.distance, filed_by, probes)
    return next((row for row in report.search if (row.distance, row.filed_by, row.probes) == wanted), None)
