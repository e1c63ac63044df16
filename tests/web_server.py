"""The page's web server as the coordinator runs it: a process of its own, told what to show on its standard input."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class WebServer:
    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.folder = folder
        self.address = f"http://127.0.0.1:{port}"

    def tell(self, **sections: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(sections).encode() + b"\n")
        self.process.stdin.flush()

    def show(self, **sections: Any) -> None:
        """Tell, and wait until it is shown."""
        self.tell(**sections)
        name, value = next(iter(sections.items()))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            answer = self.get(f"/api/{name}")
            if answer.status == 200 and answer.json == value:
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} is not shown")

    def get(self, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def events(self) -> socket.socket:
        """A raw connection that has asked for events."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        line.sendall(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
        return line


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.web", str(listening.fileno()), str(folder)],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
        )
        port = listening.getsockname()[1]
    try:
        yield WebServer(process, port, folder)
    finally:
        process.kill()
        process.communicate()
