"""``cellglot app --browser``: build the page of a model and serve it on this machine."""

import tempfile
import webbrowser
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import snapshot_download

from cellglot.model_cards.space.browser.build import MOST_CELLS, stage_page
from cellglot.model_cards.space.browser.serve import address_of, server_of


FIRST_PORT, PORTS = 7860, 100


def serve_page(
    model: str, *, port: int | None = None, most_cells: int | None = None, open_browser: bool = False
) -> None:
    """Build the page of a model in a temporary folder, and serve it until it is interrupted.

    Parameters
    ----------
    model
        Folder or repository of a classifier.
    port
        Port; by default the first free one from 7860 on.
    most_cells
        Cells of a file that are annotated.
    open_browser
        Open the page in a browser.
    """
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model))
    with tempfile.TemporaryDirectory(prefix="cellglot-app-") as page:
        name = folder.resolve().name if Path(model).is_dir() else model
        stage_page(
            folder, Path(page), name=name, title=f"Which cells are these? {name}", most_cells=most_cells or MOST_CELLS
        )
        with _free_server(page, port) as server:
            address = address_of(server)
            print(f"{address} annotates cells in the browser that opens it; end it by Ctrl+C", flush=True)
            if open_browser:
                webbrowser.open(address)
            with suppress(KeyboardInterrupt):
                server.serve_forever()


def _free_server(page: str, port: int | None) -> ThreadingHTTPServer:
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return server_of(page, number)
        except OSError as error:
            if port is not None:
                raise ValueError(f"port {port} cannot be used ({error.strerror}): choose another one") from error
    return server_of(page)


__all__ = ["serve_page"]
