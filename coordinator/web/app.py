"""The web server: the page, its events, the same as JSON, metrics, and checkpoints to download.

It knows the board and nothing of runs, and it can change nothing: there is no request that writes.
"""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.web.board import Board
from coordinator.web.document import Document
from coordinator.web.metrics import Traffic, exposition

FOLDER = Path(__file__).parent
MAX_WATCHERS = 2000
STUCK_SECONDS = 30.0  # a watcher that takes nothing for so long is let go
STALE_SECONDS = 15.0  # without news from the coordinator, health is not good
RETRY_MILLISECONDS = 2000
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
OPEN = {"access-control-allow-origin": "*"}  # what is read here is public; other pages may show it too


class Site:
    """The routes around one board. `checkpoints`: the folder whose listed files can be downloaded."""

    def __init__(self, board: Board, checkpoints: Path) -> None:
        self.board = board
        self.checkpoints = checkpoints
        self.traffic = Traffic()
        self.static = _static_documents(FOLDER / "static")
        self.page_version = _version_of(self.static)
        templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=jinja2.ChainableUndefined
        )
        self.template = templates.get_template("page.html")
        self._page = (-1, Document(b"", "text/html"))
        self._seen = time.monotonic()

    @property
    def app(self) -> ASGIApp:
        get = ["GET"]
        routes = [
            Route("/", self.page, methods=get),
            Route("/static/{path:path}", self.asset, methods=get),
            Route("/api", self.index, methods=get),
            Route("/api/snapshot", self.snapshot, methods=get),
            Route("/api/events", _Asgi(self.events), methods=get),
            Route("/api/{section}", self.section, methods=get),
            Route("/checkpoints/{checkpoint}/{name:path}", self.checkpoint_file, methods=get),
            Route("/ticket", self.ticket, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/healthz", self.health, methods=get),
        ]
        return _Front(Starlette(routes=routes, exception_handlers={HTTPException: _in_words}), self.traffic)

    def put(self, values: Mapping[str, Any]) -> None:
        self._seen = time.monotonic()
        self.board.put(values)

    async def page(self, request: Request) -> Response:
        """Rendered at most once per change; what moves is filled in by the page's own script."""
        version, document = self._page
        if version != self.board.version:
            text = self.template.render(run=self.board.get("run"), now=self.board.get("now"), version=self.page_version)
            self._page = (self.board.version, document := Document(text.encode(), "text/html; charset=utf-8"))
        return document.response(request)

    async def asset(self, request: Request) -> Response:
        document = self.static.get(request.path_params["path"])
        if document is None:
            raise HTTPException(404, "there is no such file")
        return document.response(request)

    async def index(self, request: Request) -> Response:
        names = ["snapshot", "events", *self.board.sections]
        return JSONResponse({name: f"/api/{name}" for name in names}, headers=OPEN)

    async def snapshot(self, request: Request) -> Response:
        return _open(self.board.everything.response(request))

    async def section(self, request: Request) -> Response:
        section = self.board.sections.get(request.path_params["section"])
        if section is None:
            raise HTTPException(404, "there is no such section; /api lists them")
        return _open(section.document.response(request))

    async def ticket(self, request: Request) -> Response:
        """For `commonweights join http://HOST:PORT/ticket`."""
        ticket = self.board.get("run").get("ticket")
        if not ticket:
            raise HTTPException(503, "the coordinator is still starting; ask again in a moment", {"retry-after": "2"})
        return Response(f"{ticket}\n", media_type="text/plain")

    async def metrics(self, request: Request) -> Response:
        return Response(exposition(self.board, self.traffic), media_type=CONTENT_TYPE_LATEST)

    async def health(self, request: Request) -> Response:
        age = time.monotonic() - self._seen
        good = bool(self.board.sections) and age < STALE_SECONDS
        body = {"ok": good, "state": self.board.get("now").get("state"), "age_seconds": round(age, 1)}
        return JSONResponse(body, status_code=200 if good else 503)

    async def checkpoint_file(self, request: Request) -> Response:
        """Only what the list of checkpoints names: nothing else of the folder can be reached."""
        wanted = request.path_params["checkpoint"], request.path_params["name"]
        for checkpoint in self.board.get("checkpoints").get("checkpoints", []):
            for file in checkpoint["files"]:
                if (checkpoint["name"], file["name"]) == wanted:
                    path = self.checkpoints / checkpoint["name"] / file["name"]
                    if path.is_file():
                        return FileResponse(path, filename=f"{checkpoint['name']}-{path.name}")
        raise HTTPException(404, "there is no such file, or this checkpoint has been replaced by a newer one")

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Server-sent events. A watcher that does not read is dropped; what it missed would be stale anyway."""
        if self.traffic.watchers >= MAX_WATCHERS:
            self.traffic.refused += 1
            response = Response("too many watchers; ask /api/snapshot now and then", 503, {"retry-after": "30"})
            return await response(scope, receive, send)
        self.traffic.watchers += 1
        gone = asyncio.ensure_future(_disconnected(receive))
        streaming = asyncio.ensure_future(self._stream(send))
        try:
            await asyncio.wait([gone, streaming], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.traffic.watchers -= 1
            for task in (gone, streaming):
                task.cancel()
            results = await asyncio.gather(gone, streaming, return_exceptions=True)
            self.traffic.dropped += any(isinstance(result, TimeoutError) for result in results)

    async def _stream(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            (b"access-control-allow-origin", b"*"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        hello = f'retry: {RETRY_MILLISECONDS}\nevent: page\ndata: {{"version":"{self.page_version}"}}\n\n'
        await send(_part(hello.encode()))
        async for news in self.board.follow():
            async with asyncio.timeout(STUCK_SECONDS):
                await send(_part(news))


class _Asgi:
    """A route's endpoint that speaks ASGI itself."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.handler(scope, receive, send)


class _Front:
    """Counts requests and puts the security headers on every answer, errors too."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self.app = app
        self.traffic = traffic
        self.headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            await send(message)

        self.traffic.requests += scope["type"] == "http"
        await self.app(scope, receive, with_headers)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _open(response: Response) -> Response:
    response.headers.update(OPEN)
    return response


async def _in_words(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(f"{error.detail}\n", error.status_code, error.headers, "text/plain")


def _static_documents(folder: Path) -> dict[str, Document]:
    return {
        path.relative_to(folder).as_posix(): Document(path.read_bytes(), _media_type(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _media_type(path: Path) -> str:
    if path.suffix == ".woff2":
        return "font/woff2"
    found = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if path.suffix == ".js":
        found = "text/javascript"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def _version_of(documents: Mapping[str, Document]) -> str:
    """Changes with any file of the page: an open page of an older one loads itself again."""
    return Document("".join(document.etag for document in documents.values()).encode(), "").etag.strip('"')
