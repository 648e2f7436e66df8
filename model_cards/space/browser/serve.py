"""Serve the page on this machine, with the headers that the Hub gives a static Space."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


# Pages with these headers may use several threads. A static Space gets them by `custom_headers` of its README.md.
HEADERS = {
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        """Add the headers of a static Space."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Show no lists of files."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""


def server_of(folder: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page, for this machine alone; its address is `address_of`.

    Parameters
    ----------
    folder
        Folder of the page.
    port
        Of the server; 0 for any that is free.
    """
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))


def address_of(server: ThreadingHTTPServer) -> str:
    """Return the address of a server for a browser on this machine."""
    return f"http://127.0.0.1:{server.server_address[1]}/"


@contextmanager
def served(folder: str | Path) -> Iterator[str]:
    """Serve the page in a thread, and yield its address."""
    server = server_of(folder)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address_of(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


__all__ = ["HEADERS", "address_of", "served", "server_of"]
