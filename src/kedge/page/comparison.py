"""Comparison page: the losses of a grid side by side, as Markdown and as HTML with plots."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kedge.page import plots
from kedge.page.layout import escape, frame, glossary, scroller

__all__ = ["comparison_page", "comparison_summary", "comparison_tables"]

Row = Mapping[str, Any]
# The distances as columns begin with them, and as they are called.
DISTANCES = {"l2": "L2", "cosine": "cosine"}
SHORT = "Figures in percent, mean ± standard deviation of the seeds; the best of a column is bold. What the words mean "
SHORT += "stands at the end."
GLOSSARY = {
    "queries, gallery": "test pictures are searched in the whole training set, unless a heading says otherwise.",
    "relevant": "a gallery picture is relevant when it has the query's class.",
    "mAP": "mean average precision; what was not returned counts as missed.",
    "P@k, R@k": "share of relevant pictures among the first k; share of queries with one among them.",
    "two-stage search": "pictures filed under their nearest anchor, one anchor probed.",
    "own distance": "L2 or cosine, the better on validation pictures.",
    "looked at": "share of the gallery that a query was compared with, by the own distance.",
    "expanded": "exhaustive search by cosine, queries turned to the anchors of the classes they look like.",
    "validation": "mAP of validation pictures searched in those trained on, by the own distance.",
    "± standard deviation": "of the seeds, divided by their number.",
}


@dataclass(frozen=True)
class _Table:
    """A heading, empty where the section's says it all, column names and rows of text; the first cell names a row."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False
    """Its cells are words, not numbers: they stand at the left and take as many lines as they need."""
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells that are the best of their columns."""


@dataclass(frozen=True)
class _Section:
    """A heading and tables under it."""

    heading: str
    tables: tuple[_Table, ...]


@dataclass(frozen=True)
class _Group:
    """The measured rows of one data set, backbone and number of shots, by loss."""

    title: str
    by_loss: Mapping[str, Sequence[Row]]
    shots: str

    def seeds(self) -> str:
        counts = [len(rows) for rows in self.by_loss.values()]
        said = f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return f"{said} seed{'s' * (max(counts) > 1)}"

    def said(self, column: str) -> str:
        """Return what a column holds, and all that it holds where rows differ."""
        found = {row.get(column, "unknown"): None for rows in self.by_loss.values() for row in rows}
        return " or ".join(map(str, found))


def comparison_tables(rows: Sequence[Row], variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return Markdown: a table for each data set, backbone and number of shots, ratios, cost, failures, settings.

    rows: as in `results.csv`. variants: the settings of losses by another name.
    """
    parts = ["# Losses compared", "", SHORT, ""]
    for doubt in _doubts(rows):
        parts += [doubt, ""]
    for section in _sections(rows, variants):
        parts += [f"## {section.heading}", ""]
        for table in section.tables:
            parts += [f"### {table.heading}", ""] if table.heading else []
            parts += [f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns)]
            for number, row in enumerate(table.rows):
                cells = [" ".join(cell.replace("|", "/").split()) for cell in row]
                cells = [f"**{cell}**" if (number, at) in table.best else cell for at, cell in enumerate(cells)]
                parts.append(f"| {' | '.join(cells)} |")
            parts.append("")
    parts += ["## What the words mean", "", *(f"- **{word}**: {text}" for word, text in GLOSSARY.items()), ""]
    return "\n".join(parts)


def comparison_summary(rows: Sequence[Row]) -> str:
    """Return what a screen has room for: the mAPs and R@1 of each loss, the best first, and what failed."""
    parts = []
    for group in _groups(rows):
        lines: list[tuple[str, ...]] = [("loss", "mAP (L2)", "mAP (cosine)", "R@1")]
        best_first = sorted(group.by_loss.items(), key=lambda item: -float(np.mean([*map(_own_map, item[1])])))
        for loss, found in best_first:
            figures = (
                [row["l2_map"] for row in found],
                [row["cosine_map"] for row in found],
                [row[f"{row['distance']}_r1"] for row in found],
            )
            lines.append((loss, *(_spread([100 * value for value in values]) for values in figures)))
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        parts.append(f"{group.title} ({group.seeds()}, {group.said('queries')} queries in {group.said('gallery')})")
        parts += ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        parts.append("")
    for row in rows:
        if row.get("failure"):
            place = _title(str(row["dataset"]), str(row["backbone"]), str(row["shots"]))
            parts.append(f"failed: {row['loss']}, seed {row['seed']}, {place}: {row['failure']}")
    return "\n".join(part.rstrip() for part in parts).rstrip()


def comparison_page(title: str, rows: Sequence[Row], variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the same as one self-contained HTML file, with mAP against shots and against training time."""
    parts = [f"<h1>{escape(title)}</h1>", f"<p class='soft'>{escape(SHORT)}</p>"]
    parts += [f"<p class='doubt'>{escape(doubt)}</p>" for doubt in _doubts(rows)]
    parts.append(_plots(rows))
    for section in _sections(rows, variants):
        parts.append(f"<h2>{escape(section.heading)}</h2>")
        for table in section.tables:
            if table.heading:
                parts.append(f"<h3>{escape(table.heading)}</h3>")
            parts.append(scroller(f"{section.heading} {table.heading}".strip(), _html(table)))
    parts.append(glossary(GLOSSARY))
    return frame(title, "\n".join(parts), wide=True)


def _html(table: _Table) -> str:
    heads = "".join(f"<th scope='col'>{escape(name)}</th>" for name in table.columns)
    lines = ""
    for number, (name, *cells) in enumerate(table.rows):
        shown = (f"<b>{escape(c)}</b>" if (number, at) in table.best else escape(c) for at, c in enumerate(cells, 1))
        lines += f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>"
    kind = " class='settings'" if table.words else ""
    return f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _doubts(rows: Sequence[Row]) -> list[str]:
    """Return what a reader should know first: cells that failed, and means over what was not trained alike."""
    failed = sum(bool(row.get("failure")) for row in rows)
    doubts = [f"{failed} of {len(rows)} cells failed, and why stands at the end."] if failed else []
    for group in _groups(rows):
        for loss, found in group.by_loss.items():
            differ = [name for name, values in _settings_of(found).items() if not _alike(values)]
            if differ:
                doubts.append(
                    f"{group.title}: the seeds of {loss} were trained with different {', '.join(differ)}, as after an "
                    "update of Kedge: compare them anew with another --out."
                )
    return doubts


def _settings_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return by name what each row was trained with; rows of earlier versions do not say it."""
    told = [json.loads(row["settings"]) for row in rows if "settings" in row]
    return {name: [settings.get(name) for settings in told] for name in dict.fromkeys(key for s in told for key in s)}


def _alike(values: Sequence[Any]) -> bool:
    """Tell whether these are the same but for what a few pictures more or less change of decay and batches."""
    if all(isinstance(value, int | float) for value in values):
        return max(values) - min(values) <= 0.1 * max(values)
    return all(value == values[0] for value in values)


def _groups(rows: Iterable[Row]) -> list[_Group]:
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if not row.get("failure"):
            place = (str(row["dataset"]), str(row["backbone"]), str(row["shots"]))
            found.setdefault(place, {}).setdefault(str(row["loss"]), []).append(row)
    return [_Group(_title(*place), by_loss, place[2]) for place, by_loss in found.items()]


def _title(data: str, backbone: str, shots: str) -> str:
    return f"{data}, {backbone}, {'all pictures' if shots == 'full' else f'{shots} shots'}"


def _sections(rows: Sequence[Row], variants: Mapping[str, Mapping[str, Any]]) -> list[_Section]:
    sections = []
    for group in _groups(rows):
        tables = _retrieval(group, "", "")
        if group.shots != "full":
            tables += _retrieval(group, "shots_", ", in a gallery of the pictures trained on")
        if any("unseen_l2_map" in row for found in group.by_loss.values() for row in found):
            tables += _retrieval(group, "unseen_", ", of classes never trained on")
        tables += [_ratios(group), _cost(group), _settings(group)]
        sections.append(_Section(_heading(group), tuple(table for table in tables if table.rows)))
    failed = [row for row in rows if row.get("failure")]
    named = ("dataset", "backbone", "loss", "shots", "seed", "failure")
    cells = tuple(tuple(str(row[name]) for name in named) for row in failed)
    others = {"Cells that failed": _Table("", ("data set", *named[1:-1], "reason"), cells, words=True)}
    chosen = {row["loss"]: json.loads(row["tried"]) for row in rows if row.get("tried", "{}") != "{}"}
    for heading, settings in (("Settings chosen on validation pictures", chosen), ("Variants", variants)):
        said = tuple((loss, json.dumps(dict(given))) for loss, given in settings.items())
        others[heading] = _Table("", ("loss", "settings"), said, words=True)
    return sections + [_Section(heading, (table,)) for heading, table in others.items() if table.rows]


def _heading(group: _Group) -> str:
    """Return what was searched in what, and how often."""
    said = f"{group.title} ({group.seeds()}, {group.said('queries')} queries, gallery of {group.said('gallery')})"
    left_out = max(row.get("left_out", 0) for found in group.by_loss.values() for row in found)
    return f"{said}; {left_out} that cannot be used left out" if left_out else said


def _retrieval(group: _Group, prefix: str, what: str) -> list[_Table]:
    """Return what exhaustive search finds, and what two-stage search does."""
    exhaustive = _by_both(prefix) | {
        "expanded mAP": lambda row: row.get(f"{prefix}expanded_map", np.nan),
        "expanded R@1": lambda row: row.get(f"{prefix}expanded_r1", np.nan),
    }
    if not prefix:
        exhaustive["validation"] = lambda row: row.get(f"validation_{row['distance']}_map", np.nan)
    probed = _by_both(f"{prefix}probed_") | {"looked at": lambda row: row[f"{prefix}probed_{row['distance']}_scanned"]}
    tables = []
    for heading, figures in (("Exhaustive search", exhaustive), ("Two-stage search", probed)):
        if prefix == "shots_":
            # Of so few relevant pictures there are not k among any k.
            few = [name for name in figures if "P@" in name and int(name[2:].split()[0]) > int(group.shots)]
            figures = {name: figure for name, figure in figures.items() if name not in few}
        measured = {
            name: [[100 * figure(row) for row in found] for found in group.by_loss.values()]
            for name, figure in figures.items()
        }
        cells = [[_spread(values) for values in column] for column in measured.values()]
        own = [_own(found) for found in group.by_loss.values()]
        lines = tuple(zip(group.by_loss, *cells, own, strict=True))
        best = {
            (row, column)
            for column, (name, by_loss) in enumerate(measured.items(), start=1)
            if name != "looked at" and len(by_loss) > 1
            for row in _highest([float(np.mean(values)) for values in by_loss])
        }
        columns = ("loss", *figures, "own distance")
        tables.append(_Table(f"{heading}{what}", columns, lines, best=frozenset(best)))
    return tables


def _highest(means: Sequence[float]) -> list[int]:
    """Return where the highest number stands, and what a table shows as equal to it; NaN is none."""
    shown = np.round(means, 1)
    return np.flatnonzero(shown == np.nanmax(shown)).tolist() if np.isfinite(shown).any() else []


def _by_both(prefix: str) -> dict[str, Callable[[Row], float]]:
    """Return how each figure is read out of a row, by L2 and by cosine."""

    def column(name: str) -> Callable[[Row], float]:
        return lambda row: row[name]

    return {
        f"{name} ({said})": column(f"{prefix}{way}_{figure}")
        for name, figure in (("mAP", "map"), ("P@20", "p20"), ("P@100", "p100"), ("R@1", "r1"))
        for way, said in DISTANCES.items()
    }


def _own_map(row: Row) -> float:
    return float(row[f"{row['distance']}_map"])


def _own(rows: Sequence[Row]) -> str:
    """Return the distance, or distances, that a loss's models have chosen."""
    return " or ".join(dict.fromkeys(DISTANCES[row["distance"]] for row in rows))


def _ratios(group: _Group) -> _Table:
    """The best loss with class anchors against the best other one, and against the best softmax read-out.

    The best by this figure itself. Of the means over seeds; ± is the standard deviation over the seeds that both have,
    each seed having its own validation pictures and draws.
    """
    columns = ("figure", "best with class anchors", "best of the others", "ratio", "ratio of 1 - mAP", "R@1, points")
    lines = []
    for prefix, what in (("", ""), ("shots_", ", gallery of the shots"), ("unseen_", ", unseen classes")):
        for column, way in (*DISTANCES.items(), ("expanded", "expanded")):
            figure = f"{prefix}{column}_map"
            maps = {
                loss: {row["seed"]: row[figure] for row in found}
                for loss, found in group.by_loss.items()
                if all(figure in row and f"{prefix}{column}_r1" in row for row in found)
            }
            means = {loss: float(np.mean(list(of_seed.values()))) for loss, of_seed in maps.items()}
            anchored = [loss for loss in means if group.by_loss[loss][0]["learns_anchors"]]
            readouts = [loss for loss in means if group.by_loss[loss][0].get("features") == "softmax"]
            others = [loss for loss in means if loss not in anchored and loss not in readouts]
            for rivals, of in ((others, ""), (readouts, ", class probabilities")):
                if anchored and rivals:
                    best, other = max(anchored, key=means.__getitem__), max(rivals, key=means.__getitem__)
                    own, their = (
                        {row["seed"]: row[f"{prefix}{column}_r1"] for row in group.by_loss[loss]}
                        for loss in (best, other)
                    )
                    cells = (
                        f"mAP ({way}){what}{of}",
                        f"{best} {100 * means[best]:.1f}",
                        f"{other} {100 * means[other]:.1f}",
                        _paired(maps[best], maps[other], _quotient, ".3f"),
                        _paired(maps[best], maps[other], lambda a, b: _quotient(1 - a, 1 - b), ".3f"),
                        _paired(own, their, lambda a, b: 100 * (a - b), "+.1f"),
                    )
                    lines.append(cells)
    return _Table("Class anchors against the others, the best of each by the figure itself", columns, tuple(lines))


def _paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], compare: Callable[[float, float], float], form: str
) -> str:
    """Return compare(mean of ours, mean of theirs) ± its standard deviation over the seeds that both have."""
    found = compare(float(np.mean(list(ours.values()))), float(np.mean(list(theirs.values()))))
    each = [compare(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not np.isfinite([found, *each]).all():
        return "-"
    said = format(found, form)
    return f"{said} ± {format(np.std(each), form.removeprefix('+'))}" if len(each) > 1 else said


def _quotient(a: float, b: float) -> float:
    """Return a / b; NaN where there is nothing to divide by, as where the other loss misses nothing."""
    return a / b if b else float("nan")


def _cost(group: _Group) -> _Table:
    columns = ("loss", "training, s", "a step, ms", "memory, MB", "epochs")
    lines = tuple(
        (
            loss,
            _spread([row["train_seconds"] for row in found], 0),
            _spread([row["step_ms"] for row in found]),
            _spread([row["memory_mb"] for row in found], 0),
            str(found[0]["epochs"]),
        )
        for loss, found in group.by_loss.items()
    )
    threads = group.said("threads")
    on = f"{group.said('device')}, {threads} thread{'s' * (threads != '1')}"
    return _Table(f"Cost on {on}", columns, lines)


def _settings(group: _Group) -> _Table:
    """What all losses were trained with in the first row, and what each was that others were not."""
    told = {loss: _settings_of(rows) for loss, rows in group.by_loss.items()}
    said = {
        loss: {name: " or ".join(dict.fromkeys(map(_plain, values))) for name, values in settings.items()}
        for loss, settings in told.items()
        if settings
    }
    first, *others = said.values() or [{}]
    shared = {name: value for name, value in first.items() if others and all(own.get(name) == value for own in others)}
    lines = [("all", shared)] if shared else []
    lines += [(loss, {name: value for name, value in own.items() if name not in shared}) for loss, own in said.items()]
    texts = ((loss, ", ".join(f"{name} {value}" for name, value in own.items()) or "-") for loss, own in lines)
    return _Table("Settings", ("loss", "settings"), tuple(texts), words=True)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plots(rows: Sequence[Row]) -> str:
    """Draw mAP by the model's own distance."""
    figures = []
    losses = list(dict.fromkeys(str(row["loss"]) for row in rows))
    by_place: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for number, group in enumerate(_groups(rows)):
        points = {}
        for loss, found in group.by_loss.items():
            values = [*map(_own_map, found)]
            place = group.title.rsplit(", ", 1)[0]
            spread = (float(np.mean(values)), float(np.std(values)))
            points[loss] = (float(np.mean([row["train_seconds"] for row in found])), *spread)
            by_place.setdefault(place, {}).setdefault(loss, {})[group.shots] = spread
        figures.append(
            (
                f"mAP by each model's own distance against training time: {group.title}",
                plots.metric_by_time(points, losses, f"time{number}"),
            )
        )
    for number, (place, curves) in enumerate(by_place.items()):
        if any(len(curve) > 1 for curve in curves.values()):
            drawn = plots.metric_by_shots(curves, losses, f"shots{number}")
            figures.insert(number, (f"mAP by each model's own distance against shots: {place}", drawn))
    drawn = "".join(
        f"<figure class='card'><figcaption><b>{escape(heading)}</b></figcaption>"
        f"<div role='img' aria-label='{escape(heading)}'>{svg}</div></figure>"
        for heading, svg in figures
    )
    return f"<div class='plots'>{drawn}</div>" if drawn else ""


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean ± standard deviation; a dash where not every row has the figure."""
    if not np.isfinite(values).all():
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
