"""Figures: what an evaluation measured, by every way to search."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

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

    def shares(self) -> Iterator[float]:
        """Yield all that was measured but the time."""
        yield from (self.map, *self.precision_at.values(), *self.recall_at.values(), self.scanned_share)


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

    def distances_agree(self) -> bool:
        """Tell whether L2 and cosine have the same figures, to the digits of a table, as for vectors of unit length."""
        l2, cosine = (
            [share for row in self.search if row.distance == way for share in row.shares()]
            for way in get_args(Distance)
        )
        return all(round(100 * a, 1) == round(100 * b, 1) for a, b in zip(l2, cosine, strict=True))

    def distinct(self) -> tuple[SearchFigures, ...]:
        """Return the ways to search that tell something: where distances agree, those by the model's own.

        Of the numbers of probes beyond 1, those that look at all pictures are exhaustive search, and left out.
        """
        one = self.distances_agree()
        return tuple(
            row
            for row in self.search
            if (row.distance == self.distance or not one)
            and (row.probes in (None, 1, "exact") or row.scanned_share < 1)
        )

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
