"""The sequencer's shell: turns messages into events, and effects into leases, fetches and signed records.

Every node has one, and one of them is leading: normally the coordinator's; `helm` decides when to `lead` and when to
`resign`. Messages are checked here (size, signature, sense) before they become events; all decisions are
`sequencer.tick`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from peer.clock import awake_seconds
from peer.errors import DataError, Refused, UnreachableError, VerificationError
from peer.identity import Identity, PeerId
from peer.log.chain import MAX_HEADER_BYTES, Entry
from peer.log.replica import Replica
from peer.log.rules import MAX_PROOF_BYTES, is_due
from peer.messages import parse
from peer.pulse import Pulse
from peer.rounds import sequencer
from peer.rounds.directory import ANNOUNCE_SECONDS, announce_head
from peer.rounds.guests import Guest, has_place, presence_fault
from peer.rounds.inspection import fetch_and_measure, header_fault
from peer.rounds.leases import LeaseBook
from peer.rounds.ranges import Ranges
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import SignatureError, open_signed, sign

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
RETRY_SECONDS = 2.0
MAX_WATCH_SECONDS = 20.0
MAX_RANK = 8  # so far down the line, nobody has a stretch of leases of its own
MAX_WATCHES = 4  # of one peer at once: a line that broke unnoticed, and its successor
APPLY_SECONDS = 60.0  # how long a submission may wait for this node to have applied the head


@dataclass(frozen=True)
class Header:
    """A contribution that was handed in to the open round."""

    signed: log_pb2.Signed
    contribution: log_pb2.Contribution
    was_here: bool  # its payload, before it was handed in: then it is not to be thrown away with it


@dataclass
class Leader:
    replica: Replica
    swarm: Swarm
    identity: Identity
    paused: bool = False
    on_event: Callable[[str], None] = lambda text: None  # one line for people
    on_step: Callable[[sequencer.Event, list[sequencer.Effect]], None] = lambda event, effects: None  # before effects
    guests: dict[PeerId, Guest] = field(default_factory=dict)
    bring_up: Callable[[], Awaitable[object]] | None = None  # apply what is in the log; default: nothing but that
    elsewhere: Callable[[], swarm_pb2.WatchReply] = swarm_pb2.WatchReply  # what `watch` answers when not leading
    nap_seconds: float = math.inf  # a longer one makes it hold, until somebody has looked around and says `go_on`

    def __post_init__(self) -> None:
        self.leading = False
        self.holding = False
        self.term = 0
        self.accused: dict[bytes, log_pb2.Equivocation] = {}  # not in the log yet, by signer
        self.state = self._fresh(0, 0, asyncio.get_running_loop().time())
        self.version = time.time_ns()  # of what `watch` answers; a restart is a change too
        self._changed = Pulse()
        self._applied = asyncio.Event()  # the replica's state and digest are those after the head
        self._headers: dict[tuple[bytes, bytes], Header] = {}  # of the open round, by signer and payload hash
        self._checks: dict[tuple[bytes, bytes], asyncio.Task[None]] = {}  # of payloads, by the same key
        self._watching: Counter[PeerId] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._announce_at = 0.0  # monotonic seconds
        self._stepped = awake_seconds()
        self._failure: BaseException | None = None  # of a background task: it ends `lead`

    def serve(self) -> None:
        self.swarm.serve("heartbeat", self._on_heartbeat, max_request_bytes=64 << 10)
        self.swarm.serve("submit", self._on_submit, max_request_bytes=MAX_HEADER_BYTES + 1024)
        self.swarm.serve("watch", self._on_watch, max_request_bytes=1024)

    def begin(self, term: int, rank: int = 0, cursor: int = 0) -> None:
        """Lead from now on, after the head of the log, which is applied.

        `term` is used for the first time. `rank` is this node's place in the line of succession: not the first means
        that others may lead as well, out of sight, so its leases keep a distance to theirs. `cursor`: positions below
        may be leased already, as far as the one before told.
        """
        assert self.replica.state.round == self.replica.log.head.round, "a leader is at the head"
        now = asyncio.get_running_loop().time()
        self.term, self.leading, self.holding = term, True, False
        self.state = self._fresh(rank, cursor, now)
        self._applied.set()
        self._stepped = awake_seconds()
        self._announce_at = 0.0
        self._bump()

    async def lead(self) -> None:
        """Until the run is finished or somebody else leads; after `begin`. Can be cancelled."""
        try:
            self._finish_if_due()
            while self.leading and not (self.replica.log.finished and self._applied.is_set()):
                if self._failure is not None:
                    raise self._failure
                if self._is_awake():
                    self._step(sequencer.Tick())
                if time.monotonic() >= self._announce_at:
                    self._announce()
                await asyncio.sleep(TICK_SECONDS)
        finally:
            if not self.replica.log.finished:
                self.resign()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def resign(self) -> None:
        """Stop leading, at once: nothing is signed after this."""
        if not self.leading:
            return
        self.leading = self.holding = False
        for check in self._checks.values():
            check.cancel()
        self._checks.clear()
        self._headers.clear()
        self.guests.clear()
        self.state = replace(self._fresh(0, 0, self.state.opened), paused=self.state.paused)
        self._bump()

    def go_on(self) -> None:
        """After a nap: nobody else leads."""
        self.holding = False
        self._stepped = awake_seconds()

    def accuse(self, proof: log_pb2.Equivocation) -> None:
        """Put a proof that was checked into the next record."""
        self.accused[proof.first.signer] = proof

    def _fresh(self, rank: int, cursor: int, now: float) -> sequencer.Sequencer:
        log, rules = self.replica.log, sequencer.Rules.of(self.replica.log.spec)
        cursor, accepted = max(cursor, log.accounts.data_cursor), log.accounts.accepted
        until = now + (rules.lease_seconds if rank else rules.silence_seconds)
        return sequencer.Sequencer(
            rules=rules,
            round=log.head.round + 1,
            opened=now,
            leases=LeaseBook.take_over(cursor, accepted, min(rank, MAX_RANK) * rules.gap_sequences, until),
            leases_from=now + (3 * rules.heartbeat_seconds if log.head.round else 0),
            paused=self.paused,
        )

    def _is_awake(self) -> bool:
        """False from a nap on, in which somebody else may have begun to lead, until somebody has looked around."""
        now = awake_seconds()
        if self.leading and now - self._stepped > self.nap_seconds:
            self.holding = True
        self._stepped = now
        return not self.holding

    def _announce(self) -> None:
        """Leave in the DHT where the log ends and where its sequencer is."""
        self._announce_at = time.monotonic() + ANNOUNCE_SECONDS
        head = self.replica.log.head
        pointer = swarm_pb2.HeadPointer(
            term=self.term, round=head.round, hash=head.hash, addresses=self.swarm.addresses[:8]
        )
        self._spawn(announce_head(self.swarm, self.replica.log.run_id, pointer))

    def pause(self, paused: bool) -> None:
        """Also before it leads: then from the start."""
        self.paused = paused
        self._step(sequencer.Pause(paused))
        self._bump()

    @property
    def in_words(self) -> str:
        if self.replica.log.finished:
            return "finished"
        if not self.leading:
            return "another node leads"
        return self.state.in_words(asyncio.get_running_loop().time())

    @property
    def tokens_per_second(self) -> float:
        """Of the whole swarm, as its peers report it."""
        return sum(member.tokens_per_second for member in self.state.members.values())

    # --- effects ----------------------------------------------------------------------------------------------------

    def _step(self, event: sequencer.Event) -> list[sequencer.Effect]:
        self.state, effects = sequencer.tick(self.state, event, asyncio.get_running_loop().time())
        try:
            self.on_step(event, effects)
            for effect in effects:
                self._carry_out(effect)
        except BaseException as error:  # also out of a handler, where it would pass for a refusal: the state has moved
            self._failure = error
            raise
        return effects

    def _carry_out(self, effect: sequencer.Effect) -> None:
        match effect:
            case sequencer.Fetch(submission):
                key = (submission.peer, submission.payload_hash)
                self._checks[key] = self._spawn(self._check_payload(submission, self._headers[key]))
            case sequencer.Closing(round_, deadline_seconds):
                logger.info("round %d is closing, deadline in %.1f s", round_, deadline_seconds)
                self._bump()
            case sequencer.Publish():
                self._publish(effect)
            case sequencer.Gone(peer):
                name = self.name_of(PeerId(peer))
                self.guests.pop(PeerId(peer), None)
                self.on_event(f"{name} is gone: not heard of for {self.state.rules.silence_seconds:.0f} s")

    def _publish(self, effect: sequencer.Publish) -> None:
        headers = [self._headers[item.peer, item.payload_hash] for item in effect.accepted]
        record = log_pb2.Record(
            **self._record_fields(effect.round),
            accepted=[
                log_pb2.Accepted(contribution=header.signed, norm=item.norm or 0.0)
                for header, item in zip(headers, effect.accepted, strict=True)
            ],
            refused=[
                log_pb2.Refused(peer=item.peer, payload_hash=item.payload_hash, tokens=item.tokens, reason=item.reason)
                for item in effect.refused
            ],
            data_cursor=effect.data_cursor,
            deadline_seconds=effect.deadline_seconds,
            equivocations=self._proofs(),
        )
        self._append(record)
        self._headers.clear()
        for check in self._checks.values():  # of those that are late: a new round, a new contribution
            check.cancel()
        self._checks.clear()
        for item in effect.refused:
            self.on_event(
                f"round {effect.round}: contribution of {self.name_of(PeerId(item.peer))} refused: {item.reason}"
            )

    def _proofs(self) -> list[log_pb2.Equivocation]:
        """Of whom the log does not know yet, as many as fit."""
        banned, room, proofs = self.replica.log.accounts.banned, MAX_PROOF_BYTES, []
        for signer in sorted(self.accused.keys() - banned):
            room -= self.accused[signer].ByteSize()
            if room >= 0:
                proofs.append(self.accused[signer])
        return proofs

    def _record_fields(self, round_: int) -> dict[str, Any]:
        log = self.replica.log
        return {
            "run_id": log.run_id,
            "round": round_,
            "term": self.term,
            "previous_hash": log.head.hash,
            "time_seconds": time.time(),
            "base_digest": self.replica.digest,
        }

    def _append(self, record: log_pb2.Record) -> None:
        assert self.replica.state.round == self.replica.log.head.round, "published from a state that is not the head's"
        entry = self.replica.log.append(sign(record, self.identity.private_key))
        self._applied.clear()
        self._bump()
        self._spawn(self._apply(entry))

    async def _apply(self, entry: Entry) -> None:
        while self.replica.state.round < entry.round:
            try:
                await (self.bring_up or self.replica.catch_up)()
            except (UnreachableError, Refused, VerificationError, DataError) as error:  # a payload is damaged, say
                self.on_event(f"record {entry.round} cannot be applied here yet, trying again: {error}")
                await asyncio.sleep(RETRY_SECONDS)
        if self.leading and self.replica.log.head is entry:
            self._applied.set()
            self._bump()
            self._finish_if_due()

    def _finish_if_due(self) -> None:
        """Publish the final record when the run has all it was to have."""
        log = self.replica.log
        if self._is_awake() and self.leading and self._applied.is_set() and not log.finished and is_due(log):
            cursor = self.state.leases.cursor
            self._append(log_pb2.Record(**self._record_fields(log.head.round + 1), data_cursor=cursor, final=True))
            self.on_event("the run is finished")

    async def _check_payload(self, submission: sequencer.Submission, header: Header) -> None:
        """Fetch a submitted payload and look inside, before anybody else has to."""
        key = peer, payload_hash = submission.peer, submission.payload_hash
        merged = False
        try:
            norm = await fetch_and_measure(header.contribution, PeerId(peer), self.replica)
            merged = True  # or will be: the round waits for nothing more
            event = sequencer.Checked(peer, payload_hash, norm=norm)
        except Refused as error:
            event = sequencer.Checked(peer, payload_hash, reason=str(error))
            self._headers.pop(key, None)
        finally:
            self._checks.pop(key, None)
            if not merged and not header.was_here:
                self.replica.blobs.delete(payload_hash)
        while not self._is_awake():
            await asyncio.sleep(TICK_SECONDS)
        if self.leading:
            self._step(event)
            self._bump()

    # --- handlers ---------------------------------------------------------------------------------------------------

    def _admit(self, sender: PeerId) -> None:
        """Raises Refused when this node does not lead at the moment, or `sender` may not take part."""
        if not self.leading:
            raise Refused("this node does not lead the run; ask whom it follows (watch)")
        if not self._is_awake():
            raise Refused("this node slept and looks around before it goes on; try again in a moment")
        if sender.public_key in self.accused.keys() | self.replica.log.accounts.banned:
            raise Refused("this peer signed two different records of one round and is banned from the run")

    async def _on_heartbeat(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.HeartbeatRequest)
        self._admit(sender)
        presence = request.presence
        if reason := presence_fault(presence, self.replica.log.run_id):
            raise Refused(reason)
        now = asyncio.get_running_loop().time()
        leaving = presence.phase == "leaving"
        if not leaving and not has_place(sender, self.guests, self.replica.log.accounts):
            raise Refused(f"{len(self.guests)} peers take part, no more fit at the moment; try again later")
        if sender not in self.guests and not leaving:
            self.on_event(f"{presence.name or sender.short} joined")
        if leaving:
            self._step(sequencer.Left(sender.public_key))
            if self.guests.pop(sender, None) is not None:
                self.on_event(f"{presence.name or sender.short} left")
            return swarm_pb2.HeartbeatReply().SerializeToString()
        self.guests[sender] = Guest.of(presence, now)
        effects = self._step(
            sequencer.Heard(
                peer=sender.public_key,
                head_round=presence.head_round,
                round_tokens=presence.tokens,
                tokens_per_second=presence.tokens_per_second,
                phase=presence.phase,
                held=Ranges.from_protos(presence.held),
                wanted_sequences=request.wanted_sequences,
                accepted=self.replica.log.accounts.accepted,
            )
        )
        (leased,) = (effect for effect in effects if isinstance(effect, sequencer.Leased))
        return swarm_pb2.HeartbeatReply(
            leased=leased.positions.to_protos(),
            revoked=leased.revoked.to_protos(),
            lease_seconds=self.state.rules.lease_seconds,
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
        if sender.public_key not in self.state.members:
            raise Refused("the sequencer has not heard of this peer yet; try again after the next heartbeat")
        try:
            async with asyncio.timeout(APPLY_SECONDS):
                await self._applied.wait()
        except TimeoutError:
            raise Refused("the sequencer is still applying the last round; try again") from None
        self._admit(sender)  # still
        log = self.replica.log
        if contribution.run_id == log.run_id and 0 < contribution.round <= log.head.round:
            return swarm_pb2.SubmitReply(fetched=True).SerializeToString()  # too late to say: the record tells
        key = sender.public_key, contribution.payload_hash
        known = self.state.submissions.get(sender.public_key)
        if known is not None and known.payload_hash == contribution.payload_hash:
            return swarm_pb2.SubmitReply(fetched=known.norm is not None).SerializeToString()
        if reason := header_fault(contribution, self.replica):
            return _refusal(reason)
        was_here = self.replica.blobs.has(contribution.payload_hash)
        self._headers[key] = Header(signed, contribution, was_here)
        effects = self._step(
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
                del self._headers[key]
                return _refusal(effect.reason)
        return swarm_pb2.SubmitReply().SerializeToString()

    async def _on_watch(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.WatchRequest)
        if request.run_id != self.replica.log.run_id:
            raise Refused("this node sequences another run")
        if self._watching[sender] >= MAX_WATCHES:
            raise Refused("busy: this peer watches already; try again later")
        self._watching[sender] += 1
        try:
            if self.leading and request.version == self.version and request.wait_seconds > 0:
                await self._changed.wait(min(request.wait_seconds, MAX_WATCH_SECONDS))
        finally:
            self._watching[sender] -= 1
            if not self._watching[sender]:
                del self._watching[sender]
        view = self.view() if self.leading else self.elsewhere()
        return view.SerializeToString()

    def view(self) -> swarm_pb2.WatchReply:
        """What every follower should know now."""
        state, log = self.state, self.replica.log
        now = asyncio.get_running_loop().time()
        snapshots = self.replica.snapshots.rounds()
        return swarm_pb2.WatchReply(
            version=self.version,
            term=self.term,
            head_round=log.head.round,
            head_hash=log.head.hash,
            head_digest=self.replica.digest if self._applied.is_set() else b"",
            closing=state.closing is not None,
            closes_in_seconds=max(0.0, state.deadline - now) if state.closing is not None else 0.0,
            announced=[
                swarm_pb2.Announcement(
                    payload_hash=item.payload_hash,
                    payload_bytes=item.payload_bytes,
                    peer=item.peer,
                )
                for item in state.submissions.values()
                if item.norm is not None
            ],
            sources=[peer.public_key for peer, guest in self.guests.items() if guest.presence.can_serve],
            snapshot_round=snapshots[-1] if snapshots else 0,
            state_words=self.in_words,
            paused=state.paused,
            finished=log.finished,
            round_tokens=state.round_tokens,
            tokens_per_second=self.tokens_per_second,
            peers=len(state.members),
            leader=self.identity.peer_id.public_key,
        )

    def name_of(self, peer: PeerId) -> str:
        guest = self.guests.get(peer)
        return guest.presence.name if guest and guest.presence.name else peer.short

    def _bump(self) -> None:
        self.version += 1
        self._changed.beat()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()


def _refusal(reason: str) -> bytes:
    return swarm_pb2.SubmitReply(refusal=reason).SerializeToString()
