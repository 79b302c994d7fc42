"""Figures: what an evaluation measured, by every way to search."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kedge.errors import InputError, PictureError
from kedge.model import Distance

__all__ = ["Confusion", "FiledBy", "Probes", "Report", "SearchFigures"]

Probes = int | Literal["exact"]
FiledBy = Literal["nearest", "label"]


@dataclass(frozen=True)
class SearchFigures:
    """What one way to search reaches. Shares, not percent; milliseconds and share scanned are those of k = 100."""

    mode: Literal["exhaustive", "two-stage"]
    distance: Distance
    filed_by: FiledBy | None
    probes: Probes | None
    map: float
    precision_at: dict[str, float]
    recall_at: dict[str, float]
    scanned_share: float
    milliseconds_per_query: float


@dataclass(frozen=True)
class Confusion:
    """The other class that a class's queries find most, and its share of their first 20 hits."""

    found: str
    share: float


@dataclass(frozen=True)
class Report:
    """What was measured, with its protocol and counts."""

    dataset: str
    queries: int
    gallery: int
    classes: int
    dim: int
    distance: Distance
    """The model's own: per_class, confusions and precision_recall are by it."""
    search: tuple[SearchFigures, ...]
    per_class: dict[str, float | None]
    """Mean AP of the class's queries, exhaustive; None for a class without queries."""
    confusions: dict[str, Confusion]
    """By class, exhaustive; without the classes whose queries find none but their own."""
    queries_without_relevant: int
    precision_recall: tuple[float, ...]
    """Interpolated precision, exhaustive, at recall 0, 0.01, ..., 1."""
    expanded: bool = False
    """Whether the queries were turned to the anchors of the classes they look like."""
    left_out: tuple[PictureError, ...] = ()
    """Pictures of the data set that cannot be used: read, above all, or told which of two labels they have."""

    def figures(
        self, mode: str, distance: str, filed_by: str | None = None, probes: Probes | None = None
    ) -> SearchFigures:
        """Return the figures of one way to search; raise InputError when it was not measured."""
        for row in self.search:
            if (row.mode, row.distance, row.filed_by, row.probes) == (mode, distance, filed_by, probes):
                return row
        raise InputError(f"{mode} search by {distance}, filed by {filed_by}, probes {probes} was not measured")

    def headline(self) -> dict[str, float]:
        """Return the few figures that stand for all: exhaustive search by the model's distance."""
        row = self.figures("exhaustive", self.distance)
        return {
            "map": row.map,
            "precision_at_20": row.precision_at["20"],
            "recall_at_1": row.recall_at["1"],
        }

    def to_json(self) -> dict[str, Any]:
        """Return what `kedge evaluate --json` prints."""
        return {**asdict(replace(self, left_out=())), "left_out": len(self.left_out)}
