"""Serving of the page: on one's own machine by ``cellglot app``, or as a Space of the Hub."""

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from cellglot.model_cards.space.gradio.limits import Limits


WARM_UP = "warm up"  # the thread that does
INSTALL = "the page needs Gradio: install it by pip install 'cellglot[app]'"


def check_gradio() -> None:
    """Refuse to start without Gradio.

    Raises
    ------
    ValueError
        If it is not installed; says how to install it.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(INSTALL) from error


def serve(
    model: str | os.PathLike,
    *,
    host: str | None = None,
    port: int | None = None,
    most_cells: int | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> Any:
    """Serve the page of a model until it is interrupted.

    Parameters
    ----------
    model
        Folder, name in the collection, or repository of a model that annotates cells.
    host
        Address to listen at; by default this machine only, or that of ``GRADIO_SERVER_NAME``.
    port
        Port; by default the first free one from 7860 on, or that of ``GRADIO_SERVER_PORT``.
    most_cells
        Cells that are annotated of a file; 20,000 by default.
    open_browser
        Open the page in a browser.
    block
        Return only when the page is closed.

    Returns
    -------
    gradio.Blocks
        The page; ``page.local_url`` is its address, ``page.close()`` ends it.

    Raises
    ------
    ValueError
        If Gradio is not installed, or the model does not annotate cells.
    """
    check_gradio()
    root = Path(tempfile.mkdtemp(prefix="cellglot-app-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(root)  # what visitors send and get is deleted with it
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from cellglot.model_cards.space.gradio.annotator import Annotator
    from cellglot.model_cards.space.gradio.page import Page, head, style, theme
    from cellglot.model_cards.space.gradio.visits import Visits

    _import_for_maps()
    limits = Limits() if most_cells is None else Limits(cells=most_cells)
    visits = Visits(root / "visits", limits.idle_seconds)
    annotator = Annotator(model, limits)
    page = Page(annotator, visits, model).build()
    _sweep_from_time_to_time(visits)
    threading.Thread(target=_warm_up, args=(annotator,), name=WARM_UP, daemon=True).start()
    page.queue(max_size=32, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=limits.file_bytes,
        inbrowser=open_browser,
        prevent_thread_lock=not block,
        theme=theme(),
        css=style(),
        head=head(limits.file_bytes),
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        quiet=not block,
    )
    return page


def _import_for_maps() -> None:
    """Import now what maps need: threads that import one package at the same time can find it half imported."""
    from cellglot.outputs.caches import use_writable_caches

    use_writable_caches()
    import sklearn.neighbors  # noqa: F401
    import umap  # noqa: F401


def _sweep_from_time_to_time(visits: Any, seconds: float = 60) -> None:
    def sweep() -> None:
        while True:
            pause.wait(seconds)
            visits.sweep()

    pause = threading.Event()
    threading.Thread(target=sweep, daemon=True).start()


def _warm_up(annotator: Any) -> None:
    """Compile and import what the table needs, then what the map needs, before the first visitor waits for it."""
    import numpy as np

    with contextlib.suppress(ValueError):  # a model that does not take made cells
        annotator.warm_up()
    from cellglot.evaluation.plots import umap_coordinates

    umap_coordinates(np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))


__all__ = ["check_gradio", "serve"]
