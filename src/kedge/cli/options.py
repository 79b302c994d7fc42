"""Options that several commands have, and how values are printed."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

__all__ = ["Expand", "Json", "Runtime", "listed", "scored", "shown"]

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]

Expand = Annotated[bool, typer.Option("--expand", help="Turn queries to the anchors of the classes they look like.")]

Runtime = Annotated[str, typer.Option(help="What runs the model: auto (the fastest), onnxruntime, openvino or torch.")]


# What tables call the shares in a model's card.
SHARES = {
    "map": "mAP",
    "map_l2": "mAP (L2)",
    "map_cosine": "mAP (cosine)",
    "precision_at_20": "P@20",
    "recall_at_1": "R@1",
}


def shown(value: object) -> str:
    """Return a name or a message for the terminal, in one line: signs that are not printable stand escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in str(value))


def scored(figures: Mapping[str, float]) -> str:
    """Return shares of a model's card in one line, by the names that tables give them, in percent."""
    return ", ".join(f"{SHARES.get(name, name)} {100 * share:.1f} %" for name, share in figures.items())


def listed(value: Any) -> str:
    """Return a value in one line: numbers to four places, lists by commas."""
    if isinstance(value, dict):
        return ", ".join(f"{shown(name)} {_figure(inner)}" for name, inner in value.items()) or "-"
    return ", ".join(map(shown, value)) or "-" if isinstance(value, list) else _figure(value)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)
