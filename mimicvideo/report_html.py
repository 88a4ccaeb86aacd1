"""The pieces of a report's page: text, tables, pictures and videos, all inside one file."""

import base64
import html
from collections.abc import Sequence

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6570; --line: #e3e7eb; --shade: #f6f8fa; --accent: #0f62ac; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 40px 28px 80px; background: #fff; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 4px; }
h2 { font-size: 21px; margin: 52px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 28px 0 8px; }
p { margin: 8px 0; } .soft { color: var(--soft); } .small { font-size: 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0 8px; }
.tile { flex: 1 1 190px; border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tile b { display: block; font-size: 28px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 15px; margin: 10px 0; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--ink); padding: 6px 18px 6px 0; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: 6px 18px 6px 0; vertical-align: top; }
tr.total td { border-top: 2px solid var(--ink); border-bottom: none; font-weight: 600; }
th i, td i { font-style: normal; color: var(--soft); font-weight: 400; white-space: nowrap; }
td.mono { font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 14px 0; } figcaption { color: var(--soft); font-size: 14px; margin-top: 6px; }
.row { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; } .row figure { margin: 6px 0; }
.pixels { image-rendering: pixelated; } video { max-width: 100%; display: block; border-radius: 4px; background: #000; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; overflow-x: auto;
      font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.missing { background: #fff8e6; border: 1px solid #f0dca0; border-radius: 6px; padding: 10px 16px; margin: 20px 0; }
.missing ul { margin: 4px 0; padding-left: 20px; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def escape(text: object) -> str:
    """Text as it may stand in a page."""
    return html.escape(str(text))


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Figures to be seen first: (figure, what it is)."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in entries)
        + "</div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False, mono: bool = False) -> str:
    """A table of cells that are HTML already.

    Args:
        head: Column titles; none for a table of names and values.
        rows: Cells.
        total: Whether the last row is the sum.
        mono: Whether the last column holds hashes or paths.
    """
    titles = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>" if head else ""
    lines = []
    for place, row in enumerate(rows):
        kind = ' class="total"' if total and place == len(rows) - 1 else ""
        cells = [
            f'<td class="mono">{cell}</td>' if mono and column == len(row) - 1 else f"<td>{cell}</td>" for column, cell in enumerate(row)
        ]
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{titles}<tbody>{"".join(lines)}</tbody></table></div>'


def picture(content: bytes, kind: str, caption: str = "", width: int | None = None, pixels: bool = False) -> str:
    """An image inside the page. `kind` is `png` or `svg+xml`; `pixels` keeps enlarged pixels sharp."""
    size = f' style="width:{width}px"' if width else ""
    sharp = ' class="pixels"' if pixels else ""
    return figure(f'<img{sharp}{size} alt="{escape(caption)}" src="{data_uri(content, f"image/{kind}")}">', caption)


def film(content: bytes, caption: str = "", width: int | None = None) -> str:
    """A video inside the page, playing over and over."""
    size = f' style="width:{width}px"' if width else ""
    return figure(f'<video{size} src="{data_uri(content, "video/mp4")}" autoplay loop muted playsinline controls></video>', caption)


def figure(content: str, caption: str = "") -> str:
    """Something with a line below it."""
    return f"<figure>{content}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def code(text: str) -> str:
    """Lines to be typed."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, content: str) -> str:
    """What is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def missing(notes: Sequence[str]) -> str:
    """What the report should show and cannot."""
    if not notes:
        return ""
    return f'<div class="missing"><b>Not in this report</b><ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul></div>'


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content in place of its address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
