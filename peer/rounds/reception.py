"""What a leader is told by peers: heartbeats, contributions, and watches for what comes next.

Messages are checked here (size, signature, sense), answered, and become events of the sequencer. On a node that does
not lead they are refused, and a watch says who does.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from peer.errors import Refused
from peer.identity import PeerId
from peer.log.chain import MAX_HEADER_BYTES
from peer.messages import parse
from peer.rounds import sequencer
from peer.rounds.guests import Guest, has_place, presence_fault
from peer.rounds.inspection import header_fault
from peer.rounds.leader import TICK_SECONDS, Header, Leader
from peer.rounds.ranges import Ranges
from protos import log_pb2, swarm_pb2
from protos.signing import SignatureError, open_signed

MAX_WATCH_SECONDS = 20.0
MAX_WATCHES = 4  # of one peer at once: a line that broke unnoticed, and its successor
APPLY_SECONDS = 60.0  # how long a submission may wait for this node to have applied the head


class Reception:
    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self._watching: Counter[PeerId] = Counter()
        self._newest, self._viewed, self._viewed_at = b"", 0, 0.0  # the last view, its version, and when it was made

    def serve(self) -> None:
        swarm = self.leader.swarm
        swarm.serve("heartbeat", self._on_heartbeat, max_request_bytes=64 << 10)
        swarm.serve("submit", self._on_submit, max_request_bytes=MAX_HEADER_BYTES + 1024)
        swarm.serve("watch", self.on_watch, max_request_bytes=1024)

    def _admit(self, sender: PeerId, admission: log_pb2.Signed | None = None) -> None:
        """Raises Refused when this node does not lead at the moment, or `sender` may not take part."""
        if not self.leader.leading:
            raise Refused("this node does not lead the run; ask whom it follows (watch)")
        if not self.leader.is_awake():
            raise Refused("this node slept and looks around before it goes on; try again in a moment")
        if sender.public_key in self.leader.accused.keys() | self.leader.replica.log.accounts.banned:
            raise Refused("this peer signed two different records of one round and is banned from the run")
        self.leader.gate.pass_(sender.public_key, admission)

    async def _on_heartbeat(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.HeartbeatRequest)
        presence = request.presence
        self._admit(sender, presence.admission if presence.HasField("admission") else None)
        if reason := presence_fault(presence, self.leader.replica.log.run_id):
            raise Refused(reason)
        now = asyncio.get_running_loop().time()
        leaving = presence.phase == "leaving"
        if not leaving:
            guests = self.leader.guests
            fits, displaced = has_place(sender, guests, self.leader.replica.log.accounts, now)
            if not fits:
                raise Refused(f"{len(guests)} peers take part, no more fit at the moment; try again later")
            for peer in displaced:
                self.leader.step(sequencer.Left(peer.public_key))
                del guests[peer]
        if sender not in self.leader.guests and not leaving:
            self.leader.on_event(f"{presence.name or sender.short} joined")
        if leaving:
            self.leader.step(sequencer.Left(sender.public_key))
            if self.leader.guests.pop(sender, None) is not None:
                self.leader.on_event(f"{presence.name or sender.short} left")
            return swarm_pb2.HeartbeatReply().SerializeToString()
        self.leader.guests[sender] = Guest.of(presence, now, self.leader.guests.get(sender))
        effects = self.leader.step(
            sequencer.Heard(
                peer=sender.public_key,
                head_round=presence.head_round,
                round_tokens=presence.tokens,
                tokens_per_second=presence.tokens_per_second,
                phase=presence.phase,
                held=Ranges.from_protos(presence.held),
                wanted_sequences=request.wanted_sequences,
                accepted=self.leader.replica.log.accounts.accepted,
            )
        )
        (leased,) = (effect for effect in effects if isinstance(effect, sequencer.Leased))
        return swarm_pb2.HeartbeatReply(
            leased=leased.positions.to_protos(),
            revoked=leased.revoked.to_protos(),
            lease_seconds=self.leader.state.rules.lease_seconds,
        ).SerializeToString()

    async def _on_submit(self, sender: PeerId, body: bytes) -> bytes:
        """A refusal in the reply is the last word: that contribution will not be merged. Refused means: not now."""
        signed = parse(body, swarm_pb2.SubmitRequest).contribution
        try:
            contribution = open_signed(signed, log_pb2.Contribution)
        except SignatureError as error:
            return _refusal(str(error))
        if signed.signer != sender.public_key:
            return _refusal("a contribution is submitted by the peer that signed it")
        self._admit(sender)
        if sender.public_key not in self.leader.state.members:
            raise Refused("the sequencer has not heard of this peer yet; try again after the next heartbeat")
        try:
            async with asyncio.timeout(APPLY_SECONDS):
                await self.leader.applied.wait()
        except TimeoutError:
            raise Refused("the sequencer is still applying the last round; try again") from None
        self._admit(sender)  # still
        log = self.leader.replica.log
        if contribution.run_id == log.run_id and 0 < contribution.round <= log.head.round:
            return swarm_pb2.SubmitReply(fetched=True).SerializeToString()  # too late to say: the record tells
        key = sender.public_key, contribution.payload_hash
        known = self.leader.state.submissions.get(sender.public_key)
        if known is not None and known.payload_hash == contribution.payload_hash:
            return swarm_pb2.SubmitReply(fetched=known.norm is not None).SerializeToString()
        if reason := header_fault(contribution, self.leader.replica):
            return _refusal(reason)
        was_here = self.leader.replica.blobs.has(contribution.payload_hash)
        self.leader.headers[key] = Header(signed, contribution, was_here)
        effects = self.leader.step(
            sequencer.Offered(
                sequencer.Submission(
                    sender.public_key,
                    contribution.payload_hash,
                    contribution.tokens,
                    Ranges.from_protos(contribution.consumed),
                    contribution.payload_bytes,
                    signed.ByteSize(),
                )
            )
        )
        for effect in effects:
            if isinstance(effect, sequencer.Refuse):
                self.leader.headers.pop(key, None)  # the same step may have published the round, and forgotten them all
                return _refusal(effect.reason)
        return swarm_pb2.SubmitReply().SerializeToString()

    async def on_watch(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.WatchRequest)
        if request.run_id != self.leader.replica.log.run_id:
            raise Refused("this node sequences another run")
        if self._watching[sender] >= MAX_WATCHES:
            raise Refused("busy: this peer watches already; try again later")
        self._watching[sender] += 1
        try:
            if self.leader.leading and request.version == self.leader.version and request.wait_seconds > 0:
                await self.leader.changed.wait(min(request.wait_seconds, MAX_WATCH_SECONDS))
        finally:
            self._watching[sender] -= 1
            if not self._watching[sender]:
                del self._watching[sender]
        return self._view() if self.leader.leading else self.leader.elsewhere().SerializeToString()

    def _view(self) -> bytes:
        """Made once for all who are told the same news."""
        now, version = asyncio.get_running_loop().time(), self.leader.version
        if self._viewed != version or now - self._viewed_at > TICK_SECONDS:
            self._viewed, self._viewed_at = version, now
            self._newest = self.leader.view().SerializeToString()
        return self._newest


def _refusal(reason: str) -> bytes:
    return swarm_pb2.SubmitReply(refusal=reason).SerializeToString()
