"""Pictures after results: what goes wrong while drawing is a warning, with the command that draws again."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_log = logging.getLogger(__name__)


@contextmanager
def drawing(what: str | Path, again: Sequence[Any]) -> Iterator[None]:
    """Turn errors of drawing into a warning: the result is written already.

    Parameters
    ----------
    again
        Words of the command that draws it again.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the result is whole: no error of a drawing library takes it back
        cause = (str(error).strip() or type(error).__name__).split("\n")[0]
        _log.warning(
            "%s was not drawn (%s). The result is written; to draw again: %s",
            what,
            cause,
            shlex.join(str(word) for word in again),
        )


def check_picture(plot: Path | None, n_cells: int | None = None) -> None:
    """Refuse a picture that cannot be drawn, before any work."""
    if plot is None:
        return
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if plot.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"{plot}: pictures are written as .png, .svg, .pdf")
    if n_cells is not None and n_cells < 4:
        raise ValueError(f"{n_cells:,} cells are too few for a UMAP: it takes four or more")


__all__ = ["check_picture", "drawing"]
