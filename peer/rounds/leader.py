"""The sequencer's shell: turns messages into events, and effects into leases, fetches and signed records.

Every node has one, and one of them is leading: normally the coordinator's; `helm` decides when to `lead` and when to
`resign`. What peers say comes in through `reception`; all decisions are `sequencer.tick`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from peer.clock import awake_seconds
from peer.errors import DataError, Refused, UnreachableError, VerificationError
from peer.identity import Identity, PeerId
from peer.log.chain import Entry
from peer.log.replica import Replica
from peer.log.rules import MAX_PROOF_BYTES, is_due
from peer.pulse import Pulse
from peer.rounds import sequencer
from peer.rounds.directory import ANNOUNCE_SECONDS, announce_head
from peer.rounds.gate import Gate
from peer.rounds.guests import Guest
from peer.rounds.inspection import fetch_and_measure
from peer.rounds.leases import LeaseBook
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import sign

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
# For each peer, so long announcements wait for more: each goes to everybody in a view of its own, and those of many
# peers would be more bytes than what they announce.
GATHER_SECONDS = 0.01
RETRY_SECONDS = 2.0
MAX_RANK = 8  # so far down the line, nobody has a stretch of leases of its own


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
    ending: bool = False
    on_event: Callable[[str], None] = lambda text: None  # one line for people
    on_step: Callable[[sequencer.Event, list[sequencer.Effect]], None] = lambda event, effects: None  # before effects
    guests: dict[PeerId, Guest] = field(default_factory=dict)
    bring_up: Callable[[], Awaitable[object]] | None = None  # apply what is in the log; default: nothing but that
    elsewhere: Callable[[], swarm_pb2.WatchReply] = swarm_pb2.WatchReply  # what `watch` answers when not leading
    nap_seconds: float = math.inf  # a longer one makes it hold, until somebody has looked around and says `go_on`

    def __post_init__(self) -> None:
        self.gate = Gate(self.replica.log)
        self.leading = False
        self.holding = False
        self.term = 0
        self.accused: dict[bytes, log_pb2.Equivocation] = {}  # not in the log yet, by signer
        self.state = self._fresh(0, 0, asyncio.get_running_loop().time())
        self.version = time.time_ns()  # of what `watch` answers; a restart is a change too
        self.changed = Pulse()
        self.applied = asyncio.Event()  # the replica's state and digest are those after the head
        self.headers: dict[tuple[bytes, bytes], Header] = {}  # of the open round, by signer and payload hash
        self._checks: dict[tuple[bytes, bytes], asyncio.Task[None]] = {}  # of payloads, by the same key
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.TimerHandle | None = None  # until the next bump
        self._announce_at = 0.0  # monotonic seconds
        self._end_from = 0.0  # loop seconds: an end that was ordered does not happen before
        self.stepped = awake_seconds()
        self._failure: BaseException | None = None  # of a background task: it ends `lead`

    def begin(self, term: int, rank: int = 0, cursor: int = 0) -> None:
        """Lead from now on, after the head of the log, which is applied.

        `term` is used for the first time. `rank` is this node's place in the line of succession: not the first means
        that others may lead as well, out of sight, so its leases keep a distance to theirs. `cursor`: positions below
        may be leased already, as far as the one before told.
        """
        assert self.replica.state.round == self.replica.log.head.round, "a leader is at the head"
        now = asyncio.get_running_loop().time()
        self.term, self.leading, self.holding = term, True, False
        # Others have so long to show a better chain: an end is for good.
        self._end_from = now + (self.state.rules.silence_seconds if self.replica.log.head.round else 0.0)
        self.state = self._fresh(rank, cursor, now)
        self.applied.set()
        self.stepped = awake_seconds()
        self._announce_at = 0.0
        self.bump()

    async def lead(self) -> None:
        """Until the run is finished or somebody else leads; after `begin`. Can be cancelled."""
        try:
            if is_due(self.replica.log):
                self._finish_if_due()
            while self.leading and not (self.replica.log.finished and self.applied.is_set()):
                if self._failure is not None:
                    raise self._failure
                if self.is_awake():
                    self.step(sequencer.Tick())
                    if self.state.ending and self.state.nothing_to_wait_for(asyncio.get_running_loop().time()):
                        self._finish_if_due()
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
        self.headers.clear()
        self.guests.clear()
        self.state = replace(self._fresh(0, 0, self.state.opened), paused=self.state.paused)
        self.bump()

    def go_on(self) -> None:
        """After a nap: nobody else leads."""
        self.holding = False
        self.stepped = awake_seconds()

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
            ending=self.ending,
        )

    def is_awake(self) -> bool:
        """False from a nap on, in which somebody else may have begun to lead, until somebody has looked around."""
        now = awake_seconds()
        if self.leading and now - self.stepped > self.nap_seconds:
            self.holding = True
        self.stepped = now
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
        self.step(sequencer.Pause(paused))
        self.bump()

    def finish(self) -> None:
        """End the run with the open round, whatever is missing of its rounds and tokens; when another node leads, with
        the first round that this one does. For the coordinator alone."""
        self.ending = True
        self.step(sequencer.End())
        self.bump()

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

    def step(self, event: sequencer.Event) -> list[sequencer.Effect]:
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
                self._checks[key] = self._spawn(self._check_payload(submission, self.headers[key]))
            case sequencer.Closing(round_, deadline_seconds):
                logger.info("round %d is closing, deadline in %.1f s", round_, deadline_seconds)
                self.bump()
            case sequencer.Publish():
                self._publish(effect)
            case sequencer.Gone(peer):
                name = self.name_of(PeerId(peer))
                self.guests.pop(PeerId(peer), None)
                self.on_event(f"{name} is gone: not heard of for {self.state.rules.silence_seconds:.0f} s")

    def _publish(self, effect: sequencer.Publish) -> None:
        headers = [self.headers[item.peer, item.payload_hash] for item in effect.accepted]
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
            **self.gate.decisions(item.peer for item in effect.accepted),
        )
        self._append(record)
        self.headers.clear()
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
        self.applied.clear()
        self.bump()
        self._spawn(self._apply(entry))

    async def _apply(self, entry: Entry) -> None:
        while self.replica.state.round < entry.round:
            try:
                await (self.bring_up or self.replica.catch_up)()
            except (UnreachableError, Refused, VerificationError, DataError) as error:  # a payload is damaged, say
                self.on_event(f"record {entry.round} cannot be applied here yet, trying again: {error}")
                await asyncio.sleep(RETRY_SECONDS)
        if self.leading and self.replica.log.head is entry:
            self.applied.set()
            self.bump()
            self._finish_if_due()

    def _finish_if_due(self) -> None:
        """Publish the final record when the run has all it was to have."""
        log = self.replica.log
        ordered = self.state.ending and asyncio.get_running_loop().time() >= self._end_from
        due = is_due(log) or ordered
        if due and self.is_awake() and self.leading and self.applied.is_set() and not log.finished:
            cursor = self.state.leases.cursor
            fields: dict[str, Any] = {**self._record_fields(log.head.round + 1), **self.gate.decisions(())}
            self._append(log_pb2.Record(**fields, data_cursor=cursor, final=True))
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
            self.headers.pop(key, None)
        finally:
            self._checks.pop(key, None)
            if not merged and not header.was_here and self.leading:  # else another leader may have merged it
                self.replica.blobs.delete(payload_hash)
        while not self.is_awake():
            await asyncio.sleep(TICK_SECONDS)
        if self.leading:
            self.step(event)
            self._bump_soon()

    # --- what others see ------------------------------------------------------------------------------------------

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
            head_digest=self.replica.digest if self.applied.is_set() else b"",
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

    def _bump_soon(self) -> None:
        if self._gathering is None:
            seconds = GATHER_SECONDS * len(self.state.members)
            self._gathering = asyncio.get_running_loop().call_later(seconds, self.bump)

    def bump(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self.version += 1
        self.changed.beat()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
