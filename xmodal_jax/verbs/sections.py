"""Tables under headings as text, Markdown, and a page of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from xmodal_jax.verbs.search import printable

SIDE = 160  # pixels of an embedded picture
STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6875; --line: #d5dbe1; --paper: #fff; --mark: #1a7f4b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --soft: #a3afba; --line: #3a4550; --paper: #14191e; --mark: #5fca93 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1, p { overflow-wrap: anywhere } h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
p { margin: .3rem 0; color: var(--soft) } p.first { color: var(--ink); font-size: 1.05rem }
div { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: middle;
  overflow-wrap: break-word }
th, td.r, td:first-child { white-space: nowrap }
td.r, th.r { text-align: right; font-variant-numeric: tabular-nums }
td img { display: block; max-width: 80px; max-height: 80px }
tr.marked td { color: var(--mark); font-weight: 600 }
"""


class Section(NamedTuple):
    """A table with its heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = ""  # "l" or "r" a column, "l" where there are no more
    note: str = ""
    pictures: Sequence[Path | None] = ()  # of each row, on the page alone
    marked: frozenset[int] = frozenset()  # rows to stand out on the page

    def right(self, column: int) -> bool:
        return self.align[column : column + 1] == "r"


def to_text(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Columns for a terminal, which is sent no control character."""
    parts = [f"{printable(title)}\n{printable(lead)}"]
    for section in sections:
        rows = [[printable(cell) for cell in row] for row in ([section.head] if any(section.head) else [])]
        rows += [[printable(cell) for cell in row] for row in section.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [section.title]
        for row in rows:
            cells = [
                cell.rjust(width) if section.right(i) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(("  " + "  ".join(cells)).rstrip())
        parts.append("\n".join([*lines, *([f"  {section.note}"] if section.note else [])]))
    return "\n\n".join(parts) + "\n"


def to_markdown(title: str, lead: str, sections: Iterable[Section]) -> str:
    """GitHub's Markdown; text of the data is escaped."""
    parts = [f"# {escaped(title)}", escaped(lead)]
    for section in sections:
        parts.append(f"## {escaped(section.title)}")
        if section.rows:
            ends = ["---:" if section.right(i) else "---" for i in range(len(section.head))]
            lines = [map(escaped, section.head), ends, *(map(escaped, row) for row in section.rows)]
            parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
        if section.note:
            parts.append(escaped(section.note))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    text = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page_of(title: str, lead: str, body: Iterable[str]) -> str:
    """One file with a heading, a first paragraph and the parts of its body: no script, no request."""
    rule = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{rule}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<p class=first>{html.escape(lead)}</p>",
        *body,
    ]
    return "\n".join(filter(None, parts)) + "\n</html>\n"


def to_html(title: str, lead: str, sections: Iterable[Section], figure: str = "") -> str:
    """The page of some tables; ``figure`` is SVG that goes after the lead."""
    parts = [figure]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.rows:
            pictures = [embedded(path) for path in section.pictures] or [""] * len(section.rows)
            head = _cells("th", section, section.head, "" if any(pictures) else None)
            body = [
                f"<tr{' class=marked' if i in section.marked else ''}>"
                + _cells("td", section, row, picture if any(pictures) else None)
                for i, (row, picture) in enumerate(zip(section.rows, pictures, strict=True))
            ]
            parts.append("\n".join([f"<div><table>\n<tr>{head}", *body, "</table></div>"]))
        if section.note:
            parts.append(f"<p>{html.escape(section.note)}</p>")
    return page_of(title, lead, parts)


def _cells(tag: str, section: Section, row: Sequence[str], picture: str | None) -> str:
    cells = [
        f"<{tag}{' class=r' if section.right(i) else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(row)
    ]
    return "".join(cells if picture is None else [f"<{tag}>{picture}</{tag}>", *cells])


def embedded(path: Path | None, side: int = SIDE) -> str:
    """A small copy of a picture inside an ``img`` element; nothing where there is none that can be read."""
    if path is None:
        return ""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((side, side))
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
