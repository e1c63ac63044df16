"""How fast bulk traffic may go so that a heartbeat still passes: found out while it goes, by nobody's declaration.

While blobs move, a few partners are sent an empty call four times a second. What it takes beyond the quickest one seen
is queueing. A queue that every partner's answer has waited in is our own link's, and then the rate falls below what has
just passed; without one, a rate that was used up grows. So a link is probed upwards within a second or two, and a
transfer leaves the queue of a home router nearly empty. A frozen partner slows nobody else down: the quickest answer
counts. When a round ends, every home's link is full, and a coordinator's is not: so when the few have waited, all
others are asked before it is believed.

`adjusted` is the rule, a pure function. `Pacer` measures, and sets the limiters of both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from peer.background import cancel
from peer.errors import CommonweightsError
from peer.exchange.ratelimit import RateLimiter
from peer.identity import PeerId
from peer.swarm.interface import Swarm

T = TypeVar("T")

METHOD = "echo"
LOOK_SECONDS = 0.25
ECHO_SECONDS = 1.0  # an answer that takes longer counts as this
IDLE_LOOKS = 2  # without bulk traffic, until measuring ends: some answers that nothing delays are wanted too
LAG_SECONDS = 0.02  # between two looks whether this process itself is late
PARTNERS = 2  # that are asked first
MAX_PARTNERS = 16
MAX_REMEMBERED = 256

START_BYTES_PER_SECOND = 256_000.0  # 2 Mbit/s: doubles while the link bears it
FLOOR_BYTES_PER_SECOND = 64_000.0  # 0.5 Mbit/s
CALM_SECONDS = 0.05  # of queueing: none
QUEUE_SECONDS = 0.2  # too much
JAM_SECONDS = 0.8  # far too much
USED = 0.7  # of the rate, to call it used up
AVERAGE_SECONDS = 1.0  # over which a speed is smoothed: a piece takes longer than a look on a slow link
FADING = 0.99  # of the speed that a link has borne, at every look
YIELDING = 0.95  # and at every one that finds a queue
KEPT = 0.75  # of it, at a queue


@dataclass(frozen=True)
class Pace:
    """Of one direction, after a look at the queue. `is_new`: the link was never full yet."""

    bytes_per_second: float
    queue_seconds: float = 0.0
    is_new: bool = True
    average: float = 0.0  # bytes per second that moved lately
    borne: float = 0.0  # the most of that without much of a queue; fades


def adjusted(pace: Pace, queue_seconds: float, moved_bytes: float, elapsed_seconds: float) -> Pace:
    """The pace after an interval in which so much moved, and small calls waited `queue_seconds` in queues.

    The queue may be that of the other direction, or of all partners: what passed lately is not given up at once.
    """
    rate, speed = pace.bytes_per_second, moved_bytes / elapsed_seconds
    average = pace.average + (speed - pace.average) * min(1.0, elapsed_seconds / AVERAGE_SECONDS)
    borne = max(FADING * pace.borne, average if pace.is_new or queue_seconds <= QUEUE_SECONDS else 0.0)
    now = replace(pace, queue_seconds=queue_seconds, average=average, borne=borne)
    if queue_seconds > QUEUE_SECONDS:
        if average < USED * FLOOR_BYTES_PER_SECOND:  # it is not us
            return now
        if queue_seconds >= JAM_SECONDS or queue_seconds >= pace.queue_seconds:  # while it drains, wait
            less = 0.5 if queue_seconds >= JAM_SECONDS else 0.8
            rate = max(less * min(rate, max(speed, average)), min(rate, KEPT * borne))
            borne *= YIELDING
        return replace(now, bytes_per_second=max(FLOOR_BYTES_PER_SECOND, rate), borne=borne, is_new=False)
    if (speed if pace.is_new else average) >= USED * rate:
        rate *= 1.05 if queue_seconds > CALM_SECONDS else 2.0 if pace.is_new else 1.25
    return replace(now, bytes_per_second=rate)


class Echoes:
    """How long small calls take, and how much of that is queueing."""

    def __init__(self) -> None:
        self._quickest: dict[PeerId, float] = {}

    def waited_seconds(self, partner: PeerId, seconds: float) -> float | None:
        """What an answer took beyond its partner's quickest one; None for the first, which tells nothing."""
        known = self._quickest.pop(partner, None)
        quickest = seconds if known is None else min(seconds, known * 1.001)  # routes change: it fades upwards
        self._quickest[partner] = quickest
        if len(self._quickest) > MAX_REMEMBERED:
            del self._quickest[next(iter(self._quickest))]
        return None if known is None else seconds - quickest


class Pacer:
    """Measures while there is something to measure. `moved` tells it of bytes, in either direction."""

    def __init__(self, swarm: Swarm, upload: RateLimiter, download: RateLimiter) -> None:
        self._swarm = swarm
        self._limiters = (upload, download)
        self._paces = [Pace(START_BYTES_PER_SECOND) for _ in self._limiters]
        self._moved = [0, 0]
        self._partners: dict[PeerId, None] = {}  # the newest last
        self._echoes = Echoes()
        self._task: asyncio.Task[None] | None = None
        swarm.serve(METHOD, self._on_echo, max_request_bytes=0)

    @property
    def is_probing(self) -> bool:
        """Whether the uplink was never full yet: then nothing waits for it, but for this rule to find it."""
        return self._paces[0].is_new

    def sent(self, partner: PeerId, amount_bytes: int) -> None:
        self._count(0, partner, amount_bytes)

    def received(self, partner: PeerId, amount_bytes: int) -> None:
        self._count(1, partner, amount_bytes)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _count(self, direction: int, partner: PeerId, amount_bytes: int) -> None:
        self._moved[direction] += amount_bytes
        self._partners.pop(partner, None)
        self._partners[partner] = None
        if self._task is None or self._task.done():
            for limiter, pace in zip(self._limiters, self._paces, strict=True):
                limiter.set_pace(pace.bytes_per_second)
            self._task = asyncio.create_task(self._measure())

    async def _measure(self) -> None:
        idle = 0
        before = time.monotonic()
        while idle < IDLE_LOOKS:
            pause = asyncio.create_task(asyncio.sleep(LOOK_SECONDS))
            try:
                waited_seconds, late_share = await _with_lateness(self._queued(is_idle=idle > 0))
                queue_seconds = waited_seconds * (1.0 - late_share)
                await pause
            finally:
                pause.cancel()
            now = time.monotonic()
            idle = 0 if any(self._moved) else idle + 1
            for index, limiter in enumerate(self._limiters):
                self._paces[index] = adjusted(self._paces[index], queue_seconds, self._moved[index], now - before)
                limiter.set_pace(self._paces[index].bytes_per_second)
            self._moved, before = [0, 0], now

    async def _queued(self, is_idle: bool) -> float:
        """How long small calls wait at the moment in a queue of our own, in seconds: the least of what answers waited.
        When nothing moves, everybody is asked, to know how quick they can be."""
        while len(self._partners) > MAX_PARTNERS:
            del self._partners[next(iter(self._partners))]
        newest = list(reversed(self._partners))
        waits: list[float] = []
        for partners in [newest] if is_idle else [newest[:PARTNERS], newest[PARTNERS:]]:
            async with contextlib.aclosing(self._echoes_of(partners)) as echoes:
                async for waited_seconds in echoes:
                    waits.append(waited_seconds)
                    if waited_seconds <= CALM_SECONDS and not is_idle:
                        return waited_seconds
        return min(waits, default=0.0)

    async def _echoes_of(self, partners: Sequence[PeerId]) -> AsyncGenerator[float, None]:
        """What their answers waited, as they come in. One that cannot be asked says nothing about our link."""
        asking = {asyncio.create_task(self._ask(partner)): partner for partner in partners}
        try:
            for answer in asyncio.as_completed(asking):
                partner, seconds = await answer
                if seconds is not None and (waited := self._echoes.waited_seconds(partner, seconds)) is not None:
                    yield waited
        finally:
            await cancel(*asking)

    async def _ask(self, partner: PeerId) -> tuple[PeerId, float | None]:
        """How long it took to answer. When it did not in time, the link itself may be the reason; None: it cannot."""
        began = time.monotonic()
        with contextlib.suppress(CommonweightsError):
            await self._swarm.call(partner, METHOD, b"", timeout_seconds=ECHO_SECONDS, max_reply_bytes=16)
            return partner, time.monotonic() - began
        return partner, ECHO_SECONDS if time.monotonic() - began >= ECHO_SECONDS else None

    async def _on_echo(self, sender: PeerId, request: bytes) -> bytes:
        return b""


async def _with_lateness(work: Awaitable[T]) -> tuple[T, float]:
    """What `work` gives, and for which share of the time this process was too busy to look: that is no queue of the
    link."""
    task, began, late_seconds = asyncio.ensure_future(work), time.monotonic(), 0.0
    try:
        while not task.done():
            looked = time.monotonic()
            await asyncio.wait([task], timeout=LAG_SECONDS)
            late_seconds += max(0.0, time.monotonic() - looked - LAG_SECONDS)
        return task.result(), late_seconds / max(LAG_SECONDS, time.monotonic() - began)
    finally:
        task.cancel()
