"""Contributions to the open round, fetched before the record that lists them exists.

Large ones at once. Small ones together: while some are on their way, those announced meanwhile wait, and then come with
one question, so that a node which is slow, or behind a slow link, asks less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from peer.background import Background
from peer.errors import CommonweightsError
from peer.exchange.recent import SMALL_BYTES
from peer.identity import PeerId
from peer.log.chain import max_payload_bytes
from peer.log.replica import Replica
from protos import swarm_pb2

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 256


class Prefetch:
    """Fetches what views announce, each payload once at a time."""

    def __init__(self, replica: Replica, background: Background) -> None:
        self._replica = replica
        self._background = background
        self._most_bytes = max_payload_bytes(replica.log.origin.genesis.parameters)
        self._known: set[bytes] = set()  # of the payloads announced last: here, or under way
        self._under_way = 0
        self._small: asyncio.Task[None] | None = None  # the last fetch of small ones
        self._announced: Sequence[swarm_pb2.Announcement] = ()

    def look(self, view: swarm_pb2.WatchReply) -> None:
        self._announced = view.announced
        self._known &= {item.payload_hash for item in view.announced}
        if large := self._fresh(lambda size: SMALL_BYTES < size <= self._most_bytes):
            self._background.start(self._fetch(large))
        if (self._small is None or self._small.done()) and (small := self._fresh_small()):
            self._small = self._background.start(self._fetch_one_after_another(small))

    def _fresh_small(self) -> list[swarm_pb2.Announcement]:
        return self._fresh(lambda size: size <= min(SMALL_BYTES, self._most_bytes))

    def _fresh(self, fits: Callable[[int], bool]) -> list[swarm_pb2.Announcement]:
        """Of those announced last, what is to be fetched now; from here on it is under way."""
        fresh = [item for item in self._announced if item.payload_hash not in self._known and fits(item.payload_bytes)]
        wanted = fresh[: MAX_AT_ONCE - self._under_way]
        self._known.update(item.payload_hash for item in wanted)
        self._under_way += len(wanted)
        return wanted

    async def _fetch_one_after_another(self, small: Sequence[swarm_pb2.Announcement]) -> None:
        while small and await self._fetch(small):
            small = self._fresh_small()

    async def _fetch(self, wanted: Sequence[swarm_pb2.Announcement]) -> bool:
        """Whether they came."""
        try:
            await self._replica.fetch_blobs(
                [(item.payload_hash, item.payload_bytes, PeerId(item.peer)) for item in wanted]
            )
            return True
        except CommonweightsError as error:
            self._known.difference_update(item.payload_hash for item in wanted)
            logger.debug("not prefetched: %s", error)  # it is fetched again, loudly, when its record is there
            return False
        finally:
            self._under_way -= len(wanted)
