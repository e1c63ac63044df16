"""Blobs between peers: served to whoever asks within limits, fetched from whoever holds them (download.py).

Both directions pass a token bucket below the link's speed, which is measured (pace.py). What a stranger can take of a
server is bounded: few streams each, a bounded number together, one piece of memory per stream, and an `admission` rule
that may refuse it altogether.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from peer.background import cancel
from peer.errors import Refused, UnreachableError
from peer.exchange import bundle
from peer.exchange.blobs import HASH_BYTES, BlobStore
from peer.exchange.donors import Donors
from peer.exchange.download import BUSY, METHOD, Download
from peer.exchange.intake import Intake
from peer.exchange.pace import Pacer
from peer.exchange.ratelimit import RateLimiter
from peer.exchange.uplink import Uplink
from peer.identity import PeerId
from peer.swarm.interface import PIECE_BYTES, Swarm
from protos.swarm_pb2 import BlobRequest

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 128
MAX_SERVED = 256  # streams at once, to all, those of frozen peers included
MAX_SERVED_PER_PEER = 16  # a round of contributions, asked for at once
MIN_MOVING = 4  # streams that get somewhere, at once, on the slowest uplink
STREAM_BYTES_PER_SECOND = 128 * 1024  # of the uplink for each: more of them would all be slow, and others have it too
AHEAD_SECONDS = 2.0  # for which those streams that are served keep the uplink occupied: no reason to turn one away
STUCK_SECONDS = 3.0  # without a piece taken: the other side is frozen, and counts as nobody
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
        self.donors = Donors(swarm.peer_id)
        self._intake = Intake(self.download)
        self.uplink = Uplink()
        self._pacer = Pacer(swarm, self.upload, self.download)
        self._swarm = swarm
        self._admission = admission or (lambda peer, blob: None)
        self._serving: Counter[PeerId] = Counter()
        self._served: set[_Served] = set()
        self._fetching: dict[tuple[bytes, int], Download] = {}  # a liar may announce a wrong size
        self._bundles: dict[bytes, asyncio.Task[None]] = {}  # under way, by each blob in them
        self._streams = asyncio.Semaphore(MAX_STREAMS)
        swarm.serve_stream(METHOD, self._serve, max_request_bytes=MAX_REQUEST_BYTES)
        swarm.serve_stream(bundle.METHOD, self._serve_bundle, max_request_bytes=bundle.MAX_REQUEST_BYTES)

    async def fetch(self, blob: bytes, size: int, sources: Sequence[PeerId], *, deadline_seconds: float) -> None:
        """Brings the blob with this blake3 hash and `size` in bytes into the store; at once if it is there.

        `sources` in order of preference; those that lied lately are left out. Whoever else fetches the same blob shares
        the download, sources included.
        Raises UnreachableError with what was tried when the deadline passes or no source is left; what came so far is
        kept for the next try. Raises CommonweightsError when the disk is full.
        """
        if self.store.has(blob):
            return
        download = self._fetching.get((blob, size))
        if download is None:
            download = self._fetching[blob, size] = Download(
                self._swarm,
                self.store,
                blob,
                size,
                arrived=self._arrived,
                streams=self._streams,
                donors=self.donors,
                intake=self._intake,
            )
        download.add(source for source in self.donors.trusted(sources) if source != self._swarm.peer_id)
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

    async def fetch_small(self, wanted: Mapping[bytes, int], source: PeerId) -> None:
        """Asks one source for many small blobs (sizes in bytes by hash), which are not here, at once. What it has is in
        the store afterwards; what does not come is left to `fetch`.

        Raises CommonweightsError when the disk is full.
        """
        under_way = self._bundles.keys() | {blob for blob, _ in self._fetching}
        fresh = {blob: size for blob, size in wanted.items() if blob not in under_way}
        trusted = source != self._swarm.peer_id and self.donors.trusted([source])
        for part in bundle.bundles(fresh) if trusted else ():
            task = asyncio.create_task(self._fetch_bundle(part, source))
            self._bundles.update(dict.fromkeys(part, task))
            task.add_done_callback(self._bundle_done)
        tasks = {self._bundles[blob] for blob in wanted if blob in self._bundles}
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():  # at the end of everything
                    task.result()

    def _bundle_done(self, done: asyncio.Task[None]) -> None:
        self._bundles = {blob: task for blob, task in self._bundles.items() if task is not done}

    async def _fetch_bundle(self, wanted: Mapping[bytes, int], source: PeerId) -> None:
        try:
            for pause_seconds in bundle.BUSY_SECONDS:  # it has them, and serves what it has begun within seconds
                try:
                    return await self._receive_bundle(wanted, source)
                except Refused as error:
                    if not str(error).startswith(BUSY):
                        raise
                    await asyncio.sleep(pause_seconds)
            await self._receive_bundle(wanted, source)
        except bundle.WrongBytesError:
            self.donors.lied(source)
        except (Refused, UnreachableError) as error:
            if isinstance(error, UnreachableError):
                self.donors.failed(source)
            logger.debug("%d small blobs not at once from %s: %s", len(wanted), source.short, error)

    async def _receive_bundle(self, wanted: Mapping[bytes, int], source: PeerId) -> None:
        async with self._streams:
            pieces = self._swarm.stream(
                source,
                bundle.METHOD,
                bundle.request(wanted),
                timeout_seconds=bundle.STALLED_SECONDS,
                max_bytes=sum(wanted.values()) + len(wanted),
            )
            came, waited = await bundle.receive(pieces, wanted, self.store, lambda n: self._arrived(source, n))
        self.donors.gave(source, came, waited)

    async def close(self) -> None:
        """Ends the fetches under way; their callers get UnreachableError."""
        await asyncio.gather(*(download.end() for download in list(self._fetching.values())))
        await cancel(*set(self._bundles.values()))
        await self._pacer.close()

    async def _arrived(self, source: PeerId, size: int) -> None:
        self.bytes_received += size
        self._pacer.received(source, size)
        self._intake.came(size)
        await self.download.take(size)

    async def _serve(self, requester: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        wanted = BlobRequest.FromString(request)
        if len(wanted.hash) != HASH_BYTES:
            raise Refused(f"a blob hash has {HASH_BYTES} bytes")
        self._check_admission(requester, [wanted.hash])
        if not self.store.has(wanted.hash):
            raise Refused("no such blob here")
        with self._place(requester) as stream, self.store.open(wanted.hash) as file:
            file.seek(min(wanted.offset, self.store.size(wanted.hash)))
            stream.left = wanted.length or self.store.size(wanted.hash)
            while stream.left > 0 and (piece := await asyncio.to_thread(file.read, min(stream.left, PIECE_BYTES))):
                passage = self.uplink.passage(wanted.hash, requester)
                held_seconds = await self._may_leave(piece, requester, stream)
                if not self._pacer.is_probing:
                    passage.held(held_seconds, self.upload.bytes_per_second or math.inf)
                with passage.leaving(len(piece)), self._leaving(requester, len(piece)):
                    yield piece

    async def _serve_bundle(self, requester: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        wanted = bundle.parse(request)
        self._check_admission(requester, wanted)
        with self._place(requester) as stream:
            pieces = bundle.answer(self.store, wanted)
            stream.left = sum(wanted.values())
            at_once = self.store.has_in_memory(wanted)
            while piece := next(pieces, b"") if at_once else await asyncio.to_thread(next, pieces, b""):
                await self._may_leave(piece, requester, stream)
                with self._leaving(requester, len(piece)):
                    yield piece

    def _check_admission(self, requester: PeerId, blobs: Iterable[bytes]) -> None:
        reason = next(filter(None, (self._admission(requester, blob) for blob in blobs)), None)
        if reason:
            raise Refused(reason)

    @contextlib.contextmanager
    def _place(self, requester: PeerId) -> Iterator[_Served]:
        """For one stream to a requester, as long as there is one. Raises Refused."""
        if self._serving[requester] >= MAX_SERVED_PER_PEER or self._is_busy(requester):
            raise Refused("busy: serving too many blobs; try again later")
        self._serving[requester] += 1
        stream = _Served()
        try:
            yield stream
        finally:
            self._served.discard(stream)
            self._serving[requester] -= 1
            if not self._serving[requester]:
                del self._serving[requester]

    async def _may_leave(self, piece: bytes, requester: PeerId, stream: _Served) -> float:
        """Waits until the piece may leave; for how many seconds."""
        self._served.add(stream)
        stream.moved = time.monotonic()
        self._pacer.sent(requester, 0)
        held_seconds = await self.upload.take(len(piece))
        stream.moved = time.monotonic()
        stream.left -= len(piece)
        self.bytes_sent += len(piece)
        return held_seconds

    @contextlib.contextmanager
    def _leaving(self, requester: PeerId, size: int) -> Iterator[None]:
        """Around what gives a piece to the swarm, whose writer waits until it has left. A taker that has all it wants
        may hang up before it asks for more: the last piece counts too, and of light contributions there is no other."""
        try:
            yield
        finally:
            self._pacer.sent(requester, size)

    def _is_busy(self, requester: PeerId) -> bool:
        """Whether one more stream would only make all of them slow. Who has none yet finds a place more easily."""
        if self._serving.total() >= MAX_SERVED:
            return True
        now, rate = time.monotonic(), self.upload.bytes_per_second
        moving = [stream for stream in self._served if now - stream.moved < STUCK_SECONDS]
        if rate is None or sum(stream.left for stream in moving) <= AHEAD_SECONDS * rate:
            return False
        places = max(MIN_MOVING, rate / STREAM_BYTES_PER_SECOND)
        return len(moving) >= (places if requester in self._serving else 2 * places)


@dataclass(eq=False)
class _Served:
    """A blob, or a part of one, on its way to somebody."""

    left: int = 0  # bytes
    moved: float = 0.0  # when it last got rid of a piece, monotonic
