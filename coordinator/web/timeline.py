"""What happened lately, as the sequencer saw it: when each peer did what in each round, who came and went, how fast.

Fed with the sequencer's own events (`Leader.on_step`), with what the recorder notes, and with the time; pure, and
bounded. The page reads it instead of the database: nobody's watching ever becomes a query.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from peer.log.chain import Log
from peer.rounds.events import Checked, Closing, Effect, Event, Heard, Offered, Publish, Refuse

ROUNDS_KEPT = 12
INCIDENTS_KEPT = 200
SAMPLES_KEPT = 720
SAMPLE_SECONDS = 5.0
PEERS_PER_ROUND = 1024


@dataclass
class Marks:
    """One peer in one round: moments in Unix seconds, None where nothing was seen."""

    started: float | None = None  # held the state that the round builds on
    handed_in: float | None = None  # its signed header arrived
    arrived: float | None = None  # its payload was fetched and found in order
    applied: float | None = None  # held the state after the round
    tokens: int = 0
    outcome: Literal["", "accepted", "late", "refused"] = ""


@dataclass
class RoundMarks:
    round: int
    opened: float | None = None
    closing: float | None = None  # None: everybody had handed in before it had to close
    published: float | None = None
    peers: dict[bytes, Marks] = field(default_factory=dict)  # by public key

    def of(self, peer: bytes) -> Marks:
        if peer not in self.peers and len(self.peers) >= PEERS_PER_ROUND:
            return Marks()  # not kept
        return self.peers.setdefault(peer, Marks())


@dataclass(frozen=True)
class Incident:
    time: float  # Unix seconds
    kind: str  # see store.history.Kind
    round: int  # the open one
    text: str


@dataclass(frozen=True)
class Sample:
    time: float  # Unix seconds
    tokens_per_second: float
    peers: float  # a mean, once samples are merged


class Timeline:
    """Bounded memory of a run's last hours. `name_of` says what a peer is called, at the moment it is asked."""

    def __init__(self, open_round: int, now: float, name_of: Callable[[bytes], str]) -> None:
        self.started = now
        self.name_of = name_of
        self.rounds: dict[int, RoundMarks] = {open_round: RoundMarks(open_round, opened=now)}
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS_KEPT)
        self.counts: Counter[str] = Counter()  # of incidents, by kind, since the start
        self.samples: list[Sample] = []
        self._every_seconds = SAMPLE_SECONDS
        self._open = open_round

    def step(self, event: Event, effects: Sequence[Effect], now: float, open_round: int) -> None:
        """Take in one step of the sequencer, which was taken in `open_round`. `now`: Unix seconds."""
        self._turn_to(open_round, now)
        match event:
            case Heard():
                self._heard(event, now)
            case Offered(submission):
                if not any(isinstance(effect, Refuse) for effect in effects):
                    self._round().of(submission.peer).handed_in = now
            case Checked(peer, _, _, reason):
                if reason:
                    self._round().of(peer).outcome = "refused"
                else:
                    self._round().of(peer).arrived = now
        for effect in effects:
            match effect:
                case Closing():
                    self._round().closing = now
                case Publish():
                    self._published(effect, now)

    def recall(self, incidents: Iterable[Incident], samples: Iterable[Sample]) -> None:
        """What was before this process, oldest first."""
        self.incidents = deque([*incidents, *self.incidents], maxlen=INCIDENTS_KEPT)
        self.samples[:0] = samples
        self._thin()

    def tell(self, now: float, kind: str, round_: int, text: str) -> None:
        self.counts[kind] += 1
        self.incidents.append(Incident(now, kind, round_, text))

    def sample(self, now: float, tokens_per_second: float, peers: int) -> None:
        """Remember how fast it goes, if it is time; when there are many samples, the pace of sampling halves."""
        if self.samples and now - self.samples[-1].time < self._every_seconds:
            return
        self.samples.append(Sample(now, tokens_per_second, peers))
        self._thin()

    def _thin(self) -> None:
        while len(self.samples) > SAMPLES_KEPT:
            self.samples = [_mean(*pair) for pair in zip(self.samples[::2], self.samples[1::2], strict=False)]
            self._every_seconds *= 2

    def _heard(self, event: Heard, now: float) -> None:
        peer = event.peer
        before, after = self.rounds.get(event.head_round), self.rounds.get(event.head_round + 1)
        if before is not None and before.published is not None and before.of(peer).applied is None:
            before.of(peer).applied = now
        if after is not None and event.phase != "syncing":
            marks = after.of(peer)
            marks.started = marks.started or now
            marks.tokens = max(marks.tokens, event.round_tokens)

    def _published(self, effect: Publish, now: float) -> None:
        marks = self._round()
        marks.published = now
        for item in effect.accepted:
            marks.of(item.peer).tokens = item.tokens
            marks.of(item.peer).outcome = "accepted"
        for refusal in effect.refused:
            one = marks.of(refusal.peer)
            waited_for = one.handed_in is not None and one.outcome != "refused"
            one.outcome = "late" if waited_for else "refused"
        self._turn_to(effect.round + 1, now)

    def _turn_to(self, open_round: int, now: float) -> None:
        """Another round is open, maybe not the next one: others may have led meanwhile, or another chain has won."""
        if open_round == self._open:
            return
        for number in [number for number in self.rounds if number > open_round]:
            del self.rounds[number]
        self._open = open_round
        self.rounds.setdefault(open_round, RoundMarks(open_round, opened=now))
        for old in sorted(self.rounds)[:-ROUNDS_KEPT]:
            del self.rounds[old]

    def _round(self) -> RoundMarks:
        return self.rounds[self._open]


def samples_of(log: Log) -> list[Sample]:
    """The speed of what was merged, round by round: what the log knows of a time that nobody else remembers."""
    return [
        Sample(entry.record.time_seconds, tokens / seconds, len(entry.contributions))
        for before, entry in pairwise(log.entries)
        if (seconds := entry.record.time_seconds - before.record.time_seconds) > 0
        and (tokens := sum(contribution.tokens for _, contribution in entry.contributions))
    ]


def _mean(first: Sample, second: Sample) -> Sample:
    return Sample(
        first.time, (first.tokens_per_second + second.tokens_per_second) / 2, (first.peers + second.peers) / 2
    )
