"""Bulk traffic held below the link, so that heartbeats pass: a token bucket.

The rule is a pure function of the clock (`spend`); `RateLimiter` is the thin part that sleeps. A spender that finds the
bucket empty goes into debt and waits until it is paid off, so spenders are served in the order they came and a piece
larger than the burst still passes. A new rate holds for those who wait already: at the rate that an unknown link begins
with, the first pieces of many streams are a debt of many seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from peer.pulse import Pulse

BURST_SECONDS = 0.25  # of the rate: what may leave at once after a pause
MIN_BURST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Bucket:
    """`level` bytes may be spent at time `at` (seconds); below zero it is debt."""

    bytes_per_second: float
    level: float
    at: float

    @property
    def burst_bytes(self) -> float:
        return max(MIN_BURST_BYTES, self.bytes_per_second * BURST_SECONDS)


def full(bytes_per_second: float, now: float) -> Bucket:
    bucket = Bucket(bytes_per_second, 0.0, now)
    return replace(bucket, level=bucket.burst_bytes)


def refilled(bucket: Bucket, now: float) -> Bucket:
    """The bucket at `now`; a clock that steps back adds nothing."""
    elapsed = max(0.0, now - bucket.at)
    level = min(bucket.burst_bytes, bucket.level + elapsed * bucket.bytes_per_second)
    return replace(bucket, level=level, at=max(now, bucket.at))


def spend(bucket: Bucket, amount_bytes: float, now: float) -> tuple[Bucket, float]:
    """Takes `amount_bytes` out; returns the bucket and for how many seconds the spender has to wait."""
    bucket = refilled(bucket, now)
    bucket = replace(bucket, level=bucket.level - amount_bytes)
    return bucket, max(0.0, -bucket.level / bucket.bytes_per_second)


class RateLimiter:
    """`await limiter.take(n)` before (or after) moving n bytes. The rate is what a person allows (`set_rate`) or what
    the link bears (`set_pace`), whichever is less; None never waits."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bucket: Bucket | None = None
        self._waiting: dict[object, int] = {}  # the bytes of each who waits, in their order
        self._changed = Pulse()
        self._rate: float | None = None
        self._pace: float | None = None
        self.set_rate(bytes_per_second)

    @property
    def bytes_per_second(self) -> float | None:
        return self._bucket.bytes_per_second if self._bucket else None

    @property
    def allowed_bytes_per_second(self) -> float | None:
        """What a person allows, whatever the link bears."""
        return self._rate

    def set_rate(self, bytes_per_second: float | None) -> None:
        """From now on, also for those who wait already."""
        assert bytes_per_second is None or bytes_per_second > 0
        self._rate = bytes_per_second
        self._change()

    def set_pace(self, bytes_per_second: float | None) -> None:
        """The same, for what was measured."""
        assert bytes_per_second is None or bytes_per_second > 0
        self._pace = bytes_per_second
        self._change()

    def _change(self) -> None:
        rates = [rate for rate in (self._rate, self._pace) if rate is not None]
        if not rates:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = full(min(rates), self._clock())
        elif self._bucket.bytes_per_second != min(rates):  # debts stay: a new rate must not be a new burst
            self._bucket = replace(refilled(self._bucket, self._clock()), bytes_per_second=min(rates))
        self._changed.beat()

    async def take(self, amount_bytes: int) -> float:
        """Waits until so much may move; for how many seconds."""
        if self._bucket is None:
            return 0.0
        began, place = self._clock(), object()
        self._bucket, wait_seconds = spend(self._bucket, amount_bytes, began)
        if not wait_seconds:
            return 0.0
        self._waiting[place] = amount_bytes
        try:
            while wait_seconds:
                await self._changed.wait(wait_seconds)
                wait_seconds = self._debt_seconds(place)
        except asyncio.CancelledError:
            if self._bucket is not None:  # not moved after all
                self._bucket, _ = spend(self._bucket, -amount_bytes, self._clock())
            raise
        finally:
            del self._waiting[place]
        return self._clock() - began

    def _debt_seconds(self, place: object) -> float:
        """Until everything up to this place in the line is paid off."""
        if self._bucket is None:
            return 0.0
        behind = itertools.takewhile(lambda other: other is not place, reversed(self._waiting))
        return spend(self._bucket, -sum(self._waiting[other] for other in behind), self._clock())[1]
