"""Pictures of written results: an error of drawing is a warning, with the command that draws again."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_log = logging.getLogger(__name__)


@contextmanager
def drawing(what: str | Path, again: Sequence[Any]) -> Iterator[None]:
    """Turn errors of drawing into a warning that names the command to draw again, in words `again`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the result is written: an error of drawing is not an error of the work
        cause = (str(error).strip() or type(error).__name__).split("\n")[0]
        _log.warning(
            "%s was not drawn (%s). The result is written; to draw again: %s",
            what,
            cause,
            shlex.join(str(word) for word in again),
        )


INTERACTIVE = ".html"


def is_interactive(plot: Path) -> bool:
    """Whether a picture is a page to zoom, hover and colour, and not an image."""
    return plot.suffix.lower() == INTERACTIVE


def check_picture(plot: Path | None, n_cells: int | None = None) -> None:
    """Refuse a picture that cannot be drawn, before any work."""
    if plot is None:
        return
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if not is_interactive(plot) and plot.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"{plot}: pictures are written as .png, .svg, .pdf, or .html (to zoom, hover and colour)")
    if n_cells is not None and n_cells < 4:
        raise ValueError(f"{n_cells:,} cells are too few for a UMAP: it needs at least four")


__all__ = ["check_picture", "drawing", "is_interactive"]
