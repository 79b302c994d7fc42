"""Progress on stderr: a bar, silent where nobody watches, and a table that fills while losses are compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kedge.cli.options import shown

__all__ = ["ProgressCallback", "comparison_progress", "progress_bar"]

ProgressCallback = Callable[[str, int, int], None]


@contextmanager
def progress_bar(doing: str) -> Iterator[ProgressCallback]:
    """Give a callback (what, done, total) that moves a bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None)

        def move(what: str, done: int, total: int) -> None:
            bar.update(task, description=what or doing, completed=done, total=total or None)

        yield move


@contextmanager
def comparison_progress() -> Iterator[Callable[[str, dict[str, Any], int, int], None]]:
    """Give a callback (name, row, done, total) that shows a table of mAP by loss; a line each where nobody watches."""
    console = Console(stderr=True)
    found: dict[str, dict[str, list[float]]] = {}

    def table() -> Table:
        columns = list(dict.fromkeys(place for places in found.values() for place in places))
        drawn = Table("mAP, % (seeds)", *columns)
        for loss, places in found.items():
            means = (places.get(column) for column in columns)
            drawn.add_row(loss, *(f"{100 * sum(each) / len(each):.1f} ({len(each)})" if each else "" for each in means))
        return drawn

    with Live("the first cells are being trained", console=console, transient=True, auto_refresh=False) as live:

        def show(name: str, row: dict[str, Any], done: int, total: int) -> None:
            kind = "" if "l2_map" in row else "validation_"
            reached = max(row.get(f"{kind}{distance}_map", 0.0) for distance in ("l2", "cosine"))
            reached_said = f"{kind.replace('_', ' ')}mAP {100 * reached:.1f}"
            # Brackets in names and reasons are no styles.
            name, said = escape(shown(name)), escape(shown(row.get("failure") or reached_said))
            if not console.is_terminal:
                console.print(f"{done}/{total}  {name}  {said}", highlight=False, soft_wrap=True)
                return
            if "l2_map" in row:
                column = escape(shown(f"{row['dataset']}, {row['backbone']}, {row['shots']}"))
                found.setdefault(row["loss"], {}).setdefault(column, []).append(reached)
            status = f"{done} of {total} done; last: {name}, {said}"
            live.update(Group(table(), status) if found else status, refresh=True)

        yield show
