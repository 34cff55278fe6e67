"""A page of sections: texts, tables, figures and pictures, as one HTML file that needs nothing else.

The script of the figures is in the file, a security policy forbids every request, and every figure has the table of its
numbers below it, so that nothing is said by a figure alone. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import t2ikit

if TYPE_CHECKING:
    from jinja2 import Template
    from plotly.graph_objects import Figure as Plot

Cell = str | float | int | None


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Table:
    """A table; a number is shown with ``digits`` decimals, None as a dash.

    Attributes:
        caption: what it shows.
        columns: headings.
        rows: one cell a column; the first heads the row.
        notes: below it.
        digits: decimals of numbers.
        folded: closed until the reader opens it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    digits: int = 3
    folded: bool = False
    kind: str = field(default="table", init=False)

    def shown(self, value: Cell) -> str:
        """A cell as text."""
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Plotted:
    """A figure, and the table of its numbers.

    Attributes:
        caption: what it shows.
        plot: of plotly, with colours of ``t2ikit.report.plots``.
        table: its numbers.
    """

    caption: str
    plot: Plot
    table: Table
    kind: str = field(default="plot", init=False)

    def html(self, name: str) -> str:
        """The figure without the script of the library, which the page holds once."""
        options = {"responsive": True, "displaylogo": False, "displayModeBar": False}
        text: str = self.plot.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options)
        return text


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures.

    Attributes:
        caption: what they show.
        columns: headings.
        rows: name, and the bytes of a PNG, JPEG or WebP (None for none) a column.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[bytes | None]]]
    kind: str = field(default="pictures", init=False)

    @staticmethod
    def address(content: bytes) -> str:
        """A picture as an address that holds it."""
        return address(content)


@dataclass(frozen=True)
class Slides:
    """Pictures at several positions, one of which is shown; a slider chooses it, by mouse or by keys.

    Attributes:
        caption: what they show.
        positions: a label each, such as "step 1900".
        rows: name, and (index of the position, bytes of a picture) in that order. At a position without a picture the
            one before is shown.
        notes: below them.
    """

    caption: str
    positions: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, bytes]]]]
    notes: Sequence[str] = ()
    kind: str = field(default="slides", init=False)

    @staticmethod
    def address(content: bytes) -> str:
        """A picture as an address that holds it."""
        return address(content)


Block = Paragraph | Table | Plotted | Pictures | Slides


def address(content: bytes) -> str:
    """The bytes of a PNG, JPEG or WebP picture as an address that holds them."""
    kind = "jpeg" if content.startswith(b"\xff\xd8") else "webp" if content.startswith(b"RIFF") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: Sequence[Block]


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML of a page.

    Args:
        title: its heading.
        lead: paragraphs below it.
        sections: each is an entry of the contents.
    """
    plots = any(isinstance(block, Plotted) for section in sections for block in section.blocks)
    return template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        script=_script_of_plots() if plots else "",
        version=t2ikit.__version__,
    )


@cache
def template(name: str) -> Template:
    """A template of ``templates/``; what is put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("t2ikit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


@cache
def _script_of_plots() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script
