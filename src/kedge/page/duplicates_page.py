"""Duplicates page: groups of pictures that show the same, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from shlex import quote

from kedge.duplicates import DuplicateGroup
from kedge.page.layout import escape, frame, picture_tag

__all__ = ["duplicates_page", "shown_on_page"]

# Groups on the page, and pictures of each.
MOST_SHOWN, MOST_OF_A_GROUP = 200, 24


def duplicates_page(groups: Sequence[DuplicateGroup], thumbnails: Mapping[str, bytes]) -> str:
    """Return a page with the first pictures of the first groups, inside the one file; `thumbnails` are JPEGs by id."""
    spare = sum(len(group.ids) - 1 for group in groups)
    head = "<h1>Duplicates</h1>\n"
    if groups:
        more = f" The first {MOST_SHOWN} are shown." if len(groups) > MOST_SHOWN else ""
        head += f"<p class='soft'>{len(groups)} groups, {spare} pictures that may be left out after a look.{more}</p>"
    else:
        head += "<p class='soft'>No two pictures show the same.</p>"
    sections = [_group(number, group, thumbnails) for number, group in enumerate(groups[:MOST_SHOWN], start=1)]
    return frame("Duplicates", "\n".join([head, *sections]))


def shown_on_page(groups: Sequence[DuplicateGroup]) -> list[str]:
    """Return the ids of the pictures whose thumbnails the page needs."""
    return [key for group in groups[:MOST_SHOWN] for key in group.ids[:MOST_OF_A_GROUP]]


def _group(number: int, group: DuplicateGroup, thumbnails: Mapping[str, bytes]) -> str:
    rows = list(zip(group.ids, group.paths, group.labels, strict=True))[:MOST_OF_A_GROUP]
    pictures = "".join(_picture(thumbnails.get(key), key, path, label) for key, path, label in rows)
    more = len(group.ids) - len(rows)
    pictures += f"<li class='soft'>and {more} more, which <code>kedge duplicates</code> lists</li>" if more else ""
    what = "equal content" if group.kind == "exact" else f"near, embeddings within {group.distance:.3g}"
    # Spans that stay in one line: a window would break `--id` after its dashes.
    spare = " ".join(f"<span>--id {escape(quote(key))}</span>" for key, *_ in rows[1:])
    command = f"<code class='command'>kedge remove GALLERY {spare}</code>"
    return (
        f"<section aria-label='group {number}'><h3>{len(group.ids)} pictures, {what}</h3>"
        f"<ol class='hits large'>{pictures}</ol>"
        f"<p class='soft'>To remove all shown but the first:</p>{command}</section>"
    )


def _picture(jpeg: bytes | None, key: str, path: str | None, label: str | None) -> str:
    name = path or key
    shown = picture_tag(jpeg, name) if jpeg else "no picture"
    told = f"<div class='soft'>{escape(label)}</div>" if label else ""
    where = f"{path}\n--id {key}" if path else f"--id {key}"
    return (
        f"<li><figure><div class='shown'>{shown}</div><figcaption>{told}"
        f"<div class='path' title='{escape(where)}'>{escape(PurePath(name).name or name)}</div>"
        "</figcaption></figure></li>"
    )
