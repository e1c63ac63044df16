"""A log, a replica and a leader without models, data or processes: 64 weights, payloads made by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch

from peer.codecs import encode
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.identity import Identity
from peer.log.chain import Log
from peer.log.replica import Replica
from peer.log.state import State
from peer.rounds.leader import Leader
from peer.rounds.ranges import Ranges
from peer.rounds.reception import Reception
from peer.swarm import Swarm
from peer.swarm.memory import MemoryNetwork
from protos import log_pb2, swarm_pb2
from protos.signing import sign
from tests.in_memory import tiny_spec

PARAMETERS = 64


def start_log(coordinator: Identity, folder: Path | None = None, **changes: dict[str, Any]) -> Log:
    """A log of its genesis; the initial weights are all ones."""
    spec = tiny_spec(**changes)
    state = State.initial(torch.ones(PARAMETERS), spec.outer.momentum > 0)
    genesis = log_pb2.Genesis(
        spec=spec.canonical_json(),
        manifest_hash=bytes(32),
        manifest_bytes=1,
        state_digest=state.digest(),
        parameters=PARAMETERS,
    )
    return Log.start(sign(log_pb2.Record(time_seconds=1.0, genesis=genesis), coordinator.private_key), folder)


def replica_of(log: Log, folder: Path, swarm: Swarm, *sources: Identity) -> Replica:
    """At the log's genesis."""
    state = State.initial(torch.ones(PARAMETERS), log.spec.outer.momentum > 0)
    peers = [source.peer_id for source in sources]
    replica = Replica(folder, log, state, Exchange(swarm, BlobStore(folder / "blobs")), lambda: peers)
    replica.serve(swarm)
    return replica


def payload(seed: int, codec: str = "fp16") -> bytes:
    return encode(codec, torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(seed)))


def contribution(log: Log, payload_hash: bytes, payload_bytes: int, **fields: Any) -> log_pb2.Contribution:
    """To the open round of a log whose state is still the first; `fields` change what it says."""
    consumed = fields.pop("consumed", [(0, 4)])
    value: dict[str, Any] = {
        "run_id": log.run_id,
        "round": log.head.round + 1,
        "previous_hash": log.head.hash,
        "base_digest": log.origin.genesis.state_digest,
        "consumed": [log_pb2.Range(start=start, stop=stop) for start, stop in consumed],
        "tokens": sum(stop - start for start, stop in consumed) * log.spec.data.sequence_length % (1 << 64),
        "inner_steps": 1,
        "mean_loss": 5.0,
        "codec": log.spec.codec.name,
        "payload_hash": payload_hash,
        "payload_bytes": payload_bytes,
        "train_seconds": 1.0,
    }
    return log_pb2.Contribution(**{**value, **fields})


class Stranger:
    """A peer that says what it is told to say."""

    def __init__(self, swarm: Swarm, identity: Identity, folder: Path, leader: Leader) -> None:
        self.swarm = swarm
        self.identity = identity
        self.leader = leader
        self.log = leader.replica.log
        self.blobs = BlobStore(folder / identity.peer_id.short)
        self.exchange = Exchange(swarm, self.blobs)
        self.leased = Ranges()

    async def say(self, method: str, request: bytes) -> bytes:
        return await self.swarm.call(self.leader.swarm.peer_id, method, request, timeout_seconds=10)

    async def heartbeat(self, wanted: int = 8, **fields: Any) -> swarm_pb2.HeartbeatReply:
        value: dict[str, Any] = {
            "run_id": self.log.run_id,
            "head_round": self.leader.replica.state.round,
            "phase": "training",
            "held": self.leased.to_protos(),
        }
        presence = swarm_pb2.Presence(**{**value, **fields})
        request = swarm_pb2.HeartbeatRequest(presence=presence, wanted_sequences=wanted)
        reply = swarm_pb2.HeartbeatReply.FromString(await self.say("heartbeat", request.SerializeToString()))
        self.leased = (self.leased | Ranges.from_protos(reply.leased)) - Ranges.from_protos(reply.revoked)
        return reply

    def offer(self, content: bytes, **fields: Any) -> log_pb2.Contribution:
        """A contribution of `content` on four of the leased positions."""
        value = {"base_digest": self.leader.replica.digest, "consumed": self.leased.first(4).pairs, **fields}
        return contribution(self.log, self.blobs.put(content), value.pop("payload_bytes", len(content)), **value)

    async def submit(self, offered: log_pb2.Contribution) -> swarm_pb2.SubmitReply:
        request = swarm_pb2.SubmitRequest(contribution=sign(offered, self.identity.private_key))
        return swarm_pb2.SubmitReply.FromString(await self.say("submit", request.SerializeToString()))

    async def settled(self, offered: log_pb2.Contribution) -> swarm_pb2.SubmitReply:
        """Hand in until the leader has looked at the payload, or says no."""
        for _ in range(500):
            reply = await self.submit(offered)
            if reply.refusal or reply.fetched:
                return reply
            await asyncio.sleep(0.01)
        raise AssertionError("the leader never made up its mind")


class SmallRun:
    """A leader at work, and strangers around it."""

    def __init__(self, network: MemoryNetwork, folder: Path, reception: Reception, lead: asyncio.Task[None]) -> None:
        self.network = network
        self.folder = folder
        self.reception = reception
        self.leader = reception.leader
        self.lead = lead
        self.log = self.leader.replica.log

    def stranger(self) -> Stranger:
        identity = Identity.new()
        return Stranger(self.network.node(identity), identity, self.folder, self.leader)

    async def until_round(self, round_: int) -> None:
        for _ in range(1000):
            if self.leader.replica.state.round >= round_:
                return
            if self.lead.done():
                self.lead.result()
            await asyncio.sleep(0.01)
        raise AssertionError(f"round {round_} was never applied")


@contextlib.asynccontextmanager
async def small_run(folder: Path, **changes: dict[str, Any]) -> AsyncIterator[SmallRun]:
    """Codec fp16 and heartbeats at will, unless `changes` say otherwise. The leader must not fail."""
    changes.setdefault("codec", {"name": "fp16"})
    changes.setdefault("run", {"rounds": 0})
    identity, network = Identity.new(), MemoryNetwork()
    swarm = network.node(identity)
    replica = replica_of(start_log(identity, None, **changes), folder / "leader", swarm)
    leader = Leader(replica, swarm, identity)
    reception = Reception(leader)
    reception.serve()
    leader.begin(term=1)
    run = SmallRun(network, folder, reception, asyncio.create_task(leader.lead()))
    try:
        yield run
        if run.lead.done():
            run.lead.result()
    finally:
        run.lead.cancel()
        await asyncio.gather(run.lead, return_exceptions=True)
        replica.close()
