"""A peer's line to the sequencer, when the sequencer talks nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from peer.errors import Refused, UnreachableError
from peer.identity import Identity, PeerId
from peer.pulse import Pulse
from peer.rounds.link import Link
from peer.swarm.memory import MemoryNetwork
from protos import log_pb2, swarm_pb2


class Line:
    """A link to a sequencer that answers what it is told to."""

    def __init__(self) -> None:
        network = MemoryNetwork()
        sequencer, peer = Identity.new(), Identity.new()
        self.answer: Callable[[], Message] = swarm_pb2.WatchReply
        server = network.node(sequencer)
        for method in ("watch", "heartbeat", "submit"):
            server.serve(method, self._on_call, max_request_bytes=1 << 16)
        self.events: list[str] = []
        self.leader = sequencer.peer_id.public_key
        self.link = Link(network.node(peer), bytes(32), sequencer.peer_id, [], Pulse(), self.events.append)

    async def _on_call(self, sender: PeerId, body: bytes) -> bytes:
        return self.answer().SerializeToString()


@pytest.mark.parametrize(
    "view",
    [
        swarm_pb2.WatchReply(closes_in_seconds=float("nan")),
        swarm_pb2.WatchReply(tokens_per_second=float("inf")),
        swarm_pb2.WatchReply(head_round=1 << 63),
        swarm_pb2.WatchReply(head_digest=b"short"),
        swarm_pb2.WatchReply(sources=[b"nobody"]),
        swarm_pb2.WatchReply(announced=[swarm_pb2.Announcement(payload_hash=b"x", peer=bytes(32))]),
        swarm_pb2.WatchReply(announced=[swarm_pb2.Announcement(payload_hash=bytes(32), peer=b"x")]),
        swarm_pb2.WatchReply(state_words="\x1b[2J"),
        swarm_pb2.WatchReply(state_words="x" * 10_000),
    ],
)
async def test_views_that_make_no_sense_are_not_taken(view: swarm_pb2.WatchReply) -> None:
    """The last good one stays; the line counts as lost until it talks sense again."""
    line = Line()
    await line.link.connect()
    line.answer = lambda: view
    with pytest.raises(Refused, match="makes no sense"):
        await line.link.connect()
    assert line.link.view == swarm_pb2.WatchReply()
    following = asyncio.create_task(line.link.follow())
    while line.link.reachable:
        await asyncio.sleep(0)
    line.answer = lambda: swarm_pb2.WatchReply(version=5, leader=line.leader)
    while not line.link.reachable:
        await asyncio.sleep(0.01)
    assert line.link.view.version == 5 and "answers again" in line.events[-1]
    following.cancel()


async def test_leases_that_make_no_sense_are_not_taken() -> None:
    """Absurd positions would not fit into a number that counts them. The person is told once, not every second."""
    line = Line()
    line.answer = lambda: swarm_pb2.HeartbeatReply(leased=[log_pb2.Range(start=0, stop=(1 << 64) - 1)])
    for _ in range(3):
        assert await line.link.heartbeat(swarm_pb2.Presence(), 1) is None
    assert len(line.events) == 1 and "sorted" in line.events[0]


async def test_only_the_sequencers_own_word_is_a_refusal() -> None:
    """A swarm that is busy says nothing about the contribution: taking its work back could merge it twice."""
    line = Line()

    def busy() -> Message:
        raise Refused("busy: too many requests at once")

    line.answer = busy
    with pytest.raises(UnreachableError, match="at the moment"):
        await line.link.submit(log_pb2.Signed())
    line.answer = lambda: swarm_pb2.SubmitReply(refusal="not leased")
    with pytest.raises(Refused, match="not leased"):
        await line.link.submit(log_pb2.Signed())
