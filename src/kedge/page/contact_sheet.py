"""Contact sheet: what searches found, as pictures on one page."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from kedge.hits import Hit, SearchResult
from kedge.page.layout import escape, frame, percent, picture_tag

__all__ = ["contact_sheet"]

TITLE = "What the search found"
# Letters of a path that have room under a picture.
SHOWN_OF_PATH = 26


def contact_sheet(
    results: Sequence[SearchResult],
    queries: Sequence[bytes],
    thumbnails: Mapping[str, bytes],
) -> str:
    """Return a page with each query and its hits, best first; everything is inside the one file.

    queries: a JPEG of each; thumbnails: JPEGs by the hits' ids.
    """
    count = len(results)
    head = f"<h1>{TITLE}</h1>\n<p class='soft'>{count} {'query' if count == 1 else 'queries'}, hits best first. "
    head += "Each query was compared with the anchors, then with the pictures filed under the nearest ones.</p>"
    if count > 3:
        links = "".join(f"<li><a href='#q{row}'>{escape(_name(result))}</a></li>" for row, result in enumerate(results))
        head += f"\n<ol class='jump'>{links}</ol>"
    labels = sorted({hit.label for result in results for hit in result.hits if hit.label})
    # Steps of the golden ratio from blue on: however many labels there are, their hues lie well apart, and none near
    # red, which reads as wrong.
    hues = {label: round(45 + 270 * ((0.6 + 0.618034 * number) % 1)) for number, label in enumerate(labels)}
    sections = [
        _query(row, result, jpeg, thumbnails, hues)
        for row, (result, jpeg) in enumerate(zip(results, queries, strict=True))
    ]
    return frame(TITLE, "\n".join([head, *sections]))


def _query(
    row: int, result: SearchResult, jpeg: bytes, thumbnails: Mapping[str, bytes], hues: Mapping[str, int]
) -> str:
    probed = ", ".join(map(escape, result.probed[:6])) or "none"
    more = f" and {len(result.probed) - 6} more" if len(result.probed) > 6 else ""
    asked = (
        f"{picture_tag(jpeg, 'query ' + _name(result))}"
        f"<h2 title='{escape(result.query)}'>{escape(_name(result))}</h2>"
        f"<div class='soft'>{'anchor' if len(result.probed) == 1 else 'anchors'} probed: {probed}{more}</div>"
        f"<div class='bar' aria-hidden='true'><i style='width:{100 * min(1.0, result.scanned_share):.2f}%'></i></div>"
        f"<div class='soft'>{percent(result.scanned_share)} of the gallery looked at</div>"
    )
    if result.known is False:
        asked += (
            f"<div class='doubt'>perhaps of no known class: {result.percentile:.0f} % of known pictures "
            f"lie nearer to an anchor</div>"
        )
    hits = "".join(
        _hit(hit, distance, thumbnails.get(hit.id), hues)
        for hit, distance in zip(result.hits, result.distances(), strict=True)
    )
    found = f"<ol class='hits'>{hits}</ol>" if hits else "<p class='soft'>Nothing was found: no picture matches.</p>"
    return (
        f"<section class='query' id='q{row}' aria-label='query {escape(_name(result))}'>"
        f"<div class='asked'>{asked}</div><div>{found}</div></section>"
    )


def _hit(hit: Hit, distance: str, jpeg: bytes | None, hues: Mapping[str, int]) -> str:
    path = hit.path or ""
    shown = picture_tag(jpeg, f"hit {hit.rank}: {hit.label or path}") if jpeg else "no picture"
    label = f"<span class='chip' style='--hue:{hues[hit.label]}'>{escape(hit.label)}</span>" if hit.label else ""
    elsewhere = f"<div class='soft'>filed under {escape(hit.anchor)}</div>" if hit.anchor != hit.label else ""
    return (
        f"<li><figure><div class='shown'>{shown}</div><figcaption>"
        f"<div class='row'><span>{hit.rank}</span><span title='distance'>{distance}</span></div>"
        f"{label}{elsewhere}<div class='path' title='{escape(path)}'>{escape(_short(path, hit.label))}</div>"
        f"</figcaption></figure></li>"
    )


def _name(result: SearchResult) -> str:
    return PurePath(result.query).name or result.query


def _short(path: str, label: str | None) -> str:
    """Return the end of a path, which tells pictures apart; without the folder where that is the label."""
    parts = PurePath(path).parts[-2:]
    short = "/".join(parts[1:] if parts[:1] == (label,) else parts) if len(parts) == 2 else path
    half = SHOWN_OF_PATH // 2
    return short if len(short) <= SHOWN_OF_PATH else f"{short[: half - 1]}…{short[-half:]}"
