"""Bytes that many will ask for: encoded, compressed and hashed once."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response

SMALL_BYTES = 1400  # one packet: nothing to gain


@dataclass(frozen=True)
class Document:
    body: bytes
    media_type: str
    cache_control: str = "no-cache"  # may be kept, must be asked about

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.blake2b(self.body, digest_size=12).hexdigest()}"'

    @cached_property
    def gzipped(self) -> bytes:
        return gzip.compress(self.body, 6, mtime=0)

    def response(self, request: Request) -> Response:
        headers = {"etag": self.etag, "cache-control": self.cache_control, "vary": "accept-encoding"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body, worth_it = self.body, len(self.body) > SMALL_BYTES and not self.media_type.startswith("font/")
        if worth_it and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = self.gzipped, "gzip"
        return Response(body, headers=headers, media_type=self.media_type)
