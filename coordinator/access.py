"""The organiser's decisions about peers: who is invited, who is barred, whose credit is void.

Decisions are signed with the coordinator's key and kept in the store until the log holds them, and after: what is
killed in between, or rolled back, is decided once more at the next start.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable

from blake3 import blake3

from coordinator.store import Store, access
from peer.errors import Refused, UsageError
from peer.identity import Identity, PeerId
from peer.log.chain import Log
from peer.log.decisions import INVITE, MAX_REASON_CHARACTERS, verdict_fault
from peer.messages import parse
from peer.rounds.gate import Gate
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import sign

TOKEN_BYTES = 20
TOKEN_PREFIX = "cwi1"
MAX_USES = 10_000
MAX_VALID_SECONDS = 10 * 365 * 86400.0
MAX_NOTE_CHARACTERS = 200


class Doorkeeper:
    def __init__(self, identity: Identity, log: Log, store: Store, gate: Gate) -> None:
        self.identity = identity
        self.log = log
        self.store = store
        self.gate = gate
        self.clock: Callable[[], float] = time.time

    async def restore(self) -> None:
        """After a start: verdicts that the log does not hold (any more)."""
        self.gate.verdicts = list(await self.store.read(access.all_verdicts))

    def serve(self, swarm: Swarm) -> None:
        """Let peers redeem invitations through the swarm, which vouches for their keys."""
        swarm.serve("redeem", self._on_redeem, max_request_bytes=512)

    async def _on_redeem(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.RedeemRequest)
        if request.run_id != self.log.run_id:
            raise Refused("this is the coordinator of another run; check the ticket")
        admission = await self.redeem(sender.public_key, request.token)
        return swarm_pb2.RedeemReply(admission=admission).SerializeToString()

    # --- invitations ------------------------------------------------------------------------------------------------

    async def invite(self, uses: int = 1, valid_seconds: float = 0.0, note: str = "") -> str:
        """A new invitation for `uses` keys; its token. 0 seconds: valid for good.

        Raises:
            UsageError: the run is open to everybody, or a figure makes no sense.
        """
        if self.log.spec.run.access != INVITE:
            raise UsageError('this run is open to everybody (run.access = "open"): a ticket is enough')
        if not 0 < uses <= MAX_USES:
            raise UsageError(f"uses: 1 to {MAX_USES}")
        if not 0 <= valid_seconds <= MAX_VALID_SECONDS:
            raise UsageError(f"valid_seconds: 0 (for good) to {MAX_VALID_SECONDS:.0f}")
        if len(note) > MAX_NOTE_CHARACTERS or not note.isprintable():
            raise UsageError(f"note: at most {MAX_NOTE_CHARACTERS} printable characters")
        token = TOKEN_PREFIX + base64.b32encode(secrets.token_bytes(TOKEN_BYTES)).decode().lower()
        now = self.clock()
        expires = now + valid_seconds if valid_seconds else None
        await self.store.write(access.add_invite, _hash(token), uses, now, expires, note)
        return token

    async def redeem(self, peer: bytes, token: str) -> log_pb2.Signed:
        """An Admission of the key `peer`, in exchange for an invitation.

        Raises:
            Refused: the invitation admits nobody (any more), or the peer is barred.
        """
        if peer in self.log.accounts.barred:
            raise Refused(f"the organiser has barred this peer from the run: {self.log.accounts.barred[peer]}")
        await self.store.write(access.redeem, _hash(token), str(PeerId(peer)), self.clock())
        return sign(log_pb2.Admission(run_id=self.log.run_id, peer=peer), self.identity.private_key)

    # --- verdicts ---------------------------------------------------------------------------------------------------

    async def bar(self, peer: PeerId, reason: str) -> str:
        """Bar a peer from the run; what that means, in words. Raises Refused with the reason why it cannot be."""
        if peer == self.identity.peer_id:
            raise Refused("that is the coordinator itself")
        await self._decide(log_pb2.Verdict(run_id=self.log.run_id, peer=peer.public_key, reason=reason))
        return f"{peer.short} is barred; the next record says so to everybody"

    async def void(self, peer: PeerId, round_: int, reason: str) -> str:
        """Void a pending contribution; what that means, in words. Raises Refused with the reason why it cannot be."""
        work = self.log.accounts.pending.get(round_, {}).get(peer.public_key)
        if work is None:
            raise Refused(f"{peer.short} has no pending contribution to round {round_}: only the newest can be voided")
        verdict = log_pb2.Verdict(
            run_id=self.log.run_id,
            peer=peer.public_key,
            round=round_,
            payload_hash=work.payload_hash,
            reason=reason,
        )
        await self._decide(verdict)
        return f"{work.tokens:,} tokens of {peer.short} in round {round_} are void with the next record"

    async def _decide(self, verdict: log_pb2.Verdict) -> None:
        if not 0 < len(verdict.reason) <= MAX_REASON_CHARACTERS:
            raise UsageError(f"reason: 1 to {MAX_REASON_CHARACTERS} characters; the peer gets to read it")
        if self.log.finished:
            raise Refused("the run is finished; its log is complete")
        signed = sign(verdict, self.identity.private_key)
        if fault := verdict_fault(signed, self.log):
            raise Refused(fault)
        await self.store.write(access.add_verdict, signed, self.clock())
        self.gate.decide(signed)


def _hash(token: str) -> bytes:
    return blake3("".join(token.split()).lower().encode()).digest()
