"""A page as a list of blocks, written as Markdown and as HTML."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """Of level 1, 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    is_verdict: bool = False


@dataclass(frozen=True)
class Table:
    """Cells of text; the first `labels` columns are on the left, the others are figures."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    is_long: bool = False
    """Folded away where it can be."""


@dataclass(frozen=True)
class Plot:
    """A file next to the page, and its content."""

    name: str
    png: bytes


Block = Heading | Text | Table | Sequence[Plot]


def as_markdown(blocks: Sequence[Block]) -> str:
    """With links to the plots."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Text(text, is_verdict):
                parts.append(f"**{text}**" if is_verdict else text)
            case Table(head, rows, labels):
                rule = ["---"] * labels + ["--:"] * (len(head) - labels)
                cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
                lines = [cells[0], rule, *cells[1:]]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case _:
                parts += [f"![{plot.name}]({plot.name}.png)" for plot in block]
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.25rem } h3 { font-size: 1.05rem }
h2, h3 { margin-top: 2rem }
.verdict { font-size: 1.1rem; border-left: 4px solid #2a7; padding: .2rem 0 .2rem 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; vertical-align: bottom }
th { border-bottom: 1px solid; font-weight: 600; min-width: 3rem }
td { white-space: nowrap }
th.label, td.label { text-align: left; white-space: normal; min-width: 5rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
.plots { gap: 1rem }
img { width: 100%; background: white }
p, td.label, h1, h2, h3 { overflow-wrap: anywhere }
"""


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """One page with everything in it: it opens without a network."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, is_verdict):
            kind = ' class="verdict"' if is_verdict else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Table(head, rows, labels, is_long):
            lines = "\n".join(
                [_row("th", head, labels), *(_row("td", row, labels) for row in rows)]
            )
            table = f'<div class="wide"><table>\n{lines}\n</table></div>'
            if is_long:
                return f"<details><summary>{len(rows)} rows</summary>\n{table}</details>"
            return table
        case _:
            images = "".join(
                f'<img alt="{html.escape(plot.name)}" src="data:image/png;base64,'
                f'{base64.b64encode(plot.png).decode()}">'
                for plot in block
            )
            return f'<div class="plots">{images}</div>'


def _row(tag: str, cells: Sequence[str], labels: int) -> str:
    kinds = [' class="label"'] * labels + [""] * (len(cells) - labels)
    texts = [html.escape(cell) for cell in cells]
    if tag == "th":  # a dotted key may be broken where a word ends
        texts = [text.replace(".", ".<wbr>").replace("_", "_<wbr>") for text in texts]
    parts = (f"<{tag}{kind}>{text}</{tag}>" for text, kind in zip(texts, kinds, strict=True))
    return f"<tr>{''.join(parts)}</tr>"
