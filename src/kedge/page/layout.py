"""Layout: the frame and style that all pages share. A page is one file: no scripts, nothing loaded from elsewhere."""

import base64
import html
import io
from collections.abc import Mapping

from PIL import Image

__all__ = ["escape", "frame", "glossary", "percent", "picture_tag", "scroller"]

STYLE = """
:root { --ink:#1d2126; --soft:#5d6673; --line:#dfe3e8; --ground:#fafafa; --card:#fff; --accent:#0b6e99; --tint:#e6f1f6;
  --warm:#c2571a; --violet:#7a5ea8; --green:#3f8f4f; --shade:#0004; color-scheme:light dark }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink:#e8eaed; --soft:#9aa4b2; --line:#353b44; --ground:#16191d; --card:#1e2227; --accent:#5bb8e0; --tint:#1f333e;
    --warm:#ef8a4f; --violet:#ab90dc; --green:#6fc281; --shade:#000c }
}
* { box-sizing: border-box }
body { margin:0; background:var(--ground); color:var(--ink); line-height:1.55;
  font:1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width:1120px; margin:0 auto; padding:32px 20px 64px }
h1 { font-size:1.75rem; line-height:1.25; margin:0 0 4px; font-weight:650; letter-spacing:-.01em; overflow-wrap:anywhere }
h2 { font-size:1.2rem; margin:44px 0 10px; font-weight:620 }
h3 { font-size:1rem; margin:18px 0 6px; font-weight:600; overflow-wrap:anywhere }
p { margin:6px 0; max-width:70ch } a { color:var(--accent) }
.soft { color:var(--soft); font-size:.9rem }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:16px }
.figures { display:grid; grid-template-columns:repeat(auto-fit, minmax(150px, 1fr)); gap:14px; margin:22px 0 }
.figures b { display:block; font-size:2rem; line-height:1.15; font-weight:650; font-variant-numeric:tabular-nums }
/* A shadow at an edge that hides more of a table: covers at the table's own ends move with it. */
.scroll { overflow-x:auto; background:linear-gradient(to right, var(--card) 50%, transparent) 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--card) 50%, transparent) 100% / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 / 14px 100% no-repeat,
  linear-gradient(to left, var(--shade), transparent) 100% / 14px 100% no-repeat var(--card) }
main.wide { max-width:1400px }
.wide table { font-size:.84rem } .wide th, .wide td { padding:6px 4px } .wide thead th { white-space:normal; vertical-align:bottom }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums }
th, td { text-align:right; padding:6px 10px; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child, td:first-child { text-align:left } thead th { color:var(--soft); font-weight:560 }
tr.group th { text-align:left; padding-top:18px; color:var(--ink); font-weight:620; white-space:normal }
tr.group span { display:block; position:sticky; left:10px; max-width:calc(100vw - 84px) }
tbody th { font-weight:400 } .named th { white-space:normal; overflow-wrap:anywhere } tr.own > * { background:var(--tint) }
table.settings td, table.settings thead th { text-align:left; white-space:normal; overflow-wrap:anywhere }
.plots { display:grid; grid-template-columns:repeat(6, 1fr); gap:16px } .plots > * { grid-column:span 3; min-width:0 }
.plots > .third { grid-column:span 2 }
.plots figure { margin:0; display:flex; flex-direction:column; justify-content:space-between } .plots figcaption { margin:0 0 8px } .plots figcaption b { font-size:.95rem } .plots figcaption .soft { font-size:.85rem }
.plots figcaption b { display:block; font-weight:620 }
.plots svg { display:block; width:100%; height:auto; stroke-linejoin:round } .plots svg text { font-family:inherit !important }
.strip { display:grid; grid-template-columns:repeat(6, minmax(0, 72px)); gap:8px }
.strip img { width:100%; aspect-ratio:1; object-fit:cover; border-radius:6px; background:var(--line) }
img.small { image-rendering:pixelated }
.query { display:grid; grid-template-columns:200px 1fr; gap:24px; padding:26px 0; border-top:1px solid var(--line) }
.query .asked img { width:100%; border-radius:10px; display:block; background:var(--line) }
.bar { height:6px; border-radius:3px; background:var(--line); margin:4px 0 2px; overflow:hidden }
.doubt { color:var(--warm); font-size:.9rem; margin-top:4px }
.bar i { display:block; height:100%; background:var(--accent); min-width:2px }
.hits { display:grid; grid-template-columns:repeat(auto-fill, minmax(118px, 1fr)); gap:14px; list-style:none; margin:0; padding:0 }
.hits.large { grid-template-columns:repeat(auto-fill, minmax(170px, 1fr)) }
.hits figure { margin:0 } .hits .shown { aspect-ratio:1; border-radius:8px; overflow:hidden; background:var(--line);
  display:flex; align-items:center; justify-content:center; color:var(--soft); font-size:.8rem }
.hits img { width:100%; height:100%; object-fit:contain; display:block }
figcaption { font-size:.82rem; line-height:1.35; margin-top:5px }
figcaption .soft, .path { font-size:.78rem } figcaption .row { display:flex; justify-content:space-between; gap:6px; font-variant-numeric:tabular-nums }
.chip { display:inline-block; max-width:100%; padding:1px 8px; border-radius:9px; font-size:.8rem; overflow:hidden;
  text-overflow:ellipsis; white-space:nowrap; vertical-align:bottom;
  background:hsl(var(--hue) 60% 90%); color:hsl(var(--hue) 75% 22%) }
@media screen and (prefers-color-scheme: dark) { .chip { background:hsl(var(--hue) 35% 26%); color:hsl(var(--hue) 70% 86%) }
  .plots svg image { filter:brightness(.8) } }
.path { color:var(--soft); overflow-wrap:anywhere }
.command { display:block; user-select:all } .command span { white-space:nowrap }
.query h2 { font-size:1rem; margin:10px 0 4px; overflow-wrap:anywhere } .query:target h2 { color:var(--accent) }
.jump { columns:180px auto; font-size:.9rem; margin:16px 0; padding-left:18px } .jump li { overflow-wrap:anywhere }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; font-size:.92rem } dt { font-weight:620 } dd { margin:0 }
details { margin-top:12px } summary { cursor:pointer; color:var(--accent) }
footer { margin-top:56px; color:var(--soft); font-size:.85rem }
@media (max-width:640px) { .query { grid-template-columns:1fr } .query .asked { max-width:180px } dl { grid-template-columns:1fr }
  main { padding:22px 14px 48px } }
@media (max-width:860px) { .plots > *, .plots > .third { grid-column:1 / -1 } }
@media print { html { font-size:12px } body { background:#fff } main { padding:0 } .hits figure, .card, tr { break-inside:avoid } .jump { display:none }
  h2, h3 { break-after:avoid } * { print-color-adjust:exact; -webkit-print-color-adjust:exact } }
"""

# Pictures below this size are shown enlarged, and a blur would hide what there is.
SMALL = 65


def escape(value: object) -> str:
    """Return text for HTML, also inside an attribute's quotes; what UTF-8 cannot say (odd file names) is replaced."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def frame(title: str, body: str, *, wide: bool = False) -> str:
    """Return a whole page around a body; a wide one has room for tables of many columns."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main{' class=wide' if wide else ''}>\n{body}\n"
        "<footer>Made by Kedge.</footer>\n</main>\n</body>\n</html>\n"
    )


def scroller(name: str, table: str) -> str:
    """Return a table that scrolls where the window is too narrow for it, with the keys of a keyboard too."""
    return f"<div class='scroll card' tabindex='0' role='region' aria-label='{escape(name)}'>{table}</div>"


def glossary(words: Mapping[str, str]) -> str:
    """Return the end of a page: what its words mean."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items())
    return f"<h2>What the words mean</h2><dl>{entries}</dl>"


def percent(share: float) -> str:
    """Return a share as percent: 0.1234 -> 12.3 %."""
    return f"{100 * share:.1f} %"


def picture_tag(jpeg: bytes, description: str) -> str:
    """Return an image that says what it shows; small ones keep their pixels sharp when enlarged."""
    with Image.open(io.BytesIO(jpeg)) as image:
        small = ' class="small"' if max(image.size) < SMALL else ""
    held = base64.b64encode(jpeg).decode("ascii")
    return f'<img{small} src="data:image/jpeg;base64,{held}" alt="{escape(description)}">'
