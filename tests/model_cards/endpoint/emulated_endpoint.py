"""Serve a model's folder as Inference Endpoints do, by their emulator, in a process without cellglot.

python emulated_endpoint.py FOLDER: prints the port of this machine that it listens on.
"""

import os
import socket
import sys
from contextlib import asynccontextmanager

import starlette.applications
import uvicorn


for name in ("cellglot", "anndata", "scanpy", "pandas", "scipy", "zarr", "pyarrow", "datasets"):
    sys.modules[name] = None


class WithStart(starlette.applications.Starlette):
    """Starlette 1 has no `on_startup`, which the emulator uses."""

    def __init__(self, on_startup=(), **options):
        @asynccontextmanager
        async def lifespan(app):
            for task in on_startup:
                await task()
            yield

        super().__init__(lifespan=lifespan, **options)


starlette.applications.Starlette = WithStart
os.environ["HANDLER_PATH"] = os.path.join(sys.argv[1], "handler.py")

from hf_endpoints_emulator import emulator  # noqa: E402


listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen(128)
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(emulator.app, log_level="warning")).run(sockets=[listening])
