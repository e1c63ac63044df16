"""What happened lately, as the sequencer saw it: when each peer did what in each round, who came and went, how fast.

Fed with the sequencer's own events (`Leader.on_step`) and with the time; pure and bounded. It starts empty with the
process: what is older comes from the log, which knows records but not who waited for whom.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from peer.rounds.events import Checked, Closing, Effect, Event, Gone, Heard, Left, Offered, Pause, Publish, Refuse

ROUNDS_KEPT = 12
INCIDENTS_KEPT = 200
SAMPLES_KEPT = 720
SAMPLE_SECONDS = 5.0
PEERS_PER_ROUND = 1024

IncidentKind = Literal[
    "joined", "left", "gone", "refused", "late", "resync", "lead", "paused", "checkpoint", "finished", "note"
]


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
    kind: IncidentKind
    round: int  # the open one
    text: str


@dataclass(frozen=True)
class Sample:
    time: float  # Unix seconds
    tokens_per_second: float
    peers: float  # a mean, once samples are merged


class Timeline:
    """Bounded memory of a run's last hours. `name_of` says what a peer is called, at the moment it is asked."""

    def __init__(
        self, open_round: int, now: float, name_of: Callable[[bytes], str], samples: Iterable[Sample] = ()
    ) -> None:
        self.started = now
        self.name_of = name_of
        self.rounds: dict[int, RoundMarks] = {open_round: RoundMarks(open_round, opened=now)}
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS_KEPT)
        self.counts: Counter[str] = Counter()  # of incidents, by kind, since the start
        self.samples = list(samples)
        self._every_seconds = SAMPLE_SECONDS
        self._phases: dict[bytes, str] = {}  # of the peers that are here
        self._open = open_round

    def step(self, event: Event, effects: Iterable[Effect], now: float) -> None:
        """Take in one step of the sequencer. `now`: Unix seconds."""
        effects = list(effects)
        match event:
            case Heard():
                self._heard(event, now)
            case Left(peer):
                if self._phases.pop(peer, None) is not None:
                    self.tell(now, "left", f"{self.name_of(peer)} left")
            case Offered(submission):
                if not any(isinstance(effect, Refuse) for effect in effects):
                    self._round().of(submission.peer).handed_in = now
            case Checked(peer, _, _, reason):
                if reason:
                    self._round().of(peer).outcome = "refused"
                else:
                    self._round().of(peer).arrived = now
            case Pause(paused):
                self.tell(now, "paused", "paused by the organiser" if paused else "the organiser lets training go on")
        for effect in effects:
            match effect:
                case Closing(round_):
                    self._round(round_).closing = now
                case Publish():
                    self._published(effect, now)
                case Gone(peer):
                    if self._phases.pop(peer, None) is not None:
                        self.tell(now, "gone", f"{self.name_of(peer)} is not heard of any more")

    def tell(self, now: float, kind: IncidentKind, text: str) -> None:
        self.counts[kind] += 1
        self.incidents.append(Incident(now, kind, self._open, text))

    def sample(self, now: float, tokens_per_second: float, peers: int) -> None:
        """Remember how fast it goes, if it is time; when there are many samples, the pace of sampling halves."""
        if self.samples and now - self.samples[-1].time < self._every_seconds:
            return
        self.samples.append(Sample(now, tokens_per_second, peers))
        if len(self.samples) > SAMPLES_KEPT:
            self.samples = [_mean(*pair) for pair in zip(self.samples[::2], self.samples[1::2], strict=False)]
            self._every_seconds *= 2

    def _heard(self, event: Heard, now: float) -> None:
        peer, known = event.peer, self._phases.get(event.peer)
        if known is None:
            self.tell(now, "joined", f"{self.name_of(peer)} joined")
        elif event.phase == "syncing" and known != "syncing":
            self.tell(now, "resync", f"{self.name_of(peer)} is loading the swarm's state again")
        self._phases[peer] = event.phase
        before, after = self.rounds.get(event.head_round), self.rounds.get(event.head_round + 1)
        if before is not None and before.published is not None and before.of(peer).applied is None:
            before.of(peer).applied = now
        if after is not None and event.phase != "syncing":
            marks = after.of(peer)
            marks.started = marks.started or now
            marks.tokens = max(marks.tokens, event.round_tokens)

    def _published(self, effect: Publish, now: float) -> None:
        marks = self._round(effect.round)
        marks.published = now
        for item in effect.accepted:
            marks.of(item.peer).tokens = item.tokens
            marks.of(item.peer).outcome = "accepted"
        for refusal in effect.refused:
            one = marks.of(refusal.peer)
            waited_for = one.handed_in is not None and one.outcome != "refused"
            one.outcome = "late" if waited_for else "refused"
            kind: IncidentKind = "late" if one.outcome == "late" else "refused"
            self.tell(now, kind, f"{self.name_of(refusal.peer)}'s contribution was not merged: {refusal.reason}")
        self._open = effect.round + 1
        self._round()

    def _round(self, round_: int | None = None) -> RoundMarks:
        round_ = self._open if round_ is None else round_
        if round_ not in self.rounds:
            before = self.rounds.get(round_ - 1)
            self.rounds[round_] = RoundMarks(round_, opened=before.published if before else None)
            for old in sorted(self.rounds)[:-ROUNDS_KEPT]:
                del self.rounds[old]
        return self.rounds[round_]


def samples_of(records: Sequence[tuple[float, int, int]]) -> list[Sample]:
    """The speed of what was merged: what the log knows of the time before this process.

    Args:
        records: (time in Unix seconds, accepted tokens, contributions), consecutive.
    """
    found = [
        Sample(end, tokens / (end - start), contributions)
        for (start, _, _), (end, tokens, contributions) in pairwise(records)
        if end > start and tokens
    ]
    while len(found) > SAMPLES_KEPT:
        found = [_mean(*pair) for pair in zip(found[::2], found[1::2], strict=False)]
    return found


def _mean(first: Sample, second: Sample) -> Sample:
    return Sample(
        first.time, (first.tokens_per_second + second.tokens_per_second) / 2, (first.peers + second.peers) / 2
    )
