"""Watching a run and writing it down: what the leader sees becomes history, what the log says becomes the ledger.

Nothing here waits for the database: everything is queued (`Store.put`), heartbeats are summed up and stored every
`FLUSH_SECONDS`. That the ledger follows the log does not depend on being told of every record: the loop looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from coordinator.store import Store, fold, history
from coordinator.store.history import Kind, Sample, Sighting, Span
from peer.identity import PeerId
from peer.log.chain import Entry, Log
from peer.rounds import sequencer
from peer.rounds.leader import Leader

FLUSH_SECONDS = 5.0
THIN_EVERY = 720  # flushes: an hour


@dataclass
class Seen:
    """A live peer since the last flush."""

    phase: str
    since: float  # Unix seconds: when the phase began
    round: int  # open then
    counted_until: float  # up to when its uptime is in the database
    bytes_sent: int  # as it last reported, and as is in the database
    bytes_received: int


class Recorder:
    """One for one leader; `run` beside it."""

    def __init__(self, store: Store, log: Log, leader: Leader, eval_loss: Callable[[], float | None]) -> None:
        self.store = store
        self.log = log
        self.leader = leader
        self.eval_loss = eval_loss
        self.clock: Callable[[], float] = time.time
        self._seen: dict[bytes, Seen] = {}
        self._spans: list[Span] = []
        self.name_of: Callable[[PeerId], str] = leader.name_of
        self.on_note: Callable[[float, Kind, int, str], None] = lambda when, kind, round_, words: None
        self._sequencer = log.head.signed.signer
        self._followed = b""  # hash of the head that the ledger was last told to follow

    async def run(self) -> None:
        """Until cancelled."""
        self.store.put(history.time_round, self._open_round, "opened", self.clock())
        flushes = 0
        while True:
            self.follow()
            self.flush()
            if flushes % THIN_EVERY == 0:
                self.store.put(history.thin_samples, self.clock())
            flushes += 1
            await asyncio.sleep(FLUSH_SECONDS)

    def note(self, kind: Kind, words: str, key: bytes | None = None) -> None:
        """A line for the feed; `key`: the public key of the peer that it is about."""
        now = self.clock()
        self.store.put(history.add_incident, now, kind, self._open_round, words, key)
        self.on_note(now, kind, self._open_round, words)

    def applied(self, entry: Entry) -> None:
        """A record is in the log and its contributions are in the weights here."""
        self.store.put(history.time_round, entry.round, "applied", self.clock())
        signer = entry.signed.signer
        if signer != self._sequencer:
            self._sequencer = signer
            self.note("failover", f"{self._name(signer)} sequences the run from round {entry.round} on", signer)
        self.follow()

    def follow(self) -> None:
        """Let the ledger catch up with the log, in as many transactions as it takes."""
        if self.log.head.hash != self._followed:
            self._followed = self.log.head.hash
            self.store.put(self._follow)

    def _follow(self, connection: Connection) -> None:  # in the writer's thread
        before = fold.newest_round(connection)
        agreed, complete = fold.follow(connection, self.log)
        if agreed < before:
            words = f"rounds {agreed + 1} to {before} are taken back: the log went on another way"
            history.add_incident(connection, self.clock(), "rollback", agreed, words)
        if not complete:
            self.store.put(self._follow)

    # --- what the leader sees ---------------------------------------------------------------------------------------

    def step(self, event: sequencer.Event, effects: list[sequencer.Effect]) -> None:
        """For `Leader.on_step`."""
        now = self.clock()
        match event:
            case sequencer.Heard(peer=peer, phase=phase):
                self._hear(peer, phase, now)
            case sequencer.Left(peer):
                self._forget(peer, now, "left", "left")
            case sequencer.Pause(paused):
                self.note("admin", "paused by the organiser" if paused else "the organiser lets training go on")
        for effect in effects:
            match effect:
                case sequencer.Closing(round_):
                    self.store.put(history.time_round, round_, "closing", now)
                case sequencer.Publish():
                    self._published(effect, now)
                case sequencer.Gone(peer):
                    self._forget(peer, now, "gone", "is gone without a word")

    def _hear(self, peer: bytes, phase: str, now: float) -> None:
        guest = self.leader.guests[PeerId(peer)].presence
        seen = self._seen.get(peer)
        if seen is None:
            self.note("joined", f"{self._name(peer)} joined", peer)
            self._seen[peer] = Seen(phase, now, self._open_round, now, guest.bytes_sent, guest.bytes_received)
        elif seen.phase != phase:
            if phase == "syncing":
                self.note("resync", f"{self._name(peer)} is loading the swarm's state again", peer)
            self._end_span(peer, seen, now)
            seen.phase, seen.since, seen.round = phase, now, self._open_round

    def _forget(self, peer: bytes, now: float, kind: Kind, words: str) -> None:
        if seen := self._seen.pop(peer, None):
            self._end_span(peer, seen, now)
            self.note(kind, f"{self._name(peer)} {words}", peer)

    def _end_span(self, peer: bytes, seen: Seen, now: float) -> None:
        self._spans.append(Span(seen.round, peer, seen.phase, seen.since, now))

    def _published(self, effect: sequencer.Publish, now: float) -> None:
        self.store.put(history.time_round, effect.round, "published", now)
        self.store.put(history.time_round, effect.round + 1, "opened", now)
        for item in effect.refused:
            name = self._name(item.peer)
            self.note("refused", f"contribution of {name} to round {effect.round} refused: {item.reason}", item.peer)

    # --- flushing ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Queue what has come together: spans, sightings and one sample."""
        now = self.clock()
        for peer in [key for key in self._seen if PeerId(key) not in self.leader.guests]:
            self._forget(peer, now, "left", "is not in sight: another node leads")
        if self._spans:
            self.store.put(history.add_spans, self._spans)
            self._spans = []
        if sightings := [self._sighting(key, seen, now) for key, seen in self._seen.items()]:
            self.store.put(history.see_peers, sightings)
        exchange, accounts = self.leader.replica.exchange, self.log.accounts
        self.store.put(
            history.add_sample,
            Sample(
                now, self._open_round, accounts.tokens, self.leader.tokens_per_second, len(self._seen),
                accounts.loss, self.eval_loss(), exchange.bytes_sent, exchange.bytes_received,
            ),
        )  # fmt: skip

    def _sighting(self, key: bytes, seen: Seen, now: float) -> Sighting:
        told = self.leader.guests[PeerId(key)].presence
        # A peer that was started again counts from nothing. What it claims is shown, never credited.
        sent = told.bytes_sent - seen.bytes_sent if told.bytes_sent >= seen.bytes_sent else told.bytes_sent
        received = (
            told.bytes_received - seen.bytes_received
            if told.bytes_received >= seen.bytes_received
            else told.bytes_received
        )
        sighting = Sighting(
            key, told.name, told.team, told.hardware, now, max(0.0, now - seen.counted_until),
            min(sent, fold.MAX_INTEGER >> 20), min(received, fold.MAX_INTEGER >> 20),
        )  # fmt: skip
        seen.counted_until, seen.bytes_sent, seen.bytes_received = now, told.bytes_sent, told.bytes_received
        return sighting

    # --- words ------------------------------------------------------------------------------------------------------

    @property
    def _open_round(self) -> int:
        return self.log.head.round + (not self.log.finished)

    def _name(self, peer: bytes) -> str:
        return self.name_of(PeerId(peer))
