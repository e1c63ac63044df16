"""One blob on its way from several sources into the store.

It is asked for in segments, one source per segment, so that several uplinks add up: one source first, and more of
them while our own link has room (intake.py). When a segment stalls, a source that has nothing to do helps. A source
that refuses, lies or falls silent is dropped, and the reason kept for the error message. Nothing is visible before its
hash is right; what came before an interruption is kept on disk.

The hash is of the whole, so a wrong byte is noticed at the end only. Then the sources are asked one after the other,
each for everything, until one is right: costly, but only when somebody lies, and the liar is known afterwards. Blobs
that many peers serve should therefore be small (state chunks have one segment).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from peer.errors import Refused, UnreachableError
from peer.exchange.blobs import BlobStore, Partial
from peer.exchange.donors import Donors
from peer.exchange.intake import Intake
from peer.identity import PeerId
from peer.swarm.interface import Swarm
from protos.swarm_pb2 import BlobRequest

logger = logging.getLogger(__name__)

METHOD = "blob"
MAX_SOURCES_AT_ONCE = 4
MORE_SECONDS = 4.0  # until one more source is asked at the same time
SILENCE_SECONDS = 20.0  # without a piece: a failure of the source
MAX_FAILURES = 4  # in a row: the source is dropped
RETRY_SECONDS = 0.5  # after the first failure; doubles; other sources have their turn first
MAX_RETRY_SECONDS = 8.0
MISS_SECONDS = 0.02  # before the next source, when one did not have it; doubles up to RETRY_SECONDS: a blob is new when
# most do not have it, and asking all of them each time would be most of the traffic of a large swarm
NOT_HERE = "no such blob here"  # a refusal that may be over soon: the other side fetches it too
BUSY = "busy"  # begins one that will be
LOOK_SECONDS = 0.25  # between looks at who stalls
STALLED_SECONDS = 5.0  # a segment that waits so long for a piece gets a helper
SLOW_SECONDS = 20.0  # or so long for all its pieces together
MAX_HELPERS = 2  # sources at one segment
SAVE_BYTES = 32 * 1024 * 1024  # between two notes of the progress on disk


class _Segment:
    """Who works on it, and how long the network has kept them waiting. Waiting for our own rate limit is not counted,
    or every throttled download would look like one from bad sources."""

    def __init__(self) -> None:
        self.workers = 0
        self.givers: set[PeerId | None] = set()  # None: from an earlier run
        self.waited_seconds = 0.0
        self.waiting_since: float | None = None

    def wants_help(self, now: float) -> bool:
        waiting = 0.0 if self.waiting_since is None else now - self.waiting_since
        return self.workers < MAX_HELPERS and (
            waiting > STALLED_SECONDS or self.waited_seconds + waiting > SLOW_SECONDS
        )


class Download:
    """Begins at once, as `task`. Sources may be added while it runs."""

    def __init__(
        self,
        swarm: Swarm,
        store: BlobStore,
        blob: bytes,
        size: int,
        *,
        arrived: Callable[[PeerId, int], Awaitable[None]],
        streams: asyncio.Semaphore,
        donors: Donors,
        intake: Intake,
    ) -> None:
        self.size = size
        self.waiting = 0  # callers
        self._swarm, self._store, self._blob = swarm, store, blob
        self._arrived, self._streams, self._donors, self._intake = arrived, streams, donors, intake
        self._began = time.monotonic()
        self._idle: list[PeerId] = []  # sources without work, best first
        self._known: set[PeerId] = set()
        self._failures: dict[PeerId, int] = {}
        self._without: dict[PeerId, int] = {}  # how often a source said that it does not have the blob
        self._ready_at: dict[PeerId, float] = {}  # when to try again what failed
        self._misses = 0  # sources in a row that did not have it
        self._next_at = 0.0  # when to ask the next one
        self._reasons: dict[PeerId, str] = {}  # the last thing that went wrong with a source
        self._segments: list[_Segment] = []
        self._one_by_one = False
        self._unsaved_bytes = 0
        self._ended = False
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def __str__(self) -> str:
        """What was tried: for the error message."""
        told = [f"{peer.short}: {self._reasons.get(peer, 'too slow')}" for peer in sorted(self._known)]
        return "; ".join(told) or "no sources"

    def add(self, sources: Iterable[PeerId]) -> None:
        for source in sources:
            if source not in self._known:
                self._known.add(source)
                self._idle.append(source)
        self._news.set()

    async def end(self) -> None:
        """Stops it, if it runs; those who wait for it get UnreachableError."""
        self._ended = True
        self._news.set()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        partial = await asyncio.to_thread(self._store.partial, self._blob, self.size)
        self._segments = [_Segment() for _ in partial.filled]
        for segment, filled in zip(self._segments, partial.filled, strict=True):
            segment.givers = {None} if filled else set()
        try:
            while True:
                await self._fill(partial)
                givers = {giver for segment in self._segments for giver in segment.givers}
                if await asyncio.to_thread(partial.finish):
                    return
                self._blame(givers)
        finally:
            await asyncio.to_thread(partial.close)

    def _blame(self, givers: set[PeerId | None]) -> None:
        """After a wrong hash: a single giver is the liar; of several, each has to prove itself alone."""
        if len(givers) == 1 and None not in givers:
            for liar in givers:
                if liar is not None:
                    self._drop(liar, "sent wrong bytes")
                    self._donors.lied(liar)
        elif None not in givers:
            logger.warning("blob %s came with wrong bytes from one of several sources", self._blob.hex()[:12])
            self._one_by_one = True
        self._segments = [_Segment() for _ in self._segments]

    def _drop(self, source: PeerId, reason: str) -> None:
        self._reasons[source] = reason
        if source in self._idle:
            self._idle.remove(source)
        logger.debug("blob %s: no more from %s: %s", self._blob.hex()[:12], source, reason)

    async def _fill(self, partial: Partial) -> None:
        """Returns when every segment is here; raises UnreachableError when no source is left."""
        at_work: dict[asyncio.Task[None], PeerId] = {}
        news: asyncio.Task[Any] = asyncio.create_task(self._news.wait())
        try:
            while partial.missing_bytes:
                if self._ended:
                    raise UnreachableError("given up")
                while (
                    len(at_work) < self._sources_at_once
                    and self._choose(partial) is not None
                    and (source := self._pop_ready())
                ):
                    at_work[asyncio.create_task(self._work(source, partial))] = source
                if not at_work and not any(source not in self._without for source in self._idle):
                    raise UnreachableError(f"blob {self._blob.hex()[:12]}: {self}")
                pause = min(max(0.0, self._next_at - time.monotonic()) or LOOK_SECONDS, LOOK_SECONDS)
                await asyncio.wait({*at_work, news}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    self._news.clear()
                    news = asyncio.create_task(self._news.wait())
                for task in [task for task in at_work if task.done()]:
                    self._after_work(at_work.pop(task), task, partial)
        finally:
            for source in at_work.values():
                self._idle.insert(0, source)
            tasks = [*at_work, news]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _sources_at_once(self) -> int:
        """The coordinator alone fills most links; homes are asked for their uplinks only where it does not."""
        if self._one_by_one or self._intake.is_full:
            return 1
        return min(MAX_SOURCES_AT_ONCE, 1 + int((time.monotonic() - self._began) / MORE_SECONDS))

    def _pop_ready(self) -> PeerId | None:
        now = time.monotonic()
        if now < self._next_at:
            return None
        source = next((source for source in self._idle if self._ready_at.get(source, 0.0) <= now), None)
        if source is not None:
            self._idle.remove(source)
        return source

    def _after_work(self, source: PeerId, task: asyncio.Task[None], partial: Partial) -> None:
        """Done: first in line. Failed: last in line, after a pause; failed too often or for good: dropped."""
        error = task.exception()
        if error is None:
            self._without.pop(source, None)
            self._idle.insert(0, source)
            self._misses = 0
            return
        if not isinstance(error, UnreachableError | Refused):
            raise error
        if self._one_by_one:  # nothing of it may be mixed with what the next one sends
            partial.empty()
            self._segments = [_Segment() for _ in self._segments]
        self._reasons[source] = str(error)
        if isinstance(error, Refused) and str(error) == NOT_HERE:  # asked again as long as another one has it
            times = self._without[source] = self._without.get(source, 0) + 1
            self._misses += 1
            self._next_at = time.monotonic() + min(RETRY_SECONDS, MISS_SECONDS * 2.0 ** min(self._misses - 1, 8))
            self._later(source, times)
            return
        failures = self._failures[source] = self._failures.get(source, 0) + 1
        if isinstance(error, Refused) and str(error).startswith(BUSY):
            self._later(source, min(failures, 2))  # it has it, and serves what it has begun within seconds
            return
        self._donors.failed(source)
        if failures >= MAX_FAILURES or isinstance(error, Refused):
            self._drop(source, str(error))
        else:
            self._later(source, failures)

    def _later(self, source: PeerId, times: int) -> None:
        """Last in line, after a pause that grows with every time."""
        self._ready_at[source] = time.monotonic() + min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(times - 1, 8))
        self._idle.append(source)

    def _choose(self, partial: Partial) -> int | None:
        """The segment to work on next: one nobody is at, else one that needs help."""
        unfilled = [i for i, filled in enumerate(partial.filled) if filled < partial.segment_bytes(i)]
        now = time.monotonic()
        for index in unfilled:
            if not self._segments[index].workers:
                return index
        if self._intake.is_full:  # then everybody waits
            return None
        return next((index for index in unfilled if self._segments[index].wants_help(now)), None)

    async def _work(self, source: PeerId, partial: Partial) -> None:
        """Gets segments from `source` while there are any to get."""
        while (index := self._choose(partial)) is not None:
            segment = self._segments[index]
            segment.workers += 1
            try:
                async with self._streams:
                    await self._get(source, partial, index, segment)
                self._failures[source] = 0
            finally:
                segment.workers -= 1

    async def _get(self, source: PeerId, partial: Partial, index: int, segment: _Segment) -> None:
        """The rest of one segment, until it is full, whoever fills it."""
        offset, whole = partial.filled[index], partial.segment_bytes(index)
        start = sum(partial.segment_bytes(i) for i in range(index))
        wanted = BlobRequest(hash=self._blob, offset=start + offset, length=whole - offset)
        pieces = self._swarm.stream(
            source, METHOD, wanted.SerializeToString(), timeout_seconds=SILENCE_SECONDS, max_bytes=whole - offset
        )
        came, waited = 0, 0.0
        async with contextlib.aclosing(pieces):
            while partial.filled[index] < whole:
                segment.waiting_since = began = time.monotonic()
                try:
                    piece = await anext(pieces, None)
                finally:
                    segment.waited_seconds += time.monotonic() - began
                    waited += time.monotonic() - began
                    segment.waiting_since = None
                if piece is None:
                    raise Refused("sent less than the whole")
                fresh = partial.write(index, offset, piece)
                offset += len(piece)
                came += len(piece)
                if fresh:
                    segment.givers.add(source)
                await self._arrived(source, len(piece))
                self._unsaved_bytes += fresh
                if self._unsaved_bytes >= SAVE_BYTES:
                    self._unsaved_bytes = 0
                    await asyncio.to_thread(partial.save)
        self._donors.gave(source, came, waited)
