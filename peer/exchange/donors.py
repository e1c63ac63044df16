"""Whom to ask for a blob first, so that the load spreads by what each can give, and liars are not asked again.

Every node orders the holders of a blob by a weighted draw of its own (rendezvous hashing): different nodes begin with
different holders, and twice as fast a holder is drawn first twice as often. Nobody coordinates that, and nobody is
believed: speeds are what this node has seen.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

from blake3 import blake3

from peer.identity import PeerId

logger = logging.getLogger(__name__)

LIAR_SECONDS = 600.0  # not asked for so long: a disk may have rotted, it need not be malice
MAX_REMEMBERED = 1024
MEMORY = 0.7  # of the speed seen before, when a new one is seen
FAILURE = 0.25  # what a failure makes of it


class Donors:
    def __init__(self, own: PeerId, clock: Callable[[], float] = time.monotonic) -> None:
        self.liars: dict[PeerId, float] = {}  # until when they are not asked
        self._own, self._clock = own, clock
        self._speeds: dict[PeerId, float] = {}  # bytes per second, as seen last; oldest first
        self._failures: Counter[PeerId] = Counter()  # since it last gave something

    def order(self, blob: bytes, sources: Iterable[PeerId]) -> list[PeerId]:
        """The same `sources`, in the order to ask them for `blob`."""
        usual = sum(self._speeds.values()) / len(self._speeds) if self._speeds else 1.0

        def draw(source: PeerId) -> float:
            digest = blake3(blob + self._own.public_key + source.public_key).digest(8)
            uniform = (int.from_bytes(digest, "big") + 1) / (1 << 64)
            return -math.log(uniform) / (self._speeds.get(source, usual) * FAILURE ** min(self._failures[source], 8))

        return sorted(dict.fromkeys(sources), key=draw)

    def trusted(self, sources: Iterable[PeerId]) -> list[PeerId]:
        """Those that have not lied lately."""
        now = self._clock()
        return [source for source in sources if self.liars.get(source, now) <= now]

    def gave(self, source: PeerId, amount_bytes: int, seconds: float) -> None:
        del self._failures[source]
        speed = max(1.0, amount_bytes / max(seconds, 1e-3))
        before = self._speeds.pop(source, speed)
        self._speeds[source] = MEMORY * before + (1 - MEMORY) * speed
        if len(self._speeds) > MAX_REMEMBERED:
            del self._speeds[next(iter(self._speeds))]

    def failed(self, source: PeerId) -> None:
        """It did not answer, or stopped in the middle: others first, next time."""
        self._failures[source] += 1
        if len(self._failures) > MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def lied(self, source: PeerId) -> None:
        logger.warning("peer %s sent wrong bytes; it is not asked for %.0f minutes", source.short, LIAR_SECONDS / 60)
        self.liars.pop(source, None)
        self.liars[source] = self._clock() + LIAR_SECONDS
        if len(self.liars) > MAX_REMEMBERED:
            del self.liars[next(iter(self.liars))]
