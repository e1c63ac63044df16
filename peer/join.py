"""From a ticket to a running peer: connect, learn what the run is, put a node together, and let it live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from blake3 import blake3

from peer.background import cancel
from peer.data.feed import Feed, LeasedFeed, PrivateFeed
from peer.data.manifest import Manifest
from peer.data.order import order_key
from peer.data.private import PrivateRows
from peer.data.reader import ShardReader
from peer.data.sources import BlobSource, LocationSource, Source
from peer.errors import UnreachableError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.identity import Identity, PeerId
from peer.invitation import admission
from peer.log.chain import Log
from peer.log.replica import CALL_SECONDS, Replica
from peer.log.state import State
from peer.manners import settings as owner
from peer.manners.machine import Machine, open_gpu
from peer.manners.settings import Overrides, Settings
from peer.manners.steward import Steward
from peer.messages import parse
from peer.node import Node
from peer.presence import Labels
from peer.pulse import Pulse
from peer.rounds.contacts import Contacts
from peer.rounds.contributor import Contributor
from peer.rounds.link import Link
from peer.swarm import HivemindSwarm, Swarm
from peer.ticket import MAX_OTHERS, Ticket
from peer.training import fit, ranks
from peer.training.hardware import Hardware, choose_hardware, device_count
from peer.training.tasks import build_model, load_task
from peer.training.trainer import Trainer
from protos import swarm_pb2

logger = logging.getLogger(__name__)

TICKET_SECONDS = 5.0  # between two looks whether the ticket in the folder should name others
FETCH_SECONDS = 120.0  # for the manifest
IDENTITY_FILE = "identity.key"


@dataclass(frozen=True)
class JoinOptions:
    folder: Path
    name: str = ""
    team: str = ""
    device: str = "auto"
    overrides: Overrides = field(default_factory=dict)  # of the folder's settings
    processes: int = 1  # local devices that take part as one peer; 0: as many as there are GPUs
    rounds: int = 0  # contribute to so many, then leave; 0: until the run ends
    private_data: str = ""  # train on these local files instead of the run's data
    private_data_name: str = "private"  # what the records call it
    invite: str = ""  # an invitation to an invite-only run
    home: Path | None = None  # where the identity lies, unless the folder has one of its own

    def identity(self) -> Identity:
        """The folder's; or the one that this person's runs share, made at the first start."""
        own = self.folder / IDENTITY_FILE
        return Identity.load_or_create(own if own.exists() or self.home is None else self.home / IDENTITY_FILE)


@dataclass(frozen=True)
class Report:
    """What `join --json` prints."""

    peer_id: str
    run_id: str
    rounds_contributed: int
    tokens: int
    credit_tokens: int
    head_round: int
    state_digest: str
    compute_seconds: float
    wall_seconds: float
    bytes_sent: int
    bytes_received: int


@contextlib.asynccontextmanager
async def joined(ticket: Ticket, options: JoinOptions, on_event: Callable[[str], None]) -> AsyncIterator[Node]:
    """A node in the swarm of `ticket` that knows the run; `await node.run()` makes it take part.

    Raises:
        UnreachableError: nobody answers at the ticket's addresses.
        UsageError: the device, folder or port cannot be used.
        VerificationError: the folder holds another run, or a damaged log.
    """
    choose_hardware(options.device)  # a wrong --device is said before anything is started
    identity = options.identity()
    port = owner.load(owner.ensure(options.folder), options.overrides).network.port
    bootstrap = list({**ticket.contacts, **others(ticket, options.folder)}.items())
    async with (
        await HivemindSwarm.create(identity, port=port, bootstrap=bootstrap) as swarm,
        assembled(swarm, identity, ticket, options, on_event) as node,
    ):
        yield node


@contextlib.asynccontextmanager
async def assembled(
    swarm: Swarm, identity: Identity, ticket: Ticket, options: JoinOptions, on_event: Callable[[str], None]
) -> AsyncIterator[Node]:
    """The parts of a node put together on a swarm that is up."""
    folder = options.folder
    hardware = choose_hardware(options.device)
    link = Link(swarm, ticket.run_id, ticket.coordinator, ticket.contacts[ticket.coordinator], Pulse(), on_event)
    try:
        await link.connect()
    except UnreachableError:
        if not await link.connect_through(others(ticket, folder)):
            raise
        on_event("the coordinator does not answer; joining through other peers")
    log = await _open_log(link, ticket, folder / "log")
    admitted = await admission(swarm, log, folder, options.invite)
    store = BlobStore(folder / "blobs")
    steward = Steward(folder, options.overrides, Machine(open_gpu(hardware.uuid)), on_event)
    await steward.look()
    exchange = Exchange(swarm, store, admission=lambda peer, blob: _not_at_home(steward))
    manifest = await _fetch_manifest(log, exchange, link.sources)
    trainer, state = await asyncio.to_thread(_build, log, manifest, hardware, options)
    replica = Replica(folder, log, state, exchange, lambda: link.sources)
    contributor = Contributor(folder, identity, replica, trainer)
    contributor.on_event = on_event

    async def fetch(hash_: bytes, size: int) -> Path:
        await replica.fetch_blob(hash_, size)
        return store.path(hash_)

    try:
        await replica.restore()
        replica.serve(swarm)
        sources: list[Source] = [LocationSource(mirror) for mirror in log.spec.data.mirrors]
        sources.append(BlobSource(fetch, store.delete))
        async with ShardReader(
            manifest,
            folder / "data",
            sources,
            key=order_key(log.spec.run.seed),
            taken_bytes=lambda: store.total_bytes,  # shards are blobs too, without lying there twice
            keep=lambda entry, path: store.adopt(path, bytes.fromhex(entry.blake3)),
            forget=lambda entry: store.delete(bytes.fromhex(entry.blake3)),
        ) as reader:

            def apply(settings: Settings) -> None:
                exchange.upload.set_rate(settings.network.upload_bytes_per_second)
                exchange.download.set_rate(settings.network.download_bytes_per_second)
                reader.cache_bytes = settings.disk.cache_bytes

            feed: Feed
            if options.private_data:
                feed = await _private_feed(options, manifest, reader, identity)
            else:
                feed = LeasedFeed(reader, log.spec.data.sequence_length, log.spec.train.batch_sequences)
            labels = Labels(options.name, options.team, hardware.description)
            contributor.labels = labels
            node = Node(replica, link, contributor, feed, labels, options.rounds, steward)
            node.admission = admitted
            node.helm.serve()
            watching = asyncio.create_task(steward.watch(apply, link.changed.beat))
            watching.add_done_callback(_say_why)
            telling = asyncio.create_task(_keep_ticket(ticket, node, folder))
            try:
                yield node
            finally:
                await cancel(watching, telling)
    finally:
        contributor.close()
        await asyncio.to_thread(trainer.close)
        await exchange.close()
        replica.close()


def others(ticket: Ticket, folder: Path) -> dict[PeerId, list[str]]:
    """Who else may let this peer in: those it knew before, and those of the ticket, which come last and are asked
    first."""
    named = {peer: addresses for peer, addresses in ticket.contacts.items() if peer != ticket.coordinator}
    known = Contacts(folder / "contacts.json").addresses
    return {**{peer: known[peer] for peer in known if peer not in named}, **named}


def ticket_through(ticket: Ticket, node: Node) -> Ticket:
    """The same run by way of this node, if others can dial it, and of some that take part now and can be dialled."""
    swarm, contacts = node.link.swarm, node.helm.contacts.addresses
    sources = {PeerId(key) for key in node.link.view.sources} & contacts.keys()
    for peer in sorted(sources - {ticket.coordinator, swarm.peer_id})[-MAX_OTHERS:]:  # sorted: it changes when they do
        ticket = ticket.naming(peer, contacts[peer])
    return ticket.naming(swarm.peer_id, swarm.addresses) if swarm.addresses else ticket


async def _keep_ticket(ticket: Ticket, node: Node, folder: Path) -> None:
    """Have a ticket in the folder that lets newcomers in while the coordinator is away."""
    kept = None
    while True:
        current = ticket_through(ticket, node)
        if current != kept:
            kept = current
            with contextlib.suppress(OSError):  # a full disk is somebody else's to complain about
                current.save(folder)
        await asyncio.sleep(TICKET_SECONDS)


def _not_at_home(steward: Steward) -> str | None:
    return "this peer is on a metered link at the moment" if steward.verdict.offline else None


def _say_why(watching: asyncio.Task[None]) -> None:
    """The owner's wishes are not looked after any more: that must not pass in silence."""
    if not watching.cancelled() and (error := watching.exception()) is not None:
        logger.error("settings and sensors are not watched any more", exc_info=error)


async def _private_feed(
    options: JoinOptions, manifest: Manifest, reader: ShardReader, identity: Identity
) -> PrivateFeed:
    tokenizer = await reader.tokenizer_folder()
    key = blake3(identity.peer_id.public_key).digest()
    cache = options.folder / "private-data"
    rows = await PrivateRows.open(options.private_data, manifest, tokenizer, cache, key=key)
    return PrivateFeed(rows, options.private_data_name)


def report(node: Node) -> Report:
    log, tally = node.replica.log, node.tally
    return Report(
        peer_id=str(node.contributor.identity.peer_id),
        run_id=log.run_id.hex(),
        rounds_contributed=node.contributor.merged_rounds,
        tokens=tally.tokens,
        credit_tokens=log.accounts.credit.get(node.contributor.identity.peer_id.public_key, 0),
        head_round=node.replica.state.round,
        state_digest=node.replica.digest.hex(),
        compute_seconds=round(tally.compute_seconds, 3),
        wall_seconds=round(time.monotonic() - tally.started, 3),
        bytes_sent=node.replica.exchange.bytes_sent,
        bytes_received=node.replica.exchange.bytes_received,
    )


def _keep_fit(trainer: Trainer, hardware: Hardware, processes: int, options: JoinOptions) -> None:
    """Take up the micro-batch that an earlier start measured under the same circumstances, and keep the next one."""
    limit = owner.load(options.folder / owner.FILE_NAME, options.overrides).device.memory_gb
    length, batch = trainer.spec.data.sequence_length, trainer.spec.train.batch_sequences
    key = (
        f"{hardware.description}, {processes} processes, at most {limit:g} GB, {trainer.precision}, torch"
        f" {torch.__version__}, {trainer.parameters.count} parameters, {batch} x {length}"
    )
    trainer.on_fit = lambda sequences: fit.keep(options.folder, key, sequences)
    trainer.micro_batch_sequences = trainer.micro_batch_sequences or fit.recall(options.folder, key)


async def _open_log(link: Link, ticket: Ticket, folder: Path) -> Log:
    """This node's log of the ticket's run: from its folder, or begun with the genesis record that the swarm has."""
    if any(folder.glob("*.record")):
        log = await asyncio.to_thread(Log.load, folder, cut_damage=True)
        if log.run_id != ticket.run_id:
            raise VerificationError(
                f"{folder.parent} holds run {log.run_id.hex()[:16]}, the ticket is for {ticket.run_id.hex()[:16]}; "
                "use another --dir for another run"
            )
        return log
    request = swarm_pb2.RecordsRequest(run_id=ticket.run_id, first_round=0, count=1)
    answer = await link.swarm.call(link.sequencer, "records", request.SerializeToString(), timeout_seconds=CALL_SECONDS)
    records = parse(answer, swarm_pb2.RecordsReply).records
    if not records:
        raise UnreachableError("the coordinator sent no genesis record")
    return Log.start(records[0], folder, ticket.run_id)


async def _fetch_manifest(log: Log, exchange: Exchange, sources: list[PeerId]) -> Manifest:
    genesis = log.origin.genesis
    if not await asyncio.to_thread(exchange.store.check, genesis.manifest_hash):  # a disk may rot
        exchange.store.delete(genesis.manifest_hash)
        await exchange.fetch(genesis.manifest_hash, genesis.manifest_bytes, sources, deadline_seconds=FETCH_SECONDS)
    return Manifest.from_json(exchange.store.read(genesis.manifest_hash), source="the run's data manifest")


def _build(log: Log, manifest: Manifest, hardware: Hardware, options: JoinOptions) -> tuple[Trainer, State]:
    """The model on its device, and the state before the first round (round -1 if this machine draws other weights)."""
    spec, genesis = log.spec, log.origin.genesis
    model = build_model(spec, manifest.vocab_size, manifest.end_of_text)
    processes = options.processes or device_count(hardware)
    team = ranks.start(processes, spec, manifest.vocab_size, manifest.end_of_text, hardware.device)
    trainer = Trainer(spec, load_task(spec.model.task), model, hardware.device, team)
    _keep_fit(trainer, hardware, processes, options)
    if trainer.parameters.count != genesis.parameters:
        raise VerificationError(
            f"this version's model has {trainer.parameters.count} parameters, the run's {genesis.parameters}; "
            "install the version that the run uses"
        )
    state = State.initial(trainer.parameters.read(), spec.outer.momentum > 0)
    if state.digest() != genesis.state_digest:
        logger.info("this machine draws other initial weights than the coordinator's; fetching them")
        state.round = -1
    return trainer, state
