"""Contributions to the open round, fetched before the record that lists them exists."""

from __future__ import annotations

import logging

from peer.background import Background
from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.log.chain import max_payload_bytes
from peer.log.replica import Replica
from protos import swarm_pb2

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 256


class Prefetch:
    """Fetches what a view announces, each payload once at a time."""

    def __init__(self, replica: Replica, background: Background) -> None:
        self._replica = replica
        self._background = background
        self._most_bytes = max_payload_bytes(replica.log.origin.genesis.parameters)
        self._under_way: set[bytes] = set()

    def look(self, view: swarm_pb2.WatchReply) -> None:
        for item in view.announced:
            wanted = item.payload_hash not in self._under_way and not self._replica.blobs.has(item.payload_hash)
            if wanted and item.payload_bytes <= self._most_bytes and len(self._under_way) < MAX_AT_ONCE:
                self._under_way.add(item.payload_hash)
                self._background.start(self._fetch(item.payload_hash, item.payload_bytes, PeerId(item.peer)))

    async def _fetch(self, payload_hash: bytes, size: int, maker: PeerId) -> None:
        try:
            await self._replica.fetch_blob(payload_hash, size, maker)
        except CommonweightsError as error:
            logger.debug("not prefetched: %s", error)  # it is fetched again, loudly, when its record is there
        finally:
            self._under_way.discard(payload_hash)
