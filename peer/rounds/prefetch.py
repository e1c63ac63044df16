"""Contributions to the open round, fetched before the record that lists them exists."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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
        self._known: set[bytes] = set()  # of the payloads announced last: here, or under way
        self._under_way = 0

    def look(self, view: swarm_pb2.WatchReply) -> None:
        self._known &= {item.payload_hash for item in view.announced}
        fresh = [item for item in view.announced if item.payload_hash not in self._known]
        wanted = [item for item in fresh if item.payload_bytes <= self._most_bytes][: MAX_AT_ONCE - self._under_way]
        if wanted:
            self._known.update(item.payload_hash for item in wanted)
            self._under_way += len(wanted)
            self._background.start(self._fetch(wanted))

    async def _fetch(self, wanted: Sequence[swarm_pb2.Announcement]) -> None:
        try:
            await self._replica.fetch_blobs(
                [(item.payload_hash, item.payload_bytes, PeerId(item.peer)) for item in wanted]
            )
        except CommonweightsError as error:
            self._known.difference_update(item.payload_hash for item in wanted)
            logger.debug("not prefetched: %s", error)  # it is fetched again, loudly, when its record is there
        finally:
            self._under_way -= len(wanted)
