"""A coordinator at work: a replica that leads, archives, evaluates and answers questions. `serve` puts it together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from coordinator.access import Doorkeeper
from coordinator.names import Names
from coordinator.observer import Observer
from coordinator.recorder import Recorder
from coordinator.store import Store, queries
from coordinator.store.history import Kind
from coordinator.web.timeline import INCIDENTS_KEPT, Incident, Sample, Timeline, samples_of
from peer.background import cancel
from peer.identity import PeerId
from peer.log.chain import Entry
from peer.log.progress import eta_seconds
from peer.log.terms import Terms
from peer.rounds.contacts import Contacts
from peer.rounds.events import Effect, Event, Heard
from peer.rounds.helm import Helm
from peer.rounds.leader import Leader
from peer.rounds.link import Link
from peer.rounds.upkeep import Upkeep
from peer.swarm import Swarm
from peer.ticket import Ticket
from protos import coordinator_pb2

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


class Coordinator:
    """A run in progress, as the API, the page and the console see it."""

    def __init__(
        self, folder: Path, store: Store, observer: Observer, link: Link, leader: Leader, names: Names
    ) -> None:
        self.folder = folder
        self.store = store
        replica = self.replica = observer.replica
        self.log = replica.log
        self.observer = observer
        self.evaluator = observer.evaluator
        self.archive = observer.archive
        self.link = link
        self.swarm: Swarm = link.swarm
        self.leader = leader
        self.upkeep = Upkeep(replica, link, leader, self, self._telling("resync"))
        contacts = Contacts(folder / "contacts.json")
        self.helm = Helm(self.upkeep, link, leader, contacts, Terms(folder), self._telling("failover"))
        self.names_book = names
        self.on_event: Callable[[str], None] = lambda text: None
        observer.on_event = self._telling("note")
        observer.on_checkpoint = self._telling("checkpoint")
        leader.on_event = self._event
        link.on_event = self._telling("note")
        leader.on_step = self._stepped
        self.ticket: Ticket | None = None
        self.page_address = ""
        self.recorder = Recorder(store, self.log, leader, self._eval_loss)
        self.timeline: Timeline = Timeline(self.log.head.round + 1, time.time(), lambda key: names.of(PeerId(key)))
        self.recorder.on_note = self.timeline.tell
        self.recorder.name_of = names.of
        self.doorkeeper = Doorkeeper(leader.identity, self.log, store, leader.gate)
        self._snapshotting: asyncio.Task[None] | None = None

    @property
    def names(self) -> dict[str, str]:
        return self.names_book.by_id

    @property
    def swarm_addresses(self) -> list[str]:
        return self.swarm.addresses

    @property
    def checkpoint(self) -> str:
        """Folder of the newest checkpoint; empty: none yet."""
        newest = self.archive.newest
        return str(self.archive.folder_of(newest.round)) if newest else ""

    async def run(self) -> None:
        """Lead, or follow whoever led meanwhile until it hands over, until the run is finished; then evaluate and
        export what came out."""
        if self.evaluator.newest is None:
            self.observer.after_round(self.replica.state.round)
        beside = (self.helm.run(), self.upkeep.run(), self.link.follow(), self.recorder.run())
        tasks = [asyncio.create_task(task) for task in beside]
        try:
            while not (self.log.finished and self.replica.state.round == self.log.head.round):
                await self.link.changed.wait(LOOK_SECONDS)
                for task in tasks:
                    if task.done():
                        task.result()  # they end with an error only
        finally:
            await cancel(*tasks)
            if self._snapshotting is not None:
                await asyncio.wait([self._snapshotting])
        await self.settle()
        self.recorder.flush()

    async def apply(self) -> None:
        await self.replica.apply_next()

    async def change_over(self, change: Callable[[], Awaitable[list[Entry]]]) -> None:
        await change()

    async def settle(self) -> None:
        """Bring snapshot, evaluation and checkpoint up to the head."""
        await self._keep_snapshot()
        await self.observer.finish()

    async def checkpoint_now(self) -> str:
        """Evaluate and export the present state; where the checkpoint lies."""
        await self.observer.checkpoint_now()
        return self.checkpoint

    def status(self) -> coordinator_pb2.StatusReply:
        """Where the run stands now."""
        log, run = self.log, self.log.spec.run
        now = asyncio.get_running_loop().time()
        evaluation = self.evaluator.newest
        return coordinator_pb2.StatusReply(
            run_id=log.run_id.hex(),
            name=run.name,
            round=log.head.round - log.head.record.final,
            tokens=log.accounts.tokens,
            target_tokens=run.tokens,
            target_rounds=run.rounds,
            eta_seconds=eta_seconds(log),
            loss=-1.0 if log.accounts.loss is None else log.accounts.loss,
            eval_loss=evaluation.loss if evaluation else -1.0,
            tokens_per_second=self.leader.tokens_per_second,
            peers=[self._peer_status(peer, now) for peer in sorted(self.leader.guests)],
            sequencer=str(self.link.sequencer),
            checkpoint=self.checkpoint,
            state=self.leader.in_words,
            state_digest=self.replica.digest.hex(),
            finished=log.finished,
            sample=evaluation.sample if evaluation else "",
        )

    def _peer_status(self, peer: PeerId, now: float) -> coordinator_pb2.PeerStatus:
        guest = self.leader.guests[peer]
        presence = guest.presence
        return coordinator_pb2.PeerStatus(
            peer_id=str(peer),
            name=presence.name,
            team=presence.team,
            phase=presence.phase,
            head_round=presence.head_round,
            round_tokens=presence.tokens,
            tokens_per_second=presence.tokens_per_second,
            loss=presence.loss,
            credit_tokens=self.log.accounts.credit.get(peer.public_key, 0),
            hardware=presence.hardware,
            bytes_sent=presence.bytes_sent,
            bytes_received=presence.bytes_received,
            seen_seconds_ago=now - guest.seen,
        )

    def _event(self, text: str) -> None:
        logger.info("%s", text)
        self.on_event(text)

    def _telling(self, kind: Kind) -> Callable[[str], None]:
        """What is said goes to the terminal, and into the feed as this kind."""

        def tell(text: str) -> None:
            self._event(text)
            self.recorder.note(kind, text)

        return tell

    async def remember(self) -> None:
        """What the page showed before this process."""
        told = await self.store.read(queries.incidents_page, size=INCIDENTS_KEPT)
        samples = await self.store.read(queries.samples_since, 0.0)
        self.timeline.recall(
            [Incident(it.time_seconds, it.kind, it.round, it.text) for it in reversed(told)],
            [Sample(row.time_seconds, row.tokens_per_second, row.peers) for row in samples] or samples_of(self.log),
        )

    def _eval_loss(self) -> float | None:
        return self.evaluator.newest.loss if self.evaluator.newest else None

    def _stepped(self, event: Event, effects: list[Effect]) -> None:
        if isinstance(event, Heard):
            peer = PeerId(event.peer)
            if (guest := self.leader.guests.get(peer)) is not None:
                self.names_book.remember([(peer, guest.presence.name, guest.presence.team)])
        self.recorder.step(event, effects)
        self.timeline.step(event, effects, time.time(), self.log.head.round + 1)

    async def after_round(self, entry: Entry) -> None:
        round_ = entry.round
        self.recorder.applied(entry)
        if not entry.record.final:
            loss = self.log.accounts.loss
            what = "no contributions" if loss is None else f"{len(entry.contributions)} contributions, loss {loss:.4f}"
            self._event(f"round {round_}: {what}")
            self.observer.after_round(round_)
            self.observer.trackers.log(self._figures(entry), round_)
        if round_ % self.log.spec.snapshots.every_rounds == 0:
            self._snapshotting = asyncio.create_task(self._keep_snapshot())

    def _figures(self, entry: Entry) -> dict[str, float]:
        """Of a round, for trackers."""
        accounts, peers = self.log.accounts, len(self.leader.state.members)
        loss = {} if accounts.loss is None else {"loss": accounts.loss}
        speed = self.leader.tokens_per_second
        counts = {"tokens": accounts.tokens, "peers": peers, "contributions": len(entry.contributions)}
        return {**loss, **counts, "tokens_per_second": speed}

    async def _keep_snapshot(self) -> None:
        await self.replica.keep_snapshot(self.log.spec.snapshots.keep, always=frozenset([0]))
