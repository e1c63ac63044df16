"""The sequencer: who decides when a round closes and what goes into its record. A pure state machine.

    tick(state, event, now) -> (state, effects)

No clock, socket, signature or tensor in here: `now` is seconds of any monotonic origin, events are facts that the shell
(`leader.py`) has checked, effects are what the shell must do. One round, as this file sees it:

    open --(tokens >= target, or max_seconds)--> closing --(all expected submitted, or deadline)--> published --> open
       \\----------------(every peer that trains has submitted)------------------------------------/
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from configs import RunSpec
from peer.rounds.events import (
    Checked,
    Closing,
    Effect,
    End,
    Event,
    Fetch,
    Gone,
    Heard,
    Leased,
    Left,
    Offered,
    Pause,
    Publish,
    Refusal,
    Refuse,
    Submission,
    Tick,
)
from peer.rounds.leases import LeaseBook
from peer.rounds.ranges import Ranges

__all__ = [  # the whole conversation, for those who hold one with it
    "Checked",
    "Closing",
    "Effect",
    "End",
    "Event",
    "Fetch",
    "Gone",
    "Heard",
    "Leased",
    "Left",
    "Member",
    "Offered",
    "Pause",
    "Publish",
    "Refusal",
    "Refuse",
    "Rules",
    "Sequencer",
    "Submission",
    "Tick",
    "tick",
]

RESPONSES_KEPT = 64  # how many times from close to submission the adaptive deadline looks back on
UNMEASURED_BATCHES = 4  # a peer whose speed is not known yet is leased at most so many batches
LEASED_ROUNDS = 8  # a peer is never leased more than so many rounds' tokens, whatever speed it claims
LEASED_BATCHES = 16  # or so many batches, if that is more
GAP_LEASES = 4  # so many peers' largest leases are left open when somebody takes over who may not be alone
MISSES_ALLOWED = 2  # closed rounds in a row that a peer may have tokens for and not hand them in; then nobody waits
HEADER_BYTES = 2 << 20  # of all contributions to a round together: they must fit into its record
TRAINING, PAUSED = "training", "paused"
BYSTANDING = frozenset({"syncing", "leaving", PAUSED})  # phases of peers that will not contribute to the open round


@dataclass(frozen=True)
class Rules:
    """What the run spec says about rounds."""

    target_tokens: int
    max_seconds: float
    first_deadline_seconds: float
    deadline_mads: float
    silence_seconds: float
    lease_seconds: float
    heartbeat_seconds: float
    sequence_tokens: int
    batch_sequences: int

    @classmethod
    def of(cls, spec: RunSpec) -> Rules:
        return cls(
            target_tokens=spec.round.target_tokens,
            max_seconds=spec.round.max_seconds,
            first_deadline_seconds=spec.timing.first_deadline_seconds,
            deadline_mads=spec.timing.deadline_mads,
            silence_seconds=spec.timing.silence_seconds,
            lease_seconds=spec.timing.lease_seconds,
            heartbeat_seconds=spec.timing.heartbeat_seconds,
            sequence_tokens=spec.data.sequence_length,
            batch_sequences=spec.train.batch_sequences,
        )

    @property
    def most_sequences(self) -> int:
        """The most that one peer may hold leases for."""
        return max(LEASED_ROUNDS * self.target_tokens // self.sequence_tokens, LEASED_BATCHES * self.batch_sequences)

    @property
    def gap_sequences(self) -> int:
        """How far apart the leases of two nodes are that both take over, out of each other's sight."""
        return GAP_LEASES * self.most_sequences


# --- state ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A live peer, as its last heartbeat told."""

    seen: float
    head_round: int = 0
    round_tokens: int = 0
    tokens_per_second: float = 0.0
    phase: str = ""
    missed: int = 0  # closed rounds in a row that it reported tokens for and did not submit to

    @property
    def is_relied_on(self) -> bool:
        return self.missed < MISSES_ALLOWED


@dataclass(frozen=True)
class Sequencer:
    rules: Rules
    round: int  # the open round
    opened: float
    leases: LeaseBook
    leases_from: float = 0.0  # none is given before: after a change of leader, peers first present what they hold
    members: Mapping[bytes, Member] = field(default_factory=dict)
    submissions: Mapping[bytes, Submission] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    closing: float | None = None  # since when
    deadline: float = 0.0  # when a closing round is published with what is there
    responses: tuple[float, ...] = ()  # seconds from close to checked submission, newest last
    paused: bool = False
    ending: bool = False  # the organiser wants no further round

    @property
    def round_tokens(self) -> int:
        """Tokens trained on in the open round: submitted ones, and what the others report."""
        return self._tokens(self.members)

    @property
    def counted_tokens(self) -> int:
        """Of these, the ones that bring the round nearer to its end.

        Not what those report who did not bring it several times: one whose work is refused again and again would close
        every round at once. Unless there is nobody else.
        """
        relied_on = {peer: it for peer, it in self.members.items() if it.is_relied_on and it.phase not in BYSTANDING}
        return self._tokens(relied_on or self.members)

    def _tokens(self, members: Mapping[bytes, Member]) -> int:
        submitted = sum(item.tokens for item in self.submissions.values())
        return submitted + sum(
            member.round_tokens
            for peer, member in members.items()
            if peer not in self.submissions and member.head_round >= self.round - 1  # else it may report merged work
        )

    @property
    def deadline_seconds(self) -> float:
        """How long a closing round waits: median + k * MAD of recent responses, never less than two heartbeats, never
        more than a round may take at all.

        One fixed time-out is wrong both ways: too short for slow links, too long for dead peers.
        """
        if len(self.responses) < 4:
            return self.rules.first_deadline_seconds
        median = statistics.median(self.responses)
        mad = statistics.median(abs(value - median) for value in self.responses)
        adaptive = median + self.rules.deadline_mads * max(mad, 0.1 * median)
        longest = max(self.rules.max_seconds, self.rules.first_deadline_seconds)
        return min(max(adaptive, 2 * self.rules.heartbeat_seconds), longest)

    def nothing_to_wait_for(self, now: float) -> bool:
        """Whether no peer has work in the open round; not known before those who were here have been heard of."""
        return not self.round_tokens and now >= self.leases_from

    def in_words(self, now: float) -> str:
        """What the round is waiting for, for people."""
        expected = len(self.submissions) + len(self._missing())
        if self.ending:
            return "finishing: the last round is being handed in"
        if self.paused:
            return "paused by the organiser"
        if not self.members:
            return "waiting for peers"
        if self.closing is not None:
            left = max(0.0, self.deadline - now)
            return f"{len(self._ready())} of {expected} peers submitted; publishing in {left:.0f} s at the latest"
        if self.submissions:
            return f"{len(self._ready())} of {expected} peers submitted"
        return f"training, {self.round_tokens:,} of {self.rules.target_tokens:,} tokens"

    def _ready(self) -> list[Submission]:
        return [item for item in self.submissions.values() if item.norm is not None]

    def _missing(self) -> list[bytes]:
        """Live peers whose submission is still expected.

        Before the close that is everybody who takes part, also who is just applying the last record; after it, only
        those that have something to submit: a slow peer in the middle of its first step keeps its work for the next
        round. Who reported work and did not bring it, several times, is not waited for any more.
        """
        absent = [
            (peer, member)
            for peer, member in self.members.items()
            if peer not in self.submissions and member.is_relied_on
        ]
        if self.closing is None:
            return [
                peer
                for peer, member in absent
                if member.phase not in BYSTANDING and member.head_round >= self.round - 2
            ]
        return [peer for peer, member in absent if member.round_tokens > 0 and member.head_round >= self.round - 1]


def tick(state: Sequencer, event: Event, now: float) -> tuple[Sequencer, list[Effect]]:
    """Take in one fact and say what to do about it."""
    effects: list[Effect] = []
    match event:
        case Heard():
            state = _heard(state, event, now, effects)
        case Left(peer):
            members = {key: member for key, member in state.members.items() if key != peer}
            state = replace(state, members=members, leases=state.leases.release(peer))
        case Offered(submission):
            state = _offered(state, submission, effects)
        case Checked():
            state = _checked(state, event, now)
        case Pause(paused):
            state = replace(state, paused=paused, opened=now)
        case End():
            state = replace(state, ending=True)
        case Tick():
            state = _expire(state, now, effects)
    return _advance(state, now, effects), effects


def _heard(state: Sequencer, event: Heard, now: float, effects: list[Effect]) -> Sequencer:
    rules = state.rules
    known = state.members.get(event.peer)
    # Whose work does not arrive keeps what it holds until that expires, and then begins again with little.
    holds_back = known is not None and not known.is_relied_on
    book, revoked = state.leases.present(
        event.peer,
        event.held,
        event.accepted,
        now,
        rules.lease_seconds,
        grace_seconds=5 * rules.heartbeat_seconds,
        most=0 if holds_back else rules.most_sequences,
    )
    wanted = (
        0 if state.paused or now < state.leases_from else min(event.wanted_sequences, _fair_share(rules, event, book))
    )
    granted = Ranges()
    if not holds_back or not book.positions(event.peer):
        book, granted = book.grant(event.peer, wanted, now, rules.lease_seconds, only_new=holds_back)
    effects.append(Leased(event.peer, granted, revoked))
    # A claim of more than it holds leases for (or, on its own data, more than a round) must not close the round.
    believable = len(book.positions(event.peer)) * rules.sequence_tokens or rules.target_tokens
    tokens = min(event.round_tokens, believable)
    missed = known.missed if known else 0
    member = Member(now, event.head_round, tokens, event.tokens_per_second, event.phase, missed)
    return replace(state, leases=book, members={**state.members, event.peer: member})


def _fair_share(rules: Rules, event: Heard, book: LeaseBook) -> int:
    """How many more sequences a peer may be leased: no more than it can train on before its lease ends."""
    by_speed = event.tokens_per_second * rules.lease_seconds / rules.sequence_tokens  # may be any number
    most = max(int(min(by_speed, rules.most_sequences)), UNMEASURED_BATCHES * rules.batch_sequences)
    return max(0, most - len(book.positions(event.peer)))


def _offered(state: Sequencer, submission: Submission, effects: list[Effect]) -> Sequencer:
    peer = submission.peer
    known = state.submissions.get(peer)
    if known is not None:
        if known.payload_hash != submission.payload_hash:
            effects.append(Refuse(peer, f"there is another contribution of this peer to round {state.round} already"))
        return state
    if before := [item for item in state.refusals if (item.peer, item.payload_hash) == (peer, submission.payload_hash)]:
        effects.append(Refuse(peer, before[0].reason))
        return state
    if sum(item.header_bytes for item in state.submissions.values()) + submission.header_bytes > HEADER_BYTES:
        effects.append(Refuse(peer, f"round {state.round} holds as many contributions as a record can"))
        return state
    if reason := state.leases.refusal(peer, submission.consumed) or _copied(state, submission):
        effects.append(Refuse(peer, reason))
        return _refuse(state, submission, reason)
    effects.append(Fetch(submission))
    leases = state.leases.pin(peer, submission.consumed)
    return replace(state, leases=leases, submissions={**state.submissions, peer: replace(submission, norm=None)})


def _copied(state: Sequencer, submission: Submission) -> str:
    """Whoever came first made it: a payload is announced only after its maker has submitted it."""
    if any(item.payload_hash == submission.payload_hash for item in state.submissions.values()):
        return "its payload is a copy of another peer's"
    return ""


def _checked(state: Sequencer, event: Checked, now: float) -> Sequencer:
    submission = state.submissions.get(event.peer)
    if submission is None or submission.payload_hash != event.payload_hash:
        return state  # of a round that is over
    if event.reason:
        rest = {peer: item for peer, item in state.submissions.items() if peer != event.peer}
        leases = state.leases.unpin(event.peer)
        return _refuse(replace(state, submissions=rest, leases=leases), submission, event.reason)
    responses = state.responses
    if state.closing is not None:
        responses = (*responses, now - state.closing)[-RESPONSES_KEPT:]
    checked = replace(submission, norm=event.norm)
    return replace(state, submissions={**state.submissions, event.peer: checked}, responses=responses)


def _refuse(state: Sequencer, submission: Submission, reason: str) -> Sequencer:
    refusal = Refusal(submission.peer, submission.payload_hash, submission.tokens, reason)
    others = tuple(item for item in state.refusals if item.peer != submission.peer)
    return replace(state, refusals=(*others, refusal))


def _expire(state: Sequencer, now: float, effects: list[Effect]) -> Sequencer:
    """Forget silent peers and take back old leases.

    A silent peer's leases stay until they expire: it may train on them on the other side of a cut.
    """
    book, _ = state.leases.expire(now)
    silent = [peer for peer, member in state.members.items() if now - member.seen > state.rules.silence_seconds]
    effects.extend(Gone(peer) for peer in silent)
    members = {peer: member for peer, member in state.members.items() if peer not in silent}
    return replace(state, leases=book, members=members)


def _advance(state: Sequencer, now: float, effects: list[Effect]) -> Sequencer:
    """Close or publish the open round if it is time."""
    ready, missing = state._ready(), state._missing()
    gathered = now >= state.leases_from  # who has just begun to lead does not know everybody yet
    complete = bool(ready) and not missing and len(ready) == len(state.submissions) and gathered
    if complete:
        return _publish(state, now, effects)
    if state.closing is None:
        full = state.counted_tokens >= state.rules.target_tokens
        old = now - state.opened >= state.rules.max_seconds and state.round_tokens > 0
        last = state.ending and state.round_tokens > 0
        if last or ((full or old) and not state.paused):
            wait = state.deadline_seconds
            effects.append(Closing(state.round, wait))
            state = replace(state, closing=now, deadline=now + wait)
            return _advance(state, now, effects)  # those it still waited for may not be expected any more
        return state
    if now >= state.deadline:
        if ready:
            return _publish(state, now, effects)
        # Nobody made it: an empty record would only cost everybody a round trip. Wait again.
        return replace(state, deadline=now + state.deadline_seconds)
    return state


def _publish(state: Sequencer, now: float, effects: list[Effect]) -> Sequencer:
    ready = sorted(state._ready(), key=lambda item: item.peer)
    late = [item for item in state.submissions.values() if item.norm is None]
    refusals = state.refusals + tuple(
        Refusal(item.peer, item.payload_hash, item.tokens, "its payload had not arrived at the deadline")
        for item in late
    )
    brought, owing = {item.peer for item in ready}, set(state._missing() if state.closing is not None else ())
    book = state.leases
    for item in ready:
        book = book.accept(item.peer, item.consumed)
    for item in late:
        book = book.unpin(item.peer)
    next_state = replace(
        state,
        round=state.round + 1,
        opened=now,
        leases=book,
        submissions={},
        refusals=(),
        closing=None,
        deadline=0.0,
        # What was reported belongs to the round that is over: it counts again when a peer on the new head says so.
        members={
            peer: replace(member, round_tokens=0, missed=0 if peer in brought else member.missed + (peer in owing))
            for peer, member in state.members.items()
        },
    )
    effects.append(Publish(state.round, tuple(ready), refusals, book.cursor, next_state.deadline_seconds))
    return next_state
