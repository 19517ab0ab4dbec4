"""The page of a report: one HTML file that holds all it needs. The browser itself is told to fetch nothing."""

import base64
import html
from importlib.resources import files

import pandas as pd

from zoology.analysis.report.contents import Contents, Picture, Section
from zoology.analysis.report.interactive import library

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_SHORT = 24  # characters of a cell that is better scrolled to than broken


def lay_out(contents: Contents) -> str:
    """The page as HTML. The same contents give the same page.

    Args:
        contents: of `contents.gather`.
    """
    body = [
        f"<h1>{_text(contents.title)}</h1>",
        _asked(contents),
        _frontier(contents),
        *(_section(section) for section in contents.tables[:1]),
        *(_figure(picture) for picture in contents.pictures),
        _absent(contents.absent),
        *(_section(section) for section in [*contents.tables[1:], *contents.ends]),
        _commands(contents),
    ]
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_text(contents.title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            f'<script type="application/json" id="frontier-data">{contents.interactive}</script>',
            f'<script type="application/octet-stream" id="library">{library()}</script>',
            f"<script>\n{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _text(words: object) -> str:
    return html.escape(str(words))


def _asked(contents: Contents) -> str:
    """What each run was asked; a run's name where there are several."""
    parts = ["<h2>What was asked</h2>"]
    for name, pairs in contents.asked.items():
        if len(contents.asked) > 1:
            parts.append(f"<h3>{_text(name)}</h3>")
        listed = "".join(f"<dt>{_text(what)}</dt><dd>{_text(value)}</dd>" for what, value in pairs)
        parts.append(f"<dl>{listed}</dl>")
    return "\n".join(parts)


def _frontier(contents: Contents) -> str:
    picture = contents.frontier
    hint = "Point at a mark for its dials, learning rate and seeds. Click a name to hide its architecture, twice to "
    hint += "see it alone; drag over a part to enlarge it, and click twice to come back."
    return "\n".join(
        [
            f'<h2 id="frontier">{_text(picture.heading)}</h2>',
            f'<p class="note script-only">{hint}</p>',
            f'<figure id="still">{_image(picture)}</figure>',
            '<div id="drawn"></div>',
            f'<p class="note script-only">{_text(contents.note)}</p>',
        ]
    )


def _figure(picture: Picture) -> str:
    return f"<h2>{_text(picture.heading)}</h2>\n<figure>{_image(picture)}</figure>"


def _image(picture: Picture) -> str:
    """Within an image the names of an SVG cannot meet those of another."""
    content = base64.b64encode(picture.content).decode()
    return f'<img alt="{_text(picture.heading)}" src="data:{picture.media};base64,{content}">'


def _absent(absent: dict[str, str]) -> str:
    if not absent:
        return ""
    listed = "".join(f"<dt>{_text(heading)}</dt><dd>{_text(why)}</dd>" for heading, why in absent.items())
    return f"<h2>Figures that these runs cannot give</h2>\n<dl>{listed}</dl>"


def _section(section: Section) -> str:
    note = f'<p class="note">{_text(section.note)}</p>\n' if section.note else ""
    return f'<h2>{_text(section.heading)}</h2>\n{note}<div class="scroll">{table(section.table)}</div>'


def table(frame: pd.DataFrame) -> str:
    """A table of text as HTML; a row that is marked * in its first column is set off."""
    head = "".join(f'<th scope="col"{_short(str(column))}>{_text(column)}</th>' for column in frame.columns)
    rows = []
    for row in frame.astype(str).itertuples(index=False):
        kind = ' class="best"' if row[0] == "*" else ""
        rows.append(f"<tr{kind}>{''.join(f'<td{_short(cell)}>{_text(cell)}</td>' for cell in row)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _short(cell: str) -> str:
    return ' class="short"' if len(cell) <= _SHORT else ""


def _commands(contents: Contents) -> str:
    from zoology import __version__

    parts = ["<h2>How it was made</h2>"]
    for name, command in contents.commands.items():
        parts.append(f"<h3>{_text(name)}</h3>\n<pre>{_text(command)}</pre>")
    if contents.command:
        parts.append(f"<h3>This report</h3>\n<pre>{_text(contents.command)}</pre>")
    parts.append(f'<p class="note">Zoology {_text(__version__)}</p>')
    return "\n".join(parts)
