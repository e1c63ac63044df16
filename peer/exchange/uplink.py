"""What a peer's uplink bears, measured on its own contributions while they go up to the sequencer.

Only the way of one blob to one taker is looked at: what strangers ask for may be slow for reasons of theirs. The time
counts that pieces wait for the link, or for a pace that was measured; not the time that they wait for a pace which is
still being probed upwards (pace.py), because a link that was never full is not slow.

Lossy where buffers swallow a payload: one that is smaller than the bucket's burst (64 KiB, or a quarter of a second),
or the first that a slow link gets, looks faster than it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from peer.identity import PeerId

QUICK_SECONDS = 0.05  # what took less waited for nothing but this machine ...
MIN_SECONDS = 1e-3  # ... and counts as this


class Passage:
    """One blob's way to one taker, in one stream after the other."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sent_bytes = 0  # or about to be: so that a piece that is stuck tells something too
        self._clock = clock
        self._leaving_seconds = 0.0
        self._since: float | None = None  # when the piece began to leave that is leaving
        self._held_seconds = 0.0
        self._held_bytes = 0.0

    @property
    def bytes_per_second(self) -> float:
        """As fast as it went; and no faster than the pace that held it back, which let its first pieces pass."""
        leaving = self._leaving_seconds + (0.0 if self._since is None else self._clock() - self._since)
        seconds = leaving + self._held_seconds
        average = self.sent_bytes / (seconds if seconds > QUICK_SECONDS else MIN_SECONDS)
        return min(average, self._held_bytes / self._held_seconds) if self._held_seconds else average

    @contextlib.contextmanager
    def leaving(self, amount_bytes: int) -> Iterator[None]:
        """Around what waits for the link to take a piece."""
        self.sent_bytes += amount_bytes
        began = self._since = self._clock()
        try:
            yield
        finally:
            self._since = None
            self._leaving_seconds += self._clock() - began

    def held(self, seconds: float, bytes_per_second: float) -> None:
        """A piece had to wait so long for a pace that is the link's."""
        self._held_seconds += seconds
        self._held_bytes += seconds * bytes_per_second


class Uplink:
    """Measures one passage at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watched: tuple[bytes, PeerId] | None = None
        self._passage = Passage(clock)

    def watch(self, blob: bytes, taker: PeerId) -> None:
        """From now on this one; calling it again changes nothing."""
        if self._watched != (blob, taker):
            self._watched, self._passage = (blob, taker), Passage(self._clock)

    def passage(self, blob: bytes, taker: PeerId) -> Passage:
        """The one that is watched; for all others, one that nobody looks at."""
        return self._passage if self._watched == (blob, taker) else Passage(self._clock)

    def take(self) -> float | None:
        """Bytes per second of what was watched, once; None if nothing of it has moved. Another one may be watched
        then."""
        passage, self._watched, self._passage = self._passage, None, Passage(self._clock)
        return passage.bytes_per_second if passage.sent_bytes else None
