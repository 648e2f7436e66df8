"""The page that the demo writes: sections of text, tables, figures and maps, in one file without outside parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from cellglot.evaluation import plots
from cellglot.evaluation.cell_plot.page import fragment, script, style
from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.drawing import drawing
from cellglot.outputs import write_text


@dataclass
class Picture:
    """A figure of a section.

    Parameters
    ----------
    name
        Alternative text.
    address
        The figure itself as a ``data:`` address.
    wide
        Whether it takes a whole row.
    """

    name: str
    address: str
    wide: bool = False


def draw(
    name: str, make: Callable[[], Figure], again: Sequence[str], path: Path | None = None, wide: bool = False
) -> list[Picture]:
    """Draw a figure for the page; an error of drawing is a warning, and the list is empty.

    Parameters
    ----------
    name
        Alternative text.
    make
        Returns the figure.
    again
        Words of the command that draws again.
    path
        File to write the figure to, too.
    """
    with drawing(name, again):
        figure = make()
        if path is not None:
            plots.save_figure(figure, str(path))
        return [Picture(name, plots.data_uri(figure, "svg"), wide)]
    return []


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
    maps: Sequence[CellPlot] = field(default_factory=list)


def write_report(
    path: Path,
    name: str,
    lead: str,
    cards: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    footer: str,
    heading: str = "From a file of cells to models on the Hub",
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
        maps=_maps(sections),
        footer=footer,
        heading=heading,
        script=script(),
        style=style(),
    )
    write_text(path, page)


def _maps(sections: Sequence[Section]) -> list[list[Markup]]:
    """Return the elements of the maps of every section."""
    return [
        [fragment(plot, f"cells-{number}-{place}") for place, plot in enumerate(section.maps, 1)]
        for number, section in enumerate(sections, 1)
    ]


__all__ = ["Picture", "Section", "Table", "draw", "write_report"]
