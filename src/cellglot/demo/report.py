"""The page that the demo writes: sections of text, tables and figures, in one file without outside parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from cellglot.evaluation import plots
from cellglot.outputs import write_text


@dataclass
class Picture:
    """A figure of a section.

    Parameters
    ----------
    name
        Alternative text.
    kind
        ``svg``, or ``png`` where there are many points.
    wide
        Whether it takes a whole row.
    """

    name: str
    figure: Figure
    kind: str = "svg"
    wide: bool = False

    @property
    def address(self) -> str:
        """The figure itself as a ``data:`` address."""
        return plots.data_uri(self.figure, self.kind)


@dataclass
class Table:
    """A table of a section. All columns but the first contain numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A section of the page.

    Parameters
    ----------
    text
        Preformatted text, such as code.
    """

    title: str
    paragraphs: Sequence[str] = ()
    text: str | None = None
    table: Table | None = None
    figures: Sequence[Picture] = field(default_factory=list)


def write_report(
    path: Path, name: str, lead: str, cards: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str
) -> None:
    """Write the page.

    Parameters
    ----------
    name
        Name of the file of cells.
    cards
        (value, label) of the numbers on top.
    sections
        Numbered in their order.
    """
    loader = jinja2.PackageLoader("cellglot.demo", "templates")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("demo_report.html.jinja")
    page = template.render(
        name=name,
        lead=lead,
        cards=[{"value": value, "label": label} for value, label in cards],
        sections=sections,
        footer=footer,
    )
    write_text(path, page)


__all__ = ["Picture", "Section", "Table", "write_report"]
