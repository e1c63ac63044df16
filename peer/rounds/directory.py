"""What the DHT says about a run: who is there, and where its sequencer is. Pointers only, each signed by its owner.

The DHT is how peers find each other and a sequencer that has moved; it is never trusted for what a record says.
"""

from __future__ import annotations

from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.messages import parse
from peer.swarm import Swarm
from protos import swarm_pb2

ANNOUNCE_SECONDS = 30.0  # between two announcements
LIFETIME_SECONDS = 90.0


async def announce_peer(swarm: Swarm, presence: swarm_pb2.Presence) -> None:
    """Tell the swarm that this peer takes part. Leases stay out: they are long, and the sequencer's business."""
    short = swarm_pb2.Presence()
    short.CopyFrom(presence)
    del short.held[:]
    del short.addresses[4:]
    await _announce(swarm, presence.run_id, "peers", short.SerializeToString())


async def announce_head(swarm: Swarm, run_id: bytes, pointer: swarm_pb2.HeadPointer) -> None:
    """Tell the swarm where the log's head is and who sequences."""
    await _announce(swarm, run_id, "head", pointer.SerializeToString())


async def peers(swarm: Swarm, run_id: bytes) -> dict[PeerId, swarm_pb2.Presence]:
    """Who takes part, as they say themselves."""
    found = {}
    for peer, value in (await swarm.lookup(_key(run_id, "peers"))).items():
        try:
            found[peer] = parse(value, swarm_pb2.Presence)
        except CommonweightsError:
            continue
    return found


async def heads(swarm: Swarm, run_id: bytes) -> dict[PeerId, swarm_pb2.HeadPointer]:
    """What everybody announced who leads, or led a moment ago."""
    found = {}
    for peer, value in (await swarm.lookup(_key(run_id, "head"))).items():
        try:
            found[peer] = parse(value, swarm_pb2.HeadPointer)
        except CommonweightsError:
            continue
    return found


async def head(swarm: Swarm, run_id: bytes, sequencer: PeerId) -> swarm_pb2.HeadPointer | None:
    """What `sequencer` announced last, if anything."""
    return (await heads(swarm, run_id)).get(sequencer)


async def _announce(swarm: Swarm, run_id: bytes, what: str, value: bytes) -> None:
    try:
        await swarm.announce(_key(run_id, what), value, ttl_seconds=LIFETIME_SECONDS)
    except CommonweightsError:
        return  # alone for the moment; the next announcement comes soon


def _key(run_id: bytes, what: str) -> str:
    return f"commonweights/{run_id.hex()}/{what}"
