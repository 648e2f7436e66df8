"""A server with the part of S3 that TileDB reads by, on this machine; it can break off, and stop to answer.

It runs in a process of its own, because TileDB keeps Python's lock in some calls that wait for an answer.
"""

import subprocess
import sys
import time
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse
from urllib.request import urlopen
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body):
        url = urlparse(self.path)
        key = unquote(url.path).strip("/").partition("/")[2]
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path == "/control":
            before = str(self.server.asked).encode()
            for name, value in query.items():
                setattr(self.server, name, float(value))
            self._send(200, before, True, "text/plain")
            return
        self.server.asked += 1
        if self.server.broken > 0:
            self.server.broken -= 1
            self.close_connection = True
            self.connection.close()
            return
        time.sleep(self.server.delay)
        path = self.server.root / key
        if "list-type" in query or "delimiter" in query or "prefix" in query:
            self._send(200, self._listed(query), body, "application/xml")
        elif not path.is_file():
            self._send(404, b"", body, "application/xml")
        else:
            content, status, more = path.read_bytes(), 200, {}
            wanted = self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                whole = len(content)
                content, status = content[int(first) : int(last or whole) + 1], 206
                more = {"Content-Range": f"bytes {first}-{int(first) + len(content) - 1}/{whole}"}
            self._send(status, content, body, "application/octet-stream", more)

    def _listed(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = int(query.get("max-keys", 1000))
        keys, folders = [], set()
        for path in sorted(p for p in self.server.root.rglob("*") if p.is_file()):
            key = path.relative_to(self.server.root).as_posix()
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append((key, path.stat().st_size))
        assert len(keys) + len(folders) <= 1000  # more would have to be sent in parts
        keys = keys[:most]
        inside = "".join(
            f'<Contents><Key>{escape(k)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"e"</ETag>'
            f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for k, size in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys) + len(folders)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{inside}</ListBucketResult>"
        ).encode()

    def _send(self, status, content, body, kind, more=None):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), "ETag": '"e"',
                            "Last-Modified": formatdate(0, usegmt=True), **(more or {})}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            if body:
                self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.broken, self.delay, self.asked = Path(root), 0, 0.0, 0

    def handle_error(self, request, client_address):
        pass


class LocalS3:
    """Serves the files of a folder as the bucket ``bucket``, as a context manager."""

    def __init__(self, root: Path):
        self.root = root

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.root)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()

    def set(self, **values) -> int:
        """Return the number of requests before, and set `broken` (how many further ones are not answered) or `delay`.

        `delay` is in seconds, before each answer.
        """
        query = "&".join(f"{name}={value}" for name, value in values.items())
        with urlopen(f"http://127.0.0.1:{self.port}/control?{query}") as answer:
            return int(float(answer.read()))

    @property
    def environment(self):
        """Settings of TileDB by which it reads from here."""
        return {
            "TILEDB_VFS_S3_ENDPOINT_OVERRIDE": f"127.0.0.1:{self.port}",
            "TILEDB_VFS_S3_SCHEME": "http",
            "TILEDB_VFS_S3_USE_VIRTUAL_ADDRESSING": "false",
            "TILEDB_VFS_S3_NO_SIGN_REQUEST": "true",
            "TILEDB_VFS_S3_REGION": "us-east-1",
            "TILEDB_VFS_S3_CONNECT_MAX_TRIES": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


if __name__ == "__main__":
    server = _Server(sys.argv[1])
    print(server.server_port, flush=True)
    server.serve_forever()
