"""How fast bulk traffic may go so that a heartbeat still passes: found out while it goes, by nobody's declaration.

While blobs move, a few partners are sent an empty call four times a second. What it takes beyond the quickest one seen
is queueing. A queue that every partner's answer has waited in is our own link's, and then the rate falls below what has
just passed; without one, a rate that was used up grows. So a link is probed upwards within a second or two, and a
transfer leaves the queue of a home router nearly empty. A frozen partner slows nobody else down: the quickest answer
counts.

`adjusted` is the rule, a pure function. `Pacer` measures, and sets the limiters of both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

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
PARTNERS = 2  # one may be frozen, or its own link full
MAX_REMEMBERED = 256

START_BYTES_PER_SECOND = 256_000.0  # 2 Mbit/s: doubles while the link bears it
FLOOR_BYTES_PER_SECOND = 64_000.0  # 0.5 Mbit/s
CALM_SECONDS = 0.05  # of queueing: none
QUEUE_SECONDS = 0.2  # too much
JAM_SECONDS = 0.8  # far too much
USED = 0.7  # of the rate, to call it used up


@dataclass(frozen=True)
class Pace:
    """Of one direction, after a look at the queue. `is_new`: the link was never full yet."""

    bytes_per_second: float
    queue_seconds: float = 0.0
    is_new: bool = True


def adjusted(pace: Pace, queue_seconds: float, moved_bytes: float, elapsed_seconds: float) -> Pace:
    """The pace after an interval in which so much moved, and small calls waited `queue_seconds` in queues."""
    rate, speed = pace.bytes_per_second, moved_bytes / elapsed_seconds
    if queue_seconds > QUEUE_SECONDS:
        if speed < USED * FLOOR_BYTES_PER_SECOND:  # it is not us
            return replace(pace, queue_seconds=queue_seconds)
        if queue_seconds >= JAM_SECONDS:
            rate *= 0.25
        elif queue_seconds >= pace.queue_seconds:  # while it drains, wait
            rate = 0.8 * min(rate, speed)
        return Pace(max(FLOOR_BYTES_PER_SECOND, rate), queue_seconds, is_new=False)
    if speed >= USED * rate:
        rate *= 1.05 if queue_seconds > CALM_SECONDS else 2.0 if pace.is_new else 1.25
    return replace(pace, bytes_per_second=rate, queue_seconds=queue_seconds)


class Echoes:
    """How long small calls take, and how much of that is queueing."""

    def __init__(self) -> None:
        self._quickest: dict[PeerId, float] = {}

    def queue_seconds(self, echoes: Sequence[tuple[PeerId, float]]) -> float:
        """The least that any of them waited beyond its partner's quickest answer; 0 without echoes."""
        waits = []
        for partner, seconds in echoes:
            quickest = min(seconds, self._quickest.pop(partner, seconds) * 1.001)  # routes change: it fades upwards
            self._quickest[partner] = quickest
            waits.append(seconds - quickest)
        while len(self._quickest) > MAX_REMEMBERED:
            del self._quickest[next(iter(self._quickest))]
        return min(waits, default=0.0)


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
                echoes, late_seconds = await _with_lateness(self._echo(self._choose()))
                queue_seconds = max(0.0, self._echoes.queue_seconds(echoes) - late_seconds)
                await pause
            finally:
                pause.cancel()
            now = time.monotonic()
            idle = 0 if any(self._moved) else idle + 1
            for index, limiter in enumerate(self._limiters):
                self._paces[index] = adjusted(self._paces[index], queue_seconds, self._moved[index], now - before)
                limiter.set_pace(self._paces[index].bytes_per_second)
            self._moved, before = [0, 0], now

    def _choose(self) -> list[PeerId]:
        """The partners of the moment, the newest first."""
        while len(self._partners) > PARTNERS:
            del self._partners[next(iter(self._partners))]
        return list(self._partners)

    async def _echo(self, partners: Sequence[PeerId]) -> list[tuple[PeerId, float]]:
        """How long each took to answer. One that cannot be asked says nothing about our link; when none can, the link
        itself may be the reason."""
        results = await asyncio.gather(*map(self._ask, partners))
        return [(partner, seconds) for partner, seconds in zip(partners, results, strict=True) if seconds is not None]

    async def _ask(self, partner: PeerId) -> float | None:
        began = time.monotonic()
        with contextlib.suppress(CommonweightsError):
            await self._swarm.call(partner, METHOD, b"", timeout_seconds=ECHO_SECONDS, max_reply_bytes=16)
            return time.monotonic() - began
        return ECHO_SECONDS if time.monotonic() - began >= ECHO_SECONDS else None

    async def _on_echo(self, sender: PeerId, request: bytes) -> bytes:
        return b""


async def _with_lateness(work: Awaitable[T]) -> tuple[T, float]:
    """What `work` gives, and for how long meanwhile this process was too busy to look: that is no queue of the link."""
    task, late_seconds = asyncio.ensure_future(work), 0.0
    try:
        while not task.done():
            began = time.monotonic()
            await asyncio.wait([task], timeout=LAG_SECONDS)
            late_seconds += max(0.0, time.monotonic() - began - LAG_SECONDS)
        return task.result(), late_seconds
    finally:
        task.cancel()
