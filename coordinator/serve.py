"""The life of a coordinator: a replica that leads, archives, evaluates and answers questions.

It may be killed at any moment. Everything it needs again is in its folder: identity, data, log, blobs, snapshots;
leases are presented again by the peers that hold them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from configs import RunSpec
from coordinator.access import Doorkeeper
from coordinator.api.server import served
from coordinator.api.tls import ServerCertificate, given_certificate, own_certificate
from coordinator.api.token import admin_token
from coordinator.genesis import create
from coordinator.names import Names
from coordinator.observer import Observer, observer_of
from coordinator.rebuild import rebuild
from coordinator.recorder import Recorder
from coordinator.recover import recover_snapshots
from coordinator.settings import Settings
from coordinator.store import Store, open_store, queries
from coordinator.store.database import default_url
from coordinator.store.history import Kind
from coordinator.web.publisher import published
from coordinator.web.timeline import INCIDENTS_KEPT, Incident, Sample, Timeline, samples_of
from peer.background import cancel
from peer.errors import CommonweightsError, UnreachableError, UsageError
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.exchange.measure import Measuring
from peer.identity import Identity, PeerId
from peer.log.chain import Entry, Log
from peer.log.progress import eta_seconds
from peer.log.replica import Replica
from peer.log.state import State
from peer.log.terms import Terms
from peer.pulse import Pulse
from peer.rounds.contacts import Contacts
from peer.rounds.events import Effect, Event, Heard
from peer.rounds.helm import Helm
from peer.rounds.leader import Leader
from peer.rounds.link import Link
from peer.rounds.upkeep import Upkeep
from peer.swarm import HivemindSwarm, Swarm
from peer.swarm.multiaddr import split_peer
from peer.ticket import Ticket
from protos import coordinator_pb2

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class ServeOptions:
    folder: Path
    host: str = ""  # the name or address that others reach this machine at; empty: what it sees itself
    grpc_port: int = 0
    swarm_port: int = 0
    web_ports: tuple[int, ...] = ()  # for the page, the first that is free (0: any); none: no page
    database: str = ""  # URL; empty: FOLDER/database.sqlite
    tls: bool = False  # with a certificate made for the run, unless one is given
    tls_certificate: Path | None = None  # PEM files
    tls_key: Path | None = None
    paused: bool = False
    recover: bool = False  # the folder is lost: begin it again from the peers
    identity: Path | None = None  # a backup of the run's key, for a folder that has none
    peers: tuple[str, ...] = ()  # multiaddrs with /p2p, where some of them are
    settings: Settings = field(default_factory=Settings)


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


@contextlib.asynccontextmanager
async def coordinating(
    spec: RunSpec, options: ServeOptions, on_event: Callable[[str], None] = lambda text: None
) -> AsyncIterator[Coordinator]:
    """The run in `options.folder`, made if it is not there yet, with its API up and its ticket written.

    Raises:
        UsageError: a port is in use, or the folder holds a run of another spec.
        CommonweightsError: the data cannot be prepared, the folder not be written or not be read again.
    """
    folder = options.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--dir {folder}: cannot be made: {error.strerror}") from None
    identity = own_identity(options, on_event)
    lost = options.recover and not any((folder / "log").glob("*.record"))
    log = None if lost else await asyncio.to_thread(open_run, spec, folder, identity)
    loopback = options.host in ("localhost", "127.0.0.1")
    announce = [f"{_ip(options.host)}/tcp/{options.swarm_port}"] if options.host and options.swarm_port else []
    async with await HivemindSwarm.create(
        identity,
        listen_host=bind_address(options.host),
        port=options.swarm_port,
        announce_addresses=announce,
        bootstrap=[_contact(address) for address in options.peers],
        bootstrap_required=False,
        map_port=False,
        public=not loopback,
    ) as swarm:
        log = log or await rebuild(spec, folder, identity, swarm, on_event)
        async with leading(log, swarm, identity, options, on_event) as coordinator:
            yield coordinator


@contextlib.asynccontextmanager
async def leading(
    log: Log, swarm: Swarm, identity: Identity, options: ServeOptions, on_event: Callable[[str], None]
) -> AsyncIterator[Coordinator]:
    """The parts of a coordinator put together on a swarm that is up."""
    database = options.database or default_url(options.folder)
    with await asyncio.to_thread(open_store, database, log.run_id) as store:
        async with _leading(log, swarm, identity, options, on_event, store) as coordinator:
            yield coordinator


@contextlib.asynccontextmanager
async def _leading(
    log: Log,
    swarm: Swarm,
    identity: Identity,
    options: ServeOptions,
    on_event: Callable[[str], None],
    store: Store,
) -> AsyncIterator[Coordinator]:
    folder = options.folder
    state = State.empty(log.origin.genesis.parameters, log.spec.outer.momentum > 0)
    state.round = -1  # none yet
    link = Link(swarm, log.run_id, identity.peer_id, [], Pulse(), on_event)
    replica = Replica(folder, log, state, Exchange(swarm, BlobStore(folder / "blobs")), lambda: link.sources)
    try:
        if not await replica.restore():
            await asyncio.to_thread(recover_snapshots, folder, log, replica.snapshots, on_event)
        if not (replica.state.round >= 0 or await replica.restore()):
            raise CommonweightsError(f"{folder}/snapshots holds no usable state; restore the folder from a backup")
        with contextlib.suppress(UnreachableError):  # payloads that only peers have, of rounds that one of them led
            await replica.catch_up()
        names = Names(folder / "names.json")
        leader = Leader(replica, swarm, identity, paused=options.paused)
        observer = observer_of(folder, replica, identity, names, options.settings)
        coordinator = Coordinator(folder, store, observer, link, leader, names)
        coordinator.on_event = on_event
        replica.serve(swarm)
        coordinator.helm.serve()
        Measuring(swarm, replica.exchange.upload)
        await coordinator.remember()
        await coordinator.doorkeeper.restore()
        coordinator.doorkeeper.serve(swarm)
        certificate, token = server_certificate(options), admin_token(folder, create=True)
        bind, host = bind_address(options.host), options.host or _first_host(swarm.addresses)
        async with (
            observer,
            served(coordinator, bind, options.grpc_port, token, certificate) as grpc_port,
            published(coordinator, bind, options.web_ports, host) as coordinator.page_address,
        ):
            ticket = Ticket(
                log.run_id, identity.peer_id, (f"{host}:{grpc_port}",), tuple(swarm.addresses),
                tls=certificate is not None, certificate_hash=certificate.hash if certificate else b"",
            )  # fmt: skip
            ticket.save(folder)
            coordinator.ticket = ticket
            try:
                yield coordinator
            finally:
                names.save()
    finally:
        await replica.exchange.close()
        replica.close()


def own_identity(options: ServeOptions, on_event: Callable[[str], None]) -> Identity:
    """The key in the folder, or the backup that is named, or for a new run a new one.

    Raises:
        UsageError: to recover a run, its key is needed.
    """
    path = options.folder / "identity.key"
    if options.identity is not None and not path.exists():
        Identity.load(options.identity).save(path)
    if not path.exists():
        if options.recover:
            raise UsageError(f"--recover: {path} is missing; give the backup of the run's key with --identity FILE")
        on_event(f"keep a copy of {path} somewhere safe: with it the run can be recovered from its peers (--recover)")
    return Identity.load_or_create(path)


def _contact(address: str) -> tuple[PeerId, list[str]]:
    bare, peer = split_peer(address)
    if peer is None:
        raise UsageError(f"--peer {address}: the peer's id is missing; write /ip4/ADDRESS/tcp/PORT/p2p/ID")
    return peer, [bare]


def server_certificate(options: ServeOptions) -> ServerCertificate | None:
    """What the API shows; None: it speaks in the clear. Raises UsageError."""
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise UsageError("--tls-certificate and --tls-key go together")
    if options.tls_certificate is not None and options.tls_key is not None:
        return given_certificate(options.tls_certificate, options.tls_key)
    return own_certificate(options.folder) if options.tls else None


def bind_address(host: str) -> str:
    """Loopback when that is where others are told to come, else every interface."""
    return "127.0.0.1" if host in ("localhost", "127.0.0.1") else "0.0.0.0"


def open_run(spec: RunSpec, folder: Path, identity: Identity) -> Log:
    """The run in `folder`; made from `spec` when there is none.

    Raises:
        UsageError: it was made from another spec.
    """
    if not any((folder / "log").glob("*.record")):
        return create(spec, folder, identity)
    log = Log.load(folder / "log", cut_damage=True)  # peers may have what is damaged here
    if log.spec != spec:
        changed = ", ".join(differences(log.spec, spec))
        raise UsageError(
            f"{folder} holds a run with other settings ({changed}); a run's settings are fixed by its first record: "
            "use another --dir, or the config it was made from"
        )
    if log.origin.coordinator != identity.peer_id:
        raise UsageError(f"{folder}/identity.key is not the key that signed this run; put the right one back")
    return log


def differences(old: RunSpec, new: RunSpec) -> list[str]:
    """Keys whose values differ, as section.key."""
    before, after = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}"
        for section, values in before.items()
        for key in values
        if values[key] != after[section].get(key)
    ]


def _ip(host: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return f"/dns4/{host}"
    return f"/ip4/{host}"


def _first_host(addresses: list[str]) -> str:
    parts = addresses[0].split("/") if addresses else []
    return parts[2] if len(parts) > 2 else "127.0.0.1"
