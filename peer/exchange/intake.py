"""Whether what comes down fills our own link: then more sources, or helpers for a slow one, make nothing faster.

They would only cost: the same bytes twice, and other homes' uplinks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from peer.exchange.ratelimit import RateLimiter

MEMORY_SECONDS = 2.0  # over which the speed is averaged: some pieces, on the slowest link too
FULL = 0.4  # of the pace, which may be twice what the link bears


class Intake:
    """`limiter` knows what the link bears, or a person allows; one without a rate is never full."""

    def __init__(self, limiter: RateLimiter, clock: Callable[[], float] = time.monotonic) -> None:
        self._limiter, self._clock = limiter, clock
        self._recent_bytes, self._at = 0.0, clock()  # what came, fading

    def came(self, amount_bytes: int) -> None:
        self._fade()
        self._recent_bytes += amount_bytes

    @property
    def is_full(self) -> bool:
        self._fade()
        rate = self._limiter.bytes_per_second
        return rate is not None and self._recent_bytes / MEMORY_SECONDS >= FULL * rate

    def _fade(self) -> None:
        now = self._clock()
        self._recent_bytes *= math.exp((self._at - now) / MEMORY_SECONDS)
        self._at = now
