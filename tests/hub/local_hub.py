"""A small Hub on this machine, as far as publishing and loading need it: what the real client sends and expects.

Repositories are made and deleted; files are announced (preupload), sent as LFS objects or within the commit, committed
in one step, listed, and read by revision, with ETags, redirects to the storage of large files, and ranges. It has
nothing else.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_" + "local" * 6
OWNER = "lab"
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = (".safetensors", ".parquet", ".npy", ".h5ad", ".png", ".onnx")
ID = r"(?P<id>[^/]+/[^/]+?)"
REPO = rf"(?:(?P<kind>datasets|spaces)/)?{ID}"
API = rf"/api/(?P<kind>models|datasets|spaces)/{ID}"


@dataclass
class Repository:
    """Commits of a repository: number of the commit -> {path: sha256 of its content}."""

    private: bool
    settings: dict
    commits: list = field(default_factory=list)

    def revision(self, name):
        """The number and the files of a commit; None if there is none."""
        if name in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == name), None)


class LocalHub:
    """The content of the Hub, and what was asked of it.

    Attributes
    ----------
    repositories
        (type, name) -> `Repository`.
    objects
        sha256 -> content of large files, uploaded.
    log
        (method, path) of each request.
    ranges
        Ranges that were read.
    break_after
        After this number of uploaded objects the line breaks in the middle of the next one; None for a good line.
    """

    def __init__(self):
        self.repositories, self.objects, self.log, self.ranges, self.break_after = {}, {}, [], [], None
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another host, as on the Hub

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised):
        self.server.shutdown()
        self.server.server_close()

    def uploads(self):
        """The number of objects that were sent so far."""
        return sum(method == "PUT" for method, _ in self.log)

    def commit(self, repository, changed, removed=()):
        """Add a commit; gives its number."""
        files = {} if not repository.commits else dict(repository.commits[-1][1])
        files |= changed
        files = {path: oid for path, oid in files.items() if path not in removed}
        text = json.dumps([len(repository.commits), files, id(repository)])
        number = hashlib.sha1(text.encode()).hexdigest()
        repository.commits.append((number, files))
        return number

    def store(self, content):
        """Keep a content; gives its sha256."""
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return oid


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status, message, code=""):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub
    routes = [
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("GET", r"/api/whoami-v2", "who"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"{API}(?:/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", rf"{API}/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", rf"{API}/commit/(?P<rev>[^/]+)", "take_commit"),
        ("GET", rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", rf"{API}/paths-info/(?P<rev>[^/]+)", "paths_info"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w{64})", "put"),
        ("POST", r"/lfs/(?P<oid>\w{64})/verify", "verify"),
        ("GET", r"/storage/(?P<oid>\w{64})", "storage"),
        ("GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def log_message(self, *words):
        pass

    def handle_request(self):
        split = urlsplit(self.path)
        path = unquote(split.path)
        self.query, self._body = parse_qs(split.query), None
        self.hub.log.append((self.command, path))
        wanted = "GET" if self.command == "HEAD" else self.command
        try:
            for method, pattern, name in self.routes:
                if method == wanted and (found := re.fullmatch(pattern, path)):
                    getattr(self, name)(**found.groupdict())
                    return
            raise Refused(404, f"no route for {self.command} {path}")
        except Refused as refused:
            self.body()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.answer({"error": refused.message}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    # ---------------------------------------------------------------- help

    def body(self):
        """The content of the request; read once."""
        if self._body is None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                content = b"".join(parts)
            else:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._body = content
        return self._body

    def json(self):
        return json.loads(self.body())

    def answer(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        length = {} if headers and "Content-Length" in headers else {"Content-Length": str(len(data))}
        for name, value in ({"Content-Type": "application/json"} | length | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def is_owner(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def owner_only(self):
        if not self.is_owner():
            raise Refused(401, "Invalid username or password.")

    def repository(self, kind, name):
        """The repository, if whoever asks may see it."""
        found = self.hub.repositories.get((TYPES[kind or "models"], name))
        if found is None or (found.private and not self.is_owner()):
            raise Refused(404 if self.is_owner() else 401, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, kind, name, rev):
        found = self.repository(kind, name).revision(rev)
        if found is None:
            raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return found

    # ---------------------------------------------------------------- repositories

    def who(self):
        self.owner_only()
        self.answer({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def validate(self):
        start = self.json()["content"]
        if not start.startswith("---"):
            raise Refused(400, "no metadata")
        self.answer({"errors": [], "warnings": []})

    def create(self):
        self.owner_only()
        asked = self.json()
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or OWNER}/{asked['name']}"
        if (kind, name) in self.hub.repositories:
            raise Refused(409, f"You already created this {kind} repo")
        if kind == "space" and asked.get("sdk") not in ("gradio", "static", "docker", "streamlit"):
            raise Refused(400, "a Space needs its sdk")
        private = asked.get("private") or asked.get("visibility") == "private"
        made = self.hub.repositories[kind, name] = Repository(bool(private), asked)
        self.hub.commit(made, {".gitattributes": self.hub.store(b"*.safetensors filter=lfs\n")})
        prefix = "" if kind == "model" else f"{kind}s/"
        self.answer({"url": f"{self.hub.address}/{prefix}{name}", "name": name, "id": name})

    def delete(self):
        self.owner_only()
        asked = self.json()
        key = (asked.get("type") or "model", f"{asked.get('organization') or OWNER}/{asked['name']}")
        if self.hub.repositories.pop(key, None) is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        self.answer({})

    def info(self, kind, id, rev):  # noqa: A002
        repository = self.repository(kind, id)
        number, files = self.commit_of(kind, id, rev or "main")
        self.answer({
            "_id": "0" * 24, "id": id, "modelId": id, "sha": number, "private": repository.private, "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(files)], "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "sdk": repository.settings.get("sdk"),
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        })  # fmt: skip

    # ---------------------------------------------------------------- upload

    def preupload(self, kind, id, rev):  # noqa: A002
        self.owner_only()
        self.commit_of(kind, id, rev)
        self.answer({"files": [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False}
            for file in self.json()["files"]
        ]})  # fmt: skip

    def batch(self, kind, id):  # noqa: A002
        self.owner_only()
        self.repository(kind, id)
        objects = []
        for file in self.json()["objects"]:
            place = f"{self.hub.address}/lfs/{file['oid']}"
            actions = {"upload": {"href": place, "header": {}}, "verify": {"href": f"{place}/verify", "header": {}}}
            objects.append(file | ({} if file["oid"] in self.hub.objects else {"actions": actions}))
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, oid):
        with self.hub.lock:
            broken = self.hub.break_after is not None and self.hub.break_after <= 0
            if self.hub.break_after is not None:
                self.hub.break_after -= 1
        if broken:
            self.rfile.read(10)
            self.close_connection = True
            self.connection.close()
            return
        if self.hub.store(self.body()) != oid:
            raise Refused(400, "the content has another sha256")
        self.answer(b"")

    def verify(self, oid):
        if len(self.hub.objects.get(oid, b"")) != self.json()["size"]:
            raise Refused(404, "the object is missing or of another size")
        self.answer({})

    def take_commit(self, kind, id, rev):  # noqa: A002
        self.owner_only()
        repository = self.repository(kind, id)
        changed, removed = {}, []
        for line in self.body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changed[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"{value['path']} was not uploaded")
                changed[value["path"]] = value["oid"]
            elif entry["key"] == "deletedFile":
                removed.append(value["path"])
        number = self.hub.commit(repository, changed, removed)
        prefix = "" if kind == "models" else f"{kind}/"
        self.answer({
            "success": True, "commitOid": number, "commitUrl": f"{self.hub.address}/{prefix}{id}/commit/{number}",
            "hookOutput": "",
        })  # fmt: skip

    # ---------------------------------------------------------------- reading

    def _described(self, path, oid):
        size = len(self.hub.objects[oid])
        large = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if path.endswith(LARGE) else {}
        return {"type": "file", "path": path, "size": size, "oid": oid[:40], **large}

    def tree(self, kind, id, rev, path):  # noqa: A002
        _, files = self.commit_of(kind, id, rev)
        start = f"{path}/" if path else ""
        inside = {name: oid for name, oid in files.items() if name.startswith(start)}
        if path and not inside:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = {n[: n.index("/", len(start))] for n in inside if "/" in n[len(start) :]}
        if recursive:
            folders |= {n[:i] for n in inside for i, sign in enumerate(n) if sign == "/" and i > len(start)}
        listed = [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]
        listed += [
            self._described(name, oid)
            for name, oid in sorted(inside.items())
            if recursive or "/" not in name[len(start) :]
        ]
        self.answer(listed)

    def paths_info(self, kind, id, rev):  # noqa: A002
        _, files = self.commit_of(kind, id, rev)
        body = self.body().decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = [self._described(path, files[path]) for path in asked if path in files]
        found += [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            for path in asked
            if path not in files and any(name.startswith(f"{path}/") for name in files)
        ]
        self.answer(found)

    def resolve(self, kind, id, rev, path):  # noqa: A002
        number, files = self.commit_of(kind, id, rev)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        oid = files[path]
        content = self.hub.objects[oid]
        headers = {"X-Repo-Commit": number, "ETag": f'"{oid[:40]}"', "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            headers |= linked | {"Location": f"{self.hub.storage}/storage/{oid}"}
            self.answer(b"", 302, headers)
            return
        self._content(content, headers)

    def storage(self, oid):
        self._content(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, content, headers):
        """Answer a content, or a range of it."""
        headers = {"Content-Type": "application/octet-stream"} | headers
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None:
            if self.command == "HEAD":
                headers |= {"Content-Length": str(len(content))}
            self.answer(content, 200, headers)
            return
        start, stop = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            raise Refused(416, "beyond the end")
        self.hub.ranges.append((start, stop))
        headers |= {"Content-Range": f"bytes {start}-{stop}/{len(content)}"}
        self.answer(content[start : stop + 1], 206, headers)
