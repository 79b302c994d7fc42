"""A progress bar on stderr; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressCallback", "progress_bar"]

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
