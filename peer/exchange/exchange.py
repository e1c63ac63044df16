"""Blobs between peers: served to whoever asks within limits, fetched from whoever holds them (download.py).

Both directions pass a token bucket below the link's speed. What a stranger can take of a server is bounded: few streams
each, a bounded number together, one piece of memory per stream, and an `admission` rule that may refuse it altogether.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

from peer.errors import Refused, UnreachableError
from peer.exchange.blobs import HASH_BYTES, BlobStore
from peer.exchange.download import METHOD, Download
from peer.exchange.ratelimit import RateLimiter
from peer.identity import PeerId
from peer.swarm.interface import PIECE_BYTES, Swarm
from protos.swarm_pb2 import BlobRequest

MAX_REQUEST_BYTES = 128
MAX_SERVED = 64  # streams at once, to all
MAX_SERVED_PER_PEER = 4
MAX_STREAMS = 32  # of all fetches together

Admission = Callable[[PeerId, bytes], str | None]
"""(who asks, blob hash) -> None, or why it is not served."""


class Exchange:
    """Serves `store` to the swarm from now on, and fetches into it."""

    def __init__(
        self,
        swarm: Swarm,
        store: BlobStore,
        *,
        upload_bytes_per_second: float | None = None,
        download_bytes_per_second: float | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.store = store
        self.upload = RateLimiter(upload_bytes_per_second)
        self.download = RateLimiter(download_bytes_per_second)
        self.bytes_sent = 0
        self.bytes_received = 0
        self._swarm = swarm
        self._admission = admission or (lambda peer, blob: None)
        self._serving: Counter[PeerId] = Counter()
        self._fetching: dict[tuple[bytes, int], Download] = {}  # a liar may announce a wrong size
        self._streams = asyncio.Semaphore(MAX_STREAMS)
        swarm.serve_stream(METHOD, self._serve, max_request_bytes=MAX_REQUEST_BYTES)

    async def fetch(self, blob: bytes, size: int, sources: Sequence[PeerId], *, deadline_seconds: float) -> None:
        """Brings the blob with this blake3 hash and `size` in bytes into the store; at once if it is there.

        `sources` in order of preference. Whoever else fetches the same blob shares the download, sources included.
        Raises UnreachableError with what was tried when the deadline passes or no source is left; what came so far is
        kept for the next try. Raises CommonweightsError when the disk is full.
        """
        if self.store.has(blob):
            return
        download = self._fetching.get((blob, size))
        if download is None:
            download = self._fetching[blob, size] = Download(
                self._swarm, self.store, blob, size, arrived=self._arrived, streams=self._streams
            )
        download.add(source for source in sources if source != self._swarm.peer_id)
        download.waiting += 1
        try:
            async with asyncio.timeout(deadline_seconds):
                await asyncio.shield(download.task)
        except TimeoutError:
            raise UnreachableError(f"blob {blob.hex()[:12]} not within {deadline_seconds:g} s: {download}") from None
        finally:
            download.waiting -= 1
            if not download.waiting and self._fetching.get((blob, size)) is download:
                del self._fetching[blob, size]
                await download.end()

    async def close(self) -> None:
        """Ends the fetches under way; their callers get UnreachableError."""
        await asyncio.gather(*(download.end() for download in list(self._fetching.values())))

    async def _arrived(self, size: int) -> None:
        self.bytes_received += size
        await self.download.take(size)

    async def _serve(self, requester: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        wanted = BlobRequest.FromString(request)
        if len(wanted.hash) != HASH_BYTES:
            raise Refused(f"a blob hash has {HASH_BYTES} bytes")
        reason = self._admission(requester, wanted.hash)
        if reason:
            raise Refused(reason)
        if not self.store.has(wanted.hash):
            raise Refused("no such blob here")
        if self._serving[requester] >= MAX_SERVED_PER_PEER or self._serving.total() >= MAX_SERVED:
            raise Refused("busy: serving too many blobs; try again later")
        self._serving[requester] += 1
        try:
            with self.store.open(wanted.hash) as file:
                file.seek(min(wanted.offset, self.store.size(wanted.hash)))
                left = wanted.length or self.store.size(wanted.hash)
                while left > 0 and (piece := await asyncio.to_thread(file.read, min(left, PIECE_BYTES))):
                    await self.upload.take(len(piece))
                    left -= len(piece)
                    self.bytes_sent += len(piece)
                    yield piece
        finally:
            self._serving[requester] -= 1
            if not self._serving[requester]:
                del self._serving[requester]
