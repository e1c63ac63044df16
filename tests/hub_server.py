"""The few endpoints of the Hugging Face Hub that an upload of a model needs, over real HTTP on this machine.

Files are kept in memory, a commit is the whole tree after it. Large files go the way of git-lfs; the Hub's newer
storage (xet) has no server here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_for_this_test_only"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = ""
        self.private: object = None
        self.commits: list[dict[str, bytes]] = []  # the tree after each
        self.messages: list[str] = []
        self.tags: dict[str, int] = {}  # number of the commit
        self.large: dict[str, bytes] = {}  # by sha256
        self.failures = 0  # so many requests are answered with 503 from now on
        self.faults: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def tree(self) -> dict[str, bytes]:
        return self.commits[-1] if self.commits else {}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        tree = dict(self.tree)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.messages.append(value["summary"])
            elif kind == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                tree[value["path"]] = self.large[value["oid"]]
            elif kind == "deletedFile":
                del tree[value["path"]]
            else:
                self.faults.append(f"commit with {kind}")
        self.commits.append(tree)


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self._path()
        if path is None:
            return
        if path == f"/api/models/{hub.repository}/refs":
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": f"{number:040x}"}
                for tag, number in hub.tags.items()
            ]
            self._answer({"branches": [], "converts": [], "tags": tags})
        elif path == f"/api/models/{hub.repository}/tree/main":
            self._answer([
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.tree.items()
            ])  # fmt: skip
        elif path.startswith(f"/{hub.repository}/resolve/main/"):
            data = hub.tree.get(path.removeprefix(f"/{hub.repository}/resolve/main/"))
            if data is None:
                self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                commit = f"{len(hub.commits) - 1:040x}"
                self._send(data, 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        elif path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/main"):
            names = [{"rfilename": name} for name in hub.tree]
            self._answer({"id": hub.repository, "sha": "0" * 40, "siblings": names, "private": True, "tags": []})
        else:
            self._unknown()

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if path is None:
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            if hub.repository:
                self._answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
            else:
                hub.repository, hub.private = name, asked.get("private", asked.get("visibility") == "private")
                self._answer({"url": f"{hub.address}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == f"/api/models/{hub.repository}/preupload/main":
            self._answer({"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path == f"/{hub.repository}.git/info/lfs/objects/batch":
            self._answer(
                {"transfer": "basic", "objects": [self._instruction(it) for it in json.loads(body)["objects"]]}
            )
        elif path == f"/api/models/{hub.repository}/commit/main":
            hub.commit([json.loads(line) for line in body.splitlines() if line])
            number = f"{len(hub.commits) - 1:040x}"
            self._answer({"commitUrl": f"{hub.address}/{hub.repository}/commit/{number}", "commitOid": number})
        elif path.startswith(f"/api/models/{hub.repository}/tag/"):
            hub.tags[json.loads(body)["tag"]] = len(hub.commits) - 1
            self._answer({})
        else:
            self._unknown()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != oid:
            self.server.faults.append(f"{oid} was sent something else")
        self.server.large[oid] = data
        self._send(b"", 200, {})

    def do_DELETE(self) -> None:
        if (path := self._path()) is not None:
            self.server.tags.pop(path.rpartition("/")[2])
            self._answer({})

    def _mode(self, name: str) -> dict[str, Any]:
        large = name.endswith((".safetensors", ".manifest"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _instruction(self, item: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.address}/large/{item['oid']}"
        return {**item, "actions": {"upload": {"href": href, "header": {}}}}

    def _path(self) -> str | None:
        """Of the request, once it may be answered."""
        hub = self.server
        if hub.failures:
            hub.failures -= 1
            self._answer({"error": "come back later"}, 503)
            return None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "unauthorized"}, 401)
            return None
        return self.path.partition("?")[0]

    def _answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _unknown(self) -> None:
        self.server.faults.append(f"{self.command} {self.path}")
        self._answer({"error": "not here"}, 404)


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
