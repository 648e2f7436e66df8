"""``app``: a page on this machine that annotates cells."""

import os

from cellglot.modeling.collection import default_model
from cellglot.modeling.model_names import resolve_model


def app(
    model: str | os.PathLike | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    most_cells: int | None = None,
    open_browser: bool = False,
    browser: bool = False,
) -> None:
    """Serve a page that annotates cells, until it is interrupted.

    Parameters
    ----------
    model
        Name in the collection, folder or repository of a classifier, an adapter, or a LangCell model; by default the
        classifier of blood that ships with cellglot.
    host
        Address to listen at; by default only this machine can open the page.
    port
        Port; by default the first free one from 7860 on.
    most_cells
        Cells that are annotated of a file; of a larger one a random sample is. 20,000 by default.
    open_browser
        Open the page in a browser.
    browser
        Serve the page in which a classifier runs in the browser itself, as a static Space has it; it needs no Gradio.

    Raises
    ------
    ValueError
        If Gradio is not installed, there is no such model, or it does not annotate cells.
    """
    if most_cells is not None and most_cells < 1:
        raise ValueError(f"most_cells={most_cells} must be at least 1")
    model = default_model() if model is None else model
    if browser:
        from cellglot.model_cards.space.browser.running import serve_page

        if host is not None:
            raise ValueError("host: the page that runs in the browser is served for this machine only")
        serve_page(resolve_model(model), port=port, most_cells=most_cells, open_browser=open_browser)
        return
    from cellglot.model_cards.space.gradio.serve import check_gradio, serve

    check_gradio()
    resolve_model(model)
    serve(model, host=host, port=port, most_cells=most_cells, open_browser=open_browser)


__all__ = ["app"]
