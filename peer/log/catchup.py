"""How a state that is behind comes to the head over the fewest bytes: replay, or a whole state and a replay from there.

A round costs what its contributions weigh, a whole state 4 bytes a parameter (8 with outer momentum). Which is less is
arithmetic, and nothing else is asked: docs/reliability.md has the table for codecs and numbers of contributors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peer.errors import CommonweightsError
from peer.exchange.blobs import BlobStore
from peer.identity import PeerId
from peer.log.chain import Log
from peer.log.snapshots import fault
from peer.log.state import State
from peer.messages import parse
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
MAX_ASKED = 8  # for their newest snapshot, at the same time


@dataclass(frozen=True)
class Way:
    """Replay from the state that is here (no `manifest`), or from a snapshot's."""

    manifest: log_pb2.StateManifest | None
    state_bytes: int  # still to be fetched of the snapshot
    replay_bytes: int  # and of the contributions after it

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.replay_bytes


def ways(state: State, log: Log, blobs: BlobStore, offered: Iterable[log_pb2.StateManifest]) -> list[Way]:
    """All there are, the cheapest first; of equals, the one with the least whole state."""
    found = [Way(None, 0, replay_bytes(log, blobs, state.round))] if state.round >= 0 else []
    sizes = [len(chunk) for chunk in state.chunks()]
    for manifest in offered:
        if manifest.round > state.round and len(manifest.chunk_hashes) == len(sizes):
            pairs = dict(zip(manifest.chunk_hashes, sizes, strict=True))
            missing = sum(size for hash_, size in pairs.items() if not blobs.has(hash_))
            found.append(Way(manifest, missing, replay_bytes(log, blobs, manifest.round)))
    return sorted(found, key=lambda way: (way.total_bytes, way.state_bytes))


def replay_bytes(log: Log, blobs: BlobStore, after: int) -> int:
    """Of the contributions after a round that are not here."""
    return sum(
        item.payload_bytes
        for entry in log.entries[after + 1 :]
        for _, item in entry.contributions
        if not blobs.has(item.payload_hash)
    )


async def offers(
    swarm: Swarm, sources: Sequence[PeerId], log: Log, state_bytes: int, head_digest: bytes
) -> list[log_pb2.StateManifest]:
    """The newest snapshots of several nodes, as far as the log vouches for them."""
    newest = log.head.round - (not head_digest and log.head.round > 0)  # else there is nothing to check it by
    request = swarm_pb2.ManifestRequest(run_id=log.run_id, round=newest).SerializeToString()

    async def ask(peer: PeerId) -> log_pb2.StateManifest | None:
        try:
            reply = await swarm.call(peer, "manifest", request, timeout_seconds=CALL_SECONDS)
            manifest = parse(reply, log_pb2.StateManifest)
        except CommonweightsError as error:
            logger.info("no snapshot from %s: %s", peer.short, error)
            return None
        if reason := fault(manifest, log, state_bytes, head_digest):
            logger.warning("the snapshot that %s offers is refused: %s", peer.short, reason)
            return None
        return manifest

    found = [manifest for manifest in await asyncio.gather(*map(ask, sources[:MAX_ASKED])) if manifest is not None]
    return list({manifest.round: manifest for manifest in found}.values())
