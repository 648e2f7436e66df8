"""One HTML file with plots of cells; nothing is loaded from elsewhere."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.outputs import write_text


@cache
def script() -> Markup:
    """Return ``cell_plot.js``, for a script element of a page."""
    return Markup(_asset("cell_plot.js"))


@cache
def style() -> Markup:
    """Return ``cell_plot.css``, for a style element of a page."""
    return Markup(_asset("cell_plot.css"))


def _asset(name: str) -> str:
    return files("cellglot.evaluation.cell_plot").joinpath(name).read_text(encoding="utf-8")


def fragment(plot: CellPlot, name: str, *, wheel: bool = False) -> Markup:
    """Return the elements of a plot for a page with `script` and `style`, whose script calls ``cellPlot.all()``.

    Parameters
    ----------
    name
        Id of the data in the page.
    wheel
        Zoom by the wheel at once, not only after a click into the plot.
    """
    content = json.dumps(plot.data() | {"wheel": wheel}, separators=(",", ":")).replace("<", "\\u003c")
    data = Markup('<script type="application/json" id="{}">').format(name) + Markup(content) + Markup("</script>")
    return Markup('<div data-cell-plot="{}"></div>\n').format(name) + data


def page(plots: Sequence[CellPlot], title: str) -> str:
    """Return a page with plots.

    Parameters
    ----------
    title
        Title of the page, for the browser's tab.
    """
    template = jinja2.Environment(autoescape=True).from_string(_asset("page.html.jinja"))
    single = len(plots) == 1
    parts = [fragment(plot, f"cells-{number}", wheel=single) for number, plot in enumerate(plots, 1)]
    return template.render(title=title, plots=parts, script=script(), style=style(), single=single)


def write_page(plots: Sequence[CellPlot], path: Path, title: str) -> None:
    """Write a page with plots, atomically."""
    write_text(path, page(plots, title))


__all__ = ["fragment", "page", "script", "style", "write_page"]
