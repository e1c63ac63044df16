"""How fast is the line between two peers: a few seconds of meaningless bytes, one way and the other.

The one asked streams a sample; asked to `measure`, it takes one from the asker, over the connection that is there, so
that an asker behind NAT learns its upload too. One measurement at a time, and none of the same peer soon after, so that
nobody can be kept busy with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncGenerator, Iterator

from peer.errors import Refused, UnreachableError
from peer.exchange.ratelimit import RateLimiter
from peer.identity import PeerId
from peer.swarm.interface import PIECE_BYTES, Swarm

SAMPLE = "sample"
MEASURE = "measure"
SAMPLE_BYTES = 16 << 20
SAMPLE_SECONDS = 4.0
STALL_SECONDS = 5.0
COOL_DOWN_SECONDS = 15.0
MAX_REMEMBERED = 1024
PATIENCE_SECONDS = SAMPLE_SECONDS + STALL_SECONDS + 2.0
_REPLY = struct.Struct(">d")  # bytes per second
_PIECE_BYTES = PIECE_BYTES // 4  # slow lines are measured in finer steps


class Measuring:
    """Answers measurements of others, and makes them."""

    def __init__(self, swarm: Swarm, upload: RateLimiter, *, cool_down_seconds: float = COOL_DOWN_SECONDS) -> None:
        self._swarm = swarm
        self._upload = upload
        self._cool_down_seconds = cool_down_seconds
        self._busy = False
        self._served: dict[tuple[str, PeerId], float] = {}  # monotonic, oldest first
        swarm.serve_stream(SAMPLE, self._sample, max_request_bytes=0)
        swarm.serve(MEASURE, self._measure, max_request_bytes=0)

    async def down(self, peer: PeerId) -> float:
        """Bytes per second from `peer`. Raises UnreachableError, Refused."""
        begun: float | None = None
        seen = 0
        stream = self._swarm.stream(peer, SAMPLE, b"", timeout_seconds=STALL_SECONDS, max_bytes=SAMPLE_BYTES)
        async with contextlib.aclosing(stream) as pieces:
            async for piece in pieces:
                now = time.monotonic()
                if begun is None:  # the first piece waited for the stream to open
                    begun = now
                    continue
                seen += len(piece)
                if now - begun >= SAMPLE_SECONDS:
                    break
        elapsed = time.monotonic() - begun if begun is not None else 0.0
        if not seen or elapsed <= 0:
            raise UnreachableError("too few bytes came to measure anything")
        return seen / elapsed

    async def up(self, peer: PeerId) -> float:
        """Bytes per second to `peer`, as it saw them come. Raises UnreachableError, Refused."""
        reply = await self._swarm.call(peer, MEASURE, b"", timeout_seconds=PATIENCE_SECONDS, max_reply_bytes=64)
        if len(reply) != _REPLY.size or not 0.0 < (rate := _REPLY.unpack(reply)[0]) < float("inf"):
            raise Refused("the answer is no figure")
        return float(rate)

    async def _sample(self, asker: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        with self._one_at_a_time(SAMPLE, asker):
            piece = os.urandom(_PIECE_BYTES)  # nothing on the way may compress it
            until = asyncio.get_running_loop().time() + SAMPLE_SECONDS + 1.0
            for _ in range(SAMPLE_BYTES // _PIECE_BYTES):
                if asyncio.get_running_loop().time() > until:
                    return
                await self._upload.take(len(piece))
                yield piece

    async def _measure(self, asker: PeerId, request: bytes) -> bytes:
        with self._one_at_a_time(MEASURE, asker):
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return _REPLY.pack(await self.down(asker))
            except (UnreachableError, TimeoutError) as error:
                raise Refused(f"could not take a sample: {error}") from None

    @contextlib.contextmanager
    def _one_at_a_time(self, what: str, asker: PeerId) -> Iterator[None]:
        now = time.monotonic()
        if self._busy or now - self._served.get((what, asker), -self._cool_down_seconds) < self._cool_down_seconds:
            raise Refused("busy with measurements; try again in a moment")
        self._served.pop((what, asker), None)
        self._served[what, asker] = now
        if len(self._served) > MAX_REMEMBERED:
            del self._served[next(iter(self._served))]
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
